"""Curves over several seeds: a mean, and a band from the lowest to the highest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from sparsync.reporting.figures.pieces import buckets, line
from sparsync.reporting.history import ComparisonRecord, Floats, History
from sparsync.reporting.palette import LineLook

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Curve(NamedTuple):
    """What one seed has to show: arrays of one length, (n,)."""

    at: Floats  # the step or round, at which seeds are compared
    x: Floats
    y: Floats
    low: Floats  # the range of what y is a mean of; y itself, if of nothing
    high: Floats


def curves_of(run: ComparisonRecord, curve: Callable[[History], Curve | None]) -> dict[str, list[Curve]]:
    """Return the curves that are not empty, one per seed, by label."""
    found: dict[str, list[Curve]] = {}
    for label in run.labels:
        made = [curve(history) for history in run.histories_of(label)]
        shown = [one for one in made if one is not None and len(one.x)]
        if shown:
            found[label] = shown
    return found


def over_seeds(seeds: Sequence[Curve]) -> Curve:
    """Return the mean curve, lowest and highest, at those steps or rounds that every seed has.

    Where seeds were not evaluated at the same ones, since how fast workers are decides about them too, it is along the
    lines between evaluations, as far as every seed goes.
    """
    common = set.intersection(*(set(seed.at.tolist()) for seed in seeds))
    start, end = max(seed.at[0] for seed in seeds), min(seed.at[-1] for seed in seeds)
    inside = [seed.at[(seed.at >= start) & (seed.at <= end)] for seed in seeds]
    if start < end and min(map(len, inside)) > 2 * len(common):
        seeds = [_along(seed, np.unique(np.concatenate([inside[0], [start, end]]))) for seed in seeds]
        common = set(seeds[0].at.tolist())
    chosen = [np.isin(seed.at, list(common)) for seed in seeds]
    at, x, y, low, high = (
        np.array([column[keep] for column, keep in zip(columns, chosen, strict=True)])
        for columns in zip(*seeds, strict=True)
    )
    return Curve(at[0], x.mean(axis=0), y.mean(axis=0), low.min(axis=0), high.max(axis=0))


def _along(curve: Curve, at: Floats) -> Curve:
    """Return a curve at other steps, between its own."""
    return Curve(at, *(np.interp(at, curve.at, column) for column in curve[1:]))


def draw_seeds(axes: Axes, seeds: Sequence[Curve], look: LineLook, stairs: bool = False) -> None:
    """Draw the mean over seeds and its band, and thin tails where only some seeds went on."""
    mean = over_seeds(seeds)
    shown = condensed(mean)
    line(axes, shown.x, shown.y, look, stairs)
    if (shown.high > shown.low).any():
        shape: Literal["post"] | None = "post" if stairs else None
        axes.fill_between(shown.x, shown.low, shown.high, color=look.colour, alpha=0.16, lw=0, step=shape)
    last = mean.at[-1] if len(mean.at) else -np.inf
    for seed in seeds:
        tail = seed.at > last
        if tail.any():
            axes.plot(seed.x[tail], seed.y[tail], color=look.colour, lw=0.8, alpha=0.7)


def condensed(curve: Curve, pieces: int = 120) -> Curve:
    """Return the medians and ranges of a curve's pieces, if it has more points than can be told apart."""
    if len(curve.x) <= 2 * pieces:
        return curve
    cut = buckets(len(curve.x), pieces)
    at, x = (np.array([column[piece].mean() for piece in cut]) for column in curve[:2])
    y = np.array([np.median(curve.y[piece]) for piece in cut])
    low = np.array([curve.low[piece].min() for piece in cut])
    high = np.array([curve.high[piece].max() for piece in cut])
    return Curve(at, x, y, low, high)
