"""Local training: each worker takes optimiser steps on its own row, with its own batches, in the one seat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsync.randomness import torch_seed
from sparsync.task import Task
from sparsync.workers.batches import Batches
from sparsync.workers.fleet import Fleet
from sparsync.workers.layout import Seat
from sparsync.workers.optimizers import OPTIMIZERS
from sparsync.workers.schedules import SCHEDULES


class Worker:
    """One worker of this process: its views into the arena, its optimiser, its batches, its own step count."""

    def __init__(self, number: int, fleet: Fleet, batches: Batches, optimizer: str) -> None:
        i = number - fleet.rows.start
        self.number = number
        self.grad = fleet.grads[i]
        self.parameters = fleet.arena.parameters(i)
        self.buffers = fleet.arena.row_buffers(i)
        self.row = fleet.arena.row(i)
        self.optimizer: Optimizer = OPTIMIZERS.build(optimizer, [self.row])
        self.rate: float = self.optimizer.param_groups[0]["lr"]
        self.batches = batches
        self.steps = 0


class LocalTraining:
    """The workers of this process, training.

    Parameters
    ----------
    fleet : Fleet
        Whose rows are trained.
    task : Task
        Data, model and loss.
    module : nn.Module
        The seat's module; its own tensors are replaced by the workers' views.
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
        self.device = fleet.params.device
        self.dtype = fleet.params.dtype
        self.schedule = SCHEDULES.build(schedule)
        self.stochastic = task.stochastic(module)
        self.seat = Seat(module, fleet.arena)
        self.workers = [Worker(number, fleet, own, optimizer) for number, own in zip(fleet.rows, batches, strict=True)]
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
        self.fleet.ledger.step_begins()
        self.seat.module.train()
        forward = self._default_generator()
        before = forward.get_state() if self.stochastic else None
        try:
            if before_step is None:
                self._train_each(steps)
            else:
                self._train_together(steps, before_step)
        finally:
            if before is not None:
                forward.set_state(before)
        self.fleet.clock.compute(steps)

    def _train_each(self, steps: int | Sequence[int]) -> None:
        for worker in self.workers:  # one after the other, so a small model stays in the cache
            for _ in range(steps if isinstance(steps, int) else steps[worker.number]):
                if not self._backward(worker):
                    break
                self._update(worker)

    def _train_together(self, steps: int | Sequence[int], before_step: Callable[[], None]) -> None:
        if not isinstance(steps, int):
            raise ValueError("before_step: workers that exchange gradients must take the same number of steps")
        for _ in range(steps):
            for worker in self.workers:
                self._backward(worker)
            before_step()
            for worker in self.workers:
                self._update(worker)

    def losses(self) -> tuple[float, int]:
        """Sum and number of the batch losses since this was last asked."""
        seen = self.loss_sum, self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return seen

    def _backward(self, worker: Worker) -> bool:
        """Gradients of one batch into the worker's row; False if its loss is not finite."""
        if self.stochastic:
            self._default_generator().manual_seed(torch_seed(self.fleet.seed, "forward", worker.number, worker.steps))
        inputs, labels = self.task.dataset.train.batch(worker.batches[worker.steps], self.dtype, self.device)
        module = self.seat.bind(worker.parameters, worker.buffers)
        worker.grad.zero_()
        loss: Tensor = self.task.loss(module(inputs), labels)
        value = loss.item()
        if not math.isfinite(value):
            self.fleet.fail(worker.number, worker.steps + 1)
            return False
        loss.backward()  # type: ignore[no-untyped-call]
        self.loss_sum += value
        self.loss_count += 1
        return True

    def _update(self, worker: Worker) -> None:
        worker.optimizer.param_groups[0]["lr"] = worker.rate * self.schedule(worker.steps)
        worker.optimizer.step()
        worker.steps += 1

    def _default_generator(self) -> torch.Generator:
        """Where dropout draws from. It is seeded per worker and step, and put back after local training."""
        if self.device.type == "cuda":
            return torch.cuda.default_generators[self.device.index or 0]
        return torch.default_generator

    def state_dict(self) -> dict[str, Any]:
        """Return the optimisers' states and step counts of the workers here."""
        return {
            "steps": [worker.steps for worker in self.workers],
            "optimizers": [dict(worker.optimizer.state[worker.row]) for worker in self.workers],
            "losses": [self.loss_sum, self.loss_count],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        for worker, steps, own in zip(self.workers, state["steps"], state["optimizers"], strict=True):
            worker.steps = steps
            worker.optimizer.state[worker.row] = {
                name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in own.items()
            }
        self.loss_sum, self.loss_count = state["losses"]
