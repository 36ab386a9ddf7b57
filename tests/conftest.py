"""What all tests share: one thread, a tiny task, the command line as a user types it, and what torchrun starts."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start: threads of several processes only get in their way
import torch

from processes import FORKED, Program, finished, ranks
from sparsync.task import Dataset, from_arrays

Run = Callable[..., subprocess.CompletedProcess[str]]

# Neither has a deadline, for a machine may be busy.
for name, examples in (("brief", 40), ("thorough", 300)):
    settings.register_profile(name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("brief")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test has the library start find everything imported, unless it is marked ``spawned``."""
    if request.node.get_closest_marker("spawned") is None:
        monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: FORKED)


@pytest.fixture(scope="session")
def clouds() -> Callable[[int], Dataset]:
    """So many points of 6 numbers in 3 overlapping clouds, three quarters of them to train on."""

    def make(points: int) -> Dataset:
        rng = np.random.default_rng(5)
        labels, train = np.arange(points) % 3, points * 3 // 4
        inputs = (rng.normal(size=(points, 6)) + 1.5 * np.eye(6)[labels]).astype(np.float32)
        return from_arrays(inputs[:train], labels[:train], inputs[train:], labels[train:])

    return make


@pytest.fixture(scope="session")
def blobs(clouds: Callable[[int], Dataset]) -> Dataset:
    """240 points of 6 numbers in 3 overlapping clouds."""
    return clouds(240)


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what processes print goes."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def sparsync(programs: Path) -> Run:
    """``sparsync ARGUMENTS`` in a process of its own, to its end."""
    return lambda *arguments, **environment: Program(programs, ("-m", "sparsync", *arguments), environment).wait()


@pytest.fixture
def torchrun(programs: Path) -> Run:
    """``torchrun --nproc-per-node N ARGUMENTS``, to its end: the first status that is not 0, and what all have said."""

    def run(size: int, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        with ranks(programs, size, arguments, environment) as started:
            done = finished(started)
        codes, out, err = zip(*((one.returncode, one.stdout, one.stderr) for one in done), strict=True)
        return subprocess.CompletedProcess(arguments, next(filter(None, codes), 0), "".join(out), "".join(err))

    return run


@pytest.fixture
def results() -> Callable[[Path], list[dict[str, Any]]]:
    """Results of a run's folder, without the wall clock."""

    def read(folder: Path) -> list[dict[str, Any]]:
        found = json.loads((folder / "summary.json").read_text())["results"]
        return [{key: value for key, value in one.items() if key != "wall_seconds"} for one in found]

    return read
