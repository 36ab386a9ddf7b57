"""Accuracy against bytes, steps, rounds and time: what a strategy is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from sparsync.reporting.figures.canvas import CARD, INK, SOFT, new_axes, new_figure
from sparsync.reporting.figures.curves import Curve, condensed, curves_of, draw_seeds, over_seeds
from sparsync.reporting.figures.panels import Panel, stacked
from sparsync.reporting.figures.pieces import (
    DASHED,
    count,
    drawn_names,
    labels_below,
    legend_height,
    log_ticks,
    max_ticks,
    percent,
    tick,
    time_unit,
)
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, Evaluations, Floats, History
from sparsync.reporting.palette import LineLook, looks
from sparsync.reporting.units import human_bytes, human_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TOGETHER = 5  # curves that one panel tells apart
_COLUMNS = 3
_HEIGHTS = (2.7, 1.12)  # inches, of the overview and of a row of panels
_POINTS = 480  # of a panel's grey curves, so that a page grows with the strategies and not with their square
_TO_TARGET = {
    "bytes": "bytes_to_target",
    "paper_bytes": "paper_bytes_to_target",
    "step": "steps_to_target",
    "seconds": "seconds_to_target",
}


def accuracy_against_bytes(run: ComparisonRecord) -> Figure | None:
    """Accuracy over all bytes sent so far, on a log axis: the method's promise in one picture."""
    return _accuracy(run, "bytes", "bytes sent by all workers so far", "log")


def accuracy_against_paper_bytes(run: ComparisonRecord) -> Figure | None:
    """The same as authors count, where federations are compared: what supports and headers make of it."""
    if not any(len(history.rounds) for history in run.histories.values()):
        return None
    return _accuracy(run, "paper_bytes", "bytes so far, counted as in the papers", "log")


def accuracy_against_steps(run: ComparisonRecord) -> Figure | None:
    """Accuracy over steps: what saving bytes costs in training."""
    return _accuracy(run, "step", "steps", "linear")


def accuracy_against_rounds(run: ComparisonRecord) -> Figure | None:
    """Accuracy over rounds, of federations only."""
    return _accuracy(run, "rounds", "rounds", "linear")


def accuracy_against_seconds(run: ComparisonRecord) -> Figure | None:
    """Accuracy over virtual seconds: bytes and steps weighed by the devices and links of the experiment."""
    return _accuracy(run, "seconds", run.time, "auto")


def accuracy_of_clients(run: ComparisonRecord) -> Figure | None:
    """What the global model is worth to its clients, and to those that it serves worst."""
    if not any(np.isfinite(history.evaluations.client_accuracy).any() for history in run.histories.values()):
        return None

    def panel(title: str, column: str) -> Panel:
        return Panel(title, lambda history: _evaluated(history, "rounds", column), percent, alike=True)

    return stacked(
        run,
        panel("global model, all test examples", "accuracy"),
        panel("mean over clients", "client_accuracy"),
        panel("worst tenth of the clients", "client_accuracy_worst"),
    )


def _evaluated(history: History, over: str, column: str = "accuracy", above: float = -np.inf) -> Curve | None:
    evaluations = history.evaluations
    x, y = getattr(evaluations, over), getattr(evaluations, column)
    keep = np.isfinite(x) & np.isfinite(y) & (x >= 0) & (x > above)
    if not keep.any() or (over != "step" and x[keep].max() <= 0):
        return None
    return Curve(_when(evaluations)[keep], x[keep], y[keep], y[keep], y[keep])


def _when(evaluations: Evaluations) -> Floats:
    """Rounds or epochs where there are any: seeds differ in their steps where cohorts or schedules do."""
    counted = np.where(np.isfinite(evaluations.rounds), evaluations.rounds, evaluations.epochs)
    return np.where(np.isfinite(counted), counted, evaluations.step)


def _accuracy(run: ComparisonRecord, over: str, xlabel: str, scale: Literal["log", "linear", "auto"]) -> Figure | None:
    above = 0.0 if scale == "log" else -np.inf
    curves = curves_of(run, lambda history: _evaluated(history, over, above=above))
    if not curves:
        return None
    size = 1
    if over == "seconds":
        unit, size = time_unit(max(seed.x.max() for seeds in curves.values() for seed in seeds))
        xlabel = f"{xlabel} ({unit})"
        curves = {label: [seed._replace(x=seed.x / size) for seed in seeds] for label, seeds in curves.items()}
    names, look = drawn_names(list(curves)), looks(run.labels)
    rows = math.ceil(len(curves) / _COLUMNS) if len(curves) > _TOGETHER else 0
    overview, row = _HEIGHTS if rows else (3.3, 0.0)
    figure = new_figure(overview + row * rows + legend_height(names))
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[overview, *[row] * rows])
    axes = new_axes(figure, grid[0, :])
    ends = [seed.x.max() for seeds in curves.values() for seed in seeds]
    if scale == "log" or (scale == "auto" and max(ends) > 15 * min(ends) > 0):
        axes.set_xscale("log")
    for label, seeds in curves.items():
        draw_seeds(axes, seeds, look[label])
    best = {label: max(seed.y.max() for seed in seeds) for label, seeds in curves.items()}
    floor = _floor(list(best.values()), run.target)
    lowest = min(float(seed.y.min()) for seeds in curves.values() for seed in seeds)
    bottom, top = max(floor, lowest), float(max([*best.values(), run.target or 0.0]))
    margin = 0.05 * (top - bottom) or 0.05
    axes.set_ylim(bottom - margin, top + 1.6 * margin)
    reached = {
        label: [at / size for one in run.of(label) if (at := getattr(one, _TO_TARGET.get(over, ""), None))]
        for label in curves
    }
    _target(axes, run.target, reached, look)
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    writer = human_bytes if "bytes" in over else count
    if axes.get_xscale() == "log":
        seen = [seed.x[seed.y >= floor] for seeds in curves.values() for seed in seeds if (seed.y >= floor).any()]
        axes.set_xlim((min(x.min() for x in seen) if seen else min(ends)) / 1.3, 1.3 * max(ends))
        log_ticks(axes, writer)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(max_ticks(6))
        axes.xaxis.set_major_formatter(lambda value, _: tick(writer, value))
    axes.grid(visible=True)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("accuracy")
    grey = {label: condensed(over_seeds(seeds), max(4, _POINTS // len(curves) // 2)) for label, seeds in curves.items()}
    titles = drawn_names(list(curves), width=20)
    for place, (label, seeds) in enumerate(curves.items() if rows else ()):
        panel = new_axes(figure, grid[1 + place // _COLUMNS, place % _COLUMNS], sharex=axes, sharey=axes)
        panel.tick_params(labelbottom=False, labelleft=place % _COLUMNS == 0, labelsize=8)
        panel.tick_params(which="minor", length=0)
        for other, curve in grey.items():
            if other != label:
                panel.plot(curve.x, curve.y, color=SOFT, alpha=0.35, lw=0.8)
        draw_seeds(panel, seeds, look[label])
        _target(panel, run.target, {label: reached[label]}, look)
        panel.grid(visible=True)
        panel.set_title(titles[label], fontsize=8)
    notes = {label: f"{names[label]} (below the axis)" if best[label] < floor else names[label] for label in names}
    labels_below(figure, notes, look, "" if run.target is None else f"target: {human_percent(run.target)}")
    return figure


def _target(axes: Axes, target: float | None, reached: Mapping[str, list[float]], look: Mapping[str, LineLook]) -> None:
    """Draw the target, and on it where the runs of each label reached it."""
    if target is not None:
        axes.axhline(target, color=INK, lw=1.0, ls=(0, DASHED), zorder=1.5)
        for label, ats in reached.items():
            axes.plot(ats, [target] * len(ats), "o", color=look[label].colour, mec=CARD, mew=0.8, ms=7, zorder=4)


def _floor(best: list[float], target: float | None) -> float:
    """Where the accuracy axis may start: five times the error of a middling strategy, so that the end is readable."""
    middle = float(np.median(best))
    reference = min(middle, target) if target is not None else middle
    return 1 - 5 * (1 - reference)


ACROSS: tuple[Plot, ...] = (
    Plot(
        "accuracy-bytes",
        "Accuracy against bytes",
        "Further left is better: the same accuracy for fewer bytes. The axis is logarithmic, so equal distances are "
        "equal factors. Dots on the dashed line mark when a run reached the target. With several seeds, a line is "
        "their mean and the band reaches from the lowest to the highest; thin tails belong to single seeds. The "
        "accuracy axis may start above the first evaluations. More than five strategies have a panel each "
        "below, in front of the others and on the axes of the overview.",
        accuracy_against_bytes,
    ),
    Plot(
        "accuracy-paper-bytes",
        "Accuracy against bytes as the papers count",
        "Federated strategies by their values alone, without positions, masks and headers: a curve far left of its "
        "place in the figure of all bytes pays much for saying where its values belong.",
        accuracy_against_paper_bytes,
    ),
    Plot(
        "accuracy-steps",
        "Accuracy against steps",
        "What saving bytes costs in training: a curve further right needed more steps for the same accuracy.",
        accuracy_against_steps,
    ),
    Plot(
        "accuracy-rounds",
        "Accuracy against rounds",
        "Federated strategies only, round by round: how much a sparse model learns later than a dense one.",
        accuracy_against_rounds,
    ),
    Plot(
        "accuracy-seconds",
        "Accuracy against time",
        "Virtual seconds charge each worker for its computing and each transfer for its link, as the experiment "
        "describes them; they are not the time that this simulation took. Real ones have passed on real devices.",
        accuracy_against_seconds,
    ),
)
OF_CLIENTS = Plot(
    "accuracy-clients",
    "Accuracy for clients",
    "One model, seen from the whole test set and from what its clients hold: a worst tenth that falls behind the mean "
    "shows whom sparsity or the partition serves badly.",
    accuracy_of_clients,
)
