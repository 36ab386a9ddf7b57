"""Processes of a test: as real as any, but forked from one that has imported everything, so that each costs little."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path

import torch.distributed as dist

GIVEN_UP = 1800.0
"""Seconds after which a test that hangs is given up. What a test waits for is an event: nothing else has a deadline."""

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "failing",
        "sparsync.cli",
        "sparsync.comparison",
        "sparsync.deployment",
        "sparsync.registries",
        "sklearn.datasets",
        "torch._dynamo",
    ]
)


class Program:
    """``python ARGUMENTS`` in a session of its own, with an environment of its own; what it prints goes to files."""

    def __init__(self, folder: Path, arguments: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
        self.arguments = [str(argument) for argument in arguments]
        number = len(list(folder.glob("program*.out")))
        self.out, self.err = (folder / f"program{number}.{name}" for name in ("out", "err"))
        for path in (self.out, self.err):
            path.touch()
        clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        given = (self.arguments, {**clean, **(environment or {})}, Path.cwd(), self.out, self.err)
        self.process = FORKED.Process(target=_be, args=given)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self, sent: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to it and all that it has started, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, sent)

    def wait(self) -> subprocess.CompletedProcess[str]:
        self.process.join(GIVEN_UP)
        code = self.process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"{self.arguments} hangs: {self.out.read_text()} {self.err.read_text()}")
        return subprocess.CompletedProcess(self.arguments, code, self.out.read_text(), self.err.read_text())


def _be(arguments: list[str], environment: dict[str, str], here: Path, out: Path, err: Path) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(here)
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # its own processes share what is imported, too
    os.fsync = lambda descriptor: None  # no test takes the power away, and a busy disk takes long
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        importlib.import_module(f"{arguments[1]}.__main__").main()
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


def finished(programs: Sequence[Program]) -> list[subprocess.CompletedProcess[str]]:
    """Wait for all; once one has failed, end the others, as torchrun does."""
    running = {program.process.sentinel: program for program in programs}
    while running:
        ready = wait(list(running), GIVEN_UP)
        codes = [running.pop(sentinel).wait().returncode for sentinel in ready]
        if any(codes) or not ready:
            for program in running.values():
                program.kill()
    return [program.wait() for program in programs]


@contextmanager
def ranks(
    folder: Path, size: int, arguments: Sequence[object], environment: Mapping[str, str] | None = None
) -> Iterator[list[Program]]:
    """As many processes as torchrun would start, which meet at a store of this process; killed in the end."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    meeting = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    started: list[Program] = []
    try:
        for rank in range(size):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(Program(folder, arguments, {**(environment or {}), **meeting, **own}))
        yield started
    finally:
        for program in started:
            program.kill()
            program.process.join()
        del store
