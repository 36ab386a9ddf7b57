"""What changes by plan: sparsity, regularisation, learning rate, dropped weights; and FDA-Opt's threshold by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsync.reporting.figures.canvas import CARD, INK, SOFT, new_axes, new_figure
from sparsync.reporting.figures.curves import Curve, draw_seeds
from sparsync.reporting.figures.panels import Panel, noted, stacked
from sparsync.reporting.figures.pieces import (
    DASHED,
    MAX_PANELS,
    count,
    count_ticks,
    drawn_names,
    handle,
    legend,
    percent,
)
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.figures.variance import draw_checks
from sparsync.reporting.history import ComparisonRecord, RoundRecords, VarianceChecks
from sparsync.reporting.palette import LineLook, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def schedules(run: ComparisonRecord) -> Figure | None:
    """What the strategies change from round to round by plan."""
    return stacked(
        run,
        Panel("sparsity asked for", noted("sparsity_target"), percent, stairs=True),
        Panel("\u03bb, weight of the regularisation", noted("lambda"), stairs=True),
        Panel("learning rate", noted("lr"), scale="auto", stairs=True),
        Panel("fraction dropped", noted("drop_fraction"), percent, stairs=True),
    )


def variance_by_round(run: ComparisonRecord) -> Figure | None:
    """FDA-Opt's estimate and threshold at the end of each round, and the epochs that they made of it: first seeds."""
    found = {label: rounds for label in run.labels if (rounds := _estimating(run, label)) is not None}
    if not found:
        return None
    shown = dict(list(found.items())[:MAX_PANELS])
    names, look = drawn_names(list(shown), 60), looks(run.labels)
    with_epochs = [np.isfinite(rounds.of("epochs")).any() for rounds in shown.values()]
    heights = [height for more in with_epochs for height in ((1.5, 0.65) if more else (1.5,))]
    figure = new_figure(1.1 + sum(height + 0.3 for height in heights))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    place = 0
    for (label, rounds), more in zip(shown.items(), with_epochs, strict=True):
        axes = new_axes(figure, grid[place, 0])
        estimate, threshold, variance = (rounds.of(key) for key in ("estimate", "threshold", "variance"))
        checks = VarianceChecks(rounds.number, estimate, threshold, np.zeros(len(rounds), bool), variance)
        draw_checks(axes, checks, slice(None), look[label].colour)
        axes.set_title(f"{names[label]}\nvariance of the clients' models", fontsize=10)
        place += 1
        if more:
            axes.tick_params(axis="x", labelbottom=False)
            axes = new_axes(figure, grid[place, 0], sharex=axes)
            _epochs(axes, rounds, look[label])
            place += 1
    axes.set_xlabel("round")
    handles = [handle(SOFT, "", "-"), handle(INK, "", "-", dashes=DASHED), handle(INK, "o", "none", mfc=CARD)]
    legend(figure, handles, ["estimate at the round's end", "threshold", "exact variance"], columns=3, length=1.8)
    if len(found) > len(shown):
        figure.suptitle(f"first {len(shown)} of {len(found)} strategies", fontsize=9.5, color=SOFT)
    return figure


def _estimating(run: ComparisonRecord, label: str) -> RoundRecords | None:
    for history in run.histories_of(label):
        if np.isfinite(history.rounds.of("estimate")).any():
            return history.rounds
    return None


def _epochs(axes: Axes, rounds: RoundRecords, look: LineLook) -> None:
    known = np.isfinite(rounds.of("epochs"))
    number, epochs = rounds.number[known], rounds.of("epochs")[known]
    draw_seeds(axes, [Curve(number, number, epochs, epochs, epochs)], look, stairs=True)
    most = float(epochs.max())
    axes.set_ylim(0, 1.15 * max(most, 1.0))
    axes.set_yticks([0, most])
    axes.yaxis.set_major_formatter(lambda value, _: count(value))
    axes.set_title("epochs in the round", fontsize=10)
    count_ticks(axes)


SCHEDULES = Plot(
    "schedules",
    "Schedules",
    "What changes by plan, on one axis of rounds: set bends in the other figures against the steps in these.",
    schedules,
)
BY_ROUND = Plot(
    "variance-rounds",
    "Variance and epochs of a round",
    "A round of FDA-Opt ends when the clients' variance exceeds a threshold that follows the variance: epochs that "
    "stay at one or at the most allowed mean that the threshold has lost its grip. First seed only.",
    variance_by_round,
)
