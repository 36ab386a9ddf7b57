"""One experiment in P processes of this machine, or in those that torchrun started."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from sparsync import errors
from sparsync.engines.ranks import Ranks
from sparsync.engines.shared import SharedMemory
from sparsync.errors import Interrupted, SparsyncError
from sparsync.workers import Alone, Group

Job = Callable[[Group, Any], None]
"""What every process does: gets its group and the job's argument, both the same everywhere but for the rank."""

_GRACE = 15.0  # seconds that processes have to end by themselves once one of them has failed


def under_torchrun() -> bool:
    """Whether torchrun (or the like) started this process as one of several."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(processes: int | Literal["auto"], workers: int) -> int:
    """Return how many processes to use: ``auto`` is one per core, but no more than workers."""
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return min(cores(), workers) if processes == "auto" else processes


def run(job: Job, argument: Any, processes: int) -> None:
    """Run a job in all processes, and return when all are done.

    Raises
    ------
    SparsyncError
        What the first process to fail reported; `Interrupted` if the user asked to stop.
    """
    if under_torchrun():
        dist.init_process_group("gloo")
        try:
            job(Ranks(), argument)
        finally:
            dist.destroy_process_group()
    elif processes == 1:
        job(Alone(), argument)
    else:
        _spawn(job, argument, processes)


def _spawn(job: Job, argument: Any, processes: int) -> None:
    context = multiprocessing.get_context("spawn")
    reports: SimpleQueue[tuple[str, str]] = context.SimpleQueue()
    arrivals = [context.Semaphore(0) for _ in range(processes)]
    in_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
        slots = Path(folder, "slots")
        with slots.open("wb") as file:
            file.truncate(SharedMemory.bytes(processes))
        children = [
            context.Process(target=_child, args=(job, argument, slots, rank, arrivals, reports), daemon=False)
            for rank in range(processes)
        ]
        # Ctrl-C reaches the children as well; rank 0 decides what to do, and this process waits for it.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for child in children:
                child.start()
            _await(children)
        finally:
            signal.signal(signal.SIGINT, before)
    if not reports.empty():
        kind, message = reports.get()
        raise getattr(errors, kind, SparsyncError)(message)
    failed = [f"{rank} (exit status {child.exitcode})" for rank, child in enumerate(children) if child.exitcode]
    if failed:
        raise SparsyncError(f"process {', '.join(failed)} ended early; see above, or resume the run")


def _await(children: list[Any]) -> None:
    """Wait for all children; once one fails, the others get some seconds, then a signal."""
    running = {child.sentinel: child for child in children}
    deadline: float | None = None
    while running:
        ready = wait(list(running), timeout=deadline)
        for sentinel in ready:
            if running.pop(sentinel).exitcode != 0:
                deadline = _GRACE
        if not ready:
            for child in running.values():
                child.kill()


def _child(
    job: Job, argument: Any, slots: Path, rank: int, arrivals: list[Semaphore], reports: SimpleQueue[Any]
) -> None:
    if rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 speaks for all
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    gc.freeze()  # what is here now stays: the collector need not look at all of torch again and again
    try:
        job(SharedMemory(slots, rank, len(arrivals), arrivals), argument)
    except SparsyncError as error:
        if rank == 0 or not isinstance(error, Interrupted):
            reports.put((type(error).__name__, str(error)))
        sys.exit(1)


def _end_with_parent() -> None:
    """Do not outlive the process that started this one: a resumed run must not meet its predecessor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
