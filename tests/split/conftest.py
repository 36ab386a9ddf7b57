"""Small split trainings, with a record of which samples were used when."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsync.engines import Budget, EpochLoop, PaceAction
from sparsync.split import BatchComposition, SplitSettings, SplitTrainer, default_cut, split_at
from sparsync.strategies import STRATEGIES
from sparsync.system import Profile
from sparsync.task import Dataset, Task
from sparsync.workers import Arena
from sparsync.workers.group import SingleProcess
from tolerance import Nudge, exactly

Make = Callable[..., SimpleNamespace]
"""See `make_split`."""


def normed(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A GroupNorm below the cut, which is before ``fc2``, and a BatchNorm above it."""
    row = nn.Sequential()
    row.add_module("fc1", nn.Linear(shape[0], 8))
    row.add_module("norm1", nn.GroupNorm(2, 8))
    row.add_module("relu1", nn.ReLU())
    row.add_module("fc2", nn.Linear(8, 8, bias=False))  # before a BatchNorm a bias's gradient is rounding alone
    row.add_module("norm2", nn.BatchNorm1d(8))
    row.add_module("relu2", nn.ReLU())
    row.add_module("fc", nn.Linear(8, classes))
    return row


def whole(trainer: SplitTrainer) -> dict[str, Tensor]:
    """A copy of all tensors of the whole model."""
    return {name: tensor.clone() for name, tensor in trainer.whole().state_dict().items()}


@pytest.fixture(scope="session")
def make_split(blobs: Dataset) -> Make:
    """A strategy with its site and loop.

    Clients hold `sizes` consecutive samples. `first` is a copy of the whole model as it begins. `run` takes as many
    epochs as `epochs` says, and calls `after` after every step; `step` takes a single one, on so many samples of each
    client. `used` has for every step the (client, indices) that it was trained on, and `lines` is the history.
    """

    def make(
        strategy: str,
        *,
        task: Task | None = None,
        model: str | Callable[..., nn.Module] = normed,
        sizes: Sequence[int] = (12, 7, 20, 1, 10),
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        profile: Profile | None = None,
        profile_batch: int = 32,
        target: float | None = None,
        nudge: Nudge = exactly,
        **settings: Any,
    ) -> SimpleNamespace:
        task = task or Task(blobs, model)
        module = nudge(task.module(seed, dtype))
        said = SplitSettings(**{"batch_size": 8, "epochs": 2, **settings})
        cut = split_at(module, said.cut or default_cut(module), bottom_norm=said.bottom_norm)
        first = copy.deepcopy(module)
        parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        built = STRATEGIES.build(strategy)
        arena = Arena(module, 1, torch.device("cpu"), dtype, gradients=False)
        trainer = SplitTrainer(
            task,
            module,
            cut,
            parts,
            said,
            rows=built.rows(len(sizes)),
            seed=seed,
            profile=profile,
            batch_size=profile_batch,
            dtype=dtype,
        )
        used: list[list[tuple[int, np.ndarray[Any, Any]]]] = []
        take = trainer.next_indices

        def next_indices(client: int, size: int) -> np.ndarray[Any, Any]:
            used.extend([] for _ in range(trainer.step + 1 - len(used)))
            used[trainer.step].append((client, take(client, size)))
            return used[trainer.step][-1][1]

        trainer.next_indices = next_indices  # type: ignore[method-assign]
        lines: list[dict[str, Any]] = []
        state = built.split(trainer)
        loop = EpochLoop(
            trainer, state, arena, SingleProcess(), Budget(said.epochs, said.eval_every, target), lines.append
        )

        def run(after: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
            def pace(steps: int) -> PaceAction:
                after()
                return PaceAction.GO_ON

            assert loop.run(pace, save=lambda: None)
            return whole(trainer)

        def step(*each: int) -> float:
            asked = np.array(each, np.int64)
            with trainer.training():
                loss = state.step(BatchComposition(np.flatnonzero(asked), asked[asked > 0]))
            trainer.step += 1
            return loss

        return SimpleNamespace(
            trainer=trainer, state=state, loop=loop, task=task, first=first, parts=parts, used=used, lines=lines,
            run=run, step=step,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def by_hand() -> Callable[..., dict[str, Tensor]]:
    """Train a model in one place, in plain torch, on the samples that a split training used, step by step."""

    def train(
        made: SimpleNamespace,
        optimizer: Callable[..., torch.optim.Optimizer],
        nudge: Nudge = exactly,
        **options: Any,
    ) -> dict[str, Tensor]:
        model = nudge(copy.deepcopy(made.first))
        dtype = next(model.parameters()).dtype
        stepper = optimizer(model.parameters(), **options)
        for contributions in made.used:
            indices = np.concatenate([indices for _, indices in contributions])
            inputs, labels = made.task.dataset.train.batch(indices, dtype)
            stepper.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            stepper.step()
        return dict(model.state_dict())

    return train
