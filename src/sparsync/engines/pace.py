"""When to save, and when to stop: rank 0 looks at its clock and its signals, and all processes do as it says.

Asking costs a broadcast, so rank 0 also says how many steps may pass until it is asked again: about a quarter of a
second's worth. None of this touches the numbers of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

import torch

from sparsync.workers import Group

_ASK_EVERY = 0.25  # seconds


class Action(IntEnum):
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
    """

    def __init__(self, group: Group, save_seconds: float, stopping: Callable[[], bool]) -> None:
        self.group = group
        self.save_seconds = save_seconds
        self.stopping = stopping
        self._saved = self._asked = time.monotonic()
        self._steps = 0  # since last asked
        self._gap = 1  # steps until the next question

    def __call__(self, steps: int) -> Action:
        """`steps` more have been taken; what now?"""
        self._steps += steps
        if self._steps < self._gap:
            return Action.GO_ON
        decision = torch.zeros(2, dtype=torch.int64)
        if self.group.rank == 0:
            now = time.monotonic()
            action = Action.GO_ON
            if self.stopping():
                action = Action.STOP
            elif now - self._saved >= self.save_seconds:
                action, self._saved = Action.SAVE, now
            rate = self._steps / max(now - self._asked, 1e-6)
            self._asked = now
            decision[0], decision[1] = action, min(max(1, int(rate * _ASK_EVERY)), 10_000)
        self.group.broadcast(decision)
        self._steps, self._gap = 0, int(decision[1])
        return Action(int(decision[0]))
