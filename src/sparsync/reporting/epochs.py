"""What the epochs of split learning were like: their batches, how long they took, and how LDS tilted them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsync import split
from sparsync.errors import UsageError
from sparsync.reporting.fields import is_int
from sparsync.reporting.history import ComparisonRecord, Floats, History, Result, SplitSteps
from sparsync.reporting.summary import StrategyRow
from sparsync.reporting.units import Spread, spread_of
from sparsync.spec import parse

__all__ = [
    "EpochSummary",
    "LDSSummary",
    "epochs",
    "expected_deviation",
    "in_tail",
    "seconds_per_epoch",
    "tilts",
    "uniform_psl",
]


@dataclass(frozen=True)
class EpochSummary:
    """One split strategy's epochs, over the seeds that ended without an error.

    Attributes
    ----------
    deviation, tail : Spread or None
        How far global batches are from all data, mean over all steps and over the last tenth of every epoch.
    seconds : Spread or None
        Virtual time of an epoch.
    ratio : Spread or None
        The same relative to the `reference`, seed by seed.
    reference : str or None
        The run's PSL that draws uniformly; None if there is none.
    macro_accuracy : Spread or None
        Mean over classes, at the last evaluation.
    """

    row: StrategyRow
    deviation: Spread | None
    tail: Spread | None
    seconds: Spread | None
    ratio: Spread | None
    reference: str | None
    macro_accuracy: Spread | None


@dataclass(frozen=True)
class LDSSummary:
    """How latent Dirichlet sampling (LDS) drew, means over epochs, over the seeds that ended without an error.

    Attributes
    ----------
    alpha_0 : Spread or None
        The prior's concentration.
    pi, held : Spread or None
        Of the client that the others waited for longest: its share of the batches that an epoch begins with, and of
        all samples.
    least, most : Spread or None
        Of all clients: the lowest and the highest pi.
    """

    row: StrategyRow
    alpha_0: Spread | None
    pi: Spread | None
    held: Spread | None
    least: Spread | None
    most: Spread | None


def epochs(run: ComparisonRecord, summary: Sequence[StrategyRow]) -> tuple[EpochSummary, ...]:
    """Return what there is to say about every split strategy, in the run's order."""
    finished = {(r.label, r.seed): r for r in run.results if r.error is None}
    reference = next((r.label for r in run.results if uniform_psl(r)), None)

    def one(row: StrategyRow) -> EpochSummary:
        own = {seed: result for (label, seed), result in finished.items() if label == row.label}
        histories = _finished(run, row.label)
        took = {seed: seconds_per_epoch(result) for seed, result in own.items()}
        uniform = {seed: seconds_per_epoch(result) for (label, seed), result in finished.items() if label == reference}

        def over(value: Callable[[History], float | None]) -> Spread | None:
            return spread_of([value(history) for history in histories], row.seeds)

        return EpochSummary(
            row,
            over(lambda history: _mean(history.steps.deviation)),
            over(lambda history: _mean(history.steps.deviation[in_tail(history.steps)])),
            spread_of(list(took.values()), row.seeds),
            spread_of([_ratio(took[seed], uniform.get(seed)) for seed in took], row.seeds),
            reference,
            over(lambda history: next(iter(history.evaluations.macro_accuracy[::-1]), None)),
        )

    return tuple(one(row) for row in summary if row.unit == "epochs")


def tilts(run: ComparisonRecord, summary: Sequence[StrategyRow]) -> tuple[LDSSummary, ...]:
    """Return how every strategy with LDS drew, in the run's order."""
    drawn = [(row, [h for h in _finished(run, row.label) if len(h.schedules)]) for row in summary]
    return tuple(_tilt(row, histories) for row, histories in drawn if histories)


def _tilt(row: StrategyRow, histories: Sequence[History]) -> LDSSummary:
    def over(value: Callable[[History], float | None]) -> Spread | None:
        return spread_of([value(history) for history in histories], row.seeds)

    return LDSSummary(
        row,
        over(lambda history: _mean(history.schedules.alpha_0)),
        over(lambda history: _of_slowest(history, _pi(history))),
        over(lambda history: _of_slowest(history, _held(history))),
        over(lambda history: float(_pi(history).min())),
        over(lambda history: float(_pi(history).max())),
    )


def in_tail(steps: SplitSteps) -> NDArray[np.bool_]:
    """Whether a step is in the last tenth of its epoch, where fixed local batches run dry, (n,)."""
    place, length = steps.within_epochs()
    return place >= length - np.ceil(length / 10)


def expected_deviation(run: ComparisonRecord) -> float | None:
    """Return how far batches drawn uniformly from all data would be from it; None if the run does not say enough."""
    setting = run.experiment.get("split")
    batch_size = setting.get("batch_size") if isinstance(setting, dict) else None
    if run.partition is None or not is_int(batch_size):
        return None
    classes = run.partition.counts.sum(axis=0)
    total = int(classes.sum())
    if not 1 <= batch_size <= total or classes.min() < 0:
        return None
    return split.expected_deviation(classes / total, batch_size, total)


def uniform_psl(result: Result) -> bool:
    """Whether a result is that of PSL with uniform global sampling."""
    try:
        spec = parse(result.spec)
    except UsageError:
        return False
    return spec.name == "psl" and spec.parameters.get("sampler", "ugs") in ("ugs", "gpsl")


def seconds_per_epoch(result: Result) -> float | None:
    """Return the virtual time of an epoch, mean over a whole run."""
    return result.seconds / result.syncs if result.seconds is not None and result.syncs else None


def _finished(run: ComparisonRecord, label: str) -> list[History]:
    """Return the histories of the seeds that ended without an error."""
    seeds = (result.seed for result in run.of(label) if result.error is None)
    return [run.histories[label, seed] for seed in seeds if (label, seed) in run.histories]


def _pi(history: History) -> Floats:
    """Mean over epochs of the clients' shares of the batches that an epoch begins with, (K,)."""
    mean: Floats = history.schedules.pi.mean(axis=0)
    return mean


def _held(history: History) -> Floats:
    """The clients' shares of all samples, (K,): of those that the first epoch used; NaN if it does not say."""
    clients = history.schedules.pi.shape[1]
    _, client, size = history.steps.given().T
    if not size.any():
        return np.full(clients, np.nan)
    shares: Floats = np.bincount(client, size, clients)[:clients] / size.sum()
    return shares


def _of_slowest(history: History, shares: Floats) -> float | None:
    """Return the share of the client that the others waited for longest, or None if they waited for nobody."""
    slowest, seconds = history.steps.slowest, history.steps.seconds
    known = (slowest >= 0) & (slowest < len(shares)) & np.isfinite(seconds)  # NaN is neither
    waited = np.bincount(slowest[known].astype(np.int64), seconds[known])
    return float(shares[waited.argmax()]) if len(waited) else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
