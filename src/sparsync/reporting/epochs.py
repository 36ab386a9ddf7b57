"""What the epochs of split learning were like: their batches against all data, and how long they took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsync import split
from sparsync.errors import UsageError
from sparsync.reporting.fields import is_int
from sparsync.reporting.history import Floats, History, Result, Run, Steps
from sparsync.reporting.summary import Row
from sparsync.reporting.units import Spread, spread_of
from sparsync.spec import parse

__all__ = ["Epochs", "epochs", "expected_deviation", "in_tail"]


@dataclass(frozen=True)
class Epochs:
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

    row: Row
    deviation: Spread | None
    tail: Spread | None
    seconds: Spread | None
    ratio: Spread | None
    reference: str | None
    macro_accuracy: Spread | None


def epochs(run: Run, summary: Sequence[Row]) -> tuple[Epochs, ...]:
    """Return what there is to say about every split strategy, in the run's order."""
    finished = {(r.label, r.seed): r for r in run.results if r.error is None}
    reference = next((r.label for r in run.results if _uniform(r)), None)

    def one(row: Row) -> Epochs:
        own = {seed: result for (label, seed), result in finished.items() if label == row.label}
        histories = [run.histories[row.label, seed] for seed in own if (row.label, seed) in run.histories]
        took = {seed: _seconds(result) for seed, result in own.items()}
        uniform = {seed: _seconds(result) for (label, seed), result in finished.items() if label == reference}

        def over(value: Callable[[History], float | None]) -> Spread | None:
            return spread_of([value(history) for history in histories], row.seeds)

        return Epochs(
            row,
            over(lambda history: _mean(history.steps.deviation)),
            over(lambda history: _mean(history.steps.deviation[in_tail(history.steps)])),
            spread_of(list(took.values()), row.seeds),
            spread_of([_ratio(took[seed], uniform.get(seed)) for seed in took], row.seeds),
            reference,
            over(lambda history: next(iter(history.evaluations.macro_accuracy[::-1]), None)),
        )

    return tuple(one(row) for row in summary if row.unit == "epochs")


def in_tail(steps: Steps) -> NDArray[np.bool_]:
    """Whether a step is in the last tenth of its epoch, where fixed local batches run dry, (n,)."""
    place, length = steps.within_epochs()
    return place >= length - np.ceil(length / 10)


def expected_deviation(run: Run) -> float | None:
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


def _uniform(result: Result) -> bool:
    """Whether a result is that of PSL with uniform global sampling."""
    try:
        spec = parse(result.spec)
    except UsageError:
        return False
    return spec.name == "psl" and spec.parameters.get("sampler", "ugs") in ("ugs", "gpsl")


def _seconds(result: Result) -> float | None:
    return result.seconds / result.syncs if result.seconds is not None and result.syncs else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
