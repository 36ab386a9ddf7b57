"""HADFL on real machines, a device: it trains without pause, and averages with others when its turn comes.

The ring is repaired in the open: who does not hear from the previous member asks whether it lives, and tells the
coordinator who does not; that forms the ring anew from the survivors, who begin again with the models that they had
before. Nobody adopts a mean before all of them hold it. Without a coordinator a device trains on alone.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sparsync.engines.devices.connections import COORDINATOR, DeviceConnections
from sparsync.engines.devices.messages import (
    LAST_STEP,
    LONGEST_CONTROL,
    LONGEST_STEP,
    SHORTEST_STEP,
    BackupRequest,
    BroadcastDone,
    BroadcastMean,
    ControlMessage,
    CycleReport,
    CycleStart,
    DeviceAddress,
    DeviceFailed,
    DeviceKind,
    DeviceReady,
    DevicesLost,
    EndTraining,
    JoinReply,
    JoinRequest,
    ModelChunk,
    RingCommit,
    RingDone,
    RingStart,
    SkipRing,
    read_chunk,
    read_control,
    tag_of,
)
from sparsync.errors import DivergedError, PayloadError, SparsyncError
from sparsync.hetero import RingPlan
from sparsync.transport import Frame, ProtocolFault, Signal
from sparsync.wire import Dense
from sparsync.workers import Fleet, LocalTraining, Model

RETRIES = 3
"""How often a member that answers, but sends nothing, is waited for again."""

_REMEMBERED = 50  # steps, of which the median is the time of one


def time_out(wait: float, members: int) -> float:
    """Seconds that a ring may take. The coordinator waits for it so long, and members twice as long for its verdict."""
    return wait * (RETRIES + 2) * max(2, members)


class Device:
    """One device: a fleet's only worker in this process, its training, and its connections.

    Parameters
    ----------
    fleet, training
        One worker's.
    mixing : float
        Weight of a mean that others have formed.
    connections : DeviceConnections
        Its connections.
    fingerprint : str
        Of the experiment, which must be the coordinator's.
    slowdown : float
        How many times longer than it really does a step is to take.
    patience : float
        Seconds to train on without a coordinator, or to wait for one at first.
    """

    def __init__(
        self,
        fleet: Fleet,
        training: LocalTraining,
        connections: DeviceConnections,
        fingerprint: str,
        *,
        mixing: float = 0.5,
        slowdown: float = 1.0,
        patience: float = 600.0,
    ) -> None:
        self.fleet, self.training, self.connections, self.fingerprint = fleet, training, connections, fingerprint
        self.mixing, self.slowdown, self.patience = mixing, slowdown, patience
        (self.number,) = fleet.rows
        self.dense = Dense.of(fleet.params.dtype)
        self.numel = fleet.model_bytes // fleet.params.itemsize
        self.version = 0
        self.left = 0  # steps of warming up
        self.plan: CycleStart | None = None
        self.trained = 0  # steps in this cycle
        self.durations: deque[float] = deque(maxlen=_REMEMBERED)
        self.computing: deque[float] = deque(maxlen=_REMEMBERED)  # the same without being slowed down
        self.order: RingStart | None = None  # the ring that it is in
        self.committed: tuple[int, int] | None = None
        self.cycle = 0  # the last that the coordinator has spoken of
        self.merged = 0  # cycle of the last mean that it took in
        self.mean: tuple[RingStart, Tensor] | None = None  # of the last ring that it was in
        self.pieces: dict[int, tuple[tuple[int, int], dict[int, bytes]]] = {}  # from whom, of which ring, by its step
        self.answered: set[int] = set()  # who lives
        self.welcomed = self.over = False
        self.alone_since: float | None = time.monotonic()
        self.why: str | None = None

    def run(self) -> None:
        """Take part until the coordinator says that training is over.

        Raises
        ------
        SparsyncError
            If there is no coordinator for too long, or it has no use for this device.
        DivergedError
            If its loss is not finite.
        """
        self.connections.reconnect()
        try:
            while not self.over:
                self._next()
        finally:
            self.connections.close()
        if self.why:
            raise SparsyncError(f"device {self.number}: {self.why}")

    def _next(self) -> None:
        """Do what comes next: a message, a ring, a step, or nothing."""
        if self.alone_since is not None and time.monotonic() - self.alone_since > self.patience:
            raise SparsyncError(
                f"device {self.number}: no coordinator for {self.patience:g} s; check its address, the token, and that "
                "no other device has this number"
            )
        frame = self.connections.receive(0.0 if self._trains else time.monotonic() + 0.2)
        if frame is not None:
            self._handle(frame)
        elif self.order is not None:
            self._synchronise(self.order)
        elif self._trains:
            self._step()

    @property
    def _trains(self) -> bool:
        """Whether it may take a step now."""
        if not self.welcomed or (self.plan is None and not self.left):
            return False
        return self.plan is None or self.left > 0 or not self.plan.capped or self.trained < self.plan.steps

    def _step(self) -> None:
        begun = time.perf_counter()
        self.training.train(1)
        if self.fleet.failures:
            step, _ = self.fleet.failures[0]
            why = f"its loss is not finite at step {step}; lower the learning rate or clip gradients"
            self._inform(DeviceFailed(why=why))
            raise DivergedError(f"device {self.number}: {why}")
        if self.slowdown > 1:  # by what steps usually take: one that was held up is not to be so many times over
            self.computing.append(time.perf_counter() - begun)
            time.sleep((self.slowdown - 1) * median(self.computing))
        self.durations.append(time.perf_counter() - begun)
        self.version += 1
        self.trained += 1
        if self.left:
            self.left -= 1
            if not self.left:
                self.fleet.rate = 1.0
                self._inform(DeviceReady(version=self.version, step_seconds=self._step_seconds))

    @property
    def _step_seconds(self) -> float:
        return min(max(median(self.durations), SHORTEST_STEP), LONGEST_STEP) if self.durations else SHORTEST_STEP

    # Messages

    def _handle(self, frame: Frame) -> None:
        if frame.sender == COORDINATOR:
            self._handle_coordinator(frame)
            return
        try:
            match frame.kind:
                case Signal.PONG:
                    self.answered.add(frame.sender)
                case DeviceKind.CHUNK:
                    self._keep(frame)
                case DeviceKind.MODEL:
                    self._merge(frame)
                case DeviceKind.CONTROL:  # passed on, in case that the coordinator could not tell everyone
                    message = read_control(frame.payload, "coordinator")
                    if not isinstance(message, RingCommit):
                        raise PayloadError(f"payload: {message.kind!r} is nothing that devices say to one another")
                    self._do(message)
                case None if isinstance(frame.reason, ProtocolFault):
                    raise PayloadError(frame.reason)
                case None | Signal.PING:  # that it has closed the connection, who needs it will notice
                    pass
                case _:
                    raise PayloadError(f"payload: {frame.kind.name} is nothing that devices say to one another")
        except PayloadError as error:
            self._blame(frame.sender, str(error))

    def _handle_coordinator(self, frame: Frame) -> None:
        if frame.kind not in (None, Signal.HELLO):
            self.alone_since = None
        match frame.kind:
            case Signal.HELLO:  # of its own connections: the coordinator is reached, perhaps again
                join = JoinRequest(
                    port=self.connections.port, fingerprint=self.fingerprint, version=self.version, merged=self.merged
                )
                self._inform(join)
            case None:
                if not self.over:
                    if self.alone_since is None:
                        self.alone_since = time.monotonic()
                    self.connections.reconnect()
            case DeviceKind.MODEL:
                self._adopt(read_chunk(frame.payload, self.dense, self.numel))
                self.merged, self.welcomed = tag_of(frame.payload)[0], True
            case DeviceKind.CONTROL:
                self._do(read_control(frame.payload, "coordinator"))
            case _:
                pass

    def _do(self, message: Any) -> None:
        match message:
            case JoinReply():
                self.order, self.cycle = None, message.cycle
                self.welcomed = not message.model
                if message.model:  # else it has trained on meanwhile
                    self.left, self.fleet.rate, self.version = message.warmup, message.rate, message.version
                    self.durations.clear()
            case CycleStart():
                self.plan, self.trained = message, 0
            case RingStart():
                if self.order is None or message.tag > self.order.tag:
                    if self.order is None or message.cycle > self.order.cycle:
                        self._report(message.cycle)
                    self.order = message
            case SkipRing():
                if self.order is None:
                    self._report(message.cycle)
                self.order = None
            case RingCommit():
                self.committed = message.cycle, message.attempt
            case BroadcastMean():
                self._broadcast(message.cycle)
            case BackupRequest():
                if self.mean is not None:
                    order, mean = self.mean
                    numbers = ModelChunk((order.cycle, order.attempt, LAST_STEP), mean)
                    self.connections.send_coordinator(DeviceKind.MODEL, numbers.pack(self.dense))
            case EndTraining():
                self._report(self.cycle)
                self.over, self.why = True, message.why

    def _inform(self, message: ControlMessage) -> None:
        self.connections.send_coordinator(DeviceKind.CONTROL, message.pack())

    def _report(self, cycle: int) -> None:
        self.cycle = cycle
        loss, batches = self.training.losses()
        self._inform(
            CycleReport(
                cycle=cycle,
                version=self.version,
                step_seconds=self._step_seconds,
                sent=self.connections.sent,
                received=self.connections.received,
                loss=loss / batches if batches else None,
            )
        )

    def _wait(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Handle what arrives until a condition holds. Return whether it does, or the time is over."""
        until = time.monotonic() + seconds
        while not ready():
            frame = self.connections.receive(until)
            if frame is None:
                return False
            self._handle(frame)
        return True

    # Rings

    def _synchronise(self, order: RingStart) -> None:
        """Average with the ring's other members; whatever goes wrong, its own model is as it was, or the mean."""
        before = self._model()
        attempt: RingStart | None = order
        while attempt is not None and not self.over:
            mean = self._ring(attempt, before)
            if mean is not None and self._agreed(attempt, mean):
                self._adopt(mean)
                self.merged, self.mean = attempt.cycle, (attempt, mean)
                if self.number == attempt.broadcaster:
                    self._broadcast(attempt.cycle)
                break
            attempt = self.order if self.order is not attempt else None
        if self.order is not None and self.order.cycle == order.cycle:
            self.order = None
        self.pieces = {number: own for number, own in self.pieces.items() if own[0][0] > order.cycle}

    def _ring(self, order: RingStart, before: Tensor) -> Tensor | None:
        """The mean of the members' models; None if there is none, or the ring has been formed anew."""
        n, place = len(order.ring), order.place
        own = before.clone() if order.shares is None else before * order.shares[place]
        plan, following = RingPlan(n, self.numel), order.ring[(place + 1) % n]
        pieces = [slice(*bounds) for bounds in itertools.pairwise(plan.bounds)]
        for step in range(plan.steps):
            tag = (order.cycle, order.attempt, step)
            sent = ModelChunk(tag, own[pieces[plan.sends(step, place)]])
            self.connections.send(following, DeviceKind.CHUNK, sent.pack(self.dense))
            piece = own[pieces[plan.receives(step, place)]]
            arrived = self._receive(order, tag, len(piece))
            if arrived is None:
                return None
            if plan.adds(step):
                piece += arrived.to(piece)
            else:
                piece.copy_(arrived)
        return own if order.shares is not None else own.div_(n)

    def _receive(self, order: RingStart, tag: tuple[int, int, int], numel: int) -> Tensor | None:
        """What the previous member sends; None if the ring ends here."""
        previous, step = order.ring[order.place - 1], tag[-1]
        later = step > 0  # then the previous member may wait itself, for the one that should be blamed
        for _ in range(1 + RETRIES + later):
            self._wait(lambda: step in self._pieces(previous, order) or self._left(order), order.wait)
            payload = self._pieces(previous, order).pop(step, None)
            if payload is not None:
                try:
                    return read_chunk(payload, self.dense, numel)
                except PayloadError as error:
                    self._blame(previous.number, str(error), order)
                    break
            if self._left(order):
                return None
            if not self._lives(previous, order.wait):
                self._inform(DevicesLost(cycle=order.cycle, attempt=order.attempt, devices=self._dead(order)))
                break
        else:
            self._inform(DevicesLost(cycle=order.cycle, attempt=order.attempt, devices=[previous.number]))
        self._wait(lambda: self._left(order), 2 * time_out(order.wait, len(order.ring)))
        return None

    def _pieces(self, peer: DeviceAddress, order: RingStart) -> dict[int, bytes]:
        """What another member has sent for a ring, by step."""
        ring, pieces = self.pieces.get(peer.number, (order.tag, {}))
        return pieces if ring == order.tag else {}

    def _left(self, order: RingStart) -> bool:
        """Whether a ring is no longer the one that counts."""
        return self.over or self.order is not order or self.alone_since is not None

    def _lives(self, peer: DeviceAddress, seconds: float) -> bool:
        """Whether another device answers."""
        self.answered.discard(peer.number)
        return self.connections.send(peer, Signal.PING) and self._wait(lambda: peer.number in self.answered, seconds)

    def _dead(self, order: RingStart) -> list[int]:
        """Who does not answer, going back from this member, the previous one first."""
        dead = [order.ring[order.place - 1].number]
        for back in range(2, len(order.ring)):
            peer = order.ring[order.place - back]
            if self._lives(peer, order.wait):
                break
            dead.append(peer.number)
        return dead

    def _agreed(self, order: RingStart, mean: Tensor) -> bool:
        """Whether all members hold the mean, as the coordinator says, or somebody whom it could tell."""
        digest = hashlib.blake2b(self.dense.encode_body(mean), digest_size=16).hexdigest()
        self._inform(RingDone(cycle=order.cycle, attempt=order.attempt, digest=digest))
        limit = 2 * time_out(order.wait, len(order.ring))
        self._wait(lambda: self.committed == order.tag or self._left(order), limit)
        if self.alone_since is not None:
            self._wait(lambda: self.committed == order.tag, order.wait)
        if self.committed != order.tag:
            return False
        message = RingCommit(cycle=order.cycle, attempt=order.attempt).pack()
        others = order.ring[order.place + 1 :] + order.ring[: order.place]
        any(
            self.connections.send(peer, DeviceKind.CONTROL, message) for peer in others
        )  # to the next who can be reached
        return True

    def _keep(self, frame: Frame) -> None:
        """A piece of a model, perhaps of a ring that has not begun here; of every member those of its latest ring."""
        cycle, attempt, step = tag_of(frame.payload)
        ring, pieces = self.pieces.get(frame.sender, ((0, 0), {}))
        if (cycle, attempt) > ring:
            ring, pieces = (cycle, attempt), {}
        if sum(map(len, pieces.values())) + len(frame.payload) > 2 * self.fleet.model_bytes + LONGEST_CONTROL:
            raise PayloadError("payload: more pieces of models than any ring has")
        if (cycle, attempt) == ring:
            pieces[step] = frame.payload
            self.pieces[frame.sender] = ring, pieces

    # Means

    def _model(self) -> Tensor:
        """A copy of its model, (d + b,), buffers last as far as they are averaged."""
        shared = self.numel - self.fleet.d
        return torch.cat([self.fleet.params[0], self.fleet.arena.buffers[0, :shared]]).cpu()

    def _adopt(self, vector: Tensor, weight: float = 1.0) -> None:
        vector = vector.to(self.fleet.params)
        self.fleet.blend(self.number, Model(vector[: self.fleet.d], vector[self.fleet.d :]), weight)

    def _merge(self, frame: Frame) -> None:
        """Blend in a mean that others have formed, unless it is older than one already merged, or cannot be yet."""
        mean = read_chunk(frame.payload, self.dense, self.numel)
        cycle = tag_of(frame.payload)[0]
        if self.merged < cycle <= self.cycle and self.welcomed:
            self._adopt(mean, self.mixing)
            self.merged = cycle

    def _broadcast(self, cycle: int) -> None:
        """Pass a mean on to those who were not in the ring, without pausing."""
        if self.mean is None or self.mean[0].cycle != cycle:
            return
        order, mean = self.mean
        payload = ModelChunk((cycle, order.attempt, LAST_STEP), mean).pack(self.dense)

        def send() -> None:
            for peer in order.others:
                self.connections.send(peer, DeviceKind.MODEL, payload)
            self._inform(BroadcastDone(cycle=cycle))

        threading.Thread(target=send, daemon=True).start()

    def _blame(self, number: int, why: str, order: RingStart | None = None) -> None:
        """A message that cannot be used costs its sender."""
        cycle, attempt = order.tag if order is not None else (self.merged, 0)
        self._inform(DevicesLost(cycle=cycle, attempt=attempt, devices=[number], why=why[:300]))
