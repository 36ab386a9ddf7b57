"""How long workers train between two averagings, or two rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsync.reporting.figures.canvas import new_axes, new_figure
from sparsync.reporting.figures.curves import Curve, condensed, draw_seeds
from sparsync.reporting.figures.pieces import count, count_ticks, drawn_names, labels_below, legend_height, log_ticks
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, Floats, History
from sparsync.reporting.palette import looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def steps_per_round(run: ComparisonRecord) -> Figure | None:
    """How many steps passed between averagings, over training: what adaptivity does."""
    series: dict[str, tuple[Floats, Floats]] = {}
    for label in run.labels:
        for history in run.histories_of(label):
            found = round_lengths(history)
            if found is not None:
                series[label] = found
                break
    if not series:
        return None
    look, names = looks(run.labels), drawn_names(list(series))
    figure = new_figure(3.3 + legend_height(names))
    axes = new_axes(figure)
    lengths = np.concatenate([length for _, length in series.values()])
    for label, (step, length) in series.items():
        draw_seeds(axes, [condensed(Curve(step, step, length, length, length), pieces=60)], look[label])
    if lengths.max() > 20 * lengths.min():
        axes.set_yscale("log")
        log_ticks(axes, count, axis="y")
    else:
        axes.set_ylim(0, 1.12 * lengths.max())
    count_ticks(axes, most=6)
    axes.grid(visible=True)
    axes.set_xlabel("step")
    axes.set_ylabel("steps per round")
    labels_below(figure, names, look)
    return figure


def round_lengths(history: History) -> tuple[Floats, Floats] | None:
    """Return (step at the round's end, steps in it): exact from checks or rounds, else means between evaluations."""
    evaluations, checks, rounds = history.evaluations, history.checks, history.rounds
    if checks.sync.any():
        at = checks.step[checks.sync]
        before = np.r_[checks.step[0] - 1, at[:-1]]  # a check follows every step, the first one included
        return at, at - before
    noted = np.isfinite(rounds.of("step"))
    if noted.any():
        ends = rounds.of("step")[noted]
        return ends, np.diff(ends, prepend=0.0) / np.diff(rounds.number[noted], prepend=0.0)
    known = np.isfinite(evaluations.syncs)
    step = np.r_[0.0, evaluations.step[known]]
    syncs = np.r_[0.0, evaluations.syncs[known]]
    joined = [0]  # join evaluations until enough rounds have ended:
    for i in range(len(step)):  # between two of them it may be one more or less
        if syncs[i] - syncs[joined[-1]] >= max(1.0, syncs[-1] / 12):
            joined.append(i)
    step, syncs = step[joined], syncs[joined]
    if len(step) < 2:
        return None
    return step[1:], np.diff(step) / np.diff(syncs)


CADENCE = Plot(
    "steps-per-round",
    "Steps per round",
    "How long workers trained between two averagings, or clients in a round. A flat line is a fixed period; a moving "
    "one adapts. For many rounds the line is a running median and the band reaches from the shortest to the longest. "
    "First seed only; where averagings were not recorded one by one, lengths are means between evaluations.",
    steps_per_round,
)
