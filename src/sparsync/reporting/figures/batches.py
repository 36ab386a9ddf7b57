"""Global batches of split learning: who contributes how much to them, and how far they are from all data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsync.reporting.epochs import expected_deviation
from sparsync.reporting.figures.canvas import INK, SOFT, new_axes, new_figure
from sparsync.reporting.figures.curves import Curve, curves_of, draw_seeds
from sparsync.reporting.figures.heat import bar_below, shade
from sparsync.reporting.figures.pieces import (
    DASHED,
    MAX_PANELS,
    count,
    count_ticks,
    drawn_names,
    labels_below,
    legend_height,
    max_ticks,
    percent,
    plain_number,
)
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, Floats, History, Ints, SplitSteps
from sparsync.reporting.palette import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS, _COLUMNS = 40, 240  # of a heat map, at most
_TALLEST = 8.0  # inches of all panels
_BEND = 0.4  # of the colours: shares are small, but for the end of an epoch
_PIECES = 120  # of the longest curve


def composition(run: ComparisonRecord) -> Figure | None:
    """Who contributes how much to each global batch of the first epoch: first seed of each strategy."""
    found = with_clients(run)
    if not found:
        return None
    from matplotlib.colors import PowerNorm

    shown = dict(list(found.items())[:MAX_PANELS])
    names = drawn_names(list(shown), 48)
    given = {label: steps.given() for label, steps in shown.items()}
    clients = np.unique(np.concatenate([entries[:, 1] for entries in given.values()]))
    lengths = {label: int(entries[:, 0].max(initial=0)) + 1 for label, entries in given.items()}
    high, wide = math.ceil(len(clients) / _ROWS), math.ceil(max(lengths.values()) / _COLUMNS)
    shares = {label: _shares(entries, clients, lengths[label], high, wide) for label, entries in given.items()}
    norm = PowerNorm(_BEND, 0.0, max(float(np.nanmax(table)) for table in shares.values()))
    height = min(max(0.11 * len(clients) / high, 0.8), _TALLEST / len(shown), 2.4)
    figure = new_figure(1.1 + (height + 0.3) * len(shown))
    grid = figure.add_gridspec(len(shown), 1)
    panels: list[Axes] = []
    for place, (label, table) in enumerate(shares.items()):
        axes = new_axes(figure, grid[place, 0], sharex=panels[0] if panels else None)
        rows, columns = table.shape
        extent = (0.5, columns * wide + 0.5, rows * high - 0.5, -0.5)
        look: Any = {"cmap": shade(0.08), "norm": norm, "interpolation": "nearest"}
        image = axes.imshow(table, aspect="auto", extent=extent, **look)
        axes.set_title(f"{names[label]}: {count(lengths[label])} steps", fontsize=9.5)
        _client_ticks(axes, clients, height)
        axes.tick_params(axis="x", bottom=place == len(shown) - 1, labelbottom=place == len(shown) - 1)
        panels.append(axes)
    panels[-1].set_xlim(0.5, max(lengths.values()) + 0.5)
    count_ticks(panels[-1])
    panels[-1].set_xlabel("step of the first epoch")
    figure.supylabel("client" if high == 1 else f"client, {high} in a row", fontsize=10)
    bar_below(figure, image, panels, "share of the global batch", percent)
    if len(found) > len(shown):
        figure.suptitle(f"first {len(shown)} of {len(found)} strategies", fontsize=9.5, color=SOFT)
    return figure


def with_clients(run: ComparisonRecord) -> dict[str, SplitSteps]:
    """Return the steps of the strategies whose clients take part in them, and that say in how far: first seeds."""
    found: dict[str, SplitSteps] = {}
    for label in run.labels:
        for history in run.histories_of(label):
            if np.isfinite(history.steps.slowest).any() and history.steps.given()[:, 2].any():
                found[label] = history.steps
                break
    return found


def _shares(entries: Ints, clients: Ints, steps: int, high: int, wide: int) -> Floats:
    """Return shares of the batch, (rows, columns): sums over `high` clients, means over `wide` steps; NaN for none."""
    step, client, size = entries.T
    share = size / np.bincount(step, size)[step].clip(1)
    rows, columns = math.ceil(len(clients) / high), math.ceil(steps / wide)
    cell = np.searchsorted(clients, client) // high * columns + step // wide
    table = np.bincount(cell, share, rows * columns).reshape(rows, columns)
    means = table / np.bincount(np.arange(steps) // wide)  # the last column may hold fewer steps
    return np.where(means > 0, means, np.nan)


def _client_ticks(axes: Axes, clients: Ints, height: float) -> None:
    """Number as many clients as there is room for."""

    def name(row: float, _: object = None) -> str:
        return count(clients[round(row)]) if 0 <= row < len(clients) else ""

    axes.yaxis.set_major_locator(max_ticks(max(1, round(height / 0.18)), whole=True))
    axes.yaxis.set_major_formatter(name)
    axes.tick_params(axis="y", labelsize=9, length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def deviation(run: ComparisonRecord) -> Figure | None:
    """How far global batches are from all data: over an epoch, and over the run."""
    longest = max((int(h.steps.within_epochs()[1].max(initial=1)) for h in run.histories.values()), default=1)
    wide = math.ceil(longest / _PIECES)
    within, whole = curves_of(run, lambda history: _over_an_epoch(history, wide)), curves_of(run, _over_the_run)
    if not within:
        return None
    names, look, expected = drawn_names(list(within)), looks(run.labels), expected_deviation(run)
    figure = new_figure(4.1 + legend_height(names))
    grid = figure.add_gridspec(2, 1)
    panels = (
        ("within an epoch, mean over all epochs", within, "step of the epoch"),
        ("mean of each epoch", whole, "step"),
    )
    for place, (title, curves, xlabel) in enumerate(panels):
        axes = new_axes(figure, grid[place, 0])
        for label, seeds in curves.items():
            draw_seeds(axes, seeds, look[label])
        if expected is not None:
            axes.axhline(expected, color=INK, lw=1.1, ls=(0, DASHED), zorder=3)
        axes.set_ylim(0, 1.1 * max(axes.get_ylim()[1], expected or 0.0))
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(max_ticks(5))
        axes.yaxis.set_major_formatter(lambda value, _: plain_number(value))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(xlabel)
        count_ticks(axes)
        axes.grid(visible=True)
    figure.supylabel("deviation", fontsize=10)
    labels_below(figure, names, look, "" if expected is None else "uniform draws, expected")
    return figure


def _over_an_epoch(history: History, wide: int) -> Curve | None:
    """Means over the same steps of all epochs, `wide` by `wide`, and between which values eight of ten of these lie."""
    place, _ = history.steps.within_epochs()
    at, parts = _grouped(place // wide, history.steps.deviation)
    if not parts:
        return None
    low, high = np.array([np.percentile(part, (10, 90)) for part in parts]).T
    return Curve(at, at * wide + (wide + 1) / 2, np.array([part.mean() for part in parts]), low, high)


def _over_the_run(history: History) -> Curve | None:
    """Mean of each epoch, at its end."""
    steps = history.steps
    place, _ = steps.within_epochs()
    epoch = np.cumsum(place == 0) - 1
    at, parts = _grouped(epoch, steps.deviation)
    if not parts:
        return None
    ends = np.searchsorted(epoch, at, side="right") - 1
    y = np.array([part.mean() for part in parts])
    return Curve(at, steps.step[ends], y, y, y)


def _grouped(group: Ints, values: Floats) -> tuple[Floats, list[Floats]]:
    """Return the groups that have values, increasing, and the values of each."""
    known = np.isfinite(values)
    order = np.argsort(group[known], kind="stable")
    at, starts = np.unique(group[known][order], return_index=True)
    return at.astype(np.float64), np.split(values[known][order], starts[1:]) if len(at) else []


COMPOSITION = Plot(
    "batch-composition",
    "Who contributes to a batch",
    "Clients by steps of the first epoch, coloured by their share of the global batch; blank: not taking part. "
    "A client that keeps a whole batch to itself near the end is what is left where others ran dry; one that fades "
    "early has been used up on purpose. Small shares are drawn stronger than in proportion. First seed only.",
    composition,
)
DEVIATION = Plot(
    "batch-deviation",
    "How far batches are from all data",
    "L1 distance between the label fractions of a global batch and those of all training data. A line that "
    "rises within an epoch ends it with batches from few clients. The upper bands hold eight of ten epochs; the dashed "
    "line is the mean if batches were drawn uniformly from all data.",
    deviation,
)
