"""When to save, and when to stop: rank 0 looks at its clock and its signals, and all processes do as it says.

A process that is alone looks whenever it may: that costs less than a microsecond. Several agree by a broadcast, after
so few steps that it does not count; rank 0 says after how many, anew each time. None of this touches the numbers of a
run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

import torch

from sparsync.workers import Group

_ASK_EVERY = 0.02  # seconds: some hundred times as long as a broadcast takes
_MOST = 64  # steps: also of the fastest ones so many take some ten times as long, and slower ones may follow


class PaceAction(IntEnum):
    """What all processes do after a step."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Pace:
    """Rank 0's decisions, followed by all.

    Parameters
    ----------
    group : Group
        The processes.
    save_seconds : float
        Seconds between two checkpoints.
    stopping : callable
        Whether the user has asked to stop; asked on rank 0 only.
    clock : callable, optional
        Seconds that only increase.
    """

    def __init__(
        self,
        group: Group,
        save_seconds: float,
        stopping: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.group = group
        self.save_seconds = save_seconds
        self.stopping = stopping
        self.clock = clock
        self._saved = self._asked = clock()
        self._steps = 0  # since several were last asked
        self._gap = 1  # steps until the next question

    def __call__(self, steps: int) -> PaceAction:
        """`steps` more have been taken; what now?"""
        if self.group.size == 1:
            return self._decide(self.clock())
        self._steps += steps
        if self._steps < self._gap:
            return PaceAction.GO_ON
        decision = torch.zeros(2, dtype=torch.int64)
        if self.group.rank == 0:
            now = self.clock()
            rate = self._steps / max(now - self._asked, 1e-6)
            self._asked = now
            decision[0], decision[1] = self._decide(now), min(max(1, int(rate * _ASK_EVERY)), _MOST)
        self.group.broadcast(decision)
        self._steps, self._gap = 0, int(decision[1])
        return PaceAction(int(decision[0]))

    def _decide(self, now: float) -> PaceAction:
        if self.stopping():
            return PaceAction.STOP
        if now - self._saved < self.save_seconds:
            return PaceAction.GO_ON
        self._saved = now
        return PaceAction.SAVE
