"""What all tests share: one thread, a tiny task, the command line as a user types it, and torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start: threads of several processes only get in their way
import torch

from sparsync.task import Dataset, from_arrays

Run = Callable[..., subprocess.CompletedProcess[str]]


def call(command: list[str], timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with its output as text."""
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**clean, **environment}, check=False
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
def sparsync() -> Run:
    """``sparsync ARGUMENTS`` in a process of its own."""
    return lambda *arguments, **options: call(
        [sys.executable, "-m", "sparsync", *(str(argument) for argument in arguments)], **options
    )


@pytest.fixture
def torchrun() -> Run:
    """``torchrun --nproc-per-node N ARGUMENTS``."""

    def run(ranks: int, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return call([*launcher, *(str(argument) for argument in arguments)], **{"OMP_NUM_THREADS": "1", **options})

    return run


@pytest.fixture
def results() -> Callable[[Path], list[dict[str, Any]]]:
    """Results of a run's folder, without the wall clock."""

    def read(folder: Path) -> list[dict[str, Any]]:
        found = json.loads((folder / "summary.json").read_text())["results"]
        return [{key: value for key, value in one.items() if key != "wall_seconds"} for one in found]

    return read
