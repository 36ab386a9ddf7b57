"""Split learning on real machines: the server's site, whose clients are other processes, and the clients' side of it.

The server composes, asks and sums as in one process; what is written here is only how its requests reach the clients
and what becomes of a client that is late, gone, or sends what cannot be used: it is left out, and its samples with it
if it does not come back. Every client has a connection of its own, so a message needs no address.
"""

from __future__ import annotations

import os
import queue
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsync.engines.links import TOKEN_BYTES, Door, Frame, Link, LinkLost, Op, knock
from sparsync.errors import PayloadError, SparsyncError, UsageError
from sparsync.randomness import generator
from sparsync.split import Row, Site
from sparsync.split.channel import Channel, Delivery
from sparsync.split.schedule import Ints, Schedule
from sparsync.split.site import Crossing, Labels, Unanswered
from sparsync.wire import Chain, Dense, Kind, Section, kinds_of, pack, pack_parcel, unpack_parcel, values_of
from sparsync.wire.parcel import RAW, table_bytes
from sparsync.workers import Group
from sparsync.workers.group import share

_START = struct.Struct("<Q")  # a step
_OPENING = struct.Struct("<4Q?")  # which run, its step, epochs begun, the client's samples used; histograms?
_DENSE, _PAIRS = 0, 1  # how a client's column of the schedule is written
_AGAIN = 2  # added: it is for the rest of an epoch that has begun
_SUM = Channel("gradient", None, 1)
_EXACT = {torch.float32: Dense(), torch.float64: Dense("float64")}


def meet(group: Group, clients: int, patience: float = 600.0) -> tuple[dict[int, Link], queue.Queue[Frame]]:
    """Connect the clients, which ranks 1 and up share, with rank 0, their server.

    Returns
    -------
    links : dict of int to Link
        On rank 0 everybody's, elsewhere those of the clients here.
    inbox : Queue
        Where the latter put what arrives.
    """
    inbox: queue.Queue[Frame] = queue.Queue()
    said = torch.zeros(TOKEN_BYTES + 1, dtype=torch.int64)
    if group.rank == 0:
        door = Door()
        said[:] = torch.tensor([*door.token, door.port])
        group.broadcast(said)
        return door.admit(range(clients), patience), inbox
    *token, port = group.broadcast(said).tolist()
    host = os.environ.get("MASTER_ADDR", "localhost")
    here = share(clients, group.size - 1, group.rank - 1)
    return {client: knock(host, port, bytes(token), client, inbox, patience) for client in here}, inbox


class RemoteSite(Site):
    """The server of clients that are connected to it.

    Parameters
    ----------
    links : mapping of int to Link
        Every client's connection.
    run : int
        Number of the run among those that the clients know.
    patience : float
        Seconds after which a client that says nothing is given up.
    **options
        As of `Site`.
    """

    def __init__(
        self, *given: Any, links: Mapping[int, Link], run: int, patience: float = 600.0, **options: Any
    ) -> None:
        super().__init__(*given, **options)
        self.links, self.run, self.patience = dict(links), run, patience
        self.deadline = None  # of virtual time; the real one is looked after here
        self._owed = dict.fromkeys(links, 0)  # answers that will come too late
        self._seen = np.zeros_like(self.histograms)
        self._again = self._histograms = False
        self._answers: dict[int, tuple[Tensor, Tensor, bytes]] = {}
        with torch.no_grad():
            inputs, _ = self.task.dataset.train.batch(np.zeros(1, np.int64), self.dtype, self.device)
            self._shape = self.cut.bottom.eval()(inputs).shape[1:]
        largest = max(self.settings.batch_size * (self._shape.numel() + 1), self.bottoms.numel)
        for link in self.links.values():
            link.limit = 8 * largest + 4096

    # A run

    def configure(self, uplink: Chain | None, downlink: Chain | None, labels: Labels) -> None:
        if labels == "clients":
            raise UsageError("labels=clients: between processes labels travel to the server; compare it in one process")
        super().configure(uplink, downlink, labels)

    def open(self, *, histograms: bool = False) -> None:
        """Every client receives its bottom, and says how much data it has, perhaps of which classes."""
        super().open(histograms=histograms)
        self._histograms = histograms
        self._open()

    def _open(self) -> None:
        """Bring all clients to where this site is."""
        arena, momentum = self.bottoms.arena, self.bottoms.momentum(0)
        tensors = [arena.params[0], arena.buffers[0], *momentum.values()]
        sections = [Section("model", _EXACT[tensor.dtype].encode_body(tensor)) for tensor in tensors]
        for client in list(self.links):
            used = int((self.samples - self.left)[client])
            opening = _OPENING.pack(self.run, self.step, self.epoch + self._again, used, self._histograms)
            control = Section("control", opening + ",".join(momentum).encode())
            self._tell(client, Op.OPEN, pack_parcel([*sections, control]))
        for client in list(self.links):
            payload = self._answer(client, Op.SIZES, time.monotonic() + self.patience)
            if payload is not None:
                self._meet(client, payload)

    def _meet(self, client: int, payload: bytes) -> None:
        """What a client says that it has must be what it was given."""
        own = [self.samples[client], *(self.histograms[client] if self._histograms else ())]
        try:
            body = unpack_parcel(payload, table_bytes(1) + 8 * len(own))[0].body
            if bytes(body) != np.array(own, np.int64).tobytes():
                raise PayloadError("payload: other numbers of samples than this experiment gives it")
        except PayloadError as error:
            self._lose(client, str(error))

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.left[list(self.lost)] = 0
        self._seen[:] = 0
        self._again = False

    def announce(self, schedule: Schedule, *, delays: bool = False) -> Schedule:
        """Send every client its column."""
        super().announce(schedule, delays=delays)
        self._plan(schedule)
        return schedule

    def resume(self, schedule: Schedule) -> None:
        """Send every client its column of what is left of an epoch, which it has forgotten."""
        self._plan(schedule)

    def _plan(self, schedule: Schedule) -> None:
        columns = schedule.tocsc()
        for client in list(self.links):
            own = slice(*columns.indptr[client : client + 2])
            steps, sizes = columns.indices[own], columns.data[own]
            if schedule.shape[0] <= 2 * len(steps):
                column, how = np.zeros(schedule.shape[0], np.int32), _DENSE
                column[steps] = sizes
            else:
                column, how = np.stack([steps, sizes], axis=1).astype(np.int32).ravel(), _PAIRS
            section = Section("control", column.tobytes(), how + _AGAIN * self._again)
            self._tell(client, Op.SCHEDULE, pack_parcel([section]))
        self._again = True

    def histograms_left(self) -> Ints:
        """Of each class, what each client holds less the labels that have arrived."""
        return self.histograms - self._seen

    # One step

    def ask(self, row: Row) -> Row:
        """Ask clients for samples; return the row of those whose activations have come in time and can be used."""
        row = row.only(np.isin(row.clients, list(self.links)))
        if not len(row.clients):
            raise self._unanswered()
        row = super().ask(row)
        begun = time.monotonic()
        for client in row.clients.tolist():
            self._tell(client, Op.START, pack(RAW, _START.pack(self.step)))
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
        if self.links:
            return Unanswered("none of the clients that were asked has answered")
        client, why = list(self.lost.items())[-1]
        return SparsyncError(f"all clients are lost, the last was {client}: {why}; start them again, and resume")

    def _accept(self, client: int, size: int, payload: bytes) -> None:
        like = torch.empty(size, *self._shape, dtype=self.dtype)
        try:
            numbers, labels = self.up.unpack(payload, like, size)
            if int(labels.max()) >= self.task.dataset.classes:
                raise PayloadError(f"payload: label {int(labels.max())} of {self.task.dataset.classes} classes")
        except PayloadError as error:
            self._lose(client, str(error))
            return
        self._answers[client] = numbers.to(self.device), labels.to(self.device), payload
        self._seen[client] += np.bincount(labels.numpy(), minlength=self._seen.shape[1])
        self.left[client] -= size

    def forward(self, row: Row) -> Crossing:
        """Take what has arrived."""
        numbers, labels, payloads = zip(*(self._answers[client] for client in row.clients.tolist()), strict=True)
        self.times.up += self._bill(self.up, _delivery(payloads, 8 * row.total), row)
        self.batch_classes = np.bincount(torch.cat(labels).cpu().numpy(), minlength=self._seen.shape[1])
        return Crossing(row, [], torch.cat(numbers).requires_grad_(), torch.cat(labels))

    def backward(self, crossing: Crossing) -> None:
        """Send the activations' gradients down."""
        row, delta = crossing.row, crossing.arrived.grad
        assert delta is not None
        payloads = []
        for client, piece in zip(row.clients.tolist(), delta.split_with_sizes(row.sizes.tolist()), strict=True):
            rng = generator(self.seed, f"split-{self.down.kind}", client, self.step)
            payloads.append(self.down.pack(piece, None, rng))
            self._tell(client, Op.DELTA, payloads[-1])
        self.times.back += self._bill(self.down, _delivery(payloads), row) + self.backward_seconds(row)

    def share_gradient(self, row: Row) -> None:
        """Sum the bottoms' gradients as they come, by increasing client, and send the sum to all that are there."""
        total = self.bottoms.grads[0].zero_()
        for client in row.clients.tolist():
            payload = self._answer(client, Op.GRADIENT, time.monotonic() + self.patience)
            if payload is None:
                continue
            try:
                total += _SUM.unpack(payload, total.cpu())[0].to(total)
            except PayloadError as error:
                self._lose(client, str(error))
        super().share_gradient(row)
        answer = _SUM.pack(total)
        for client in list(self.links):
            self._tell(client, Op.SUM, answer)

    # Clients that fail

    def _tell(self, client: int, op: Op, payload: bytes) -> None:
        if client in self.links:
            try:
                self.links[client].send(op, payload)
            except LinkLost as error:
                self._lose(client, str(error))

    def _answer(self, client: int, op: Op, end: float, *, late: bool = False) -> bytes | None:
        """What a client answers until then; None if it is late, or lost."""
        while client in self.links:
            try:
                frame = self.links[client].inbox.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
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

    def _lose(self, client: int, why: str) -> None:
        self.links.pop(client).close()
        self.lost[client] = why
        self.left[client] = 0
        self.everyone = self.everyone[self.everyone != client]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, and bring the clients there."""
        super().load_state_dict(state)
        self.left[list(self.lost)] = 0
        self._again = bool(self.left.any())  # what is left of an epoch follows; else the next one begins
        self._open()


class RemoteClients:
    """The clients of this process, at the server's service.

    Parameters
    ----------
    links : mapping of int to Link
        Their connections.
    inbox : Queue
        Where all of those put what arrives.
    begin : callable
        From the number of a run to a `Site` with as many bottoms as there are clients here.
    """

    def __init__(self, links: Mapping[int, Link], inbox: queue.Queue[Frame], begin: Callable[[int], Site]) -> None:
        self.links, self.inbox, self.begin = dict(links), inbox, begin
        self.run: int | None = None
        self.site: Site | None = None
        self.clients: dict[int, _RemoteClient] = {}

    def serve(self) -> None:
        """Do as the server says, until it has no further use for any of them.

        Raises
        ------
        SparsyncError
            In the end, if it has gone, or has given one of them up.
        """
        served, dropped = set(self.links), {}
        try:
            while served:
                client, op, payload, why = self.inbox.get()
                if op is Op.CLOSE:
                    served.discard(client)
                elif op is Op.OPEN:
                    self._open(client, payload)
                elif op is not None and client in self.clients:
                    answer = self.clients[client].handle(op, payload)
                    if answer is not None:
                        self.links[client].send(*answer)
                elif client in served:  # it has been given up, or the server is gone
                    served.discard(client)
                    dropped[client] = why or "it sent nonsense"
        finally:
            for link in self.links.values():
                link.close()
        for client, reason in dropped.items():
            raise SparsyncError(f"client {client}: lost the server ({reason}); its own message says why")

    def _open(self, client: int, payload: bytes) -> None:
        *model, control = unpack_parcel(payload, len(payload))
        run, step, begun, used, histograms = _OPENING.unpack(control.body[: _OPENING.size])
        if run != self.run or self.site is None:
            self.run, self.site, self.clients = run, self.begin(run), {}
            self.site.module.train()
        site, row = self.site, sorted(self.links).index(client)
        names = [name for name in bytes(control.body[_OPENING.size :]).decode().split(",") if name]
        arena, exact = site.bottoms.arena, _EXACT[site.dtype]
        sizes = [arena.params.shape[1], arena.buffers.shape[1]]
        vectors = [exact.decode_body(part.body, len(part.body) // exact.dtype.itemsize) for part in model]
        if [len(vector) for vector in vectors[:2]] != sizes or len(vectors) != 2 + len(names):
            raise SparsyncError(f"client {client}: the server's model is another one; start all with one experiment")
        momentum = {
            name: one.squeeze() if one.numel() == 1 else one for name, one in zip(names, vectors[2:], strict=True)
        }
        site.bottoms.restore(row, vectors[0], vectors[1], momentum)
        self.clients[client] = _RemoteClient(site, client, row, step, begun - 1, used)
        own = [site.samples[client], *(site.histograms[client] if histograms else ())]
        self.links[client].send(Op.SIZES, pack_parcel([Section("control", np.array(own, np.int64).tobytes())]))


class _RemoteClient:
    """One client in a run."""

    def __init__(self, site: Site, number: int, row: int, step: int, epoch: int, used: int) -> None:
        self.site, self.number, self.row = site, number, row
        self.step, self.epoch, self.used = step, epoch, used
        self.order: Ints | None = None  # of its samples, in this epoch
        self.asked: dict[int, int] = {}  # by step: samples
        self.output: Tensor | None = None

    def handle(self, op: Op, payload: bytes) -> tuple[Op, bytes] | None:
        """Do what a message asks for; return the answer, if there is one."""
        self.site.step = self.step
        if op is Op.SCHEDULE:
            self._plan(payload)
        elif op is Op.START:
            return Op.ACTIVATIONS, self._forward()
        elif op is Op.DELTA:
            return Op.GRADIENT, self._backward(payload)
        elif op is Op.SUM:
            self._update(payload)
        return None

    def _plan(self, payload: bytes) -> None:
        (section,) = unpack_parcel(payload, len(payload))
        column = np.frombuffer(section.body, np.int32)
        if not section.codec & _AGAIN:
            self.epoch, self.used, self.order = self.epoch + 1, 0, None
        pairs = column.reshape(-1, 2) if section.codec & _PAIRS else np.stack([np.arange(len(column)), column], axis=1)
        self.asked = {self.step + int(step): int(size) for step, size in pairs}

    def _forward(self) -> bytes:
        site = self.site
        if self.order is None:
            rng = generator(site.seed, "split-batches", self.number, self.epoch)
            self.order = rng.permutation(site.parts[self.number])
        indices = self.order[self.used : self.used + self.asked[self.step]]
        inputs, labels = site.task.dataset.train.batch(indices, site.dtype, site.device)
        self.output = site.bottom(self.number, self.row, inputs)
        message = generator(site.seed, f"split-{site.up.kind}", self.number, self.step)
        return site.up.pack(self.output.detach(), labels, message)

    def _backward(self, payload: bytes) -> bytes:
        site, output = self.site, self.output
        assert output is not None  # the server answers activations
        grad = site.bottoms.grads[self.row].zero_()
        torch.autograd.backward([output], [site.down.unpack(payload, output.detach())[0]])
        self.used += len(output)
        self.output = None
        return _SUM.pack(grad)

    def _update(self, payload: bytes) -> None:
        bottoms = self.site.bottoms
        bottoms.grads[self.row].copy_(_SUM.unpack(payload, bottoms.grads[self.row])[0])
        bottoms.step(self.site.factor(self.step), [self.row])
        self.step += 1


def _delivery(payloads: Sequence[bytes], labels: int = 0) -> Delivery:
    """What messages have cost that were really sent: `labels` bytes of values are of labels."""
    kinds = [kinds_of(payload) for payload in payloads]
    wire: dict[Kind, Ints] = {kind: np.array([own.get(kind, 0) for own in kinds], np.int64) for kind in kinds[0]}
    values: dict[Kind, int] = {}
    for payload in payloads:
        for kind, nbytes in values_of(payload).items():
            values[kind] = values.get(kind, 0) + nbytes
    if labels:
        values["label"] = labels
    return Delivery(torch.empty(0), wire, values)
