"""Local training: workers take optimiser steps on their own rows, with their own batches, in the one bound module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsync.randomness import torch_seed
from sparsync.task import Task
from sparsync.workers.batches import Batches
from sparsync.workers.fleet import Fleet
from sparsync.workers.layout import Arena, BoundModule
from sparsync.workers.optimizers import OPTIMIZERS, restore_state
from sparsync.workers.schedules import SCHEDULES

_FETCH = 512  # samples gathered at a time: one call for many small batches, without holding everybody's


class Worker:
    """One worker of this process: its views into the arena, its batches, its own step count."""

    def __init__(self, number: int, fleet: Fleet, batches: Batches) -> None:
        i = number - fleet.rows.start
        self.number = number
        self.parameters = fleet.arena.parameters(i)
        self.buffers = fleet.arena.row_buffers(i)
        self.row = fleet.arena.row(i)
        self.grad = fleet.grads[i]
        self.batches = batches
        self.steps = 0


class Learner:
    """The one bound module of this process with what is learnt in it: forward and backward of a batch."""

    def __init__(self, task: Task, module: nn.Module, arena: Arena) -> None:
        self.task = task
        self.device, self.dtype = arena.params.device, arena.params.dtype
        self.behaviour = task.behaviour(module)
        self.arena, self.bound = arena, BoundModule(module, arena)

    def load(self, params: Tensor, buffers: Tensor, others: Sequence[Tensor]) -> nn.Module:
        """Put a model from outside the arena, (d,) and its buffers, into the bound module, and return that."""
        views = [nn.Parameter(view) for view in self.arena.layout.views(params)]
        return self.bound.bind(views, self.arena.buffer_views(buffers, others))

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training mode; whatever dropout draws meanwhile, the global generator is put back."""
        self.bound.module.train()
        generator = self._default_generator()
        before = generator.get_state() if self.behaviour.stochastic else None
        try:
            yield
        finally:
            if before is not None:
                generator.set_state(before)

    def backward(
        self, parameters: list[nn.Parameter], buffers: list[Tensor], inputs: Tensor, labels: Tensor, *draw: int
    ) -> float:
        """Add a batch's gradient to those of the parameters, unless the loss that it returns is not finite.

        `draw` names the stream of dropout: seed, worker and whatever tells its batches apart.
        """
        if self.behaviour.stochastic:
            seed, worker, *index = draw
            self._default_generator().manual_seed(torch_seed(seed, "forward", worker, *index))
        module = self.bound.bind(parameters, buffers)
        loss: Tensor = self.task.loss(module(inputs), labels)
        value = loss.item()
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
        self.bound.settle()
        return value

    def _default_generator(self) -> torch.Generator:
        """Where dropout draws from."""
        if self.device.type == "cuda":
            return torch.cuda.default_generators[self.device.index or 0]
        return torch.default_generator


class LocalTraining:
    """The workers of this process, training side by side.

    At every step each worker in turn takes the module for forward and backward, and then one call of the optimiser
    updates all their rows. Its rules are element-wise and its state is kept row by row, so this is what optimisers of
    their own would do; calling one per worker costs more than the arithmetic.

    Parameters
    ----------
    fleet : Fleet
        Whose rows are trained.
    task : Task
        Data, model and loss.
    module : nn.Module
        The bound module; its own tensors are replaced by the workers' views.
    batches : sequence of Batches
        One per worker here.
    optimizer, schedule : str
        Specs from `OPTIMIZERS` and `SCHEDULES`.
    """

    def __init__(
        self,
        fleet: Fleet,
        task: Task,
        module: nn.Module,
        batches: Sequence[Batches],
        optimizer: str = "sgd",
        schedule: str = "constant",
    ) -> None:
        self.fleet = fleet
        self.task = task
        self.schedule = SCHEDULES.build(schedule)
        self.learner = Learner(task, module, fleet.arena)
        self.workers = [Worker(number, fleet, own) for number, own in zip(fleet.rows, batches, strict=True)]
        self.optimizer: Optimizer = OPTIMIZERS.build(optimizer, [worker.row for worker in self.workers])
        self.rate: float = self.optimizer.param_groups[0]["lr"]
        self.loss_sum, self.loss_count = 0.0, 0  # of the batches since `losses` was last asked

    def train(self, steps: int | Sequence[int], before_step: Callable[[], None] | None = None) -> None:
        """Take local steps.

        Parameters
        ----------
        steps : int or sequence of int, (K,)
            How many, for all workers or for each.
        before_step : callable, optional
            Called when all workers have their gradients and none has stepped; needs one number for all.
        """
        if before_step is not None and not isinstance(steps, int):
            raise ValueError("before_step: workers that exchange gradients must take the same number of steps")
        self.fleet.ledger.step_begins()
        left = {worker: steps if isinstance(steps, int) else steps[worker.number] for worker in self.workers}
        with self.learner.training():
            while active := [worker for worker, n in left.items() if n > 0]:
                self.fleet.grads.zero_()
                healthy = self._backward(active)
                if before_step is not None:
                    before_step()
                self._update(healthy)
                left = {worker: left[worker] - 1 for worker in healthy}
        self.fleet.clock.compute(steps)

    def losses(self) -> tuple[float, int]:
        """Sum and number of the batch losses since this was last asked."""
        seen = self.loss_sum, self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return seen

    def _backward(self, active: list[Worker]) -> list[Worker]:
        """Add the gradients of one batch each to the workers' rows; return those whose loss is finite."""
        return [worker for worker, inputs, labels in self._fetch(active) if self._backward_one(worker, inputs, labels)]

    def _fetch(self, active: list[Worker]) -> Iterator[tuple[Worker, Tensor, Tensor]]:
        """Every worker with its next batch."""
        train = self.task.dataset.train
        each = max(1, _FETCH // max(worker.batches.batch_size for worker in active))
        for start in range(0, len(active), each):
            some = active[start : start + each]
            indices = [worker.batches[worker.steps] for worker in some]
            inputs, labels = train.batch(np.concatenate(indices), self.learner.dtype, self.learner.device)
            sizes = [len(own) for own in indices]
            yield from zip(some, inputs.split_with_sizes(sizes), labels.split_with_sizes(sizes), strict=True)

    def _backward_one(self, worker: Worker, inputs: Tensor, labels: Tensor) -> bool:
        draw = self.fleet.seed, worker.number, worker.steps
        value = self.learner.backward(worker.parameters, worker.buffers, inputs, labels, *draw)
        if not math.isfinite(value):
            self.fleet.fail(worker.number, worker.steps + 1)
            return False
        self.loss_sum += value
        self.loss_count += 1
        return True

    def _update(self, workers: list[Worker]) -> None:
        """One optimiser step of these workers: in one call for all that have taken equally many before."""
        alike: dict[int, list[Worker]] = {}
        for worker in workers:
            alike.setdefault(worker.steps, []).append(worker)
        group = self.optimizer.param_groups[0]
        for taken, some in sorted(alike.items()):
            group["params"] = [worker.row for worker in some]  # the others are not even looked at
            group["lr"] = self.rate * self.fleet.rate * self.schedule(taken)
            self.optimizer.step()
        for worker in workers:
            worker.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and step count of each worker here."""
        return {
            "steps": [worker.steps for worker in self.workers],
            "optimizers": [dict(self.optimizer.state[worker.row]) for worker in self.workers],
            "losses": [self.loss_sum, self.loss_count],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        for worker, steps, momentum in zip(self.workers, state["steps"], state["optimizers"], strict=True):
            worker.steps = steps
            restore_state(self.optimizer, worker.row, momentum)
        self.loss_sum, self.loss_count = state["losses"]
