"""Devices and coordinators that log what they do, and fail at a named moment: each the only one of its process.

`play` is what a process of theirs runs: the command line as a user types it, with `Device` and `Coordinator`
replaced by the two classes here. Nothing in the library knows of them.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from processes import GIVEN_UP
from sparsync import assembly
from sparsync.__main__ import main
from sparsync.engines.devices import Coordinator, Device, coordinator
from sparsync.engines.devices.messages import (
    LAST_STEP,
    ControlMessage,
    CycleReport,
    DeviceAddress,
    DeviceKind,
    DevicesLost,
    EndTraining,
    JoinReply,
    ModelChunk,
    RingCommit,
    RingStart,
    read_chunk,
    tag_of,
)
from sparsync.hetero import RingPlan
from sparsync.transport import Frame
from sparsync.wire import pack
from sparsync.wire.parcel import RAW


@dataclass(frozen=True)
class Plot:
    """What goes wrong: in the first attempt of a cycle, at a moment, to whom, and how.

    Attributes
    ----------
    moment : str
        before, scatter, gather, broadcast: of a device in the ring; planned, agreed, committed: of the coordinator.
    how : str
        kill, stop, sleep, or the name of a lie.
    places : tuple of int, or None
        Whom in the ring it befalls. None: everybody.
    broadcaster : bool
        Whether it befalls the broadcaster only.
    """

    moment: str
    how: str = "kill"
    places: tuple[int, ...] | None = None
    broadcaster: bool = False
    cycle: int = 2
    seconds: float = 0.0


class Stage:
    """What a process of this test knows beside its command line."""

    folder: Path
    name: str
    plot: Plot | None = None
    slower: float = 1.0  # than they are, devices say

    @classmethod
    def says(cls, word: str) -> bool:
        """Whether the test has left a file of that name."""
        return (cls.folder / word).exists()

    @classmethod
    def note(cls, event: str, **said: Any) -> None:
        with (cls.folder / f"{cls.name}.jsonl").open("a") as file:
            file.write(json.dumps({"event": event, **said}) + "\n")

    @classmethod
    def fail(cls, how: str, seconds: float = 0.0) -> None:
        if how == "sleep":
            time.sleep(seconds)
        else:
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)

    @classmethod
    def together(cls, place: int, places: tuple[int, ...]) -> None:
        """Wait until all whom it befalls are at that moment, else the ring is formed anew after the first of them."""
        (cls.folder / f"fails-{place}").touch()
        end = time.monotonic() + GIVEN_UP
        while time.monotonic() < end and not all(cls.says(f"fails-{one}") for one in places):
            time.sleep(0.01)


def told(vector: Tensor) -> str:
    return vector.numpy().tobytes().hex()


class Watched(Device):
    """A device that logs, and perhaps fails."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        Stage.note("listens", port=self.connections.port)

    # What goes wrong

    def _fail(self, moment: str, order: RingStart) -> None:
        plot = Stage.plot
        if plot is None or (moment, order.cycle, order.attempt) != (plot.moment, plot.cycle, 0):
            return
        if plot.places is not None and order.place not in plot.places:
            return
        if plot.broadcaster and order.broadcaster != self.number:
            return
        Stage.note("fails", cycle=order.cycle)
        Stage.together(order.place, plot.places or ())
        if plot.how in TRICKS:
            TRICKS[plot.how](self, order)
        elif plot.how in LIES:
            LIES[plot.how](self, order)
            self._wait(lambda: self._left(order), GIVEN_UP)
        else:
            if plot.how == "stop":
                (Stage.folder / f"stopped-{self.number}").touch()
            Stage.fail(plot.how, plot.seconds)

    # What is logged, and when it may go wrong

    @property
    def _step_seconds(self) -> float:
        return Stage.slower * super()._step_seconds

    def _ring(self, order: RingStart, before: Tensor) -> Tensor | None:
        ring = [peer.number for peer in order.ring]
        Stage.note("before", tag=order.tag, ring=ring, broadcaster=order.broadcaster, vector=told(before))
        self._fail("before", order)
        return super()._ring(order, before) if self.order is order else None

    def _receive(self, order: RingStart, tag: tuple[int, int, int], numel: int) -> Tensor | None:
        plan = RingPlan(len(order.ring), self.numel)
        if tag[-1] in (plan.steps // 2 - 1, plan.steps - 1):
            self._fail("scatter" if plan.adds(tag[-1]) else "gather", order)
        return super()._receive(order, tag, numel)

    def _lives(self, peer: DeviceAddress, seconds: float) -> bool:
        return super()._lives(peer, GIVEN_UP)  # a busy device answers late, an ended process closes

    def _agreed(self, order: RingStart, mean: Tensor) -> bool:
        agreed = super()._agreed(order, mean)
        if agreed:
            Stage.note("adopted", tag=order.tag, vector=told(mean))
        return agreed

    def _broadcast(self, cycle: int) -> None:
        if self.mean is None or Stage.plot is None or Stage.plot.moment != "broadcast":
            super()._broadcast(cycle)
            return
        order, mean = self.mean
        mine = order.broadcaster == self.number
        if mine and Stage.plot.how in ("nan mean", "long mean", "raw mean") and cycle == Stage.plot.cycle:
            Stage.note("fails", cycle=cycle)
            for peer in order.others:
                if Stage.plot.how == "raw mean":
                    self.connections.connection(peer)._sock.sendall(bytes(99))
                else:
                    bad = mean * torch.nan if Stage.plot.how == "nan mean" else torch.cat([mean, mean])
                    self.connections.send(
                        peer, DeviceKind.MODEL, ModelChunk((cycle, 0, LAST_STEP), bad).pack(self.dense)
                    )
        else:
            self._fail("broadcast", order)
            super()._broadcast(cycle)

    def _merge(self, frame: Frame) -> None:
        before = self.merged
        super()._merge(frame)
        if self.merged != before:
            vector = read_chunk(frame.payload, self.dense, self.numel)
            Stage.note("merged", tag=tag_of(frame.payload)[:2], vector=told(vector))

    def _handle_coordinator(self, frame: Frame) -> None:
        super()._handle_coordinator(frame)
        if frame.kind is DeviceKind.MODEL:
            vector = read_chunk(frame.payload, self.dense, self.numel)
            Stage.note("received", cycle=tag_of(frame.payload)[0], vector=told(vector), holds=told(self._model()))
        elif frame.kind is None:
            Stage.note("alone", version=self.version)

    def _do(self, word: Any) -> None:
        if isinstance(word, JoinReply):
            Stage.note("welcome", trained=self.version, version=word.version, model=word.model)
        super()._do(word)

    def run(self) -> None:
        try:
            super().run()
        finally:
            Stage.note("ended", version=self.version, sent=self.connections.sent, received=self.connections.received)


def _version(cycle: int, version: int) -> ControlMessage:
    return CycleReport(cycle=cycle, version=version, step_seconds=1.0, sent=0, received=0, loss=None)


def _next(order: RingStart) -> DeviceAddress:
    return order.ring[(order.place + 1) % len(order.ring)]


def _piece(device: Device, order: RingStart, values: Tensor) -> None:
    device.connections.send(_next(order), DeviceKind.CHUNK, ModelChunk((*order.tag, 0), values).pack(device.dense))


def _control(device: Device, noise: bytes) -> None:
    assert device.connections.control is not None
    device.connections.control._sock.sendall(noise)


def _nan(numel: int) -> Tensor:
    return torch.full((numel,), torch.nan)


def _own_piece(device: Device, order: RingStart) -> int:
    begin, end = RingPlan(len(order.ring), device.numel).bounds[order.place :][:2]
    return end - begin


def _whole(device: Device, order: RingStart, mean: Tensor) -> bytes:
    return ModelChunk((order.cycle, 0, LAST_STEP), mean).pack(device.dense)


LIES: dict[str, Callable[[Device, RingStart], Any]] = {
    "raw control": lambda device, order: _control(device, b"GET / HTTP/1.1\r\n\r\n" * 9),
    "no word": lambda device, order: device.connections.send_coordinator(
        DeviceKind.CONTROL, pack(RAW, b'{"kind": "done", "cycle": -1}')
    ),
    "no json": lambda device, order: device.connections.send_coordinator(DeviceKind.CONTROL, pack(RAW, b"\xff\x00")),
    "torn word": lambda device, order: device.connections.send_coordinator(
        DeviceKind.CONTROL, pack(RAW, b"{}")[:-1] + b"!"
    ),
    "huge word": lambda device, order: device.connections.send_coordinator(
        DeviceKind.CONTROL, pack(RAW, b"")[:8] + struct.pack("<QI", 1 << 50, 0)
    ),
    "not for it": lambda device, order: device.connections.send_coordinator(DeviceKind.CHUNK, pack(RAW, b"")),
    "trained back": lambda device, order: device._inform(_version(order.cycle, 0)),
    "nan backup": lambda device, order: device.connections.send_coordinator(
        DeviceKind.MODEL, _whole(device, order, _nan(device.numel))
    ),
    "raw piece": lambda device, order: device.connections.connection(_next(order))._sock.sendall(bytes(99)),
    "long piece": lambda device, order: _piece(device, order, torch.zeros(device.numel)),
    "nan piece": lambda device, order: _piece(device, order, _nan(_own_piece(device, order))),
    "short piece": lambda device, order: device.connections.send(_next(order), DeviceKind.CHUNK, pack(RAW, b"x")),
    "stop others": lambda device, order: device.connections.send(
        _next(order), DeviceKind.CONTROL, EndTraining().pack()
    ),
}
"""What a device sends instead of what it should."""

TRICKS: dict[str, Callable[[Device, RingStart], Any]] = {
    "mean of a later cycle": lambda device, order: [
        device.connections.send(
            peer, DeviceKind.MODEL, ModelChunk((2**60, 0, LAST_STEP), torch.zeros(device.numel)).pack(device.dense)
        )
        for peer in (*order.others, _next(order))
    ],
    "pieces of later rings": lambda device, order: [
        device.connections.send(
            order.ring[order.place - 1], DeviceKind.CHUNK, ModelChunk((later, 0, 0), torch.zeros(9)).pack(device.dense)
        )
        for later in range(order.cycle, order.cycle + 99)
    ],
    "commit of another ring": lambda device, order: device.connections.send(
        _next(order), DeviceKind.CONTROL, RingCommit(cycle=2**50, attempt=0).pack()
    ),
    "loss in another ring": lambda device, order: device._inform(
        DevicesLost(cycle=order.cycle + 5, attempt=0, devices=[_next(order).number])
    ),
}
"""What it sends beside what it should, and nobody can blame it for."""


class Overseer(Coordinator):
    """A coordinator that ends also when a file says that it is enough, and perhaps fails.

    It finds nobody silent whom the test has not stopped, and waits for others until the test says that nobody comes.
    """

    @property
    def done(self) -> bool:
        return super().done or Stage.says("enough")

    def _check_heartbeats(self, now: float) -> None:
        for member in self.membership.all():
            if not Stage.says(f"stopped-{member.number}"):
                member.connection.unanswered = 0
        super()._check_heartbeats(now)

    def _need_somebody(self) -> None:
        if not self._wait(lambda: bool(self.available.any()) or Stage.says("nobody"), GIVEN_UP) or Stage.says("nobody"):
            self.membership.join_timeout = 0.0
        super()._need_somebody()

    def _fails_now(self, moment: str) -> bool:
        plot = Stage.plot
        return plot is not None and (plot.moment, plot.cycle) == (moment, self.planner.cycle)

    def _begin_cycle(self) -> None:
        super()._begin_cycle()
        if self._fails_now("planned"):
            Stage.fail("kill")

    def _commit(self, members: list[int], broadcaster: int, others: list[int]) -> None:
        if self._fails_now("agreed"):
            Stage.fail("kill")
        if self._fails_now("committed"):
            cycle, attempt = self._order
            self._tell(members[0], RingCommit(cycle=cycle, attempt=attempt))
            Stage.fail("kill")
        super()._commit(members, broadcaster, others)


def play(folder: Path, name: str, arguments: list[str], plot: Plot | None, slower: float, meeting: float) -> None:
    """Be a coordinator or a device, by a command line."""
    Stage.folder, Stage.name, Stage.plot, Stage.slower = folder, name, plot, slower
    coordinator._MEETING = meeting
    assembly.Device, assembly.Coordinator = Watched, Overseer  # type: ignore[misc]
    torch.set_num_threads(1)
    output = os.open(folder / f"{name}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["sparsync", *arguments]
    main()
