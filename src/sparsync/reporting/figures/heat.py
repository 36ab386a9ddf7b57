"""Heat maps: one colour that fades into the page, so that they read on a light page as on a dark one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsync.reporting.figures.canvas import HEAT, INK, SOFT
from sparsync.reporting.figures.pieces import tick
from sparsync.reporting.history import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_ACROSS = 240  # columns that can be told apart


def shade(faintest: float = 0.0) -> Colormap:
    """Return the map from nothing, or almost nothing, to the full colour; what is no number is left blank."""
    from matplotlib.colors import LinearSegmentedColormap

    red, green, blue = (int(HEAT[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ends = [(red, green, blue, faintest), (red, green, blue, 1.0)]
    return LinearSegmentedColormap.from_list("heat", ends).with_extremes(bad=(0, 0, 0, 0))


def over_rounds(rounds: Floats, values: Floats, first: float, last: float) -> tuple[Floats, Floats]:
    """Spread columns, (rows, rounds), evenly over an axis: each holds until the next one.

    Returns
    -------
    positions, values : array, (columns,) and (rows, columns)
        Blank before the first round that has a column.
    """
    columns = int(min(last - first + 1, _ACROSS))
    positions = np.floor(np.linspace(first, last, columns))
    column = np.searchsorted(rounds, positions, side="right") - 1
    spread = np.where(column >= 0, values[:, np.maximum(column, 0)], np.nan)
    return positions, spread


def plain_bar(bar: Any) -> None:
    """Take the frame off a colour bar."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, color=SOFT, labelcolor=INK)


def bar_below(
    figure: Figure, image: Any, axes: Sequence[Axes], label: str, writer: Callable[[float], str], below: bool = False
) -> None:
    """Put one colour bar below all panels, with a tip if there are values below it."""
    from matplotlib.colors import LogNorm, PowerNorm
    from matplotlib.ticker import LogLocator

    look: Any = {"location": "bottom", "aspect": 40, "pad": 0.1 / figure.get_figheight()}
    bar = figure.colorbar(image, ax=list(axes), extend="min" if below else "neither", **look)
    plain_bar(bar)
    bar.minorticks_off()
    low, high = image.norm.vmin, image.norm.vmax
    if isinstance(image.norm, LogNorm):
        bar.ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 120 * low else (1.0,)))
    if isinstance(image.norm, PowerNorm):
        bar.set_ticks(_bent_ticks(image.norm))
    bar.ax.xaxis.set_major_formatter(lambda value, _: tick(writer, value))
    bar.set_label(label, fontsize=9.5)


def _bent_ticks(norm: Any, apart: float = 0.12) -> list[float]:
    """Return 0 and round numbers up to the highest, from the top down where there is room."""
    decade = 10.0 ** math.floor(math.log10(norm.vmax))
    ticks: list[float] = []
    for value in [digit * decade / shrink for shrink in (1, 10, 100, 1000) for digit in (5, 2, 1)]:
        if value <= norm.vmax and norm(value) > apart and (not ticks or norm(ticks[-1]) - norm(value) >= apart):
            ticks.append(value)
    return [0.0, *ticks[::-1]]
