"""One experiment in P processes of this machine, or in those that torchrun started."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from sparsync import errors
from sparsync.engines.ranks import TorchDistributed
from sparsync.engines.shared import SharedMemory
from sparsync.errors import Interrupted, SparsyncError, UsageError
from sparsync.progress import tell
from sparsync.workers import Group, SingleProcess

Job = Callable[[Group, Any], None]
"""What every process does: gets its group and the job's argument, both the same everywhere but for the rank."""

_GRACE = 15.0  # seconds that processes have to end by themselves once one of them has failed
_UNGUARDED = 113  # exit status of a process that would start others while it imports the script that started it
_SAFE_PATH = "PYTHONSAFEPATH"  # Python does not look for modules in the current folder first
_OURS = "sparsync"  # value of the above, if it is only for processes that are started here

_SIGNALS = signal.SIGINT, signal.SIGTERM
_requests: Semaphore | None = None  # to stop; in a spawned process those that the one that started it has received


def under_torchrun() -> bool:
    """Whether torchrun (or the like) started this process as one of several."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(processes: int | Literal["auto"], workers: int) -> int:
    """Return how many processes to use: ``auto`` is one per core, no more than workers, and one if others cannot be.

    Raises
    ------
    UsageError
        If this process cannot start others.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(_UNGUARDED)
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    reason = _alone()
    if processes == "auto":
        return 1 if reason else min(cores(), workers)
    if processes > 1 and reason:
        raise UsageError(f"processes: {processes}, but {reason}; give processes=1")
    return processes


def _alone() -> str | None:
    """Why this process cannot start others, if so."""
    if multiprocessing.current_process().daemon:
        return "a daemonic process may not start others"
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if main.__spec__ is None and script is not None and not os.path.exists(script):
        return f"others would import this one's script first, and there is no file {script!r}"
    return None


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
            job(TorchDistributed(), argument)
        finally:
            dist.destroy_process_group()
    elif processes == 1:
        job(SingleProcess(), argument)
    else:
        _spawn(job, argument, processes)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (or SIGTERM) once: finish the step, save, stop. Twice: at once. Only a main thread hears of signals."""
    if _requests is not None:
        yield lambda: _requests.get_value() > 0
        return
    asked = False

    def note() -> None:
        nonlocal asked
        asked = True

    with _listening(lambda: asked, note):
        yield lambda: asked


@contextmanager
def _listening(asked: Callable[[], bool], ask: Callable[[], object]) -> Iterator[None]:
    def hear(number: int, frame: Any) -> None:
        if asked():
            signal.default_int_handler(number, frame)
        ask()

    listens = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hear) for number in _SIGNALS if listens}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spawn(job: Job, argument: Any, processes: int) -> None:
    tell(f"starting {processes} processes")
    context = multiprocessing.get_context("spawn")
    with _slots(processes) as slots:
        with _starting():
            try:
                reports: SimpleQueue[tuple[str, str]] = context.SimpleQueue()
                arrivals = [context.Semaphore(0) for _ in range(processes)]
                requests = context.Semaphore(0)
            except OSError as error:
                raise SparsyncError(
                    f"/dev/shm: {processes} processes need semaphores there, of some bytes each ({error.strerror}); "
                    "make room, or use --processes 1"
                ) from None
        given = job, argument, slots
        children = [
            context.Process(target=_child, args=(*given, rank, arrivals, reports, requests), daemon=False)
            for rank in range(processes)
        ]
        # Whoever signals, be it to this process or to all of them: this one hears it, and tells rank 0, who decides.
        with _listening(lambda: requests.get_value() > 0, requests.release):
            try:
                with _starting():
                    for child in children:
                        child.start()
                _await(children)
            finally:
                for child in children:
                    if child.pid is not None:
                        child.kill()
    if not reports.empty():
        kind, message = reports.get()
        raise getattr(errors, kind, SparsyncError)(message)
    _blame(children)


def _blame(children: Sequence[Any]) -> None:
    """Say which processes have ended early, if any."""
    if any(child.exitcode == _UNGUARDED for child in children):
        raise UsageError(
            "the processes that a script starts import it first: call what trains under "
            '`if __name__ == "__main__":`, or with processes=1'
        )
    failed = [f"{rank} (exit status {child.exitcode})" for rank, child in enumerate(children) if child.exitcode]
    if failed:
        raise SparsyncError(f"process {', '.join(failed)} ended early; see above, or resume the run")


@contextmanager
def _slots(processes: int) -> Iterator[Path]:
    """Memory for all, as a file without a name: the kernel takes it back when they end, however they do.

    It is none of /dev/shm, which containers keep small.
    """
    size = SharedMemory.bytes(processes)
    file = os.memfd_create("sparsync")
    try:
        try:
            os.ftruncate(file, size)
        except OSError as error:
            raise SparsyncError(
                f"{processes} processes need {size >> 20} MiB of shared memory ({error.strerror}); use --processes 1"
            ) from None
        yield Path(f"/proc/{os.getpid()}/fd/{file}")
    finally:
        os.close(file)


@contextmanager
def _starting() -> Iterator[None]:
    """Let processes that are started here leave signals to this one, and modules of the current folder alone.

    Else they would import, say, its pickle.py before their own.
    """
    ours = _SAFE_PATH not in os.environ
    if ours:
        os.environ[_SAFE_PATH] = _OURS
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if ours:
            os.environ.pop(_SAFE_PATH, None)


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
    job: Job,
    argument: Any,
    slots: Path,
    rank: int,
    arrivals: list[Semaphore],
    reports: SimpleQueue[Any],
    requests: Semaphore,
) -> None:
    global _requests
    _requests = requests
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if os.environ.get(_SAFE_PATH) == _OURS:
        del os.environ[_SAFE_PATH]
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
