"""Fleets whose drift a test writes by hand, and tiny tasks on which they really train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.engines.loop import Budget, PeerLoop
from sparsync.engines.pace import PaceAction
from sparsync.peers import PeerState
from sparsync.task import Dataset, Task
from sparsync.workers import Arena, Fleet, LocalTraining
from sparsync.workers.batches import Batches
from tolerance import Nudge, exactly


@pytest.fixture(scope="session")
def make_fleet() -> Callable[..., Fleet]:
    """K workers of d parameters that start at zero, or where the test says."""

    def make(k: int, d: int, dtype: torch.dtype = torch.float32, start: Tensor | None = None, **options: Any) -> Fleet:
        module = nn.Linear(d, 1, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.zeros(d) if start is None else start)
        return Fleet(Arena(module.to(dtype), k, torch.device("cpu"), dtype), k, **options)

    return make


@pytest.fixture(scope="session")
def drive() -> Callable[[Fleet, PeerState, Iterable[Tensor]], list[int]]:
    """Move the workers by hand, as local training would; return the steps, from 1, whose exchange averaged."""

    def run(fleet: Fleet, state: PeerState, moves: Iterable[Tensor]) -> list[int]:
        synced, left = [], 0
        for step, move in enumerate(moves, 1):
            if left == 0:
                steps = state.local_steps(fleet)
                left = steps if isinstance(steps, int) else max(steps)
            fleet.ledger.step_begins()
            fleet.params.add_(move)
            left -= 1
            if left == 0:
                before = fleet.syncs
                state.exchange(fleet)
                if fleet.syncs > before:
                    synced.append(step)
        return synced

    return run


@pytest.fixture(scope="session")
def make_run(blobs: Dataset) -> Callable[..., SimpleNamespace]:
    """A fleet that trains on a task, with its strategy started."""

    def make(
        strategy: Any,
        k: int = 4,
        *,
        dataset: Dataset = blobs,
        model: str | Callable[..., nn.Module] = "mlp:hidden=8",
        optimizer: str = "sgd:lr=0.1",
        schedule: str = "constant",
        batch_size: int = 4,
        dtype: torch.dtype = torch.float32,
        numbers: Sequence[int] | None = None,
        parts: Sequence[np.ndarray[Any, Any]] | None = None,
        nudge: Nudge = exactly,
        **options: Any,
    ) -> SimpleNamespace:
        task = Task(dataset, model)
        module = nudge(task.module(0, dtype))
        fleet = Fleet(Arena(module, k, torch.device("cpu"), dtype), k, **options)
        numbers = range(k) if numbers is None else numbers
        if parts is None:
            parts = np.array_split(np.arange(len(dataset.train)), max(k, 4))
        batches = [Batches(parts[n], batch_size, "epochs", 0, n) for n in numbers]
        training = LocalTraining(fleet, task, module, batches, optimizer, schedule)
        return SimpleNamespace(fleet=fleet, training=training, task=task, state=strategy.start(fleet))

    return make


@pytest.fixture(scope="session")
def train() -> Callable[[SimpleNamespace, int], list[Tensor]]:
    """Take local steps and exchange, one by one; return the parameters after each exchange."""

    def run(made: SimpleNamespace, exchanges: int) -> list[Tensor]:
        gradients = getattr(made.state, "gradients", None)
        before_step = None if gradients is None else (lambda: gradients(made.fleet))
        seen = []
        for _ in range(exchanges):
            made.training.train(made.state.local_steps(made.fleet), before_step)
            made.state.exchange(made.fleet)
            seen.append(made.fleet.params.clone())
        return seen

    return run


@pytest.fixture
def stop_after_every_exchange(
    tmp_path: Path,
) -> Callable[[Callable[[], SimpleNamespace], Budget], tuple[PeerLoop, list[dict[str, Any]], int]]:
    """Stop a run after every exchange, write it to a file and read it into a new run: the same bits as without.

    Return the loop that nobody stopped, its lines of history, and how often the other was stopped.
    """

    def check(make: Callable[[], SimpleNamespace], budget: Budget) -> tuple[PeerLoop, list[dict[str, Any]], int]:
        def assemble(lines: list[dict[str, Any]]) -> PeerLoop:
            made = make()
            return PeerLoop(made.fleet, made.training, made.state, made.task, budget, lines.append)

        whole: list[dict[str, Any]] = []
        straight = assemble(whole)
        assert straight.run(lambda steps: PaceAction.GO_ON, lambda: None)

        def save() -> None:
            save_tree(loop.state_dict(), path)

        lines: list[dict[str, Any]] = []
        path, stops = tmp_path / "saved.safetensors", 0
        loop = assemble(lines)
        while not loop.run(lambda steps: PaceAction.STOP, save):
            stops += 1
            loop = assemble(lines)
            loop.load_state_dict(load_tree(path))
        assert lines == whole
        assert torch.equal(loop.fleet.params, straight.fleet.params)
        assert str(loop.state_dict()) == str(straight.state_dict())
        return straight, whole, stops

    return check
