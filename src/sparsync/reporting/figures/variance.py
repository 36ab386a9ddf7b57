"""FDA's checks: the variance as estimated, the threshold, and when models were averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsync.reporting.figures.canvas import CARD, INK, SOFT, new_axes, new_figure
from sparsync.reporting.figures.pieces import (
    MAX_PANELS,
    buckets,
    count,
    count_ticks,
    dashed,
    drawn_names,
    handle,
    legend,
    log_ticks,
    plain_number,
)
from sparsync.reporting.figures.plot import Plot
from sparsync.reporting.history import ComparisonRecord, Floats, VarianceChecks
from sparsync.reporting.palette import looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CROWD = 60  # rounds that can be told apart in one panel


def variance_and_threshold(run: ComparisonRecord) -> Figure | None:
    """FDA's estimate at each check, the threshold, and when the models were averaged: first seed of each label."""
    shown = _with_checks(run)
    if not shown:
        return None
    names, look, panels = drawn_names([label for label, _ in shown], 60), looks(run.labels), shown[:MAX_PANELS]
    windows = [_last_rounds(checks) for _, checks in panels]
    places = len(panels) + sum(window is not None for window in windows)
    figure = new_figure(0.8 + 1.95 * places)
    grid = figure.add_gridspec(places, 1)
    place = 0
    for (label, checks), window in zip(panels, windows, strict=True):
        colour = look[label].colour
        parts = [("whole run", 0, len(checks))] + ([] if window is None else [(window[0], window[1], len(checks))])
        for part, start, stop in parts:
            axes = new_axes(figure, grid[place, 0])
            draw_checks(axes, checks, slice(start, stop), colour)
            heading = f"{names[label]}\n{part}: {_averagings(checks)}" if part == "whole run" else part
            axes.set_title(heading, fontsize=10)
            place += 1
    axes.set_xlabel("step")
    figure.supylabel("model variance", fontsize=10)
    exact = any(np.isfinite(checks.variance).any() for _, checks in panels)
    handles = [handle(SOFT, "", "-"), handle(INK, "", "--"), handle(SOFT, "|", "none")]
    texts = ["estimate", "threshold", "models averaged"]
    if exact:
        handles.append(handle(INK, "o", "none", mfc=CARD))
        texts.append("exact variance")
    legend(figure, handles, texts, columns=2, length=1.8)
    if len(shown) > len(panels):
        note = f"first {len(panels)} of {len(shown)} strategies that check a variance"
        figure.suptitle(note, fontsize=9.5, color=SOFT)
    return figure


def _with_checks(run: ComparisonRecord) -> list[tuple[str, VarianceChecks]]:
    found = []
    for label in run.labels:
        for history in run.histories_of(label):
            if np.isfinite(history.checks.estimate).any():
                found.append((label, history.checks))
                break
    return found


def _last_rounds(checks: VarianceChecks, rounds: int = 10) -> tuple[str, int] | None:
    """Return a title and the first index of a window on the last rounds; None if it would be most of the run."""
    ends = np.flatnonzero(checks.sync)
    if len(ends) < 3:
        return None
    back = min(rounds, len(ends) - 1)
    start = int(ends[-1 - back]) + 1
    if len(checks) - start > 0.6 * len(checks):
        return None
    return f"last {back} rounds", start


def draw_checks(axes: Axes, checks: VarianceChecks, part: slice, colour: str) -> None:
    """Draw a part of the checks: estimate, threshold and exact variance, and ticks where models were averaged."""
    step, estimate, threshold = checks.step[part], checks.estimate[part], checks.threshold[part]
    sync, variance = checks.sync[part], checks.variance[part]
    shown = np.concatenate([a[np.isfinite(a) & (a > 0)] for a in (estimate, threshold, variance)])
    log = bool(len(shown)) and shown.max() > 30 * np.percentile(shown, 3)
    y = np.where(np.isfinite(estimate) & ((estimate > 0) | (not log)), estimate, np.nan)
    crowded = int(sync.sum()) > CROWD or len(step) > 4000
    if crowded:  # single teeth would merge: show what they reach
        _band(axes, step, y, colour, min(max(int(sync.sum()) // 3, 25), 120))
    else:
        keep = thinned(y, 500)
        axes.plot(step[keep], y[keep], color=colour, lw=1.1, solid_joinstyle="round")
    if len(step) <= 60:
        axes.plot(step, y, ".", color=colour, ms=4)
    finite = np.isfinite(threshold) & (threshold > 0)
    if finite.any():
        changes = finite & np.r_[True, threshold[1:] != threshold[:-1]]
        changes[np.flatnonzero(finite)[-1]] = True
        dashed(axes, step[changes], threshold[changes])
    exact = np.isfinite(variance) & ((variance > 0) | (not log))
    if exact.any():
        where = np.flatnonzero(exact)
        where = where[np.linspace(0, len(where) - 1, min(len(where), 120)).astype(int)]
        dense = len(where) > 40
        axes.plot(step[where], variance[where], "o", mec=INK, mfc=CARD, ms=2.6 if dense else 4.5, mew=0.7, zorder=4)
    if log:
        axes.set_yscale("log")
        low = max(np.percentile(shown, 0.5), shown.max() / 1e6)
        axes.set_ylim(low * 0.7, shown.max() * (shown.max() / low) ** 0.16)
        log_ticks(axes, plain_number, axis="y")
    elif len(shown):
        axes.set_ylim(0, 1.2 * shown.max())
    marks = step[sync]
    if len(marks) <= 2 * CROWD:
        place = np.full(len(marks), 0.965)
        axes.plot(marks, place, "|", color=SOFT, ms=6, mew=0.9, transform=axes.get_xaxis_transform(), zorder=2)
    if len(step) > 1:
        axes.set_xlim(step[0], step[-1])
    count_ticks(axes)
    axes.grid(visible=True, axis="y")


def _averagings(checks: VarianceChecks) -> str:
    syncs = int(checks.sync.sum())
    return f"{count(syncs)} averaging{'' if syncs == 1 else 's'} in {count(len(checks))} checks"


def _band(axes: Axes, x: Floats, y: Floats, colour: str, most: int) -> None:
    """Draw a long series as median and range of each piece."""
    pieces = [(x[piece], y[piece][np.isfinite(y[piece])]) for piece in buckets(len(y), most)]
    pieces = [(px, py) for px, py in pieces if len(py)]
    middle = [px.mean() for px, _ in pieces]
    low, high = [py.min() for _, py in pieces], [py.max() for _, py in pieces]
    axes.fill_between(middle, low, high, color=colour, alpha=0.3, lw=0)
    axes.plot(middle, [np.median(py) for _, py in pieces], color=colour, lw=1.3)


def thinned(y: Floats, most: int) -> NDArray[np.intp]:
    """Return indices that keep the lowest and the highest value of each piece, and both ends, in order."""
    if len(y) <= 2 * most:
        return np.arange(len(y))
    keep = {0, len(y) - 1}
    for piece in buckets(len(y), most):
        if np.isfinite(y[piece]).any():
            keep |= {piece.start + int(np.nanargmin(y[piece])), piece.start + int(np.nanargmax(y[piece]))}
    return np.array(sorted(keep), dtype=np.intp)


VARIANCE = Plot(
    "variance-threshold",
    "Variance estimate and threshold",
    "FDA averages the models when the estimated variance exceeds the threshold: a saw-tooth. Ticks along the top "
    "mark the averagings, circles the exact variance at that moment; the gap between estimate and circle is "
    "the monitor's slack. Where rounds are too many to be told apart, a line shows the estimate's running median "
    "and a band its lowest and highest values. First seed only.",
    variance_and_threshold,
)
