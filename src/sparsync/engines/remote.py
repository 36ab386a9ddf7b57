"""Split learning on real machines, the server's side: a trainer whose clients are other processes, `ClientService`.

The server composes, asks and sums as in one process; what is written here is only how its requests reach the clients
and what becomes of a client that is late, gone, or sends what cannot be used: it is left out, and its samples with it
if it does not come back. Every client has a connection of its own, so a message needs no address.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsync.engines.links import Connection, ConnectionLost, Op
from sparsync.engines.messages import (
    BOTTOM,
    GRADIENT,
    OUTPUTS,
    RunOpening,
    pack_column,
    pack_step,
    unpack_numbers,
    unpack_seconds,
    unpack_state,
)
from sparsync.errors import Interrupted, PayloadError, SparsyncError, UsageError
from sparsync.randomness import generator
from sparsync.split import BatchComposition, SplitTrainer
from sparsync.split.batch import CutTensors, NoClientAnswered
from sparsync.split.channel import Delivery
from sparsync.split.schedule import Floats, Ints, Schedule
from sparsync.task import evaluating
from sparsync.wire import unpack_parcel

_LOOK_UP = 0.2  # seconds of waiting for a client, until the server looks whether it is to stop


class RemoteSplitTrainer(SplitTrainer):
    """The server of clients that are connected to it.

    Parameters
    ----------
    connections : mapping of int to Connection
        Every client's connection.
    run : int
        Number of the run among those that the clients know.
    patience : float
        Seconds after which a client that says nothing is given up.
    stopping : callable, optional
        Whether the user has asked to stop.
    **options
        As of `SplitTrainer`.
    """

    def __init__(
        self,
        *given: Any,
        connections: Mapping[int, Connection],
        run: int,
        patience: float = 600.0,
        stopping: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        super().__init__(*given, **options)
        self.connections, self.run, self.patience, self.stopping = dict(connections), run, patience, stopping
        self.deadline = None  # of virtual time; the real one is looked after here
        self._owed = dict.fromkeys(connections, 0)  # answers that will come too late
        self._seen = np.zeros_like(self.histograms)
        self._rest = self._histograms = False
        self._answers: dict[int, tuple[Tensor, Tensor, bytes]] = {}
        self._check_bottom(pieces=True)
        changed = self.behaviour.changed & {name for name, _ in self.cut.bottom.named_buffers(remove_duplicate=False)}
        if changed:
            raise UsageError(
                f"the bottom changes buffer {min(changed)!r} when it is trained: each client's would be another, and "
                "the server's none of them; cut the model before it"
            )
        with evaluating(self.cut.bottom):
            inputs, _ = self.task.dataset.train.batch(np.zeros(1, np.int64), self.dtype, self.device)
            self._shape = self.cut.bottom(inputs).shape[1:]
        widest = max(self._shape.numel() + 1, self.task.dataset.classes)
        bottom = sum(map(len, self.bottoms.vectors(0)))
        largest = max(self.settings.batch_size * widest, 4 * bottom)  # an optimiser remembers up to three times as much
        for connection in self.connections.values():
            connection.limit = 8 * largest + 4096

    # A run

    def open(self, *, histograms: bool = False, apart: bool = False) -> None:
        """Every client receives its bottom, and says how much data it has, perhaps of which classes."""
        super().open(histograms=histograms, apart=apart)
        self._histograms = histograms
        self._open()

    def _open(self) -> None:
        """Bring all clients to where this site is."""
        bottoms = self.bottoms
        epochs, used = self.epoch + self._rest, self.samples - self.left
        for client in list(self.connections):
            state = int(used[client]), float(self.measured[client])
            opening = RunOpening(self.run, self.step, epochs, *state, self._histograms)
            self._tell(client, Op.OPEN, opening.pack(bottoms.vectors(client), bottoms.momentum(client)))
        for client in list(self.connections):
            own = np.array([self.samples[client], *(self.histograms[client] if self._histograms else ())])
            with self._blaming(client):
                payload = self._answer(client, Op.SIZES)
                if payload is not None and (unpack_numbers(payload, len(own)) != own).any():
                    raise PayloadError("payload: other numbers of samples than this experiment gives it")

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.left[list(self.lost)] = 0
        self._seen[:] = 0
        self._rest = False

    def reported(self, *, measured: bool) -> Floats:
        """Ask every client; NaN of who is lost, too."""
        super().reported(measured=measured)
        told = np.full(self.clients, np.nan)
        for client, payload in self._asked(Op.ASK_MEASURED if measured else Op.ASK_TYPICAL, Op.DELAY):
            with self._blaming(client):
                told[client] = unpack_seconds(payload)
        return told

    def announce(self, schedule: Schedule) -> Schedule:
        """Send every client its column."""
        super().announce(schedule)
        self.resume(schedule)
        return schedule

    def resume(self, schedule: Schedule) -> None:
        """Send every client its column of what is left of an epoch, which it has forgotten."""
        columns = schedule.tocsc()
        for client in list(self.connections):
            own = slice(*columns.indptr[client : client + 2])
            column = pack_column(columns.indices[own], columns.data[own], schedule.shape[0], rest=self._rest)
            self._tell(client, Op.SCHEDULE, column)
        self._rest = True

    def histograms_left(self) -> Ints:
        """Of each class, what each client holds less the labels that have arrived; if none do, as in one process."""
        return super().histograms_left() if self.labels == "clients" else self.histograms - self._seen

    # One step

    def ask(self, row: BatchComposition) -> BatchComposition:
        """Ask clients for samples; return the row of those whose activations have come in time and can be used."""
        row = row.only(np.isin(row.clients, list(self.connections)))
        if not len(row.clients):
            raise self._unanswered()
        row = super().ask(row)
        begun = time.monotonic()
        for client in row.clients.tolist():
            self._tell(client, Op.START, pack_step(self.step))
        self._answers = {}
        deadline = self.settings.deadline
        for client, size in zip(row.clients.tolist(), row.sizes.tolist(), strict=True):
            end = begun + (deadline if deadline is not None and self._answers else self.patience)
            payload = self._answer(client, Op.ACTIVATIONS, end, late=deadline is not None and bool(self._answers))
            if payload is not None:
                self._accept(client, size, payload)
        there = np.isin(row.clients, list(self._answers))
        self.late = row.clients[~there]
        if not self._answers:
            raise self._unanswered()
        self.times.up, self.times.back = self.times.up[there], self.times.back[there]
        return row.only(there)

    def _unanswered(self) -> SparsyncError:
        if self.connections:
            return NoClientAnswered("none of the clients that were asked has answered")
        client, why = list(self.lost.items())[-1]
        return SparsyncError(f"all clients are lost, the last was {client}: {why}; start them again, and resume")

    def _accept(self, client: int, size: int, payload: bytes) -> None:
        like = torch.empty(size, *self._shape, dtype=self.dtype)
        told = self.labels == "server"
        with self._blaming(client):
            numbers, labels = self.up.unpack(payload, like, size if told else 0)
            indices = self.next_indices(client, size)
            if told:
                self._seen[client] += np.bincount(labels.numpy(), minlength=self._seen.shape[1])
                if (self._seen[client] > self.histograms[client]).any():
                    raise PayloadError("payload: labels of more samples of a class than it has")
            else:  # not for training: the history has the mix and the loss of a batch, which the experiment knows
                labels = self.task.dataset.train.labels[torch.from_numpy(indices)]
            self._answers[client] = numbers.to(self.device), labels.to(self.device), payload

    def forward(self, row: BatchComposition) -> CutTensors:
        """Take what has arrived."""
        numbers, labels, payloads = zip(*(self._answers[client] for client in row.clients.tolist()), strict=True)
        sent = Delivery.of(payloads, row.total if self.labels == "server" else 0)
        self.times.up += self.costs.delivered(sent, row.clients, up=True)
        self.batch_classes = self._count(torch.cat(labels))
        return CutTensors(row, [], torch.cat(numbers).requires_grad_(), torch.cat(labels))

    def _count(self, labels: Tensor) -> Ints:
        return np.bincount(labels.cpu().numpy(), minlength=self._seen.shape[1])

    def learn(self, cut_tensors: CutTensors, outputs: Tensor) -> float:
        """Where labels stay with the clients, send the outputs down, and let each bring the gradient of its own loss.

        The mean is over the samples of those who do.
        """
        if self.labels == "server":
            return super().learn(cut_tensors, outputs)
        self._finite(self.task.loss(outputs, cut_tensors.labels))  # else clients would be blamed for what they answer
        row, gradient = cut_tensors.row, torch.zeros_like(outputs)
        clients, sizes = row.clients.tolist(), row.sizes.tolist()
        for client, piece in zip(clients, outputs.split_with_sizes(sizes), strict=True):
            self._tell(client, Op.OUTPUTS, OUTPUTS.pack(piece))
        there = torch.zeros(len(outputs), dtype=torch.bool, device=self.device)
        places = there.split_with_sizes(sizes)
        for client, piece, place in zip(clients, gradient.split_with_sizes(sizes), places, strict=True):
            with self._blaming(client):
                payload = self._answer(client, Op.OUTPUT_DELTA)
                if payload is not None:
                    piece.copy_(GRADIENT.unpack(payload, piece.cpu())[0].to(piece) * len(piece))
                    place.fill_(True)
        if not there.any():
            raise self._unanswered()
        outputs.backward(gradient / there.sum())  # type: ignore[no-untyped-call]
        self.batch_classes -= self._count(cut_tensors.labels[~there])
        return self.task.loss(outputs[there], cut_tensors.labels[there]).item()

    def backward(self, cut_tensors: CutTensors) -> None:
        """Send the activations' gradients down."""
        row, delta = cut_tensors.row, cut_tensors.arrived.grad
        assert delta is not None
        payloads = []
        for client, piece in zip(row.clients.tolist(), delta.split_with_sizes(row.sizes.tolist()), strict=True):
            rng = generator(self.seed, f"split-{self.down.kind}", client, self.step)
            payloads.append(self.down.pack(piece, None, rng))
            self._tell(client, Op.DELTA, payloads[-1])
        self.times.back += self.costs.delivered(Delivery.of(payloads), row.clients, up=False)
        self.times.back += self.costs.backward(row.clients, row.sizes)

    def collect(self, row: BatchComposition) -> None:
        """Sum the bottoms' gradients as they come, by increasing client."""
        total = torch.zeros_like(self.bottoms.grads[0])
        for client in row.clients.tolist():
            with self._blaming(client):
                payload = self._answer(client, Op.GRADIENT)
                if payload is not None:
                    total += GRADIENT.unpack(payload, total.cpu())[0].to(total)
        self.bottoms.grads[:] = total

    def share_gradient(self, row: BatchComposition) -> None:
        """Send the sum to all that are there."""
        super().share_gradient(row)
        answer = GRADIENT.pack(self.bottoms.grads[0])
        for client in list(self.connections):
            self._tell(client, Op.SUM, answer)

    def update(self, bottoms: Iterable[int] | None = None, tops: Iterable[int] | None = None) -> None:
        """As in one process, but clients that train apart have done so when the gradients came."""
        super().update([] if self.apart else bottoms, tops)

    def average_bottoms(self) -> None:
        """Clients send their bottoms, and receive the mean of those that have come."""
        vectors = [self.bottoms.vectors(client) for client in range(self.clients)]
        for client, payload in self._asked(Op.ASK_BOTTOM, Op.BOTTOM):
            with self._blaming(client):
                whole = torch.cat(vectors[client])
                arrived = BOTTOM.unpack(payload, whole.cpu())[0].to(whole)
                for own, piece in zip(
                    vectors[client], arrived.split_with_sizes([*map(len, vectors[client])]), strict=True
                ):
                    own.copy_(piece)
        if not self.connections:
            raise self._unanswered()
        super().average_bottoms()
        mean = BOTTOM.pack(torch.cat(vectors[0]))
        for client in list(self.connections):
            self._tell(client, Op.BOTTOM, mean)

    def _asked(self, question: Op, answer: Op) -> Iterator[tuple[int, bytes]]:
        """Ask all clients, and go through the answers."""
        for client in list(self.connections):
            self._tell(client, question)
        for client in list(self.connections):
            payload = self._answer(client, answer)
            if payload is not None:
                yield client, payload

    # Clients that fail

    def _tell(self, client: int, op: Op, payload: bytes = b"") -> None:
        if client in self.connections:
            try:
                self.connections[client].send(op, payload)
            except ConnectionLost as error:
                self._lose(client, str(error))

    def _answer(self, client: int, op: Op, end: float | None = None, *, late: bool = False) -> bytes | None:
        """What a client answers until then, or as long as patience lasts; None if it is late, or lost."""
        end = time.monotonic() + self.patience if end is None else end
        while client in self.connections:
            left = max(0.0, end - time.monotonic())
            try:
                frame = self.connections[client].inbox.get(timeout=min(left, _LOOK_UP))
            except queue.Empty:
                if self.stopping():
                    raise Interrupted(
                        f"stopped while client {client} was awaited; `sparsync resume` goes on from the last checkpoint"
                    ) from None
                if left > _LOOK_UP:
                    continue
                if late:
                    self._owed[client] += 1
                else:
                    self._lose(client, f"it has said nothing for {self.patience:g} s")
                return None
            if frame.op is Op.ACTIVATIONS and self._owed[client]:
                self._owed[client] -= 1
            elif frame.op is op:
                return frame.payload
            else:
                self._lose(client, frame.why or f"it sent {getattr(frame.op, 'name', 'nothing')}, expected {op.name}")
        return None

    @contextmanager
    def _blaming(self, client: int) -> Iterator[None]:
        """A message that cannot be used costs its sender, and nobody else."""
        try:
            yield
        except PayloadError as error:
            self._lose(client, str(error))

    def _lose(self, client: int, why: str) -> None:
        self.connections.pop(client).close()
        self.lost[client] = why
        self.left[client] = 0
        self.everyone = self.everyone[self.everyone != client]

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run; what clients that train apart have of it, they are asked for."""
        for client, payload in self._asked(Op.ASK_STATE, Op.BOTTOM) if self.apart else ():
            with self._blaming(client):
                rows, momentum = unpack_state(unpack_parcel(payload, len(payload)), self.bottoms.vectors(client))
                self.bottoms.restore(client, rows[0], rows[1], momentum)
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, and bring the clients there."""
        super().load_state_dict(state)
        self.left[list(self.lost)] = 0
        self._rest = bool(self.left.any())  # what is left of an epoch follows; else the next one begins
        self._seen = self.histograms - super().histograms_left()
        self._open()
