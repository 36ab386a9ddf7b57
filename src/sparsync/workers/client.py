"""One client of a federation at work: it holds a model, its own samples, and what it remembers from round to round.

A process plays the clients of a cohort one after the other on one row of an arena, so that memory depends neither on
the number of clients nor on the size of the cohort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparsync.randomness import generator, torch_generator
from sparsync.task import Task, evaluating
from sparsync.workers.batches import Indices, LocalPasses
from sparsync.workers.layout import Arena
from sparsync.workers.optimizers import OPTIMIZERS, restore_state
from sparsync.workers.training import Learner


class Transform(Protocol):
    """Effective weights, as a function of those that the optimiser holds, are what the model computes with."""

    def weights(self, raw: Tensor, out: Tensor) -> None:
        """Write the effective parameters of `raw` (d,) into `out` (d,). May change `raw` in place."""

    def gradient(self, raw: Tensor, grad: Tensor) -> None:
        """Turn the gradient by the effective parameters into the one by the raw ones, in place, (d,)."""


StepHook = Callable[[Tensor, Tensor], object]
"""Gets parameters and gradient of a step, (d,) each, before the optimiser does; may change the gradient in place."""


@dataclass(frozen=True)
class LocalWork:
    """How much a selected client trains, and how: the same for all.

    Attributes
    ----------
    batch_size : int
        Samples per batch.
    epochs, steps : int, optional
        Passes over the client's samples, or batches; exactly one is set.
    drop_last : bool
        Whether the smaller last batch of a pass is left out.
    optimizer : str
        Spec of the client's optimiser, which starts afresh in every round.
    """

    batch_size: int
    epochs: int | None = 1
    steps: int | None = None
    drop_last: bool = False
    optimizer: str = "sgd"


class ModelVector:
    """A model's numbers as one float32 vector: parameters (d), and the buffers that are averaged with them (b).

    Attributes
    ----------
    d, b : int
        Lengths of the two parts.
    numel : int
        d + b, which is D.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.d, self.b = arena.layout.numel, arena.buffer_layout.numel
        self.numel = self.d + self.b

    @torch.no_grad()
    def read(self, row: int = 0) -> Tensor:
        """Return a copy of a row of the arena, (D,), in the CPU's memory, where messages are made."""
        arena = self.arena
        return torch.cat([part.to("cpu", torch.float32) for part in (arena.params[row], arena.buffers[row])])

    @torch.no_grad()
    def write(self, model: Tensor, row: int = 0) -> None:
        """Load a model (D,) into a row of the arena."""
        arena = self.arena
        arena.params[row].copy_(model[: self.d])
        arena.buffers[row].copy_(model[self.d : self.numel])


class ClientRuntime:
    """Where the clients of this process train: one row, one bound module, one optimiser, and what clients remember.

    Parameters
    ----------
    arena : Arena
        One row.
    task : Task
        Data, model and loss.
    module : nn.Module
        The bound module.
    parts : sequence of int64 arrays, (N,)
        Every client's samples.
    work : LocalWork
        What a selected client does.
    seed : int
        Seed of the run.

    Raises
    ------
    UsageError
        If a client would train on a single sample, and the model cannot.
    """

    def __init__(
        self, arena: Arena, task: Task, module: nn.Module, parts: Sequence[Indices], work: LocalWork, seed: int
    ) -> None:
        self.arena, self.task, self.parts, self.work, self.seed = arena, task, parts, work, seed
        self.learner = Learner(task, module, arena)
        self.learner.behaviour.check_batches("client", [len(part) for part in parts], work.batch_size)
        self.vector = ModelVector(arena)
        self.raw = arena.row(0)
        self.buffers = arena.row_buffers(0)
        self.parameters = arena.parameters(0)
        self.optimizer = OPTIMIZERS.build(work.optimizer, [self.raw])
        self.rate: float = self.optimizer.param_groups[0]["lr"]
        self.memories: dict[int, dict[str, Any]] = {}  # of clients that keep something from round to round
        self._effective: tuple[Tensor, list[nn.Parameter]] | None = None

    def remember(self, number: int, memory: dict[str, Any]) -> None:
        """Keep what a client remembers; nothing takes no place."""
        if memory:
            self.memories[number] = memory
        else:
            self.memories.pop(number, None)

    @property
    def module(self) -> nn.Module:
        """The bound module, bound to the row."""
        return self.learner.bound.bind(self.parameters, self.buffers)

    def effective(self) -> tuple[Tensor, list[nn.Parameter]]:
        """A second row, (d,), for effective weights, and parameters that view it and share the row's gradients."""
        if self._effective is None:
            row = torch.empty_like(self.raw.data)
            layout = self.arena.layout
            parameters = [nn.Parameter(view) for view in layout.views(row)]
            for parameter, grad in zip(parameters, layout.views(self.arena.grads[0]), strict=True):
                parameter.grad = grad
            self._effective = row, parameters
        return self._effective


@dataclass
class Client:
    """A client that has been selected, as its strategy sees it.

    Attributes
    ----------
    number : int
        Which one.
    round : int
        For which round, counted from 0.
    rate : float
        Factor of the round on the optimiser's learning rate.
    runtime : ClientRuntime
        Where it trains.
    exchange : int
        Which exchange of that round, counted from 0.
    memory : dict
        What it keeps from round to round, for strategies that are `stateful`. A change lasts if the server accepts the
        upload that goes with it, so entries are replaced, never changed in place.
    steps : int
        Local steps taken.
    loss_sum : float
        Of their batches.
    """

    number: int
    round: int
    rate: float
    runtime: ClientRuntime
    exchange: int = 0
    memory: dict[str, Any] = field(init=False)
    steps: int = 0
    loss_sum: float = 0.0

    def __post_init__(self) -> None:
        self.runtime.optimizer.state.clear()
        self.memory = dict(self.runtime.memories.get(self.number, {}))
        self._batches: LocalPasses | None = None

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return len(self.runtime.parts[self.number])

    @property
    def learning_rate(self) -> float:
        """Learning rate of this round."""
        return self.runtime.rate * self.rate

    @property
    def params(self) -> Tensor:
        """Parameters of the model that it holds now, (d,), in place."""
        return self.runtime.raw.data

    @property
    def grad(self) -> Tensor:
        """Gradient of the current step, (d,), in place."""
        return self.runtime.arena.grads[0]

    @property
    def module(self) -> nn.Module:
        """The module that computes for the clients of this process."""
        return self.runtime.learner.bound.module

    @property
    def momentum(self) -> dict[str, Any]:
        """State of its optimiser, for strategies that ask a client more than once in a round."""
        return dict(self.runtime.optimizer.state[self.runtime.raw])

    @momentum.setter
    def momentum(self, state: Mapping[str, Any]) -> None:
        restore_state(self.runtime.optimizer, self.runtime.raw, state)

    def forget_momentum(self) -> None:
        """Let its optimiser start afresh, as after a change of what is trained."""
        self.runtime.optimizer.state.clear()

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the generator of a purpose, this client and this round."""
        return generator(self.runtime.seed, purpose, self.number, self.round)

    def torch_generator(self, purpose: str) -> torch.Generator:
        """Return a torch generator of a purpose, this client and this round."""
        return torch_generator(self.runtime.seed, purpose, self.number, self.round)

    def load(self, model: Tensor) -> None:
        """Take a model (D,)."""
        self.runtime.vector.write(model)

    def model(self) -> Tensor:
        """Return a copy of the model that it holds, (D,)."""
        return self.runtime.vector.read()

    @property
    def batches(self) -> LocalPasses:
        """Its batches of this round."""
        if self._batches is None:
            work = self.runtime.work
            self._batches = LocalPasses(
                self.runtime.parts[self.number],
                work.batch_size,
                epochs=work.epochs,
                steps=work.steps,
                drop_last=work.drop_last,
                joined=self.runtime.learner.behaviour.lonely is not None,
                seed=self.runtime.seed,
                client=self.number,
                round_=self.round,
            )
        return self._batches

    def train(
        self,
        steps: range | None = None,
        *,
        transform: Transform | None = None,
        before_step: StepHook | None = None,
    ) -> None:
        """Take the round's local steps, or only those of a range of them.

        A client whose loss is not finite stops, with NaN for a model, and so the server will refuse its upload.

        Parameters
        ----------
        steps : range, optional
            Which of the round's steps, for strategies that do something in between.
        transform : Transform, optional
            The effective weights that the model computes with.
        before_step : StepHook, optional
            Called when a step has its gradient.
        """
        runtime, learner = self.runtime, self.runtime.learner
        raw, grad = runtime.raw.data, self.grad
        parameters = runtime.parameters
        out = raw
        if transform is not None:
            out, parameters = runtime.effective()
        runtime.optimizer.param_groups[0]["lr"] = self.learning_rate
        with learner.training():
            for step, inputs, labels in self._fetch(range(len(self.batches)) if steps is None else steps):
                grad.zero_()
                if transform is not None:
                    transform.weights(raw, out)
                draw = runtime.seed, self.number, self.round, step
                loss = learner.backward(parameters, runtime.buffers, inputs, labels, *draw)
                if not math.isfinite(loss):
                    raw.fill_(math.nan)
                    return
                if transform is not None:
                    transform.gradient(raw, grad)
                if before_step is not None:
                    before_step(raw, grad)
                runtime.optimizer.step()
                self.steps += 1
                self.loss_sum += loss

    def gradient(self, indices: Indices, transform: Transform | None = None) -> Tensor:
        """Return the loss's gradient by the effective weights, (d,), on a batch of samples; nothing else changes.

        Buffers are left as they were; the model is in training mode.
        """
        runtime, learner = self.runtime, self.runtime.learner
        parameters = runtime.parameters
        if transform is not None:
            out, parameters = runtime.effective()
            transform.weights(runtime.raw.data, out)
        kept = [buffer.clone() for buffer in runtime.buffers]
        train = runtime.task.dataset.train
        inputs, labels = train.batch(indices, learner.dtype, learner.device)
        self.grad.zero_()
        with learner.training():
            draw = runtime.seed, self.number, self.round, len(self.batches) + self.steps
            learner.backward(parameters, runtime.buffers, inputs, labels, *draw)
        for buffer, before in zip(runtime.buffers, kept, strict=True):
            buffer.copy_(before)
        return self.grad.clone()

    @property
    def others(self) -> list[Tensor]:
        """Copies of its buffers that are no float32 numbers, for strategies that ask more than once in a round."""
        return [rows[0].clone() for rows in self.runtime.arena.others]

    @others.setter
    def others(self, values: Sequence[Tensor]) -> None:
        for rows, value in zip(self.runtime.arena.others, values, strict=True):
            rows[0].copy_(value)

    def accuracy(self, most: int = 500) -> float:
        """Fraction of its own samples, at most so many, that the model which it holds labels rightly."""
        runtime, learner = self.runtime, self.runtime.learner
        indices = runtime.parts[self.number][:most]
        inputs, labels = runtime.task.dataset.train.batch(indices, learner.dtype, learner.device)
        module = runtime.module
        with evaluating(module):
            outputs: Tensor = module(inputs)
        return int((outputs.argmax(1) == labels).sum()) / len(indices)

    def _fetch(self, steps: range) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Batches with their step, gathered some at a time."""
        learner, train = self.runtime.learner, self.runtime.task.dataset.train
        each = max(1, 512 // self.batches.batch_size)
        for start in range(0, len(steps), each):
            some = steps[start : start + each]
            indices = [self.batches[step] for step in some]
            inputs, labels = train.batch(np.concatenate(indices), learner.dtype, learner.device)
            sizes = [len(batch) for batch in indices]
            yield from zip(some, inputs.split_with_sizes(sizes), labels.split_with_sizes(sizes), strict=True)
