"""Time decides when a run is saved or stopped, however many turns or steps that takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsync.engines import Pace, PaceAction
from sparsync.workers import SingleProcess


class Hands:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Pair(SingleProcess):
    """Rank 0 of two, whose broadcasts are counted."""

    size = 2

    def __init__(self) -> None:
        self.asked = 0

    def broadcast(self, x: Tensor) -> Tensor:
        self.asked += 1
        return x


def pace(group: Any, stopping: Any = lambda: False, save_seconds: float = 1000.0) -> tuple[Pace, Hands]:
    clock = Hands()
    return Pace(group, save_seconds, stopping, clock), clock


def test_slow_turns_after_fast_ones_are_not_waited_for():
    """Turns of a coordinator: one at once, and from then on five a second."""
    asked: list[bool] = []
    decide, clock = pace(SingleProcess(), lambda: bool(asked))
    clock.now = 1e-5
    assert decide(1) is PaceAction.GO_ON
    asked.append(True)
    clock.now += 0.2
    assert decide(1) is PaceAction.STOP


def test_one_process_saves_when_it_is_time():
    decide, clock = pace(SingleProcess(), save_seconds=30.0)
    actions = []
    for _ in range(4):
        clock.now += 15.0
        actions.append(decide(20))
    assert actions == [PaceAction.GO_ON, PaceAction.SAVE] * 2


def test_several_processes_that_become_slow_are_asked_again_within_few_steps():
    asked: list[bool] = []
    decide, clock = pace(Pair(), lambda: bool(asked))
    for _ in range(1000):
        clock.now += 1e-6
        decide(1)
    asked.append(True)
    late = 0
    while decide(1) is not PaceAction.STOP:
        late += 1
        clock.now += 10.0
    assert late < 64


def test_several_processes_ask_seldom_while_they_are_fast_and_always_once_they_are_slow():
    group = Pair()
    decide, clock = pace(group)
    for _ in range(640):
        clock.now += 1e-4
        decide(1)
    assert group.asked <= 15
    for _ in range(80):
        clock.now += 0.5
        decide(1)
    assert group.asked >= 80 - 64
    before = group.asked
    for _ in range(10):
        clock.now += 0.5
        decide(1)
    assert group.asked == before + 10
