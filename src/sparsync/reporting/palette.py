"""Colours, dashes, marks and short names: one look per label, the same in every figure and table.

Any two of the seven colours are at least 20 apart (CIEDE2000), as most people see them and under deuteranopia, on a
light page as on a dark one; marks and dashes repeat what the colour says, and tell apart where colours repeat. Each
exists twice, for a light and for a dark page: figures are drawn in the light one, and the report maps it to CSS
variables.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["DARK", "LIGHT", "MARKS", "LineLook", "code", "looks", "short_names", "shortened", "visible"]

LIGHT = {
    "c0": "#1a39f1",
    "c1": "#984101",
    "c2": "#209572",
    "c3": "#951169",
    "c4": "#c08910",
    "c5": "#3b9adc",
    "c6": "#382920",
    "ink": "#1b1f27",
    "soft": "#5a6270",
    "line": "#d5d9e0",
    "card": "#fefefe",
    "heat": "#3f83e8",
}
DARK = {
    "c0": "#0383e5",
    "c1": "#d26007",
    "c2": "#1cc48f",
    "c3": "#af5887",
    "c4": "#ffd24e",
    "c5": "#8acefc",
    "c6": "#fdfbf6",
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
class LineLook:
    """How one label is drawn: a key of :data:`LIGHT`, a matplotlib marker, and on/off lengths of its dashes."""

    key: str
    marker: str
    dashes: tuple[float, ...]

    @property
    def colour(self) -> str:
        """The colour on a light page."""
        return LIGHT[self.key]


def looks(labels: Sequence[str]) -> dict[str, LineLook]:
    """Give every label its look, by its position: colours first, then dashes."""
    given = {}
    for i, label in enumerate(labels):
        turn = i // _COLOURS
        given[label] = LineLook(f"c{i % _COLOURS}", MARKS[(i + turn) % len(MARKS)], _DASHES[turn % len(_DASHES)])
    return given


def visible(text: str) -> str:
    r"""Write codes for characters that cannot be seen, and so not told apart.

    A text that has another normal form is written with codes for all but ASCII; spaces that could be overlooked are
    marks.

    Examples
    --------
    >>> visible("a\x00"), visible(" a  b"), visible("e\u0301"), visible("α β")
    ('a\\x00', '␣a␣␣b', 'e\\u0301', 'α β')
    """
    normal = unicodedata.is_normalized("NFC", text)
    seen = "".join(c if c.isprintable() and (normal or c.isascii()) else code(c) for c in text)
    return re.sub("^ +| +$|  +", lambda spaces: "␣" * len(spaces[0]), seen)


def code(character: str) -> str:
    """Write a character as Python would escape it."""
    return character.encode("unicode_escape").decode()


def short_names(labels: Sequence[str], width: int = 40, written: Callable[[str], str] = visible) -> dict[str, str]:
    """Shorten names, as they are written, to at most ``width`` characters, and keep them apart.

    A name that fits stays. A longer spec, ``name:key=value,...``, loses settings that do not tell it from the others,
    the last ones first, and ends in an ellipsis; what is still too long, or no spec, loses its middle.

    Examples
    --------
    >>> short_names(["fda:threshold=2,depth=5", "fda:threshold=4,depth=5"], width=20)["fda:threshold=2,depth=5"]
    'fda:threshold=2,…'
    """
    short: dict[str, str] = {}
    for label in labels:
        text = written(label)
        if len(text) > width:
            text = shortened(written(_without_shared(label, labels, width)), width)
        number = 2
        while text in short.values():
            mark = f" ({number})"
            text = shortened(written(label), width - len(mark)) + mark
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
