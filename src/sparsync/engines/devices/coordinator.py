"""HADFL on real machines, the coordinator: it plans cycles, says who averages, and keeps a copy of the last mean.

Model traffic is between devices, but for the first model and backups. Who leaves, does not answer, or sends what
cannot be used leaves the available set until it registers again; a ring that has lost members is formed anew from the
others. All that a restarted coordinator needs is in `state_dict`: devices train on, and join again by themselves.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sparsync.engines.devices.device import time_out
from sparsync.engines.devices.membership import Member, Membership
from sparsync.engines.devices.messages import (
    LAST_STEP,
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
    chunk_limit,
    read_chunk,
    read_control,
    tag_of,
)
from sparsync.engines.evaluation import Budget, Progress, evaluate, overall
from sparsync.engines.pace import PaceAction
from sparsync.errors import PayloadError, SparsyncError
from sparsync.peers import HADFL
from sparsync.system import System
from sparsync.task import Task
from sparsync.transport import ConnectionLost, Frame, MessageKind, ProtocolFault, Signal
from sparsync.wire import Dense, Ledger, Traffic
from sparsync.workers import Arena, Learner, SingleProcess

Ints = npt.NDArray[np.int64]

_TURN = 0.2  # seconds that nothing else is looked after, at most
_PING = 1.0  # seconds between two questions whether a device lives
_COMMON = {
    "experiment": "file and flags",
    "data set": "files",
    "model": "code",
}  # pieces of a fingerprint, and remedies
_MEETING = 1.0  # least seconds that a ring's member waits for the previous one


class WallClock:
    """Seconds since training began, also while no coordinator was there."""

    def __init__(self) -> None:
        self.began: float | None = None

    @property
    def now(self) -> float:
        return 0.0 if self.began is None else time.time() - self.began


class Coordinator:
    """One run of HADFL, whose devices are other processes.

    Parameters
    ----------
    config : HADFL
        How.
    membership : Membership
        Where devices call.
    arena : Arena
        Whose row is the first model.
    learner : Learner
        For evaluations.
    samples : sequence of int, (K,)
        Of each device.
    epoch_steps : int
        Local steps of the device with fewest samples in an epoch.
    system : System
        Its links say how long a ring is expected to take.
    fingerprint : str
        Of the experiment, which devices must have, too.
    budget : Budget
        How long; its seconds are real.
    emit : callable
        Gets every line of the history, a dict.
    """

    counts = "syncs"

    def __init__(
        self,
        config: HADFL,
        membership: Membership,
        arena: Arena,
        learner: Learner,
        samples: list[int],
        *,
        epoch_steps: int,
        buffers: bool,
        seed: int,
        system: System,
        fingerprint: str,
        task: Task,
        budget: Budget,
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        self.config, self.membership, self.arena, self.learner, self.task = config, membership, arena, learner, task
        self.samples = np.asarray(samples, np.float64)
        self.system, self.fingerprint, self.budget, self.emit = system, fingerprint, budget, emit
        self.planner = config.planner(membership.devices, config.unit or epoch_steps, seed)
        self.progress, self.ledger, self.clock = Progress(), Ledger(membership.devices), WallClock()
        self.dense = Dense.of(arena.params.dtype)
        shared = arena.buffers.shape[1] if buffers else 0
        self.backup = torch.cat([arena.params[0], arena.buffers[0, :shared]]).cpu()  # at first w_0
        membership.permit(chunk_limit(self.dense, len(self.backup)))
        devices = membership.devices
        self.available = np.zeros(devices, bool)  # the available set
        self.step_seconds = np.ones(devices)
        self.last, self.last_version, self.backed_up = 0, 0, 0  # cycles of the last ring and of the backup; v_bar
        self.syncs = 0
        self.due = 0.0  # when the cycle ends, on the clock
        self.joining: dict[int, float] = {}  # since when
        self.banned: dict[int, str] = {}
        self.lost: dict[int, str] = {}
        self._known = np.zeros(devices, bool)  # before a restart: they go on with their own models
        self._counted = np.zeros((2, devices), np.int64)  # bytes that they have reported
        self._losses: list[float] = []
        self._order = (0, 0)  # the ring that counts: cycle and attempt
        self._ring: list[int] = []  # its members
        self._done: dict[int, str] = {}
        self._versions: set[int] = set()  # who has reported in this cycle
        self._holders: list[int] = []  # of the last mean, the broadcaster first
        self._passing = 0  # the cycle whose mean is on its way to those who were not in the ring
        self._evaluation: threading.Thread | None = None
        self._evaluated: queue.Queue[dict[str, Any]] = queue.Queue()
        self._tested = -1  # cycle of the last mean that was
        self._averaged = 0.0  # when there was a mean at last
        self._asked = 0.0
        self._pinged = self._paced = 0.0
        self._pace: Callable[[int], PaceAction] = lambda _: PaceAction.GO_ON
        self._save: Callable[[], None] = lambda: None

    # A run

    def rehearse(self) -> None:
        """Nothing can be tried without devices."""

    def run(self, pace: Callable[[int], PaceAction], save: Callable[[], None]) -> bool:
        """Train to the end of the budget. Return whether it got there, or was asked to stop."""
        self._pace, self._save = pace, save
        try:
            self._gather()
            while not self.done:
                self._wait(lambda: self.done, self.due - self.clock.now)
                self._synchronise()
                self._save()
            self._finish()
        except _Stopped:
            self._save()
            return False
        return True

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or the target reached and that is enough."""
        return self.budget.spent(self.progress.step, self.clock.now) or self.progress.hit(self.budget)

    def _gather(self) -> None:
        """Wait for the devices, at first or again, and plan the first cycle."""
        if self.clock.began is not None:
            self._wait(lambda: not self._known.any(), self.membership.heartbeat_timeout)
            for number in np.flatnonzero(self._known).tolist():
                self._lose(number, "it has not come back")
            self._need_somebody()
            self._begin_cycle()
            return
        enough = self.membership.quorum
        if not self._wait(lambda: len(self.joining) >= enough, self.membership.join_timeout):
            missing = min(set(range(self.membership.devices)) - set(self.joining))
            raise SparsyncError(
                f"{len(self.joining)} of {enough} devices have come within {self.membership.join_timeout:g} s, device "
                f"{missing} has not; start it with the same experiment file, this address and the token"
            )
        self.clock.began = time.time()
        first = sorted(self.joining)
        for number in first:
            self._welcome(number, self.config.warmup_rate)
        waiting = [number for number in first if number in self._registered]
        self._wait(
            lambda: all(self.available[n] or n not in self._registered for n in waiting), self.membership.join_timeout
        )
        self._need_somebody()
        self.due = self.clock.now
        self._begin_cycle()

    def _synchronise(self) -> None:
        """The cycle ends: some devices average, one of them tells the others, and all go on."""
        self._need_somebody()
        planner = self.planner
        planner.cycle += 1
        self._versions = set()
        self._save()  # so that no cycle is ever begun twice
        available = np.flatnonzero(self.available)
        chosen = planner.select_members(available)
        for number in chosen.others.tolist():
            self._tell(number, SkipRing(cycle=planner.cycle))
        attempts, ring = self._average(chosen.ring.tolist(), int(chosen.broadcaster), chosen.others.tolist())
        self._wait(lambda: all(n in self._versions or not self.available[n] for n in available.tolist()), _MEETING)
        planner.observe(available)
        if ring:
            self.last, self.last_version = planner.cycle, planner.mean_version(np.array(ring))
            self.syncs += 1
            self.emit(
                {
                    "kind": "cycle",
                    "step": self.progress.step,
                    "cycle": planner.cycle,
                    "hyperperiod": planner.plan.hyperperiod,
                    "units": list(planner.plan.units),
                    "available": available.tolist(),
                    "ring": ring,
                    "broadcaster": self._holders[0],
                    "versions": planner.versions[available].tolist(),
                    "predicted": chosen.predicted.tolist(),
                    "expected": chosen.expected.tolist(),
                    "attempts": attempts,
                    "seconds": self._averaged,
                }
            )
            backup = planner.cycle % self.config.backup_every == 0
            if backup or self.joining:  # they begin with the last mean
                self._fetch_backup()
            if backup:
                self._evaluate()
        self._begin_cycle()

    def _begin_cycle(self) -> None:
        planner, available = self.planner, np.flatnonzero(self.available)
        if not len(available):
            return
        planner.negotiate(self.step_seconds[available], available)
        lasts, now = planner.cycle_seconds, self.clock.now
        self.due += lasts
        if self.due <= now:  # a ring took longer
            self.due = now + lasts
        for number in available.tolist():
            self._tell(number, self._plan(number))

    def _plan(self, number: int) -> CycleStart:
        steps, capped = int(self.planner.planned[number]), self.config.max_units is not None
        return CycleStart(cycle=self.planner.cycle, steps=steps, capped=capped)

    def _need_somebody(self) -> None:
        if self.available.any():
            return
        if not self._wait(lambda: bool(self.available.any()), self.membership.join_timeout):
            last = "".join(f", the last was {number}: {why}" for number, why in list(self.lost.items())[-1:])
            raise SparsyncError(f"all devices are lost{last}; start them again, and resume")
        self.due = self.clock.now

    def _finish(self) -> None:
        if self._evaluation is not None:
            self._evaluation.join()
        if self.backed_up < self.last:
            self._fetch_backup()
        if self._tested < self.backed_up:
            self._evaluate()
        self.available[:] = False  # who leaves now is not lost
        for number in list(self._registered):
            self._tell(number, EndTraining())
        self._wait(lambda: not self._registered, _PING)  # they close their connections
        if self._evaluation is not None:
            self._evaluation.join()
        self._note_evaluations()
        self.membership.close()

    # The ring

    def _average(self, members: list[int], broadcaster: int, others: list[int]) -> tuple[int, list[int]]:
        """Let devices average, those that survive it. Return after how many attempts, and who; nobody, if it failed."""
        planner = self.planner
        order, attempt = list(members), 0
        while len(members) > (attempt > 0):  # a survivor has nobody to average with
            self._order, self._ring, self._done = (planner.cycle, attempt), members, {}
            wait = self._patience(members)
            sent_to = [number for number in others if self.available[number]]
            self._invite(members, broadcaster, sent_to, wait)
            limit = time_out(wait, len(members))
            if self._wait(self._settled, limit):
                if len(self._done) == len(members) and self._agree():
                    self._commit(members, broadcaster, sent_to)
                    return attempt + 1, members
            else:
                for number in set(members) - set(self._done):
                    self._lose(number, f"it has not gone round the ring within {limit:.3g} s")
            members = [number for number in members if self.available[number]]
            attempt += 1
            while broadcaster not in members and members:
                broadcaster = order[(order.index(broadcaster) + 1) % len(order)]
        self._ring = []
        for number in members:
            self._tell(number, SkipRing(cycle=planner.cycle))
        return attempt, []

    def _settled(self) -> bool:
        """Whether all have gone round the ring, or somebody is lost."""
        return len(self._done) == len(self._ring) or not self.available[self._ring].all()

    def _agree(self) -> bool:
        """Whether all hold the same mean; who holds another one than most is lost."""
        ((most, count),) = Counter(self._done.values()).most_common(1)
        for number in [number for number, digest in self._done.items() if digest != most]:
            self._lose(number, "its mean is another one than that of the rest of the ring")
        return count == len(self._done)

    def _patience(self, members: list[int]) -> float:
        """Seconds to wait for the previous member: twice what it may take to finish its step and send a piece."""
        piece = self.backup.nbytes / len(members)
        hop = self.system.latency + piece / float(np.minimum(self.system.up, self.system.down)[members].min())
        return float(max(_MEETING, 2 * (hop + self.step_seconds[members].max())))

    def _invite(self, members: list[int], broadcaster: int, others: list[int], wait: float) -> None:
        cycle, attempt = self._order
        connected = self._registered
        ring, rest = ([peer for n in some if (peer := connected[n].address)] for some in (members, others))
        weights = self.samples[members] / self.samples[members].sum()
        shares = weights.tolist() if self.config.weights == "samples" else None
        for place, number in enumerate(members):
            self._tell(
                number,
                RingStart(
                    cycle=cycle,
                    attempt=attempt,
                    ring=ring,
                    place=place,
                    broadcaster=broadcaster,
                    others=rest,
                    shares=shares,
                    wait=wait,
                ),
            )

    def _commit(self, members: list[int], broadcaster: int, others: list[int]) -> None:
        cycle, attempt = self._order
        self._averaged = self.clock.now
        for number in members:
            self._tell(number, RingCommit(cycle=cycle, attempt=attempt))
        d = self.arena.layout.numel
        self.ledger.book_paper("model", 4 * d * (2 * (len(members) - 1) + len(others)))
        at = members.index(broadcaster)
        self._holders = members[at:] + members[:at]
        self._passing = cycle if others else 0
        if not self.available[broadcaster]:
            self._broadcast_by_another()

    # Means

    def _fetch_backup(self) -> None:
        """Have the last mean sent here, by the first who has it and lives."""
        for number in [number for number in self._holders if self.available[number]]:
            self._tell(number, BackupRequest(cycle=self.last))
            self._wait(partial(self._backed_up, number), self.membership.heartbeat_timeout)
            if self.backed_up >= self.last:
                return

    def _backed_up(self, number: int) -> bool:
        """Whether the last mean is here, or will not come from this device."""
        return self.backed_up >= self.last or not self.available[number]

    def _evaluate(self) -> None:
        """Test the last mean that came here, in the background: devices do not wait for that, and cycles go on."""
        if self._evaluation is not None and self._evaluation.is_alive():
            return  # of means that come faster than they can be tested, some are left out
        self._tested = self.backed_up
        line = {
            "kind": "evaluation",
            "step": self.progress.step,
            "train_loss": float(np.mean(self._losses)) if self._losses else None,
            "bytes": self.ledger.total,
            "paper_bytes": self.ledger.paper_total,
            "syncs": self.syncs,
            "seconds": self._averaged,
            "bytes_by_kind": dict(self.ledger.moved),
        }
        self._losses.clear()
        module = self.evaluated()

        def test() -> None:
            by_class, loss = evaluate(self.task, module, SingleProcess())
            self._evaluated.put({**line, "accuracy": overall(by_class), "loss": loss})

        self._evaluation = threading.Thread(target=test, daemon=True)
        self._evaluation.start()

    def _note_evaluations(self) -> None:
        """Enter in the history what has been tested meanwhile."""
        while not self._evaluated.empty():
            line = self._evaluated.get()
            self.progress.evaluated(line, self.budget)
            self.emit(line)

    def final(self) -> tuple[Tensor, Tensor]:
        """Parameters (d,) and buffers (b,) of the last mean that came here."""
        d = self.arena.layout.numel
        buffers = self.backup[d:] if len(self.backup) > d else self.arena.buffers[0]
        return self.backup[:d].to(self.arena.params), buffers.to(self.arena.params)

    def evaluated(self) -> nn.Module:
        """Put the last mean that came here into the bound module, and return that; what is not averaged is new."""
        return self.learner.load(*self.final(), [rows[0] for rows in self.arena.others])

    # Devices

    @property
    def _registered(self) -> dict[int, Member]:
        """Who has registered."""
        return {member.number: member for member in self.membership.all() if member.address is not None}

    def _tell(self, number: int, message: ControlMessage) -> None:
        self._send(number, DeviceKind.CONTROL, message.pack())

    def _send(self, number: int, kind: MessageKind, payload: bytes) -> None:
        member = self._registered.get(number)
        if member is None:
            return
        try:
            member.connection.send(kind, payload)
        except ConnectionLost as error:
            self._lose(number, str(error))
        else:
            self.ledger.book_message("model" if kind is DeviceKind.MODEL else "control", number, down=len(payload))

    def _welcome(self, number: int, rate: float = 1.0) -> None:
        """A device begins, or begins anew: with the last mean, at its version."""
        self.joining.pop(number, None)
        planner = self.planner
        version = self.last_version if self.last else 0
        planner.versions[number] = version
        steps = max(1, self.config.warmup_steps(planner.unit))  # by which it measures its speed
        self._tell(number, JoinReply(cycle=planner.cycle, version=version, warmup=steps, rate=rate, model=True))
        self._send(number, DeviceKind.MODEL, ModelChunk((self.backed_up, 0, LAST_STEP), self.backup).pack(self.dense))

    def _lose(self, number: int, why: str, *, ban: bool = False) -> None:
        """A device leaves the available set."""
        if number in self.lost and not ban:
            return
        was_there = bool(self.available[number] or self._known[number])
        self.available[number] = self._known[number] = False
        self.joining.pop(number, None)
        self.lost[number] = why
        if was_there:
            step, cycle = self.progress.step, self.planner.cycle
            self.emit({"kind": "lost", "step": step, "cycle": cycle, "client": number, "reason": why})
        if ban:
            self.banned[number] = why
            self._refuse(number, f"the coordinator does not let it in: {why}")
        self.membership.disconnect(number)
        if self._passing and self._holders and self._holders[0] == number:
            self._broadcast_by_another()

    def _refuse(self, number: int, why: str) -> None:
        """Tell a device why it is of no use here."""
        for member in self.membership.all():
            if member.number == number:
                with suppress(ConnectionLost):
                    member.connection.send(DeviceKind.CONTROL, EndTraining(why=why[:300]).pack())
        self.membership.disconnect(number)

    def _broadcast_by_another(self) -> None:
        """Who should have passed the mean on is gone: the next survivor in the ring's order does."""
        self._holders = [number for number in self._holders if self.available[number]]
        if self._holders:
            self._tell(self._holders[0], BroadcastMean(cycle=self._passing))

    # What they say

    def _wait(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Hear what arrives, until something is so. Return whether it is, or the time is over."""
        until = time.monotonic() + seconds
        while not ready():
            now = time.monotonic()
            if now >= until:
                return False
            self._check_heartbeats(now)
            try:
                frame = self.membership.inbox.get(timeout=min(_TURN, until - now))
            except queue.Empty:
                continue
            self._receive(frame)
        return True

    def _check_heartbeats(self, now: float) -> None:
        """Look after what is due: who lives, who waits to join, whether to save or stop."""
        if now - self._paced >= _TURN:
            self._paced = now
            action = self._pace(1)
            if action is PaceAction.STOP:
                raise _Stopped
            if action is PaceAction.SAVE:
                self._save()
            self._note_evaluations()
        if now - self._pinged >= _PING:
            self._pinged = now
            for member in self.membership.all():
                if member.connection.unanswered * _PING > self.membership.heartbeat_timeout:
                    self._lose(member.number, f"it has not answered for {self.membership.heartbeat_timeout:g} s")
                    self.membership.disconnect(member.number)
                else:
                    try:
                        member.connection.ping()
                    except ConnectionLost as error:
                        self._lose(member.number, str(error))
        if self.clock.began is not None:
            for number, since in list(self.joining.items()):
                if self.backed_up >= self.last or now - since > self.membership.heartbeat_timeout:
                    self._welcome(number)
                elif now - self._asked > _PING:
                    self._asked = now
                    holder = next((n for n in self._holders if self.available[n]), None)
                    if holder is not None:
                        self._tell(holder, BackupRequest(cycle=self.last))

    def _receive(self, frame: Frame) -> None:
        member = self.membership.member(frame.sender)
        if member is None:
            return
        number = member.number
        try:
            match frame.kind:
                case None:
                    self._lose(number, frame.reason, ban=isinstance(frame.reason, ProtocolFault))
                    self.membership.disconnect(number)
                case Signal.PONG:
                    pass
                case DeviceKind.CONTROL:
                    self.ledger.book_message("control", number, up=len(frame.payload))
                    self._do(member, read_control(frame.payload, "device"))
                case DeviceKind.MODEL:
                    self.ledger.book_message("model", number, up=len(frame.payload))
                    mean, cycle = read_chunk(frame.payload, self.dense, len(self.backup)), tag_of(frame.payload)[0]
                    if number in self._holders and self.backed_up < cycle <= self.planner.cycle:
                        self.backup, self.backed_up = mean, cycle
                case _:
                    raise PayloadError(f"payload: {frame.kind.name} is nothing that a device says to its coordinator")
        except PayloadError as error:
            self._lose(number, str(error), ban=True)
        except ConnectionLost as error:
            self._lose(number, str(error))

    def _do(self, member: Member, message: Any) -> None:
        number = member.number
        match message:
            case JoinRequest():
                self._register(member, message)
            case _ if member.address is None:
                raise PayloadError("payload: a device says who it is before anything else")
            case DeviceReady():
                self._count(number, message.version)
                self.step_seconds[number] = message.step_seconds
                self.available[number] = True
                self.planner.enter(np.array([number]))
                if self.due > 0:  # cycles have begun without it
                    self._tell(number, self._plan(number))
            case CycleReport():
                self._count(number, message.version)
                self.step_seconds[number] = message.step_seconds
                self._book(number, message.sent, message.received)
                if message.cycle == self.planner.cycle:
                    self._versions.add(number)
                if message.loss is not None:
                    self._losses.append(message.loss)
            case RingDone() if number in self._ring and (message.cycle, message.attempt) == self._order:
                self._done[number] = message.digest
            case DevicesLost() if message.why or (
                number in self._ring and (message.cycle, message.attempt) == self._order
            ):
                for other in message.devices:
                    if 0 <= other < self.membership.devices and other != number:
                        why = message.why or f"it does not answer device {number}"
                        self._lose(other, why, ban=bool(message.why))
            case BroadcastDone() if message.cycle == self._passing:
                self._passing = 0
            case DeviceFailed():
                self._lose(number, message.why)
            case _:  # of a ring that no longer counts
                pass

    def _register(self, member: Member, message: JoinRequest) -> None:
        number = member.number
        member.address = DeviceAddress(number=number, host=member.connection.host, port=message.port)
        if number in self.banned:
            self._refuse(number, f"the coordinator does not let it in: {self.banned[number]}")
            return
        if message.fingerprint != self.fingerprint:
            pieces = zip(_COMMON, self.fingerprint.split("-"), message.fingerprint.split("-"), strict=False)
            what = next((what for what, mine, own in pieces if mine != own), "experiment")
            self._refuse(
                number, f"its {what} is another one than the coordinator's; give both the same {_COMMON[what]}"
            )
            return
        self._counted[:, number] = 0
        self.lost.pop(number, None)
        known, self._known[number] = self._known[number], False
        if known and message.version >= self.planner.versions[number]:
            self._count(number, message.version)
            self._tell(
                number,
                JoinReply(cycle=self.planner.cycle, version=message.version, warmup=0, rate=1.0, model=False),
            )
            self.available[number] = True
            return
        self.joining[number] = time.monotonic()

    def _count(self, number: int, version: int) -> None:
        """Note how far a device has trained."""
        versions, progress = self.planner.versions, self.progress
        if version < versions[number]:
            raise PayloadError("payload: it has trained less than it said before")
        progress.total += int(version - versions[number])
        progress.step = progress.total // self.membership.devices
        versions[number] = version

    def _book(self, number: int, sent: int, received: int) -> None:
        """Book what a device has exchanged with others since it last said so."""
        more = np.maximum(0, np.array([sent, received]) - self._counted[:, number])
        self._counted[:, number] += more
        up, down = np.zeros((2, self.membership.devices), np.int64)
        up[number], down[number] = more
        self.ledger.book("model", Traffic(up, down, int(more[0]), 1, int(more[0])))

    # Restart

    def state_dict(self) -> dict[str, Any]:
        """Everything that a coordinator needs that takes over."""
        return {
            "coordinator": self.planner.state_dict(),
            "there": (self.available | self._known).tolist(),
            "step_seconds": self.step_seconds.tolist(),
            "last": [self.last, self.last_version, self.backed_up, self.syncs],
            "holders": self._holders,
            "banned": [[number, why] for number, why in self.banned.items()],
            "backup": self.backup,
            "began": self.clock.began,
            "ledger": self.ledger.state_dict(),
            "progress": dict(vars(self.progress)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over."""
        self.planner.load_state_dict(state["coordinator"])
        self._known = np.array(state["there"], bool)
        self.step_seconds = np.array(state["step_seconds"], np.float64)
        self.last, self.last_version, self.backed_up, self.syncs = state["last"]
        self._holders = list(state["holders"])
        self.banned = {int(number): why for number, why in state["banned"]}
        self.backup, self.clock.began = state["backup"], state["began"]
        self.ledger.load_state_dict(state["ledger"])
        self.progress = Progress(**state["progress"])
        self.due = self.clock.now


class _Stopped(Exception):
    """The user has asked to stop."""
