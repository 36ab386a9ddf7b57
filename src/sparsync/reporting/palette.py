"""Colours, dashes, marks and short names: one look per label, the same in every figure and table.

The seven colours stay apart for the three common kinds of colour blindness; marks and dashes repeat what the colour
says. Each exists twice, for a light and for a dark page: figures are drawn in the light one, and the report maps it to
CSS variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DARK", "LIGHT", "MARKS", "Look", "looks", "printable", "short_names", "shortened"]

LIGHT = {
    "c0": "#0072b2",
    "c1": "#c4500a",
    "c2": "#00966b",
    "c3": "#a8327f",
    "c4": "#c98f00",
    "c5": "#4a98dc",
    "c6": "#5c4a3d",
    "ink": "#1b1f27",
    "soft": "#5a6270",
    "line": "#d5d9e0",
    "card": "#fefefe",
    "heat": "#3f83e8",
}
DARK = {
    "c0": "#3d8fd9",
    "c1": "#f07a35",
    "c2": "#12a578",
    "c3": "#d160b0",
    "c4": "#ffd35c",
    "c5": "#8fd0ff",
    "c6": "#f4f1ec",
    "ink": "#e9ebf0",
    "soft": "#a3abba",
    "line": "#363c48",
    "card": "#181b22",
    "heat": "#3f83e8",
}
_COLOURS = 7
MARKS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[tuple[float, ...], ...] = ((), (5.0, 2.0), (2.0, 1.5), (6.0, 1.5, 1.0, 1.5))


@dataclass(frozen=True)
class Look:
    """How one label is drawn: a key of :data:`LIGHT`, a matplotlib marker, and on/off lengths of its dashes."""

    key: str
    marker: str
    dashes: tuple[float, ...]

    @property
    def colour(self) -> str:
        """The colour on a light page."""
        return LIGHT[self.key]


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Give every label its look, by its position: colours first, then dashes."""
    given = {}
    for i, label in enumerate(labels):
        turn = i // _COLOURS
        given[label] = Look(f"c{i % _COLOURS}", MARKS[(i + turn) % len(MARKS)], _DASHES[turn % len(_DASHES)])
    return given


def short_names(labels: Sequence[str], width: int = 40) -> dict[str, str]:
    """Shorten names to at most ``width`` characters that can be drawn, and keep them apart.

    A name that fits stays. A longer spec, ``name:key=value,...``, loses settings that do not tell it from the others,
    the last ones first, and ends in an ellipsis; what is still too long, or no spec, loses its middle.

    Examples
    --------
    >>> short_names(["fda:threshold=2,depth=5", "fda:threshold=4,depth=5"], width=20)["fda:threshold=2,depth=5"]
    'fda:threshold=2,…'
    """
    short: dict[str, str] = {}
    for label in labels:
        text = printable(label if len(label) <= width else shortened(_without_shared(label, labels, width), width))
        number = 2
        while text in short.values():
            mark = f" ({number})"
            text = printable(shortened(label, width - len(mark))) + mark
            number += 1
        short[label] = text
    return short


def _without_shared(label: str, labels: Sequence[str], width: int) -> str:
    name, _, settings = label.partition(":")
    others = [set(o.partition(":")[2].split(",")) for o in labels if o != label and o.partition(":")[0] == name]
    kept = [setting for setting in settings.split(",") if setting]
    # Settings that every sibling shares go before those that only some do, and later ones before earlier ones.
    shared = [s for s in kept[::-1] if all(s in other for other in others)]
    for setting in [*shared, *(s for s in kept[::-1] if s not in shared)]:
        rest = [k for k in kept if k != setting]
        if not rest or any(other >= set(rest) for other in others):
            continue
        kept = rest
        text = f"{name}:{','.join(kept)},…"
        if len(text) <= width:
            return text
    return label


def shortened(text: str, width: int) -> str:
    """Take the middle out of a text that is too long."""
    if len(text) <= width:
        return text
    head = (width - 1) * 3 // 5
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def printable(text: str) -> str:
    """Replace what the figures' font cannot draw: a label is a user's text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
