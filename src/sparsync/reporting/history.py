"""What a run left behind: its setting, results and curves.

One :class:`ComparisonRecord` is all that tables, figures and the report need. Curves are kept as arrays, one
:class:`History` per label and seed, since a run can hold tens of thousands of checks, or
hundreds of thousands of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsync.reporting.fields import is_int, is_number
from sparsync.system import ACTIVITIES

__all__ = [
    "ComparisonRecord",
    "CycleRecords",
    "Evaluations",
    "History",
    "LDSSchedules",
    "Partition",
    "Rejection",
    "Result",
    "RoundRecords",
    "SplitSteps",
    "TimelineRecord",
    "VarianceChecks",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Result:
    """How one strategy ended with one seed: an entry of ``summary.json``.

    Attributes
    ----------
    label : str
        Name of the strategy in tables and figures, unique within a run.
    syncs : int or None
        Model averagings, rounds of a federation or epochs of split learning.
    unit : {"syncs", "rounds", "epochs"} or None
        Which of them; None if nothing was counted.
    bytes, paper_bytes : mapping of str to float
        Bytes by kind and their ``total``: what the topology moves, and what the method's authors would count.
    reached : bool or None
        Whether the target accuracy was reached; None without a target.
    error : str or None
        Why the run ended early; None if it did not.
    """

    label: str
    strategy: str
    spec: str
    seed: int
    workers: int | None
    steps: int | None
    syncs: int | None
    unit: str | None
    accuracy: float | None
    best_accuracy: float | None
    bytes: Mapping[str, float]
    paper_bytes: Mapping[str, float]
    reached: bool | None
    steps_to_target: float | None
    bytes_to_target: float | None
    paper_bytes_to_target: float | None
    seconds_to_target: float | None
    seconds: float | None
    wall_seconds: float | None
    error: str | None


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run, by increasing step: arrays of one length, (n,); NaN where nothing was recorded.

    ``rounds`` and the accuracies of clients (their mean and that of the worst tenth) are a federation's, whose
    ``syncs`` are its rounds; ``epochs`` and the mean accuracy over classes are split learning's.
    """

    step: Floats
    accuracy: Floats
    loss: Floats
    train_loss: Floats
    bytes: Floats
    paper_bytes: Floats
    syncs: Floats
    seconds: Floats
    rounds: Floats
    client_accuracy: Floats
    client_accuracy_worst: Floats
    epochs: Floats
    macro_accuracy: Floats

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class VarianceChecks:
    """FDA's variance checks, by increasing step: arrays of one length, (n,).

    ``variance`` is the exact one, known at syncs only: NaN elsewhere.
    """

    step: Floats
    estimate: Floats
    threshold: Floats
    sync: NDArray[np.bool_]
    variance: Floats

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class RoundRecords:
    """What server and clients of a federation noted, by increasing round.

    Attributes
    ----------
    number : array, (n,)
        Rounds of which something was noted; a run's first is 1.
    columns : mapping of str to array, (n,)
        The numbers by key; NaN where a round noted none.
    agreement : tuple of (int, int, float)
        A round, an earlier round, and the intersection over union of the global masks after them.
    """

    number: Floats
    columns: Mapping[str, Floats]
    agreement: tuple[tuple[int, int, float], ...] = ()

    def __len__(self) -> int:
        return len(self.number)

    def of(self, key: str) -> Floats:
        """Return a column, NaN throughout if nobody noted it."""
        return self.columns.get(key, np.full(len(self), np.nan))

    def by_layer(self, key: str) -> dict[str, Floats]:
        """Return the columns ``key/<parameter name>``, by name of the parameter; no lowest and highest of clients."""
        ends = {f"{name}_{end}" for name in self.columns for end in ("min", "max")}
        found = [name for name in self.columns if name.startswith(f"{key}/") and name not in ends]
        return {name.removeprefix(f"{key}/"): self.columns[name] for name in found}


@dataclass(frozen=True)
class SplitSteps:
    """The global steps of split learning, by increasing step: arrays of one length, (n,); NaN where nothing was noted.

    Attributes
    ----------
    step, epoch : array, (n,)
        Of the run; its first are 1.
    size : array, (n,)
        Samples in the global batch.
    deviation : array, (n,)
        How far its labels are from those of all data.
    seconds : array, (n,)
        Virtual time.
    slowest : array, (n,)
        The client that the others waited for; NaN where no client takes part, as in centralised training.
    late : array of int, (m, 2)
        Pairs: index of a step, and a client that was asked for samples and left out.
    asked : array of int, (l, 3)
        Index of a step, a client and how many samples it was asked for; of the first epoch only.
    """

    step: Floats
    epoch: Floats
    size: Floats
    deviation: Floats
    seconds: Floats
    slowest: Floats
    late: Ints
    asked: Ints

    def __len__(self) -> int:
        return len(self.step)

    def within_epochs(self) -> tuple[Ints, Ints]:
        """Return each step's place in its epoch, from 0, and how many steps that epoch has, (n,) both."""
        starts = np.flatnonzero(np.diff(self.epoch, prepend=np.nan))
        lengths = np.diff(starts, append=len(self))
        return np.arange(len(self)) - np.repeat(starts, lengths), np.repeat(lengths, lengths)

    def given(self) -> Ints:
        """Return those of `asked` whose samples arrived in time."""
        asked, late = (pairs[:, 0] << 31 | pairs[:, 1] for pairs in (self.asked, self.late))
        return self.asked[~np.isin(asked, late)]


@dataclass(frozen=True)
class LDSSchedules:
    """What latent Dirichlet sampling (LDS) settled on as epochs began, by increasing epoch.

    Attributes
    ----------
    step, epoch : array, (n,)
        Steps done before, and the epoch, from 1.
    alpha_0 : array, (n,)
        The prior's concentration.
    pi : array, (n, clients)
        The clients' shares of the batches until the first of them runs dry.
    """

    step: Floats
    epoch: Floats
    alpha_0: Floats
    pi: Floats

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class TimelineRecord:
    """What workers did when, as far as it was recorded: pieces by worker and start, arrays of one length, (n,).

    Attributes
    ----------
    worker : array of int, (n,)
        Who; of one worker, a piece begins where the one before has ended.
    activity : array of int, (n,)
        What, as an index into `sparsync.system.ACTIVITIES`.
    start, end : array, (n,)
        In virtual seconds.
    """

    worker: Ints
    activity: Ints
    start: Floats
    end: Floats

    def __len__(self) -> int:
        return len(self.worker)

    @property
    def tells(self) -> bool:
        """Whether workers did more than one thing; split strategies only know how long a step takes as a whole."""
        return len(np.unique(self.activity)) > 1

    def seconds(self) -> Floats:
        """Return how long each worker that has pieces spent on each activity, (workers, activities)."""
        who, row = np.unique(self.worker, return_inverse=True)
        spent = np.zeros((len(who), len(ACTIVITIES)))
        np.add.at(spent, (row, self.activity), self.end - self.start)
        return spent


@dataclass(frozen=True)
class CycleRecords:
    """HADFL's cycles, by increasing number; what concerns a device is NaN in a cycle that it missed.

    Attributes
    ----------
    number : array, (n,)
        From 1.
    units : array, (n, K)
        Units of work that each device was to complete in a hyperperiod: its speed.
    selected : array of bool, (n, K)
        Who averaged.
    broadcaster : array of int, (n,)
        Who of them told the others.
    versions, predicted, expected : array, (n, K)
        Local steps so far, what was forecast, and how likely the device was to be selected.
    met, averaged : array, (n,)
        When, in virtual seconds, the last of those who averaged was there, and when they had the mean; NaN where that
        was not recorded.
    merges : array, (m, 2)
        Devices that blended a mean in, and when, in virtual seconds; by cycle.
    """

    number: Floats
    units: Floats
    selected: NDArray[np.bool_]
    broadcaster: Ints
    versions: Floats
    predicted: Floats
    expected: Floats
    met: Floats
    averaged: Floats
    merges: Floats

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True)
class Rejection:
    """An upload that the server refused, in a round; with the unit ``epoch``, a client that it gave up; or, with the
    unit ``cycle``, a device of HADFL on real machines that was lost.
    """

    round: int
    client: int
    reason: str
    unit: str = "round"


@dataclass(frozen=True)
class History:
    """What one label recorded with one seed while it trained."""

    evaluations: Evaluations
    checks: VarianceChecks
    rounds: RoundRecords
    steps: SplitSteps
    schedules: LDSSchedules
    timeline: TimelineRecord
    cycles: CycleRecords
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True)
class Partition:
    """Who holds what.

    Attributes
    ----------
    counts : array of int, (workers, classes)
        Samples of each class that each worker holds.
    class_names : tuple of str
        Names of the columns.
    """

    counts: Ints
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonRecord:
    """One comparison: its setting, its results in order, and the histories by (label, seed)."""

    folder: Path
    version: str
    experiment: Mapping[str, Any]
    parameters: int | None
    results: tuple[Result, ...]
    histories: Mapping[tuple[str, int], History] = field(default_factory=dict)
    partition: Partition | None = None
    real: bool = False
    """Whether seconds are those of real devices, not of the virtual clock."""

    @property
    def time(self) -> str:
        """What seconds are called."""
        return "real time" if self.real else "virtual time"

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label once, in the order of the results; figures give out colours in this order."""
        return tuple(dict.fromkeys([*(r.label for r in self.results), *(label for label, _ in self.histories)]))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that the experiment asked for or that has a result."""
        listed = self.experiment.get("seeds")
        asked = [s for s in listed if is_int(s)] if isinstance(listed, (list, tuple)) else []
        return tuple(dict.fromkeys([*asked, *(r.seed for r in self.results)]))

    @property
    def target(self) -> float | None:
        """The target accuracy, a fraction, or None."""
        target = self.experiment.get("target")
        return float(target) if is_number(target) else None

    @property
    def common_target(self) -> float | None:
        """Half a point below the lowest best accuracy: what every run has exceeded; None if there are no results."""
        best = [result.best_accuracy for result in self.results if result.best_accuracy is not None]
        return min(best) - 0.005 if best else None

    def at(self, target: float) -> ComparisonRecord:
        """Return this run as if that had been its target accuracy, as far as its evaluations go."""
        results = []
        for result in self.results:
            history = self.histories.get((result.label, result.seed))
            seen = None if history is None else history.evaluations
            above = np.flatnonzero(seen.accuracy > target) if seen is not None else np.zeros(0, np.int64)
            first: dict[str, float | None] = dict.fromkeys(("step", "bytes", "paper_bytes", "seconds"))
            if seen is not None and len(above):
                first = {name: float(getattr(seen, name)[above[0]]) for name in first}
            results.append(
                replace(
                    result,
                    reached=len(above) > 0,
                    steps_to_target=None if first["step"] is None else int(first["step"]),
                    bytes_to_target=first["bytes"],
                    paper_bytes_to_target=first["paper_bytes"],
                    seconds_to_target=first["seconds"],
                )
            )
        return replace(self, experiment={**self.experiment, "target": target}, results=tuple(results))

    def of(self, label: str) -> tuple[Result, ...]:
        """Return the results of one label, one per seed."""
        return tuple(r for r in self.results if r.label == label)

    def histories_of(self, label: str) -> tuple[History, ...]:
        """Return the histories of one label, by seed."""
        return tuple(self.histories[key] for key in sorted(k for k in self.histories if k[0] == label))

    def firsts(self, has: Callable[[History], bool]) -> dict[str, History]:
        """Return each label's history with the first seed that has something, if any."""
        found = {label: next(filter(has, self.histories_of(label)), None) for label in self.labels}
        return {label: history for label, history in found.items() if history is not None}
