"""Small panels above one another on one axis of rounds: a quantity each, and in each a curve per strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sparsync.reporting.figures.canvas import new_axes, new_figure
from sparsync.reporting.figures.curves import Curve, curves_of, draw_seeds
from sparsync.reporting.figures.pieces import (
    count_ticks,
    dashed,
    drawn_names,
    labels_below,
    legend_height,
    log_ticks,
    max_ticks,
    plain_number,
)
from sparsync.reporting.history import ComparisonRecord, Floats, History, RoundRecords
from sparsync.reporting.palette import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FLAT = 1e-3  # of the largest value: what moves by less does not move
_STEEP = 12  # per cent of the values


@dataclass(frozen=True)
class Panel:
    """One quantity over rounds.

    Attributes
    ----------
    title : str
        What it is.
    curve : callable
        From the history of a seed to its curve, or to None.
    writer : callable
        Writes a tick.
    scale : {"linear", "auto", "counts"}
        ``auto`` is logarithmic where values differ by more than 8 times; ``counts`` is logarithmic from 1 and linear
        below it, so that nothing at all can be shown.
    top : float, optional
        The largest value that there can be.
    reference : callable, optional
        From rounds to the values that the curve should have, (n,); dashed.
    stairs : bool
        Whether a value holds until the next one.
    alike : bool
        Whether the axis is shared with the other panels that say so; a steep beginning lies below it.
    """

    title: str
    curve: Callable[[History], Curve | None]
    writer: Callable[[float], str] = plain_number
    scale: Literal["linear", "auto", "counts"] = "linear"
    top: float | None = None
    reference: Callable[[RoundRecords], Floats] | None = None
    stairs: bool = False
    alike: bool = False


def noted(key: str) -> Callable[[History], Curve | None]:
    """Return what a round's line says under a key: its mean over clients, and their range where that was noted."""

    def curve(history: History) -> Curve | None:
        rounds = history.rounds
        y, low, high = (rounds.of(name) for name in (key, f"{key}_min", f"{key}_max"))
        keep = np.isfinite(y)
        low, high = np.where(np.isfinite(low), low, y), np.where(np.isfinite(high), high, y)
        x = rounds.number[keep]
        return Curve(x, x, y[keep], low[keep], high[keep]) if keep.any() else None

    return curve


def stacked(run: ComparisonRecord, *panels: Panel, reference: str = "") -> Figure | None:
    """Draw the panels that have something to show, or return None if there are none.

    Parameters
    ----------
    run : ComparisonRecord
        The run.
    panels : Panel
        From top to bottom.
    reference : str
        What the dashed lines are.
    """
    shown = [(panel, curves) for panel in panels if (curves := curves_of(run, panel.curve))]
    if not shown:
        return None
    found = {label for _, curves in shown for label in curves}
    labels = [label for label in run.labels if label in found]
    names, look = drawn_names(labels), looks(run.labels)
    figure = new_figure(0.5 + (1.75 if len(shown) < 3 else 1.5) * len(shown) + legend_height(names))
    grid = figure.add_gridspec(len(shown), 1)
    lines = [_references(run, panel, labels) for panel, _ in shown]
    values = [_values(curves, dashes) for (_, curves), dashes in zip(shown, lines, strict=True)]
    alike = [mine for (panel, _), mine in zip(shown, values, strict=True) if panel.alike]
    if alike:
        together = np.concatenate(alike)
        alike = [together[together >= np.percentile(together, _STEEP)]]
    first: Axes | None = None
    for place, (panel, curves) in enumerate(shown):
        axes = new_axes(figure, grid[place, 0], sharex=first)
        first = first or axes
        for label, seeds in curves.items():
            draw_seeds(axes, seeds, look[label], panel.stairs)
        for x, y in lines[place]:
            dashed(axes, x, y)
        _scale(axes, panel, alike[0] if panel.alike else values[place])
        axes.set_title(panel.title, fontsize=10)
        axes.grid(visible=True)
        axes.tick_params(axis="x", labelbottom=place == len(shown) - 1)
    count_ticks(axes)
    axes.set_xlabel("round")
    labels_below(figure, names, look, reference if any(lines) else "")
    return figure


def _references(run: ComparisonRecord, panel: Panel, labels: list[str]) -> list[tuple[Floats, Floats]]:
    """Return what the strategies aim at, first seed of each, every such line once."""
    found: dict[tuple[bytes, bytes], tuple[Floats, Floats]] = {}
    reference = panel.reference
    if reference is None:
        return []
    for label in labels:
        for history in run.histories_of(label)[:1]:
            y = reference(history.rounds)
            keep = np.isfinite(y)
            if keep.any():
                x, y = history.rounds.number[keep], y[keep]
                found[x.tobytes(), y.round(9).tobytes()] = x, y
    return list(found.values())


def _values(curves: dict[str, list[Curve]], lines: list[tuple[Floats, Floats]]) -> Floats:
    """Return all that an axis has to hold."""
    parts = [part for seeds in curves.values() for seed in seeds for part in seed[2:]]
    values: Floats = np.concatenate([*parts, *(y for _, y in lines)])
    return np.asarray(values[np.isfinite(values)])


def _scale(axes: Axes, panel: Panel, values: Floats) -> None:
    low, high = float(values.min()), float(values.max())
    if panel.scale == "counts":
        _counts(axes, panel, high)
    elif panel.scale == "auto" and high > 8 * low > 0:
        axes.set_yscale("log")
        room = (high / low) ** 0.06
        axes.set_ylim(low / room, high * room if panel.top is None else max(high, panel.top) * room)
        log_ticks(axes, panel.writer, axis="y")
    else:
        hilly = high - low > _FLAT * abs(high)
        room = 0.08 * (high - low) if hilly else 0.1 * abs(high) or 0.1
        most = high + room if panel.top is None else min(high + room, panel.top + 0.4 * room)
        axes.set_ylim(low - room if low < 0 or low >= room else -0.06 * (high + room), most)
        axes.yaxis.set_major_locator(max_ticks(5))
        axes.yaxis.set_major_formatter(lambda value, _: panel.writer(value))


def _counts(axes: Axes, panel: Panel, high: float) -> None:
    """Decades, below one a straight piece down to zero."""
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
    decades = int(np.ceil(np.log10(max(high, 1.0))))
    every = 1 + decades // 4
    axes.set_yticks([0.0, *(10.0**power for power in range(0, decades + 1, every))])
    axes.yaxis.set_major_formatter(lambda value, _: panel.writer(value))
    axes.minorticks_off()
    axes.set_ylim(-0.12, 1.6 * max(high, 1.0))
