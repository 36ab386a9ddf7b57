"""From an experiment to its folder: every strategy and seed trained, recorded, saved, and resumed where it stopped.

experiment.toml   the experiment as resolved; `read` it back, or run it again
run.json          what made the folder: fingerprint, process count, versions
partition.json    who holds how many samples of which class (first seed)
history.jsonl     one line per evaluation and per check of a threshold
summary.json      one result per strategy and seed
models/           the final mean models, safetensors
checkpoint/       of the strategy that is running, if any
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch

from sparsync.engines import Budget, Pace, PeerLoop
from sparsync.engines.checkpoint import Checkpoint
from sparsync.engines.processes import choose, run
from sparsync.errors import DataError, DivergedError, Interrupted, UsageError
from sparsync.experiment import Experiment, build, matching, read, to_toml
from sparsync.peers import LocalSGD
from sparsync.peers.contract import Cadence
from sparsync.spec import parse
from sparsync.task import Task, counts, load_dataset, partition
from sparsync.wire import TOPOLOGIES
from sparsync.workers import Arena, Fleet, Group, LocalTraining
from sparsync.workers.batches import Batches, Indices


class Watcher(Protocol):
    """Who looks on while a comparison runs (rank 0 only): the terminal's live table, or a test."""

    def started(self, label: str, seed: int, step: int) -> None:
        """A strategy begins, or goes on at `step`."""

    def moved(self, label: str, seed: int, line: dict[str, Any]) -> None:
        """It was evaluated; `line` is its line of the history."""

    def stepped(self, label: str, seed: int, step: int, syncs: int, nbytes: int) -> None:
        """It has taken steps."""

    def finished(self, result: dict[str, Any]) -> None:
        """It is done, or has failed; `result` is its entry in the summary."""


@dataclass(frozen=True)
class Order:
    """What each process is told to do."""

    experiment: Experiment
    folder: Path
    watch: Callable[[Experiment], Any] | None  # builds a context manager that gives a Watcher, in rank 0's process


def compare(experiment: Experiment, folder: Path, watch: Callable[[Experiment], Any] | None = None) -> dict[str, Any]:
    """Run an experiment in a new folder, and return its summary.

    Raises
    ------
    UsageError
        If the folder already holds a run.
    Interrupted
        If the user stopped it; `resume` goes on.
    """
    folder = Path(folder)
    if _rank() == 0:
        if (folder / "run.json").exists():
            raise UsageError(
                f"{folder} already holds a run; `sparsync resume {folder}` goes on with it, or name another"
            )
        folder.mkdir(parents=True, exist_ok=True)
        processes = choose(experiment.processes, experiment.workers)
        (folder / "experiment.toml").write_text(to_toml(experiment))
        _write_json(
            folder / "run.json",
            {
                "fingerprint": experiment.fingerprint,
                "processes": processes,
                "sparsync": version("sparsync"),
                "torch": torch.__version__,
            },
        )
    return _run(experiment, folder, watch)


def resume(folder: Path, watch: Callable[[Experiment], Any] | None = None) -> dict[str, Any]:
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
    return _run(experiment, Path(folder), watch)


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


def _run(experiment: Experiment, folder: Path, watch: Callable[[Experiment], Any] | None) -> dict[str, Any]:
    with _locked(folder):
        run(_session, Order(experiment, folder, watch), choose(experiment.processes, experiment.workers))
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
    experiment, folder = order.experiment, order.folder
    experiment.import_modules()
    dataset = load_dataset(experiment.data, experiment.data_root)
    task = Task(dataset, experiment.model)
    records = Records(folder, experiment, group)
    with _stopping() as stopping, _watched(order, group) as watcher:
        for seed in experiment.seeds:
            labels = dataset.train.labels.numpy()
            parts = partition(experiment.partition, labels, experiment.workers, seed)
            if seed == experiment.seeds[0] and group.rank == 0:
                table = counts(parts, labels, dataset.classes)
                names = {"counts": table.tolist(), "class_names": list(dataset.class_names)}
                _write_json(folder / "partition.json", names)
            for label in experiment.strategies:
                if (label, seed) not in records.results:
                    one = _One(experiment, task, parts, label, seed, group, records, watcher, stopping)
                    one.run()
    group.barrier()


class Records:
    """What a comparison writes into its folder (rank 0), and what it knows of its earlier results (all ranks)."""

    def __init__(self, folder: Path, experiment: Experiment, group: Group) -> None:
        self.folder = folder
        self.experiment = experiment
        self.group = group
        self.parameters: int | None = None
        self.results: dict[tuple[str, int], dict[str, Any]] = {}
        self.checkpoint = Checkpoint(folder / "checkpoint", group)
        self.history = folder / "history.jsonl"
        self._length = 0  # of the history that is final
        path = folder / "summary.json"
        if path.exists():
            try:
                summary = json.loads(path.read_text())
                self.results = {(one["label"], one["seed"]): one for one in summary["results"]}
                self.parameters, self._length = summary["parameters"], summary["history_bytes"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: not a summary of this version ({error}); compare in a new folder") from None
        group.barrier()  # all have read before anyone writes
        self.rewind(self._length)

    def rewind(self, length: int) -> None:
        """Drop what was written after a checkpoint, to write it again."""
        if self.group.rank == 0:
            with self.history.open("ab") as file:
                file.truncate(length)

    def append(self, lines: list[dict[str, Any]]) -> int:
        """Write lines of history; return its length in bytes."""
        if self.group.rank != 0:
            return 0
        with self.history.open("ab") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            return file.tell()

    def finish(self, result: dict[str, Any], length: int) -> None:
        """Add a result; from now on it is final."""
        self.results[result["label"], result["seed"]] = result
        if self.group.rank == 0:
            _write_json(
                self.folder / "summary.json",
                {
                    "version": version("sparsync"),
                    "experiment": self.experiment.model_dump(mode="json"),
                    "parameters": self.parameters,
                    "history_bytes": length,
                    "results": list(self.results.values()),
                },
            )
        self.checkpoint.clear()


class _One:
    """One strategy, one seed."""

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        parts: list[Indices],
        label: str,
        seed: int,
        group: Group,
        records: Records,
        watcher: Watcher | None,
        stopping: Callable[[], bool],
    ) -> None:
        self.experiment, self.label, self.seed = experiment, label, seed
        self.group, self.records, self.watcher = group, records, watcher
        self.lines: list[dict[str, Any]] = []
        self.length = records.append([])
        self.wall = 0.0
        self.since = time.monotonic()
        self.stopping = stopping
        self.spec = experiment.strategies[label]
        self.loop = self._assemble(task, parts)

    def _assemble(self, task: Task, parts: list[Indices]) -> PeerLoop:
        said, seed, group = self.experiment, self.seed, self.group
        dtype = torch.float64 if said.dtype == "float64" else torch.float32
        module = task.module(seed, dtype).to(said.device)
        rows = range(said.workers * group.rank // group.size, said.workers * (group.rank + 1) // group.size)
        arena = Arena(module, len(rows), torch.device(said.device), dtype)
        fleet = Fleet(
            arena,
            said.workers,
            seed=seed,
            group=group,
            topology=TOPOLOGIES[said.topology],
            precision=said.precision,
            profile=said.profile,
            buffers=said.buffers,
            samples=[len(part) for part in parts],
        )
        fleet.journal = []
        fleet.readouts = True
        self.records.parameters = fleet.d
        batches = [Batches(parts[worker], said.batch_size, said.batches, seed, worker) for worker in rows]
        training = LocalTraining(fleet, task, module, batches, said.optimizer, said.schedule)
        strategy = said.strategy(self.label)
        if isinstance(strategy, LocalSGD) and strategy.match is not None:
            strategy, self.spec = self._matched(strategy, strategy.match)
        fleet.start()
        budget = Budget(said.steps, said.eval_every, said.target, said.stop_at_target)
        return PeerLoop(fleet, training, strategy.start(fleet), task, budget, self._emit)

    def _matched(self, strategy: LocalSGD, wanted: str) -> tuple[LocalSGD, str]:
        """Resolve a fixed-period control against the run that it follows."""
        earlier = {}
        for label, text in self.experiment.strategies.items():
            if label == self.label:
                break
            earlier[label] = text
        followed = self.records.results[matching(wanted, earlier), self.seed]
        if followed["error"]:
            raise UsageError(f"{self.label}: {wanted} failed, so there is no cadence to match")
        resolved = strategy.matched(Cadence(followed["steps"], followed["syncs"]))
        return resolved, f"{self.spec.replace(f'match={wanted}', f'period={resolved.period}')}"

    def run(self) -> None:
        """Train, save as it goes, and enter the result in the summary."""
        saved = self.records.checkpoint.load()
        if saved is not None and (saved["label"], saved["seed"]) == (self.label, self.seed):
            self.loop.load_state_dict(saved["loop"])
            self.wall, self.length = saved["wall_seconds"], saved["history_bytes"]
            self.records.rewind(self.length)
        if self.watcher:
            self.watcher.started(self.label, self.seed, self.loop.progress.step)
        decide = Pace(self.group, self.experiment.save_seconds, self.stopping)

        def pace(steps: int) -> Any:
            if self.watcher:
                fleet = self.loop.fleet
                done = self.loop.progress.step
                self.watcher.stepped(self.label, self.seed, done, fleet.syncs, fleet.ledger.total)
            return decide(steps)

        error: str | None = None
        try:
            if not self.loop.run(pace, self._save):
                raise Interrupted(f"stopped; everything so far is saved: sparsync resume {self.records.folder}")
        except DivergedError as diverged:
            error = str(diverged)
        self._flush()
        self._finish(error)

    def _emit(self, line: dict[str, Any]) -> None:
        line = {"label": self.label, "seed": self.seed, **line}
        self.lines.append(line)
        if self.watcher and line["kind"] == "evaluation":
            self.watcher.moved(self.label, self.seed, line)
        if len(self.lines) >= 500:
            self._flush()

    def _flush(self) -> None:
        self.length = self.records.append(self.lines)
        self.lines.clear()

    def _save(self) -> None:
        self._flush()
        state = {
            "label": self.label,
            "seed": self.seed,
            "history_bytes": self.length,
            "wall_seconds": self._wall_seconds(),
            "loop": self.loop.state_dict(),
        }
        self.records.checkpoint.save(state)

    def _wall_seconds(self) -> float:
        return self.wall + time.monotonic() - self.since

    def _finish(self, error: str | None) -> None:
        fleet, progress = self.loop.fleet, self.loop.progress
        reached = progress.reached
        result = {
            "label": self.label,
            "strategy": parse(self.spec).name,
            "spec": self.spec,
            "seed": self.seed,
            "workers": fleet.workers,
            "steps": progress.step,
            "syncs": fleet.syncs,
            "accuracy": progress.accuracy,
            "best_accuracy": progress.best_accuracy,
            "bytes": {"total": fleet.ledger.total, **fleet.ledger.moved},
            "paper_bytes": {"total": fleet.ledger.paper_total, **fleet.ledger.paper},
            "reached": None if self.experiment.target is None else reached is not None,
            "steps_to_target": reached["step"] if reached else None,
            "bytes_to_target": reached["bytes"] if reached else None,
            "paper_bytes_to_target": reached["paper_bytes"] if reached else None,
            "seconds_to_target": reached["seconds"] if reached else None,
            "seconds": fleet.clock.now,
            "wall_seconds": round(self._wall_seconds(), 3),
            "error": error,
        }
        if error is None:
            params, buffers = self.loop.mean_model()
            if self.group.rank == 0:
                self._save_model(params, buffers)
        self.records.finish(result, self.length)
        if self.watcher:
            self.watcher.finished(result)

    def _save_model(self, params: torch.Tensor, buffers: torch.Tensor) -> None:
        arena = self.loop.fleet.arena
        tensors = {}
        for layout, row in ((arena.layout, params), (arena.buffer_layout, buffers)):
            for slot, view in zip(layout.slots, layout.views(row), strict=True):
                tensors[slot.names[0]] = view.clone()
        path = self.records.folder / "models" / f"{slug(self.label)}-seed{self.seed}.safetensors"
        path.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file(tensors, path)


def slug(label: str) -> str:
    """Return a label as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", label).strip("-")


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (or SIGTERM) once: finish the step, save, stop. Twice: at once."""
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            signal.default_int_handler(number, frame)
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(order: Order, group: Group) -> Iterator[Watcher | None]:
    if order.watch is None or group.rank != 0:
        yield None
    else:
        with order.watch(order.experiment) as watcher:
            yield watcher


def _write_json(path: Path, value: Any) -> None:
    """Write as a whole: a reader, or a resumed run, sees the old file or the new one."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)
