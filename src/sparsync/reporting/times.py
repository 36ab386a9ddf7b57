"""How workers spent their virtual time: computing, waiting, communicating or away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsync.reporting.history import ComparisonRecord, Floats, TimelineRecord
from sparsync.reporting.summary import StrategyRow
from sparsync.reporting.units import Spread, spread_of
from sparsync.system import ACTIVITIES
from sparsync.system.timeline import Activity

__all__ = ["TALK", "TimeShares", "share", "times"]

TALK: tuple[Activity, ...] = ("send", "receive", "exchange")


@dataclass(frozen=True)
class TimeShares:
    """One strategy's shares of the recorded time, over the seeds that ended without an error.

    Attributes
    ----------
    compute, wait, talk, away : Spread or None
        Of all workers' time together.
    least, most : Spread or None
        What the least and the most busy worker computed, as shares of their own time.
    recorded : Spread or None
        The recorded part of the run's time.
    """

    row: StrategyRow
    compute: Spread | None
    wait: Spread | None
    talk: Spread | None
    away: Spread | None
    least: Spread | None
    most: Spread | None
    recorded: Spread | None


def times(run: ComparisonRecord, summary: Sequence[StrategyRow]) -> tuple[TimeShares, ...]:
    """Return how every strategy that recorded it spent the workers' time, in the run's order."""
    found = []
    for row in summary:
        ended = {r.seed: r.seconds for r in run.of(row.label) if r.error is None}
        histories = {seed: run.histories.get((row.label, seed)) for seed in ended}
        told = {seed: history.timeline for seed, history in histories.items() if history and history.timeline.tells}
        if told:
            recorded = [_part(timeline, ended[seed]) for seed, timeline in told.items()]
            found.append(_times(row, list(told.values()), spread_of(recorded, row.seeds)))
    return tuple(found)


def share(spent: Floats, *activities: Activity) -> float:
    """Return the share of some activities in the time that was spent, (workers, activities)."""
    return float(spent[:, [ACTIVITIES.index(one) for one in activities]].sum() / (spent.sum() or 1.0))


def _times(row: StrategyRow, told: Sequence[TimelineRecord], recorded: Spread | None) -> TimeShares:
    all_spent = [timeline.seconds() for timeline in told]

    def over(value: Callable[[Floats], float]) -> Spread | None:
        return spread_of([value(spent) for spent in all_spent], row.seeds)

    return TimeShares(
        row,
        over(lambda spent: share(spent, "compute")),
        over(lambda spent: share(spent, "wait")),
        over(lambda spent: share(spent, *TALK)),
        over(lambda spent: share(spent, "away")),
        over(lambda spent: float(_busy(spent).min())),
        over(lambda spent: float(_busy(spent).max())),
        recorded,
    )


def _busy(spent: Floats) -> Floats:
    shares: Floats = spent[:, ACTIVITIES.index("compute")] / spent.sum(axis=1)
    return shares


def _part(timeline: TimelineRecord, seconds: float | None) -> float | None:
    return min(1.0, float(timeline.end.max()) / seconds) if seconds else None
