"""Results by strategy: one row per label, averaged over seeds, and the one sentence that sums them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sparsync.reporting.history import ComparisonRecord, Result
from sparsync.reporting.units import Spread, human_bytes, human_percent, human_seconds, spread_of

__all__ = ["StrategyRow", "cheapest", "headline", "kinds", "quickest", "rows"]


NOT_RUN = "no result was recorded"
"""What a row says of a seed that the run has not come to, or was not finished with."""


@dataclass(frozen=True)
class StrategyRow:
    """One strategy over all seeds.

    Accuracies are means over the seeds that ended without an error, values "to target" over those that reached the
    target: ``Spread.complete`` tells whether that is all of them.

    Attributes
    ----------
    seeds : int
        How many seeds the experiment asked for.
    reached : int or None
        How many of them reached the target; None without a target.
    failures : tuple of (int, str)
        Seeds that ended early or left no result, each with the reason.
    unit : {"syncs", "rounds", "epochs"} or None
        What ``syncs`` counts; None if nothing was counted.
    """

    label: str
    strategy: str
    spec: str
    seeds: int
    reached: int | None
    failures: tuple[tuple[int, str], ...]
    unit: str | None
    accuracy: Spread | None
    best_accuracy: Spread | None
    steps: Spread | None
    syncs: Spread | None
    steps_per_sync: Spread | None
    bytes: Mapping[str, Spread]
    paper_bytes: Mapping[str, Spread]
    steps_to_target: Spread | None
    bytes_to_target: Spread | None
    paper_bytes_to_target: Spread | None
    seconds_to_target: Spread | None
    seconds: Spread | None
    wall_seconds: Spread | None

    @property
    def shortfall(self) -> str:
        """How many seeds have no result, and in what way: ``1 of 3 failed``; empty if all have one."""
        missing = sum(why == NOT_RUN for _, why in self.failures)
        ways = {"failed": len(self.failures) - missing, "without a result": missing}
        return ", ".join(f"{count} of {self.seeds} {way}" for way, count in ways.items() if count)

    @property
    def always_reached(self) -> bool:
        """Whether the target was reached with every seed, so that a mean to the target hides no failure."""
        return self.reached is not None and self.reached >= self.seeds


def rows(run: ComparisonRecord) -> tuple[StrategyRow, ...]:
    """Return one row per label, in the run's order."""
    return tuple(_row(run, label) for label in run.labels)


def _row(run: ComparisonRecord, label: str) -> StrategyRow:
    results, of = run.of(label), len(run.seeds)
    finished = [r for r in results if r.error is None]
    reached = [r for r in results if r.reached]

    def over(chosen: list[Result] | tuple[Result, ...], value: Callable[[Result], float | None]) -> Spread | None:
        return spread_of([value(r) for r in chosen], of)

    present = {r.seed for r in results}
    failures = [(r.seed, r.error) for r in results if r.error is not None]
    failures += [(seed, NOT_RUN) for seed in run.seeds if seed not in present]
    with_target = run.target is not None or any(r.reached is not None for r in results)
    return StrategyRow(
        label=label,
        strategy=results[0].strategy if results else label,
        spec=results[0].spec if results else label,
        seeds=of,
        reached=len(reached) if with_target else None,
        failures=tuple(sorted(failures)),
        unit=next((r.unit for r in results if r.unit), None),
        accuracy=over(finished, lambda r: r.accuracy),
        best_accuracy=over(finished, lambda r: r.best_accuracy),
        steps=over(finished, lambda r: r.steps),
        syncs=over(finished, lambda r: r.syncs),
        steps_per_sync=over(finished, lambda r: r.steps / r.syncs if r.steps and r.syncs else None),
        bytes=_by_kind([r.bytes for r in finished], of),
        paper_bytes=_by_kind([r.paper_bytes for r in finished], of),
        steps_to_target=over(reached, lambda r: r.steps_to_target),
        bytes_to_target=over(reached, lambda r: r.bytes_to_target),
        paper_bytes_to_target=over(reached, lambda r: r.paper_bytes_to_target),
        seconds_to_target=over(reached, lambda r: r.seconds_to_target),
        seconds=over(finished, lambda r: r.seconds),
        wall_seconds=over(finished, lambda r: r.wall_seconds),
    )


def _by_kind(books: list[Mapping[str, float]], of: int) -> dict[str, Spread]:
    names = dict.fromkeys(kind for book in books for kind in book)
    spreads = {kind: spread_of([book.get(kind, 0.0) for book in books if book], of) for kind in names}
    return {kind: spread for kind, spread in spreads.items() if spread is not None}


def kinds(table: tuple[StrategyRow, ...]) -> tuple[str, ...]:
    """Return the kinds of bytes that occur: model first, then state, then the others by name; no total."""
    found = {kind for row in table for book in (row.bytes, row.paper_bytes) for kind in book} - {"total"}
    return tuple(sorted(found, key=lambda kind: (kind != "model", kind != "state", kind)))


def cheapest(table: tuple[StrategyRow, ...]) -> StrategyRow | None:
    """Return the row with fewest bytes to the target among those that reached it with every seed."""
    return min(_comparable(table), key=_bytes_to_target, default=None)


def _comparable(table: tuple[StrategyRow, ...]) -> list[StrategyRow]:
    return [row for row in table if row.always_reached and row.bytes_to_target is not None]


def _bytes_to_target(row: StrategyRow) -> float:
    return row.bytes_to_target.mean if row.bytes_to_target else float("inf")


def headline(run: ComparisonRecord) -> str:
    """Say in plain words who needed fewest bytes, by what factor, who was fastest, and who failed; no more."""
    table = rows(run)
    if not table:
        return "The run holds no results."
    if run.target is None:
        return _without_target(table)
    target = human_percent(run.target)
    every = "" if len(run.seeds) == 1 else f" with all {len(run.seeds)} seeds"
    best = cheapest(table)
    if best is None:
        some = [f"{row.label} ({row.reached}/{row.seeds})" for row in table if row.reached]
        return f"No strategy reached {target} accuracy{every}" + (f"; some seeds did: {_list(some)}." if some else ".")
    comparable = _comparable(table)
    worst = max(comparable, key=_bytes_to_target)
    low, high = _bytes_to_target(best), _bytes_to_target(worst)
    mean = "" if len(run.seeds) == 1 else " on average"
    text = f"To reach {target} accuracy, {best.label} needed {human_bytes(low)}{mean}"
    if len(comparable) > 1:
        if high > low > 0:
            text += f", the fewest bytes, {_factor(high / low)} times less than {worst.label} ({human_bytes(high)})"
        elif high > low:
            text += f", the fewest bytes; {worst.label} needed the most, {human_bytes(high)}"
        else:
            text += ", like every other strategy that reached it"
    text += _fastest(run, comparable, best) + "."
    missed = [f"{row.label} ({row.reached}/{row.seeds})" for row in table if not row.always_reached]
    if missed:
        what = "Not reached by" if len(run.seeds) == 1 else "Not reached with every seed by"
        names = [row.label for row in table if not row.always_reached] if len(run.seeds) == 1 else missed
        text += f" {what}: {_list(names)}."
    by_paper = {row.label: row.paper_bytes_to_target.mean for row in comparable if row.paper_bytes_to_target}
    other = min(by_paper, key=by_paper.__getitem__, default=best.label)
    if other != best.label and len(by_paper) == len(comparable):
        text += f" Counted as in the methods' papers, {other} needed the fewest."
    return text


def quickest(table: tuple[StrategyRow, ...]) -> StrategyRow | None:
    """Return the row with least time to the target among those that reached it with every seed."""
    timed = [(row.seconds_to_target.mean, row) for row in _comparable(table) if row.seconds_to_target is not None]
    return min(timed, key=lambda pair: pair[0], default=(0.0, None))[1]


def _fastest(run: ComparisonRecord, comparable: list[StrategyRow], cheap: StrategyRow) -> str:
    """Say who was there first, as the end of the sentence, if there are others."""
    first = quickest(tuple(comparable))
    if first is None or first.seconds_to_target is None or len(comparable) < 2:
        return ""
    who = "and was the fastest" if first is cheap else f"and {first.label} was the fastest"
    return f", {who}, {human_seconds(first.seconds_to_target.mean)} of {run.time}"


def _without_target(table: tuple[StrategyRow, ...]) -> str:
    accurate = {row.label: row.accuracy.mean for row in table if row.accuracy is not None}
    booked = [row for row in table if "total" in row.bytes]
    text = "No target accuracy was set"
    if accurate:
        best = max(accurate, key=accurate.__getitem__)
        text += f"; {best} ended with the highest accuracy, {human_percent(accurate[best])}"
    if booked:
        least = min(booked, key=lambda row: row.bytes["total"].mean)
        text += f"; {least.label} sent the fewest bytes, {human_bytes(least.bytes['total'].mean)}"
    return text + "."


def _factor(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}".replace(",", "\u202f")


def _list(names: list[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
