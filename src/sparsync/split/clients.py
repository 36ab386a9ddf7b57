"""The clients of a cut model, as its trainer asks them: in this process, with all samples at hand.

Clients in other processes are a port of the same operations; the protocol itself is the trainer's, written once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparsync.split.batch import BatchComposition, CutTensors
from sparsync.split.channel import Delivery
from sparsync.split.schedule import Floats, Ints, Schedule

if TYPE_CHECKING:
    from sparsync.split.trainer import SplitTrainer


Booleans = npt.NDArray[np.bool_]


class SplitClients(ABC):
    """What a trainer asks of its clients, wherever they are; what only crosses a network does nothing by default.

    Parameters
    ----------
    trainer : SplitTrainer
        Whose clients these are.
    """

    def __init__(self, trainer: SplitTrainer) -> None:
        self.trainer = trainer

    def open(self, *, histograms: bool) -> None:
        """Every client receives its bottom, and reports its samples, perhaps class by class."""

    def begin_epoch(self) -> None:
        """All samples are to be used again."""

    @abstractmethod
    def delays(self, *, measured: bool) -> Floats:
        """Every client reports how long it takes to answer, (K,) in seconds; NaN where that is not known."""

    def schedule(self, schedule: Schedule) -> None:
        """Every client receives its column of what is left of an epoch."""

    @abstractmethod
    def labels_seen(self) -> Ints:
        """Labels of this epoch that the server has received, (K, M) by client and class."""

    @abstractmethod
    def ask(self, row: BatchComposition, seconds: Floats) -> tuple[Booleans, Floats]:
        """Clients start on a batch that takes them `seconds`, (n,).

        Returns
        -------
        in_time : array of bool, (n,)
            Who will contribute.
        waited : array of float, (m,)
            Virtual seconds that each of these is waited for.
        """

    @abstractmethod
    def activations(self, row: BatchComposition) -> tuple[CutTensors, Delivery]:
        """Clients run their samples through their bottoms, and send activations and labels."""

    @abstractmethod
    def output_gradient(self, cut_tensors: CutTensors, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Clients hold the labels, and send the gradient of their loss.

        Returns
        -------
        gradient : Tensor, (B_t, ...)
            Of the mean loss of the samples that are answered for; 0 at others.
        answered : Tensor of bool, (B_t,)
            Which these are.
        """

    @abstractmethod
    def deltas(self, cut_tensors: CutTensors) -> Delivery:
        """The activations' gradients go down, and back through the bottoms."""

    @abstractmethod
    def sum_gradients(self, row: BatchComposition) -> None:
        """The sum of the bottoms' gradients, by increasing client, becomes the gradient of each."""

    def send_sum(self) -> None:
        """Every client receives that sum."""

    @abstractmethod
    def step(self, factor: float, clients: Iterable[int] | None) -> None:
        """Bottoms of some clients, or of all, take an optimiser step at a rate times `factor`."""

    def fetch_bottoms(self) -> None:
        """Clients send their bottoms."""

    def send_bottom(self) -> None:
        """Every client receives the mean of all bottoms."""

    def fetch_state(self) -> None:
        """Clients send what a checkpoint needs of them."""

    def restore(self) -> None:
        """Clients go on from the checkpoint that the trainer has loaded."""


class LocalSplitClients(SplitClients):
    """Clients in the trainer's process, whose bottoms are its rows."""

    def delays(self, *, measured: bool) -> Floats:
        """Return what is known of every client, or has been measured."""
        return self.trainer.measured if measured else self.trainer.delays.typical

    def labels_seen(self) -> Ints:
        """Return the labels of all samples that have been used."""
        return self.trainer.labels_used()

    def ask(self, row: BatchComposition, seconds: Floats) -> tuple[Booleans, Floats]:
        """Who will not have computed by the deadline, on the virtual clock, is left out.

        If nobody would, the quickest is waited for: in the end every sample is used. So are all, where a single sample
        would be left that the model cannot be trained on.
        """
        trainer = self.trainer
        deadline = trainer.settings.deadline or math.inf
        in_time = seconds <= max(deadline, seconds.min())
        total = int(row.sizes[in_time].sum())
        if trainer.behaviour.lonely is not None and 1 in (total, int(trainer.left.sum()) - total):
            in_time[:] = True
        return in_time, seconds[in_time] if in_time.all() else np.maximum(seconds[in_time], deadline)

    def activations(self, row: BatchComposition) -> tuple[CutTensors, Delivery]:
        """Run the clients' next samples through one bottom that stands for all, or through each client's."""
        trainer, bottoms = self.trainer, self.trainer.bottoms
        inputs, labels = trainer.take(row)
        bottoms.grads.zero_()
        if bottoms.rows == 1 and not trainer.behaviour.stochastic:
            outputs = [bottoms.bind(0)(inputs)]
        else:
            pieces = zip(row.clients.tolist(), inputs.split_with_sizes(row.sizes.tolist()), strict=True)
            outputs = [trainer.bottom(client, client, piece) for client, piece in pieces]
        pooled = torch.cat([output.detach() for output in outputs])
        sent = labels if trainer.labels == "server" else None
        arrived, delivery = trainer.carry(trainer.up, pooled, row, sent)
        return CutTensors(row, outputs, arrived.requires_grad_(), labels), delivery

    def output_gradient(self, cut_tensors: CutTensors, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of the mean loss over all samples."""
        loss = self.trainer.task.loss(outputs, cut_tensors.labels)
        (gradient,) = torch.autograd.grad(loss, outputs)
        return gradient, torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)

    def deltas(self, cut_tensors: CutTensors) -> Delivery:
        """Go back through the bottoms that computed the activations."""
        delta = cut_tensors.arrived.grad
        assert delta is not None  # the top's backward pass has been here
        arrived, delivery = self.trainer.carry(self.trainer.down, delta, cut_tensors.row, None)
        pieces = arrived.split_with_sizes([len(output) for output in cut_tensors.outputs])
        torch.autograd.backward(cut_tensors.outputs, list(pieces))
        return delivery

    def sum_gradients(self, row: BatchComposition) -> None:
        """One bottom that stands for all has the sum already."""
        grads = self.trainer.bottoms.grads
        if self.trainer.bottoms.rows > 1:
            grads[:] = grads[torch.from_numpy(row.clients)].sum(0)

    def step(self, factor: float, clients: Iterable[int] | None) -> None:
        """Take the step in the trainer's rows."""
        self.trainer.bottoms.step(factor, clients)
