"""What an experiment file says, checked: every setting of ``sparsync compare`` is a key here."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparsync import spec
from sparsync.errors import UsageError
from sparsync.federated import Choosy, FederatedStrategy, Federation
from sparsync.peers import Follower, PeerStrategy
from sparsync.split import Split, SplitStrategy
from sparsync.strategies import STRATEGIES
from sparsync.system import DELAYS, Profile, System
from sparsync.task import DATASETS, PARTITIONS
from sparsync.wire.dense import Precision
from sparsync.workers import SCHEDULES, check_optimizer
from sparsync.workers.batches import Order
from sparsync.workers.fleet import BuffersPolicy

DEFAULT_STRATEGIES = {
    label: label
    for label in (
        "synchronous",
        "local-sgd:period=10",
        "fda:cadence=10",
        "fda:threshold=1,monitor=linear",
        "fda:threshold=1,monitor=sketch",
        "hadfl:unit=10",
        "fedavg",
        "fedadam:lr=0.03",
        "sparsyfed:sparsity=0.8",
        "feddip:sparsity=0.8",
        "psl",
        "psl:sampler=lds",
    )
}

# Without strategies and without a table [profile]: unequal devices, the slowest a quarter as fast as the fastest, which
# take 10 ms for a step (4:2:2:1 over and over, as in HADFL's paper), and links of 10 Mbit/s.
DEFAULT_PROFILE = Profile(power="1:0.5:0.5:0.25:...", bandwidth=1.25e6)

# Without a table [federation]: what suits the embedded digits among ten clients.
DEFAULT_FEDERATION = Federation(participation=0.5, epochs=2, optimizer="sgd:lr=0.3")

# Without a table [split]: the same, with two stragglers.
DEFAULT_SPLIT = Split(batch_size=64, epochs=30, optimizer="sgd:lr=0.3", delays="stragglers:count=2,seconds=0.02")

Seed = Annotated[int, Field(ge=0)]


class Experiment(BaseModel):
    """One task, one fleet, one budget; several strategies and seeds.

    Attributes
    ----------
    data, data_root
        Dataset spec, or ``package.module:function``, and the folder or file that holds it.
    model
        Model spec, or ``package.module:function`` for a factory of your own.
    partition
        Spec of who holds which training samples.
    workers, batch_size, batches
        K; samples per worker and step; shuffled passes (``epochs``) or independent ``draws``.
    optimizer, schedule
        Specs of each worker's own optimiser and of its learning rate over its steps.
    steps, eval_every
        Local steps per worker (where speeds differ, on average); steps between two evaluations of the mean model.
    seconds
        Virtual seconds, after which a run ends as well. Default: it does not.
    target, stop_at_target
        Test accuracy to exceed, and whether a strategy's run ends there.
    strategies
        Specs, or a table of label to spec.
    seeds
        A list, or a number n for 0 to n-1.
    topology, precision, buffers
        Ring or star; how models travel to and from a star's server; whether buffers are averaged.
    dtype, device
        Of models and their arithmetic.
    processes
        How many processes share the workers; ``auto`` is one single-threaded process per core.
    federation
        Rounds, cohorts and local work of the federated strategies; their clients are the workers.
    split
        Cut, batches and epochs of the split strategies; their clients are the workers.
    profile
        Devices and links, for the virtual clock.
    save_seconds
        Wall seconds between two checkpoints.
    imports
        Modules of your own to import first, so that what they register can be named here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    data: str = "digits"
    data_root: Path | None = None
    model: str = "mlp"
    partition: str = "iid"
    workers: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    batches: Order = "epochs"
    optimizer: str = "adam"
    schedule: str = "constant"
    steps: int = Field(default=1000, ge=1)
    eval_every: int = Field(default=20, ge=1)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    target: float | None = None
    stop_at_target: bool = True
    strategies: dict[str, str] = Field(default_factory=lambda: dict(DEFAULT_STRATEGIES))
    seeds: list[Seed] = Field(default=[0], min_length=1)
    topology: Literal["ring", "star"] = "ring"
    precision: Precision | None = None
    buffers: BuffersPolicy = "average"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    federation: Federation = DEFAULT_FEDERATION
    split: Split = DEFAULT_SPLIT
    profile: Profile = Field(default_factory=Profile)
    save_seconds: float = Field(default=30.0, ge=0)
    imports: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _selected(cls, given: Any) -> Any:
        """Without strategies: a selection, and devices that show what each is good for."""
        if not isinstance(given, dict) or "strategies" in given:
            return given
        selection = dict(DEFAULT_STRATEGIES)
        if given.get("topology") == "star":
            del selection["hadfl:unit=10"]  # its workers pass models to one another
        return {"strategies": selection, "profile": DEFAULT_PROFILE, **given}

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

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
        self.import_modules()
        check_device(self.device)
        if spec.imported(self.data, DATASETS) is None:
            DATASETS[spec.parse(self.data).name]
        PARTITIONS[spec.parse(self.partition).name]
        check_optimizer(self.optimizer)
        SCHEDULES.build(self.schedule)
        System.of(self.profile, self.workers)
        self.federation.cohort_of(self.workers)
        DELAYS.build(self.split.delays, self.workers, 0)
        seen: dict[str, str] = {}
        for label, text in self.strategies.items():
            strategy = STRATEGIES.build(text)
            if isinstance(strategy, Choosy):
                strategy.check(self.federation)
            if isinstance(strategy, Follower) and strategy.match is not None:
                matching(strategy.match, seen)
            seen[label] = text
        return self

    def import_modules(self) -> None:
        """Import what `imports` names: in every process, before anything is looked up."""
        for name in self.imports:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UsageError(f"imports: cannot import {name!r} ({error}); name an importable module") from None

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


def split_label(text: str) -> tuple[str, str]:
    """``label=spec`` or just ``spec``, which is then its own label."""
    head, equals, rest = text.partition("=")
    if equals and ":" not in head:
        return head.strip(), rest.strip()
    return text.strip(), text.strip()


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
        return Experiment.model_validate(settings)
    except ValidationError as error:
        where = f"{source}: " if source else ""
        for item in error.errors():
            if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                raise UsageError(where + str(_unknown_key(*map(str, item["loc"])))) from None
        raise UsageError(where + spec.explain(error)) from None
    except UsageError as error:
        raise UsageError(f"{source}: {error}" if source else str(error)) from None


def _unknown_key(*path: str) -> UsageError:
    """Return the error for a key that does not exist: at the top, in a table as ``[profile]``, or in one's list."""
    *outer, name = path
    table: Any = Experiment
    for piece in outer:
        table = get_args(table)[0] if piece.isdigit() else get_type_hints(table)[piece]
    where = ".".join(piece for piece in outer if not piece.isdigit())
    return spec.unknown(f"[{where}] key" if where else "key", name, sorted(inspect.signature(table).parameters))


def read(path: Path) -> dict[str, Any]:
    """Settings of an experiment file.

    Raises
    ------
    UsageError
        If there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give the path of an experiment file (TOML)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def to_toml(experiment: Experiment) -> str:
    """Return the experiment as a file that `read` reads back; what is not set is left out."""
    said = experiment.model_dump(mode="json", exclude_none=True)
    tables = {key: value for key, value in said.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in said.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{json.dumps(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)
