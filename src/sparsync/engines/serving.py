"""Split learning on real machines, the clients: each does as its server, a `SplitTrainer` elsewhere, says."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sparsync.engines.messages import (
    BOTTOM,
    GRADIENT,
    OUTPUTS,
    RunOpening,
    SplitKind,
    pack_numbers,
    pack_seconds,
    pack_state,
    unpack_column,
    unpack_state,
    unpack_step,
)
from sparsync.errors import SparsyncError
from sparsync.randomness import generator
from sparsync.split import BatchComposition, SplitTrainer
from sparsync.split.schedule import Ints
from sparsync.transport import Connection, ConnectionLost, Frame, MessageKind, Signal


class ClientService:
    """The clients of this process, at the server's service.

    Parameters
    ----------
    connections : mapping of int to Connection
        Their connections.
    inbox : Queue
        Where all of those put what arrives.
    begin : callable
        From the number of a run to a `SplitTrainer` with as many bottoms as there are clients here.
    """

    def __init__(
        self, connections: Mapping[int, Connection], inbox: queue.Queue[Frame], begin: Callable[[int], SplitTrainer]
    ) -> None:
        self.connections, self.inbox, self.begin = dict(connections), inbox, begin
        self.run: int | None = None
        self.trainer: SplitTrainer | None = None
        self.clients: dict[int, _RemoteClient] = {}

    def serve(self) -> None:
        """Do as the server says, until it has no further use for any of them.

        Raises
        ------
        SparsyncError
            In the end, if it has gone, or has given one of them up.
        """
        served, dropped = set(self.connections), {}
        try:
            while served:
                client, op, payload, why = self.inbox.get()
                if op is Signal.CLOSE:
                    served.discard(client)
                    continue
                try:
                    if op is SplitKind.OPEN or (op is not None and client in self.clients):
                        self._handle(client, op, payload)
                        continue
                except ConnectionLost as error:  # the others' connections are their own
                    why = str(error)
                self.clients.pop(client, None)
                if client in served:  # it has been given up, or the server is gone
                    served.discard(client)
                    dropped[client] = why or "it sent nonsense"
        finally:
            for connection in self.connections.values():
                connection.close()
        for client, reason in dropped.items():
            raise SparsyncError(f"client {client}: lost the server ({reason}); its own message says why")

    def _handle(self, client: int, op: MessageKind, payload: bytes) -> None:
        answer = self._open(client, payload) if op is SplitKind.OPEN else self.clients[client].handle(op, payload)
        if answer is not None:
            self.connections[client].send(*answer)

    def _open(self, client: int, payload: bytes) -> tuple[SplitKind, bytes]:
        opening, state = RunOpening.unpack(payload)
        if opening.run != self.run or self.trainer is None:
            self.run, self.trainer, self.clients = opening.run, self.begin(opening.run), {}
            self.trainer.module.train()
        trainer, place = self.trainer, sorted(self.connections).index(client)
        rows, momentum = unpack_state(state, trainer.bottoms.vectors(place))
        trainer.bottoms.restore(place, rows[0], rows[1], momentum)
        trainer.measured[client] = opening.measured
        self.clients[client] = _RemoteClient(trainer, client, place, opening)
        own = [trainer.samples[client], *(trainer.histograms[client] if opening.histograms else ())]
        return SplitKind.SIZES, pack_numbers(np.array(own))


class _RemoteClient:
    """One client in a run, whose bottom is a row of its trainer's."""

    def __init__(self, trainer: SplitTrainer, number: int, row: int, opening: RunOpening) -> None:
        self.trainer, self.number, self.row = trainer, number, row
        self.step, self.epoch, self.used = opening.step, opening.epochs - 1, opening.used
        self.order: Ints | None = None  # of its samples, in this epoch
        self.asked: list[int] = []  # how many samples, whenever it will be
        self.output: Tensor | None = None
        self.labels: Tensor | None = None  # of what is at the cut

    def handle(self, op: MessageKind, payload: bytes) -> tuple[SplitKind, bytes] | None:
        """Do what a message asks for; return the answer, if there is one."""
        match op:
            case SplitKind.ASK_TYPICAL:
                return SplitKind.DELAY, pack_seconds(self.trainer.delays.typical[self.number])
            case SplitKind.ASK_MEASURED:
                return SplitKind.DELAY, pack_seconds(self.trainer.measured[self.number])
            case SplitKind.SCHEDULE:
                self._plan(payload)
            case SplitKind.START:
                return SplitKind.ACTIVATIONS, self._forward(unpack_step(payload))
            case SplitKind.OUTPUTS:
                return SplitKind.OUTPUT_DELTA, self._judge(payload)
            case SplitKind.DELTA:
                grad = self._backward(payload)
                if not self.trainer.apart:
                    return SplitKind.GRADIENT, GRADIENT.pack(grad)
                self._update(grad)
            case SplitKind.SUM:
                self._update(GRADIENT.unpack(payload, self.trainer.bottoms.grads[self.row])[0])
            case SplitKind.ASK_BOTTOM:
                return SplitKind.BOTTOM, BOTTOM.pack(torch.cat(self.trainer.bottoms.vectors(self.row)))
            case SplitKind.ASK_STATE:
                bottoms = self.trainer.bottoms
                return SplitKind.BOTTOM, pack_state(bottoms.vectors(self.row), bottoms.momentum(self.row))
            case SplitKind.BOTTOM:
                self._adopt(payload)
        return None

    def _plan(self, payload: bytes) -> None:
        self.asked, rest = unpack_column(payload)
        if not rest:
            self.epoch, self.used, self.order = self.epoch + 1, 0, None

    def _forward(self, step: int) -> bytes:
        trainer, size = self.trainer, self.asked.pop(0)
        self.step = trainer.step = step
        trainer.measure(BatchComposition(np.array([self.number]), np.array([size])))
        if self.order is None:
            rng = generator(trainer.seed, "split-batches", self.number, self.epoch)
            self.order = rng.permutation(trainer.parts[self.number])
        indices = self.order[self.used : self.used + size]
        inputs, self.labels = trainer.task.dataset.train.batch(indices, trainer.dtype, trainer.device)
        self.output = trainer.bottom(self.number, self.row, inputs)
        message = generator(trainer.seed, f"split-{trainer.up.kind}", self.number, step)
        return trainer.up.pack(self.output.detach(), self.labels if trainer.labels == "server" else None, message)

    def _judge(self, payload: bytes) -> bytes:
        """The gradients of this client's mean loss, by the outputs for its samples."""
        trainer, labels = self.trainer, self.labels
        assert labels is not None  # the server answers activations
        like = torch.empty(len(labels), trainer.task.dataset.classes, dtype=trainer.dtype, device=trainer.device)
        outputs = OUTPUTS.unpack(payload, like)[0].requires_grad_()
        (gradient,) = torch.autograd.grad(trainer.task.loss(outputs, labels), outputs)
        return GRADIENT.pack(gradient)

    def _backward(self, payload: bytes) -> Tensor:
        trainer, output = self.trainer, self.output
        assert output is not None  # the server answers activations
        grad = trainer.bottoms.grads[self.row].zero_()
        torch.autograd.backward([output], [trainer.down.unpack(payload, output.detach())[0]])
        self.used += len(output)
        self.output = self.labels = None
        return grad

    def _update(self, grad: Tensor) -> None:
        bottoms = self.trainer.bottoms
        bottoms.grads[self.row].copy_(grad)
        bottoms.step(self.trainer.factor(self.step), [self.row])
        self.step += 1

    def _adopt(self, payload: bytes) -> None:
        rows = self.trainer.bottoms.vectors(self.row)
        mean = BOTTOM.unpack(payload, torch.cat(rows))[0].split_with_sizes([len(row) for row in rows])
        for row, own in zip(rows, mean, strict=True):
            row.copy_(own)
