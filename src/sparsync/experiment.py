"""What an experiment file says, checked: every setting of ``sparsync compare`` is a key here."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_type_hints

import tomli_w
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparsync import spec
from sparsync.errors import UsageError
from sparsync.federated import FederatedStrategy, Federation
from sparsync.peers import Follower, PeerStrategy
from sparsync.settings import split_label
from sparsync.split import SplitSettings, SplitStrategy
from sparsync.strategies import STRATEGIES
from sparsync.system import DELAYS, Profile
from sparsync.task import DATASETS, MODELS, PARTITIONS
from sparsync.wire.dense import Precision
from sparsync.workers import OPTIMIZERS, SCHEDULES
from sparsync.workers.batches import Order
from sparsync.workers.fleet import BuffersPolicy

_RING = "hadfl:unit=10"  # whose workers pass models to one another

DEFAULT_STRATEGIES = {
    label: label
    for label in (
        "synchronous",
        "local-sgd:period=10",
        "fda:cadence=10",
        "fda:threshold=1,monitor=linear",
        "fda:threshold=1,monitor=sketch",
        _RING,
        "fedavg",
        "fedadam:lr=0.03",
        "sparsyfed:sparsity=0.8",
        "feddip:sparsity=0.8",
        "psl",
        "psl:sampler=lds",
    )
}

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]

_MOST_WORKERS, _MOST_PROCESSES, _MOST_SEEDS = 1_000_000, 1_000, 1_000


class _Settings(BaseModel):
    """Settings whose mistakes are `UsageError`, from Python as from a file."""

    def __new__(cls, /, *unnamed: object, **_: object) -> Self:  # in __init__ they would count as settings
        if unnamed:
            raise UsageError(
                f"{cls.__name__}: {spec.shown(unnamed[0])} is a positional argument; give it as NAME=VALUE"
            )
        return super().__new__(cls)

    def __init__(self, /, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            for item in error.errors():
                if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                    raise _unknown_key(type(self), *map(str, item["loc"])) from None
            raise UsageError(spec.explain(error)) from None

    if not TYPE_CHECKING:  # as pydantic does, so that type checkers know that settings are frozen
        __setattr__ = __delattr__ = spec.unchangeable


class Experiment(_Settings):
    """One task, one fleet, one budget; several strategies and seeds.

    Attributes
    ----------
    data : str
        Dataset spec, or ``module:function:key=value`` for a function that returns a `sparsync.Dataset`.
    data_root : Path, optional
        Folder or file that holds the dataset.
    model : str
        Model spec, or ``module:function:key=value`` for a factory of your own.
    partition : str
        Spec of who holds which training samples.
    workers : int
        Number of workers, K; at most a million.
    batch_size : int
        Samples per worker and step; a worker with fewer takes all of them.
    batches : {"epochs", "draws"}
        Shuffled passes (``epochs``), or every batch drawn anew (``draws``), as FDA's authors do.
    optimizer : str
        Spec of each worker's own optimiser; clients of a federation have another.
    schedule : str
        Spec of the learning rate's factor over a worker's steps.
    steps : int
        Local steps per worker, at most; where speeds differ, on average.
    eval_every : int
        Steps between two evaluations of the mean model on the test set.
    seconds : float, optional
        Virtual seconds, after which a run ends as well.
    target : float, optional
        Test accuracy to exceed, above 0 and below 1.
    stop_at_target : bool
        Whether a strategy's run ends at the target.
    strategies : dict of str to str
        Spec, or label=spec, of each; in a file a list of them, or a table of label to spec. Default: twelve, as in
        ``examples/demo.toml``; on a star without HADFL.
    seeds : list of int
        Number n for seeds 0 to n - 1; in a file also a list, of at most 1000.
    topology : {"ring", "star"}
        How workers are linked: ``ring``, or ``star`` with a server in the middle.
    precision : {"float32", "bfloat16", "float16", "float64"}, optional
        How models travel on a star. Default: as they are.
    buffers : {"average", "local"}
        Floating-point buffers (BatchNorm statistics): ``average`` with the models, or ``local``.
    dtype : {"float32", "float64"}
        Type of models and their arithmetic: ``float32`` or ``float64``.
    device : str
        Where models live, such as ``cuda``.
    processes : int or "auto"
        How many processes share the workers, at most 1000; ``auto``: one single-threaded process per core.
    federation : Federation
        Table of the federated strategies, below.
    split : SplitSettings
        Table of the split strategies, below.
    profile : Profile
        Table of devices and links, for the virtual clock, below.
    save_seconds : float
        Wall seconds between two checkpoints.
    imports : list of str
        Modules of your own to import first, so that what they register can be named.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    data: str = "digits"
    data_root: Path | None = None
    model: str = "mlp"
    partition: str = "iid"
    workers: Annotated[int, Field(ge=1, le=_MOST_WORKERS)] = 10
    batch_size: spec.Count = 32
    batches: Order = "epochs"
    optimizer: str = "adam"
    schedule: str = "constant"
    steps: spec.Count = 1000
    eval_every: spec.Count = 20
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    target: float | None = None
    stop_at_target: bool = True
    strategies: dict[str, str] = Field(default_factory=lambda: dict(DEFAULT_STRATEGIES))
    seeds: list[Seed] = Field(default=[0], min_length=1, max_length=_MOST_SEEDS)
    topology: Literal["ring", "star"] = "ring"
    precision: Precision | None = None
    buffers: BuffersPolicy = "average"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    processes: Annotated[int, Field(ge=1, le=_MOST_PROCESSES)] | Literal["auto"] = "auto"
    federation: Federation = Field(default_factory=Federation)
    split: SplitSettings = Field(default_factory=SplitSettings)
    profile: Profile = Field(default_factory=Profile)
    save_seconds: float = Field(default=30.0, ge=0)
    imports: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _prepared(cls, given: Any) -> Any:
        """Import first what registers names; without strategies on a star, select those that need no ring."""
        if not isinstance(given, dict):
            return given
        names = given.get("imports")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            import_modules(names)
        if given.get("topology") == "star" and "strategies" not in given:
            given = {
                **given,
                "strategies": {label: text for label, text in DEFAULT_STRATEGIES.items() if text != _RING},
            }
        if given.get("precision") is not None and given["precision"] == given.get("dtype", "float32"):
            given = {**given, "precision": None}  # as the models are
        return given

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if value > _MOST_SEEDS:
            raise ValueError(f"{spec.shown(value)} of them; at most {_MOST_SEEDS} in one comparison")
        return list(range(value))

    @field_validator("strategies", mode="before")
    @classmethod
    def _labelled(cls, value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            pairs = [split_label(item) for item in value]
            labels = [label for label, _ in pairs]
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise ValueError(f"{twice[0]!r} is given twice; label one of them, as in again={twice[0]}")
            value = dict(pairs)
        if value == {} or value == []:
            raise ValueError("give at least one strategy")
        if isinstance(value, dict):
            spec.check_labels(map(str, value))
        return value

    @field_validator("data_root")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value and value.expanduser().absolute()  # a run may be resumed from another folder

    @model_validator(mode="after")
    def _checked(self) -> Experiment:
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError(f"target: an accuracy between 0 and 1 (0.985 is 98.5 %), got {self.target:g}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} names one twice; give distinct ones")
        if isinstance(self.processes, int) and self.processes > self.workers:
            raise ValueError(f"processes: {self.processes} for {self.workers} workers; at most one each")
        if self.precision not in (None, self.dtype) and self.topology == "ring":
            raise ValueError(f"precision: a ring moves models as they are, in {self.dtype}; use topology='star'")
        check_device(self.device)
        if spec.imported(self.data, DATASETS, context=1) is None:
            DATASETS.resolve(self.data)
        if spec.imported(self.model, MODELS) is None:
            MODELS.resolve(self.model)
        PARTITIONS.resolve(self.partition)
        OPTIMIZERS.resolve(self.optimizer)
        SCHEDULES.resolve(self.schedule)
        self.profile.check(self.workers)
        seen: dict[str, str] = {}
        families: set[type] = set()
        for label, text in self.strategies.items():
            strategy = STRATEGIES.build(text)
            families |= {family for family in (FederatedStrategy, SplitStrategy) if isinstance(strategy, family)}
            if isinstance(strategy, FederatedStrategy):
                strategy.check(self.federation)
            if isinstance(strategy, Follower) and strategy.match is not None:
                matching(strategy.match, seen)
            seen[label] = text
        if FederatedStrategy in families:
            self.federation.cohort_of(self.workers)
        if SplitStrategy in families:
            DELAYS.build(self.split.delays, self.workers, 0)
        return self

    def import_modules(self) -> None:
        """Import what `imports` names: in every process, before anything is looked up."""
        import_modules(self.imports)

    def strategy(self, label: str) -> PeerStrategy | FederatedStrategy | SplitStrategy:
        """Return the strategy of a label."""
        made: PeerStrategy | FederatedStrategy | SplitStrategy = STRATEGIES.build(self.strategies[label])
        return made

    @property
    def fingerprint(self) -> str:
        """What identifies the experiment, whatever the process count: runs of different experiments do not mix."""
        return self._fingerprint("processes", "save_seconds", "data_root")

    @property
    def common(self) -> str:
        """The same for machines that take part in one run, each of which may compute on a device of its own kind."""
        return self._fingerprint("processes", "save_seconds", "data_root", "device")

    def _fingerprint(self, *without: str) -> str:
        said = self.model_dump(mode="json", exclude=set(without))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def import_modules(names: Iterable[str]) -> None:
    """Import modules that register things.

    Raises
    ------
    UsageError
        If there is no such module, or it raises anything while it is imported.
    """
    for name in names:
        spec.import_module(name, "imports", "name an importable module")


def check_device(name: str) -> None:
    """Refuse a device that torch does not know, or does not have here.

    Raises
    ------
    UsageError
        If so.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device: {name!r} cannot be used here ({reason}); cpu always can") from None


def matching(wanted: str, earlier: dict[str, str]) -> str:
    """Label of the one earlier strategy that is called `wanted`, by label or by name.

    Raises
    ------
    UsageError
        If there is none, or more than one.
    """
    if wanted in earlier:
        return wanted
    found = [label for label, text in earlier.items() if spec.parse(text).name == wanted]
    if len(found) == 1:
        return found[0]
    problem = "more than one earlier strategy has that name" if found else "no earlier strategy has that label or name"
    raise UsageError(f"match={wanted}: {problem}; label one before it, as in {wanted}=fda:threshold=1")


def build(settings: dict[str, Any], source: str = "") -> Experiment:
    """Check settings.

    Raises
    ------
    UsageError
        One line that names every wrong key, and what was expected.
    """
    try:
        return Experiment(**settings)
    except UsageError as error:
        raise UsageError(f"{source}: {error}" if source else str(error)) from None


def _unknown_key(table: Any, *path: str) -> UsageError:
    """Return the error for a key that does not exist: at the top, in a table as ``[profile]``, or in one's list."""
    *outer, name = path
    for piece in outer:
        table = get_args(table)[0] if piece.isdigit() else get_type_hints(table)[piece]
    where = ".".join(piece for piece in outer if not piece.isdigit())
    return spec.unknown(f"[{where}] key" if where else "key", name, sorted(inspect.signature(table).parameters))


def to_toml(experiment: Experiment) -> str:
    """Return the experiment as a file that `read` reads back; what is not set is left out."""
    return tomli_w.dumps(experiment.model_dump(mode="json", exclude_none=True))


def tables() -> dict[str, spec.Entry[Any]]:
    """Return the tables of an experiment file with their keys, its own under ``""``."""
    models = {"": Experiment, "federation": Federation, "split": SplitSettings, "profile": Profile}
    return {name: spec.Entry(name, model) for name, model in models.items()}
