"""Tiny tasks, and workers that train on them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsync.task import Dataset, Task
from sparsync.workers import Arena, Fleet, LocalTraining
from sparsync.workers.batches import Batches
from tolerance import Nudge, exactly


@pytest.fixture(scope="session")
def blobs(clouds: Callable[[int], Dataset]) -> Dataset:
    """120 points of 6 numbers in 3 overlapping clouds."""
    return clouds(120)


@pytest.fixture(scope="session")
def make_training(blobs: Dataset) -> Callable[..., SimpleNamespace]:
    def make(
        k: int = 3,
        *,
        dataset: Dataset = blobs,
        model: str | Callable[..., nn.Module] = "mlp:hidden=8",
        optimizer: str = "sgd:lr=0.1",
        schedule: str = "constant",
        dtype: torch.dtype = torch.float32,
        nudge: Nudge = exactly,
        **options: Any,
    ) -> SimpleNamespace:
        task = Task(dataset, model)
        module = nudge(task.module(0, dtype))
        fleet = Fleet(Arena(module, k, torch.device("cpu"), dtype), k, **options)
        parts = np.array_split(np.arange(len(dataset.train)), k)
        batches = [Batches(part, 5, "epochs", 0, number) for number, part in enumerate(parts)]
        training = LocalTraining(fleet, task, module, batches, optimizer, schedule)
        return SimpleNamespace(fleet=fleet, training=training, task=task)

    return make
