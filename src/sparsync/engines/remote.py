"""Split learning on real machines, the server's side: the port to clients in other processes, `ClientService`.

The trainer composes, asks and sums as in one process; here is only how its requests reach the clients, and what becomes
of a client that is late, gone, or sends what cannot be used: it is left out, and its samples with it if it does not
come back. Every client has a connection of its own, so a message needs no address.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sparsync.engines.messages import (
    BOTTOM,
    GRADIENT,
    OUTPUTS,
    RunOpening,
    SplitKind,
    pack_column,
    pack_step,
    unpack_numbers,
    unpack_seconds,
    unpack_state,
)
from sparsync.errors import Interrupted, PayloadError, UsageError
from sparsync.split import BatchComposition, SplitTrainer
from sparsync.split.batch import CutTensors
from sparsync.split.channel import Delivery
from sparsync.split.clients import Booleans, SplitClients
from sparsync.split.schedule import Floats, Ints, Schedule
from sparsync.task import evaluating
from sparsync.transport import Connection, ConnectionLost
from sparsync.wire import unpack_parcel

_LOOK_UP = 0.2  # seconds of waiting for a client, until the server looks whether it is to stop


class RemoteClients(SplitClients):
    """The clients of a trainer that are connected to its process.

    Parameters
    ----------
    trainer : SplitTrainer
        The server.
    connections : mapping of int to Connection
        Every client's connection.
    run : int
        Number of the run among those that the clients know.
    timeout : float
        Seconds after which a client that does not answer is given up.
    stopping : callable, optional
        Whether the user has asked to stop.

    Raises
    ------
    UsageError
        If the bottom cannot be trained on one sample, or changes buffers when it is trained.
    """

    def __init__(
        self,
        trainer: SplitTrainer,
        *,
        connections: Mapping[int, Connection],
        run: int,
        timeout: float = 600.0,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(trainer)
        self.run, self.timeout, self.stopping = run, timeout, stopping
        self.connections = dict(connections)
        self._late_answers = dict.fromkeys(connections, 0)  # that are still to come
        self._labels_seen = np.zeros_like(trainer.histograms)
        self._in_epoch = self._histograms = False
        self._answers: dict[int, tuple[Tensor, Tensor, bytes]] = {}
        trainer.check_bottom(pieces=True)
        bottom, task = trainer.cut.bottom, trainer.task
        changed = trainer.behaviour.changed & {name for name, _ in bottom.named_buffers(remove_duplicate=False)}
        if changed:
            raise UsageError(
                f"the bottom changes buffer {min(changed)!r} when it is trained: each client's would be another, and "
                "the server's none of them; cut the model before it"
            )
        with evaluating(bottom):
            inputs, _ = task.dataset.train.batch(np.zeros(1, np.int64), trainer.dtype, trainer.device)
            self._shape = bottom(inputs).shape[1:]
        widest = max(self._shape.numel() + 1, task.dataset.classes)
        numbers = sum(map(len, trainer.bottoms.vectors(0)))
        largest = max(trainer.settings.batch_size * widest, 4 * numbers)  # an optimiser has up to three times as many
        for connection in self.connections.values():
            connection.limit = 8 * largest + 4096

    def open(self, *, histograms: bool) -> None:
        """Every client receives its bottom, and reports its samples, perhaps class by class."""
        self._histograms = histograms
        self._open()

    def _open(self) -> None:
        """Bring all clients to where the trainer is."""
        trainer, bottoms = self.trainer, self.trainer.bottoms
        epochs, used = trainer.epoch + self._in_epoch, trainer.samples - trainer.left
        for client in list(self.connections):
            state = int(used[client]), float(trainer.measured[client])
            opening = RunOpening(self.run, trainer.step, epochs, *state, self._histograms)
            self._send(client, SplitKind.OPEN, opening.pack(bottoms.vectors(client), bottoms.momentum(client)))
        for client in list(self.connections):
            sizes = np.array([trainer.samples[client], *(trainer.histograms[client] if self._histograms else ())])
            with self._blaming(client):
                payload = self._answer(client, SplitKind.SIZES)
                if payload is not None and (unpack_numbers(payload, len(sizes)) != sizes).any():
                    raise PayloadError("payload: other numbers of samples than this experiment gives it")

    def begin_epoch(self) -> None:
        """No label has been seen."""
        self._labels_seen[:] = 0
        self._in_epoch = False

    def delays(self, *, measured: bool) -> Floats:
        """Ask every client; NaN of who is lost, too."""
        delays = np.full(self.trainer.clients, np.nan)
        question = SplitKind.ASK_MEASURED if measured else SplitKind.ASK_TYPICAL
        for client, payload in self._ask_all(question, SplitKind.DELAY):
            with self._blaming(client):
                delays[client] = unpack_seconds(payload)
        return delays

    def schedule(self, schedule: Schedule) -> None:
        """Send every client its column."""
        columns = schedule.tocsc()
        for client in list(self.connections):
            entries = slice(*columns.indptr[client : client + 2])
            steps, sizes = columns.indices[entries], columns.data[entries]
            column = pack_column(steps, sizes, schedule.shape[0], rest=self._in_epoch)
            self._send(client, SplitKind.SCHEDULE, column)
        self._in_epoch = True

    def labels_seen(self) -> Ints:
        """Return the labels that have arrived."""
        return self._labels_seen

    # One step

    def ask(self, row: BatchComposition, seconds: Floats) -> tuple[Booleans, Floats]:
        """Whose activations do not come by the deadline, on the real clock, or cannot be used, is left out."""
        begun = time.monotonic()
        for client in row.clients.tolist():
            self._send(client, SplitKind.START, pack_step(self.trainer.step))
        self._answers = {}
        deadline = self.trainer.settings.deadline
        for client, size in zip(row.clients.tolist(), row.sizes.tolist(), strict=True):
            bounded = deadline is not None and bool(self._answers)
            end = begun + (deadline if deadline is not None and bounded else self.timeout)
            payload = self._answer(client, SplitKind.ACTIVATIONS, end, late=bounded)
            if payload is not None:
                self._accept(client, size, payload)
        in_time = np.isin(row.clients, list(self._answers))
        return in_time, seconds[in_time]

    def _accept(self, client: int, size: int, payload: bytes) -> None:
        """Check a client's activations, and keep them for the step."""
        trainer = self.trainer
        like = torch.empty(size, *self._shape, dtype=trainer.dtype)
        labelled = trainer.labels == "server"
        with self._blaming(client):
            numbers, labels = trainer.up.unpack(payload, like, size if labelled else 0)
            indices = trainer.next_indices(client, size)
            if labelled:
                seen = self._labels_seen[client]
                seen += np.bincount(labels.numpy(), minlength=len(seen))
                if (seen > trainer.histograms[client]).any():
                    raise PayloadError("payload: labels of more samples of a class than it has")
            else:  # not for training: the history has the mix and the loss of a batch, which the experiment knows
                labels = trainer.task.dataset.train.labels[torch.from_numpy(indices)]
            self._answers[client] = numbers.to(trainer.device), labels.to(trainer.device), payload

    def activations(self, row: BatchComposition) -> tuple[CutTensors, Delivery]:
        """Return what has arrived."""
        numbers, labels, payloads = zip(*(self._answers[client] for client in row.clients.tolist()), strict=True)
        delivery = Delivery.of(payloads, row.total if self.trainer.labels == "server" else 0)
        return CutTensors(row, [], torch.cat(numbers).requires_grad_(), torch.cat(labels)), delivery

    def output_gradient(self, cut_tensors: CutTensors, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Send the outputs down, and let each client bring the gradient of its loss."""
        row, gradient = cut_tensors.row, torch.zeros_like(outputs)
        clients, sizes = row.clients.tolist(), row.sizes.tolist()
        for client, piece in zip(clients, outputs.split_with_sizes(sizes), strict=True):
            self._send(client, SplitKind.OUTPUTS, OUTPUTS.pack(piece))
        answered = torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)
        masks = answered.split_with_sizes(sizes)
        for client, piece, mask in zip(clients, gradient.split_with_sizes(sizes), masks, strict=True):
            with self._blaming(client):
                payload = self._answer(client, SplitKind.OUTPUT_DELTA)
                if payload is not None:
                    piece.copy_(GRADIENT.unpack(payload, piece.cpu())[0].to(piece) * len(piece))
                    mask.fill_(True)
        return gradient / answered.sum(), answered

    def deltas(self, cut_tensors: CutTensors) -> Delivery:
        """Send the activations' gradients down."""
        trainer, row, delta = self.trainer, cut_tensors.row, cut_tensors.arrived.grad
        assert delta is not None  # the top's backward pass has been here
        payloads = []
        for client, piece in zip(row.clients.tolist(), delta.split_with_sizes(row.sizes.tolist()), strict=True):
            payloads.append(trainer.down.pack(piece, None, trainer.message_rng(trainer.down, client)))
            self._send(client, SplitKind.DELTA, payloads[-1])
        return Delivery.of(payloads)

    def sum_gradients(self, row: BatchComposition) -> None:
        """Sum the bottoms' gradients as they come."""
        grads = self.trainer.bottoms.grads
        total = torch.zeros_like(grads[0])
        for client in row.clients.tolist():
            with self._blaming(client):
                payload = self._answer(client, SplitKind.GRADIENT)
                if payload is not None:
                    total += GRADIENT.unpack(payload, total.cpu())[0].to(total)
        grads[:] = total

    def send_sum(self) -> None:
        """Send the sum to all who are connected."""
        self._send_all(SplitKind.SUM, GRADIENT.pack(self.trainer.bottoms.grads[0]))

    def step(self, factor: float, clients: Iterable[int] | None) -> None:
        """Follow the clients' step, unless they train apart, and have taken it when the gradients came."""
        self.trainer.bottoms.step(factor, [] if self.trainer.apart else clients)

    def fetch_bottoms(self) -> None:
        """Ask all clients for their bottoms."""
        for client, payload in self._ask_all(SplitKind.ASK_BOTTOM, SplitKind.BOTTOM):
            rows = self.trainer.bottoms.vectors(client)
            with self._blaming(client):
                whole = torch.cat(rows)
                arrived = BOTTOM.unpack(payload, whole.cpu())[0].to(whole)
                for row, piece in zip(rows, arrived.split_with_sizes([*map(len, rows)]), strict=True):
                    row.copy_(piece)

    def send_bottom(self) -> None:
        """Send the mean to all who are connected."""
        self._send_all(SplitKind.BOTTOM, BOTTOM.pack(torch.cat(self.trainer.bottoms.vectors(0))))

    def fetch_state(self) -> None:
        """Ask clients that train apart for their bottoms and the states of their optimisers."""
        bottoms = self.trainer.bottoms
        for client, payload in self._ask_all(SplitKind.ASK_STATE, SplitKind.BOTTOM) if self.trainer.apart else ():
            with self._blaming(client):
                rows, momentum = unpack_state(unpack_parcel(payload, len(payload)), bottoms.vectors(client))
                bottoms.restore(client, rows[0], rows[1], momentum)

    def restore(self) -> None:
        """Bring the clients to the checkpoint."""
        self._in_epoch = bool(self.trainer.left.any())  # the rest of an epoch follows; else the next one begins
        self._labels_seen = self.trainer.labels_used()
        self._open()

    def _ask_all(self, question: SplitKind, answer: SplitKind) -> Iterator[tuple[int, bytes]]:
        """Ask all clients; yield the answers."""
        for client in list(self.connections):
            self._send(client, question)
        for client in list(self.connections):
            payload = self._answer(client, answer)
            if payload is not None:
                yield client, payload

    # Clients that fail

    def _send_all(self, kind: SplitKind, payload: bytes) -> None:
        for client in list(self.connections):
            self._send(client, kind, payload)

    def _send(self, client: int, kind: SplitKind, payload: bytes = b"") -> None:
        if client in self.connections:
            try:
                self.connections[client].send(kind, payload)
            except ConnectionLost as error:
                self._lose(client, str(error))

    def _answer(self, client: int, kind: SplitKind, end: float | None = None, *, late: bool = False) -> bytes | None:
        """Return what a client answers before `end`, or within the timeout; None if it is late, or lost."""
        end = time.monotonic() + self.timeout if end is None else end
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
                    self._late_answers[client] += 1
                else:
                    self._lose(client, f"it has not answered for {self.timeout:g} s")
                return None
            if frame.kind is SplitKind.ACTIVATIONS and self._late_answers[client]:
                self._late_answers[client] -= 1
            elif frame.kind is kind:
                return frame.payload
            else:
                sent = "nothing" if frame.kind is None else frame.kind.name
                self._lose(client, frame.reason or f"it sent {sent}, expected {kind.name}")
        return None

    @contextmanager
    def _blaming(self, client: int) -> Iterator[None]:
        """A message that cannot be used costs its sender, and nobody else."""
        try:
            yield
        except PayloadError as error:
            self._lose(client, str(error))

    def _lose(self, client: int, reason: str) -> None:
        self.connections.pop(client).close()
        self.trainer.lose(client, reason)
