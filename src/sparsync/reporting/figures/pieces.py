"""Pieces that figures share: lines, legends below them, ticks, and texts that every font can draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sparsync.reporting.figures.canvas import CARD, INK, WIDTH
from sparsync.reporting.history import Floats
from sparsync.reporting.palette import MARKS, LineLook, code, short_names, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHED: tuple[float, ...] = (4, 3)
_STRATEGIES = "strategies"  # a legend that a page has only once
MAX_PANELS = 6  # strategies with a panel of their own, in one figure


def line(axes: Axes, x: Floats, y: Floats, look: LineLook, stairs: bool = False) -> None:
    """Draw a curve with some marks on it; those of curves that coincide stand at different places."""
    every = max(1, math.ceil(len(x) / 8))
    style = "steps-post" if stairs else "default"
    (drawn,) = axes.plot(x, y, color=look.colour, marker=look.marker, ms=4.5, mec=CARD, mew=0.5, drawstyle=style)
    drawn.set_markevery((every * MARKS.index(look.marker) // len(MARKS), every))
    if look.dashes:
        drawn.set_dashes(look.dashes)


def dashed(axes: Axes, x: Floats | Sequence[float], y: Floats | Sequence[float]) -> None:
    """Draw what curves are held against: a target or a threshold, in steps."""
    axes.plot(x, y, color=INK, lw=1.1, ls=(0, DASHED), drawstyle="steps-post", zorder=3)


def buckets(length: int, most: int) -> list[slice]:
    """Cut a long series into at most so many pieces of about one length, none of them empty."""
    edges = np.unique(np.linspace(0, length, min(length, most) + 1).astype(int))
    return [slice(a, b) for a, b in pairwise(edges.tolist())]


def handle(colour: str, marker: str, style: str, mfc: str | None = None, dashes: Sequence[float] = ()) -> Any:
    """Return an entry of a legend."""
    from matplotlib.lines import Line2D

    made = Line2D([], [], color=colour, marker=marker, ls=style, mfc=mfc or colour, ms=6 if marker == "|" else 5.5)
    if marker == "|":
        made.set_markeredgewidth(1.2)
    if dashes:
        made.set_dashes(dashes)
    return made


def labels_below(figure: Figure, names: Mapping[str, str], look: Mapping[str, LineLook], reference: str = "") -> None:
    """Put the strategies' names below a figure, and that of its dashed line."""
    handles = [handle(look[label].colour, look[label].marker, "-", dashes=look[label].dashes) for label in names]
    texts = list(names.values())
    if reference:
        handles.append(handle(INK, "", "-", dashes=DASHED))
        texts.append(reference)
    legend(figure, handles, texts, columns=columns_for(names))
    figure.legends[-1].set_gid(_STRATEGIES)


def without_strategies(figure: Figure) -> None:
    """Take the strategies' names from below a figure, and leave that of its dashed line."""
    for found in [one for one in figure.legends if one.get_gid() == _STRATEGIES]:
        handles: list[Any] = found.legend_handles
        entries = {text.get_text(): made for text, made in zip(found.get_texts(), handles, strict=True)}
        kept = {text: made for text, made in entries.items() if made.get_color() == INK}
        found.remove()
        figure.set_figheight(figure.get_figheight() - legend_height({t: t for t in entries}) + 0.25 * len(kept))
        if kept:
            legend(figure, list(kept.values()), list(kept), columns=1)


def legend_height(names: Mapping[str, str]) -> float:
    """Return the inches that :func:`labels_below` takes, or a little more."""
    return 0.15 + 0.2 * math.ceil((len(names) + 1) / columns_for(names))


def columns_for(names: Mapping[str, str]) -> int:
    """Return how many names stand beside each other below a figure."""
    longest = max(map(len, names.values()))
    return max(1, min(3, len(names), int((WIDTH - 0.2) / (0.55 + 0.086 * longest))))


def legend(figure: Figure, handles: list[Any], texts: list[str], columns: int, length: float = 2.6) -> None:
    """Put a legend below a figure."""
    texts = [f" {text}" if text.startswith("_") else text for text in texts]  # matplotlib would hide those names
    spaces = {"columnspacing": 1.4, "labelspacing": 0.35, "handletextpad": 0.5, "borderpad": 0.2}
    figure.legend(handles, texts, loc="outside lower left", ncols=columns, handlelength=length, **spaces)


def log_ticks(axes: Axes, writer: Callable[[float], str], axis: Literal["x", "y"] = "x") -> None:
    """Put as many ticks on a logarithmic axis as can be read."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    decades = math.log10(high / low) if high > low > 0 else 1.0
    which = axes.xaxis if axis == "x" else axes.yaxis
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 and axis == "x" else (1.0,)
    which.set_major_locator(LogLocator(subs=subs, numticks=8))
    which.set_minor_formatter(NullFormatter())
    which.set_major_formatter(lambda value, _: tick(writer, value))


def max_ticks(most: int, whole: bool = False) -> Any:
    """Return a locator of at most so many round numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1 if whole else 2)


def count_ticks(axes: Axes, most: int = 7) -> None:
    """Count steps or rounds along the x axis."""
    axes.xaxis.set_major_locator(max_ticks(most, whole=True))
    axes.xaxis.set_major_formatter(lambda value, _: count(value))


def tick(writer: Callable[[float], str], value: float) -> str:
    """Write a tick: as its unit does, but 10 MB rather than 10.0 MB."""
    number, _, unit = writer(value).partition(" ")
    if "." in number and "e" not in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".strip()


def count(value: float) -> str:
    """Write a count; thousands are set apart."""
    return f"{value:,.10g}".replace(",", "\u202f")


def percent(value: float) -> str:
    """Write a fraction as a percentage with the digits that it needs."""
    return f"{100 * value:.4g} %"


def time_unit(longest: float) -> tuple[str, int]:
    """Return one unit for a whole axis of virtual time, and its seconds."""
    return next((unit for unit in (("d", 86400), ("h", 3600), ("min", 60)) if longest >= 3 * unit[1]), ("s", 1))


def plain_number(value: float) -> str:
    """Write a number of any size."""
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:g}"


def printable(text: str) -> str:
    """Write codes for what the figures' font cannot draw: a label is a user's text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(c if font.get_char_index(ord(c)) else code(c) for c in visible(text))


def drawn_names(labels: Sequence[str], width: int = 40) -> dict[str, str]:
    """Return short names that the figures' font can draw."""
    return short_names(labels, width, printable)
