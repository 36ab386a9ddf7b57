"""From an experiment to its results: every strategy and seed trained, recorded, saved, and resumed where it stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsync.assembly import SeedSetting, step_seconds
from sparsync.engines.devices import Membership
from sparsync.engines.processes import choose, run, stopping, under_torchrun
from sparsync.engines.remote import RemoteClients
from sparsync.engines.rendezvous import rendezvous
from sparsync.engines.serving import ClientService
from sparsync.errors import UsageError
from sparsync.experiment import Experiment, build, to_toml
from sparsync.identity import difference, identity, versions
from sparsync.peers import Cadence, Follower
from sparsync.progress import tell
from sparsync.records import Records
from sparsync.run import StrategyRun, Watcher
from sparsync.settings import read
from sparsync.split import LocalSplitClients, SplitClients, SplitStrategy, SplitTrainer
from sparsync.storage import locked, read_bytes, read_json, remove, write_json, write_text
from sparsync.task import Dataset, Task, counts, load_dataset, partition
from sparsync.workers import Group, SingleProcess

_BEGUN = ("experiment.toml", "run.json", "partition.json", "history.jsonl", "devices.json", "token")
_SAVED = ("checkpoint", "summary.json")


@dataclass(frozen=True)
class ProcessOrder:
    """What each process is told to do."""

    experiment: Experiment
    folder: Path
    watch: Callable[[Experiment], Any] | None  # builds a context manager that gives a Watcher, in rank 0's process
    membership: Membership | None = None
    made: dict[str, Any] | None = None  # ``run.json`` of a run that is gone on with


def watch(experiment: Any) -> Any:
    """Return the live table of an experiment for whoever shows it."""
    from sparsync.reporting.live import LiveTable

    return LiveTable(
        experiment.steps,
        len(experiment.seeds) > 1,
        total_rounds=experiment.federation.rounds,
        total_epochs=experiment.split.epochs,
    )


def compare(
    experiment: Experiment,
    folder: Path,
    watch: Callable[[Experiment], Any] | None = None,
    *,
    membership: Membership | None = None,
    around: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 (it holds nothing)
) -> dict[str, Any]:
    """Run an experiment in a new folder, and return its summary; HADFL, if there is a membership, with its devices.

    What goes on `around` the run is entered once the folder is this process's own.

    Raises
    ------
    UsageError
        If the folder already holds a run, or the experiment cannot be run: that leaves nothing behind.
    Interrupted
        If the user stopped it; `resume` goes on.
    """
    folder = Path(folder)
    with _new(folder), around:
        return _run(ProcessOrder(experiment, folder, watch, membership))


def rehearse(experiment: Experiment, dataset: Dataset) -> None:
    """Refuse here and now what `compare` would refuse of an experiment whose data are these.

    Raises
    ------
    UsageError
        If a partition, the model or a strategy is refused.
    """
    _rehearse(experiment, Task(dataset, experiment.model), SingleProcess(), experiment.strategies)


def resume(
    folder: Path,
    watch: Callable[[Experiment], Any] | None = None,
    *,
    membership: Membership | None = None,
    around: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 (it holds nothing)
) -> dict[str, Any]:
    """Go on with a run that was interrupted or killed: the end is the same, bit for bit.

    Raises
    ------
    UsageError
        If the folder holds no run, or that of another experiment, or with other data, another model or other versions.
    """
    folder = Path(folder)
    experiment, made = opened(folder)
    processes = choose(experiment.processes, experiment.workers)
    if processes != experiment.processes:
        raise UsageError(f"{folder}: its run has {experiment.processes} processes, here are {processes}; start as many")
    with _own(folder), around:
        return _run(ProcessOrder(experiment, folder, watch, membership, made))


def opened(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    """Experiment and ``run.json`` of a run's folder, checked against each other.

    Raises
    ------
    UsageError
        If they are missing, broken, or do not belong together.
    """
    folder = Path(folder)
    try:
        made = json.loads(read_bytes(folder / "run.json"))
        fingerprint, processes, step = str(made["fingerprint"]), int(made["processes"]), made["step_seconds"]
        if step is not None and not 0 < float(step) < math.inf:
            raise ValueError
    except (OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise UsageError(f"{folder} holds no run (no readable run.json); give a folder that `compare` made") from None
    if "identity" not in made:
        raise UsageError(
            f"{folder}: its run.json does not say which data and model its run has; finish it with the version that "
            f"made it ({made.get('sparsync')!s:.20}), or compare in a new folder"
        )
    if differs := difference(made, {"versions": versions()}):
        raise UsageError(f"{folder}: {differs}; finish it with the first, or compare in a new folder")
    experiment = build(read(folder / "experiment.toml"), str(folder / "experiment.toml"))
    if experiment.fingerprint != fingerprint:
        raise UsageError(
            f"{folder}: its run was made by another experiment than its experiment.toml now says; "
            "undo the change, or compare in a new folder"
        )
    return experiment.model_copy(update={"processes": processes}), made


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _own(folder: Path, *, make: bool = False) -> AbstractContextManager[None]:
    """Let one run at a time be in a folder; of its processes, rank 0 sees to that."""
    return locked(folder, make=make) if _rank() == 0 else nullcontext()


@contextmanager
def _new(folder: Path) -> Iterator[None]:
    """Have a folder for a new run. One that is refused before anything was saved leaves nothing that blocks another."""
    with _own(folder, make=True):
        if _rank() == 0 and (folder / "run.json").exists():
            raise UsageError(
                f"{folder} already holds a run; `sparsync resume {folder}` goes on with it, or name another"
            )
        begun = [folder / name for name in _BEGUN if not (folder / name).exists()]
        try:
            yield
        except UsageError:
            if _rank() == 0 and not any((folder / name).exists() for name in _SAVED):
                for path in begun:
                    remove(path)
            raise


def _run(order: ProcessOrder) -> dict[str, Any]:
    experiment = order.experiment
    processes = choose(experiment.processes, experiment.workers)
    if processes > experiment.workers + _served(experiment):  # a server is none of them
        raise UsageError(
            f"workers: {experiment.workers} cannot be shared by {processes} processes; start at most as many"
        )
    run(_session, order, processes)
    summary: dict[str, Any] = read_json(order.folder / "summary.json")
    return summary


def _session(group: Group, order: ProcessOrder) -> None:
    """Run all of a comparison, as one of its processes."""
    experiment = order.experiment
    experiment.import_modules()
    if group.rank == 0:
        tell(f"reading data {experiment.data!r}")
    dataset = load_dataset(experiment.data, experiment.data_root)
    task = Task(dataset, experiment.model)
    if group.rank == 0:
        tell(f"partitioning among {experiment.workers} workers")
    _begin(order, task, group)
    timed = experiment if order.membership else _timed(experiment, order.folder, task, group)
    if group.size == 1 or not _served(experiment):
        _compare(group, order, timed, task, lambda *_: LocalSplitClients)
        group.barrier()
        return
    links, inbox = rendezvous(group, experiment.workers)
    if group.rank == 0:
        try:
            _compare(
                SingleProcess(),
                order,
                timed,
                task,
                lambda run, asked: partial(RemoteClients, connections=links, run=run, stopping=asked),
            )
        finally:
            for connection in links.values():
                connection.finish()
    else:
        ClientService(links, inbox, partial(_clients_of, timed, task, len(links))).serve()


def _begin(order: ProcessOrder, task: Task, group: Group) -> None:
    """Write down what a new run is; hold one that goes on against that.

    Raises
    ------
    UsageError
        If a new one cannot be, or the old one had other data or another model.
    """
    experiment, folder = order.experiment, order.folder
    found = identity(experiment, task)
    if order.made is not None:
        if differs := difference(order.made["identity"], found):
            raise UsageError(f"{folder}: {differs}; undo the change, or compare in a new folder")
        return
    for seed in experiment.seeds:  # what cannot be partitioned leaves what lies in the folder as it is
        partition(experiment.partition, task.dataset.train.labels.numpy(), experiment.workers, seed)
    if group.rank == 0:
        profile = experiment.profile
        write_text(folder / "experiment.toml", to_toml(experiment))
        write_json(
            folder / "run.json",
            {
                "fingerprint": experiment.fingerprint,
                "processes": group.size,
                "compute": profile.compute,
                "step_seconds": profile.step_seconds if profile.compute == "stated" else None,  # not yet known
                "versions": versions(),
                "identity": found,
            },
        )


def _timed(experiment: Experiment, folder: Path, task: Task, group: Group) -> Experiment:
    """Return the experiment with the time of a local step as a stated number: found once, and kept in ``run.json``.

    Raises
    ------
    UsageError
        If the model has nothing that could be counted.
    """
    profile = experiment.profile
    if profile.compute == "stated":
        return experiment
    group.barrier()  # rank 0 measures while the others do nothing
    seconds = torch.zeros(1, dtype=torch.float64)
    if group.rank == 0:
        path = folder / "run.json"
        made = read_json(path)
        if made["step_seconds"] is None:
            made["step_seconds"] = step_seconds(experiment, task)
            write_json(path, made)
        seconds[0] = made["step_seconds"]
    found = float(group.broadcast(seconds))
    if not found:
        raise UsageError(
            f"profile: compute='flops' counts no operations in model {task.model_name!r}; use 'measured', or state "
            "step_seconds"
        )
    return experiment.model_copy(update={"profile": replace(profile, compute="stated", step_seconds=found)})


def _served(experiment: Experiment) -> bool:
    """Whether rank 0 is a server and the others are its clients: under torchrun, with split strategies.

    Raises
    ------
    UsageError
        If only some of them are.
    """
    if not under_torchrun():
        return False
    split = {label: isinstance(experiment.strategy(label), SplitStrategy) for label in experiment.strategies}
    if len(set(split.values())) > 1:
        one, other = (next(label for label, own in split.items() if own is which) for which in (True, False))
        raise UsageError(
            f"strategies: under torchrun {one!r} has a process for its server, {other!r} has none; compare them apart"
        )
    return any(split.values())


def _clients_of(experiment: Experiment, task: Task, count: int, run: int) -> SplitTrainer:
    """Where the clients of this process are, in a run."""
    i, j = divmod(run, len(experiment.strategies))
    seed, label = experiment.seeds[i], list(experiment.strategies)[j]
    parts = partition(experiment.partition, task.dataset.train.labels.numpy(), experiment.workers, seed)
    trainer = SeedSetting(experiment, task, parts, seed, SingleProcess()).trainer((count, 1))
    strategy = experiment.strategy(label)
    assert isinstance(strategy, SplitStrategy)
    strategy.split(trainer)  # says how things travel
    return trainer


def _compare(
    group: Group,
    order: ProcessOrder,
    experiment: Experiment,
    task: Task,
    clients: Callable[[int, Callable[[], bool]], Callable[[SplitTrainer], SplitClients]],
) -> None:
    """Train every strategy with every seed, unless that has been done.

    `clients` is where those of split strategies are, by the number of the run and whether the user has asked to stop.
    """
    folder, dataset = order.folder, task.dataset
    records = Records(folder, order.experiment, group)
    if order.membership is None:  # real devices train one strategy, and call before it is assembled
        runs = [(label, seed) for seed in experiment.seeds for label in experiment.strategies]
        undone = dict.fromkeys(label for label, seed in runs if (label, seed) not in records.results)
        _rehearse(experiment, task, group, undone)
    with stopping() as asked, _watched(order, group) as watcher:
        if watcher and dataset.note:
            watcher.noted(dataset.note)
        for i, seed in enumerate(experiment.seeds):
            labels = dataset.train.labels.numpy()
            parts = partition(experiment.partition, labels, experiment.workers, seed)
            if seed == experiment.seeds[0] and group.rank == 0:
                table = counts(parts, labels, dataset.classes)
                names = {"counts": table.tolist(), "class_names": list(dataset.class_names)}
                write_json(folder / "partition.json", names)
            for j, label in enumerate(experiment.strategies):
                if (label, seed) not in records.results:
                    port = clients(i * len(experiment.strategies) + j, asked)
                    setting = SeedSetting(experiment, task, parts, seed, group, port, order.membership)
                    StrategyRun(setting, label, records, watcher, asked).complete()


def _rehearse(experiment: Experiment, task: Task, group: Group, labels: Collection[str]) -> None:
    """Assemble every strategy once before the first one trains, with the first seed, and partition with all seeds.

    Raises
    ------
    UsageError
        If any of it is refused; the strategies are named, with the reason of each.
    """
    known = task.dataset.train.labels.numpy()
    for seed in reversed(experiment.seeds):
        parts = partition(experiment.partition, known, experiment.workers, seed)
    setting = SeedSetting(experiment, task, parts, experiment.seeds[0], group)
    task.module(setting.seed, setting.dtype)  # what all would be refused for is said once
    refused: dict[str, list[str]] = {}
    if group.rank == 0:
        tell(f"assembling {len(labels)} strategies")
    for label in labels:
        strategy = experiment.strategy(label)
        if isinstance(strategy, Follower) and strategy.match is not None:
            strategy = strategy.matched(Cadence(steps=1, syncs=1))
        try:
            setting.assemble(strategy, lambda _: None).rehearse()
        except UsageError as error:
            refused.setdefault(str(error), []).append(label)
    if refused:
        raise UsageError("; ".join(f"strategy {', '.join(map(repr, who))}: {why}" for why, who in refused.items()))


@contextmanager
def _watched(order: ProcessOrder, group: Group) -> Iterator[Watcher | None]:
    if order.watch is None or group.rank != 0:
        yield None
    else:
        with order.watch(order.experiment) as watcher:
            yield watcher
