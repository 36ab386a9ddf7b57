"""From an experiment to its results: every strategy and seed trained, recorded, saved, and resumed where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sparsync.assembly import Setting, step_seconds
from sparsync.engines.devices import Switchboard
from sparsync.engines.links import meet
from sparsync.engines.processes import choose, run, stopping, under_torchrun
from sparsync.engines.remote import RemoteSite
from sparsync.engines.serving import RemoteClients
from sparsync.errors import UsageError
from sparsync.experiment import Experiment, build, read, to_toml
from sparsync.records import Records, write_json
from sparsync.run import Run, Watcher
from sparsync.split import Site, SplitStrategy
from sparsync.task import Task, counts, load_dataset, partition
from sparsync.workers import Alone, Group


@dataclass(frozen=True)
class Order:
    """What each process is told to do."""

    experiment: Experiment
    folder: Path
    watch: Callable[[Experiment], Any] | None  # builds a context manager that gives a Watcher, in rank 0's process
    board: Switchboard | None = None


def compare(
    experiment: Experiment,
    folder: Path,
    watch: Callable[[Experiment], Any] | None = None,
    *,
    board: Switchboard | None = None,
) -> dict[str, Any]:
    """Run an experiment in a new folder, and return its summary; HADFL, if there is a board, with those who call.

    Raises
    ------
    UsageError
        If the folder already holds a run.
    Interrupted
        If the user stopped it; `resume` goes on.
    """
    folder = Path(folder)
    processes, profile = choose(experiment.processes, experiment.workers), experiment.profile
    if _rank() == 0:
        if (folder / "run.json").exists():
            raise UsageError(
                f"{folder} already holds a run; `sparsync resume {folder}` goes on with it, or name another"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.toml").write_text(to_toml(experiment))
        write_json(
            folder / "run.json",
            {
                "fingerprint": experiment.fingerprint,
                "processes": processes,
                "compute": profile.compute,
                "step_seconds": profile.step_seconds if profile.compute == "stated" else None,  # not yet known
                "sparsync": version("sparsync"),
                "torch": torch.__version__,
            },
        )
    return _run(experiment, folder, watch, board)


def resume(
    folder: Path, watch: Callable[[Experiment], Any] | None = None, *, board: Switchboard | None = None
) -> dict[str, Any]:
    """Go on with a run that was interrupted or killed: the end is the same, bit for bit.

    Raises
    ------
    UsageError
        If the folder holds no run, or that of another experiment.
    """
    experiment, _ = opened(folder)
    processes = choose(experiment.processes, experiment.workers)
    if processes != experiment.processes:
        raise UsageError(f"{folder}: its run has {experiment.processes} processes, here are {processes}; start as many")
    return _run(experiment, Path(folder), watch, board)


def opened(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    """Experiment and ``run.json`` of a run's folder, checked against each other.

    Raises
    ------
    UsageError
        If they are missing, broken, or do not belong together.
    """
    folder = Path(folder)
    try:
        made = json.loads((folder / "run.json").read_text())
        fingerprint, processes = str(made["fingerprint"]), int(made["processes"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} holds no run (no readable run.json); give a folder that `compare` made") from None
    experiment = build(read(folder / "experiment.toml"), str(folder / "experiment.toml"))
    if experiment.fingerprint != fingerprint:
        raise UsageError(
            f"{folder}: its run was made by another experiment than its experiment.toml now says; "
            "undo the change, or compare in a new folder"
        )
    return experiment.model_copy(update={"processes": processes}), made


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _run(
    experiment: Experiment, folder: Path, watch: Callable[[Experiment], Any] | None, board: Switchboard | None
) -> dict[str, Any]:
    processes = choose(experiment.processes, experiment.workers)
    if processes > experiment.workers + _served(experiment):  # a server is none of them
        raise UsageError(
            f"workers: {experiment.workers} cannot be shared by {processes} processes; start at most as many"
        )
    with _locked(folder):
        run(_session, Order(experiment, folder, watch, board), processes)
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return summary


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run per folder at a time; the lock goes with the process, however it ends."""
    if _rank() != 0:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{folder}: another process is running in it; wait for it, or stop it") from None
        yield


def _session(group: Group, order: Order) -> None:
    """Run all of a comparison, as one of its processes."""
    experiment = order.experiment
    experiment.import_modules()
    dataset = load_dataset(experiment.data, experiment.data_root)
    task = Task(dataset, experiment.model)
    timed = experiment if order.board else _timed(experiment, order.folder, task, group)
    if group.size == 1 or not _served(experiment):
        _compare(group, order, timed, task, lambda *_: Site)
        group.barrier()
        return
    links, inbox = meet(group, experiment.workers)
    if group.rank == 0:
        try:
            _compare(
                Alone(),
                order,
                timed,
                task,
                lambda run, asked: partial(RemoteSite, links=links, run=run, stopping=asked),
            )
        finally:
            for link in links.values():
                link.bye()
    else:
        RemoteClients(links, inbox, partial(_clients_of, timed, task, len(links))).serve()


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
        made = json.loads(path.read_text())
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


def _clients_of(experiment: Experiment, task: Task, count: int, run: int) -> Site:
    """Where the clients of this process are, in a run."""
    i, j = divmod(run, len(experiment.strategies))
    seed, label = experiment.seeds[i], list(experiment.strategies)[j]
    parts = partition(experiment.partition, task.dataset.train.labels.numpy(), experiment.workers, seed)
    site = Setting(experiment, task, parts, seed, Alone()).site((count, 1))
    strategy = experiment.strategy(label)
    assert isinstance(strategy, SplitStrategy)
    strategy.split(site)  # says how things travel
    return site


def _compare(
    group: Group,
    order: Order,
    experiment: Experiment,
    task: Task,
    site: Callable[[int, Callable[[], bool]], Callable[..., Site]],
) -> None:
    """Train every strategy with every seed, unless that has been done.

    `site` is where, by the number of the run and whether the user has asked to stop.
    """
    folder, dataset = order.folder, task.dataset
    records = Records(folder, order.experiment, group)
    with stopping() as asked, _watched(order, group) as watcher:
        for i, seed in enumerate(experiment.seeds):
            labels = dataset.train.labels.numpy()
            parts = partition(experiment.partition, labels, experiment.workers, seed)
            if seed == experiment.seeds[0] and group.rank == 0:
                table = counts(parts, labels, dataset.classes)
                names = {"counts": table.tolist(), "class_names": list(dataset.class_names)}
                write_json(folder / "partition.json", names)
            for j, label in enumerate(experiment.strategies):
                if (label, seed) not in records.results:
                    kind = site(i * len(experiment.strategies) + j, asked)
                    setting = Setting(experiment, task, parts, seed, group, kind, order.board)
                    Run(setting, label, records, watcher, asked).complete()


@contextmanager
def _watched(order: Order, group: Group) -> Iterator[Watcher | None]:
    if order.watch is None or group.rank != 0:
        yield None
    else:
        with order.watch(order.experiment) as watcher:
            yield watcher
