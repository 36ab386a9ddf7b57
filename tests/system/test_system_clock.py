"""The virtual clock by hand: steps, exchanges, and visits of a cohort."""

from __future__ import annotations

import pytest

from sparsync.system import Clock, Profile

PROFILE = Profile(step_seconds=2, bandwidth=100, latency=0.5)


def test_steps_advance_each_worker_and_an_exchange_waits_for_the_last() -> None:
    clock = Clock(3, PROFILE)
    clock.compute([1, 3, 0])
    assert clock.times.tolist() == [2, 6, 0]
    clock.exchange(messages=2, serial_bytes=50)
    assert clock.times.tolist() == [7.5] * 3


def test_a_visit_takes_two_latencies_and_the_slowest_clients_steps_and_bytes() -> None:
    """Client 0: 3 steps and 100 bytes, 7 s; client 2: 1 step and 600 bytes, 8 s."""
    clock = Clock(3, PROFILE)
    clock.visit([0, 2], [3, 1], [100, 600])
    assert clock.times.tolist() == [1 + 8] * 3
    clock.visit([1], [0], [0])
    assert clock.now == 10


def test_a_visit_of_nobody_is_but_a_wait() -> None:
    clock = Clock(2, PROFILE)
    clock.visit([], [], [])
    assert clock.now == 1


def test_whoever_sends_less_is_faster_by_exactly_that() -> None:
    dense, sparse = Clock(5, PROFILE), Clock(5, PROFILE)
    dense.visit([0, 1], [4, 4], [1000, 1000])
    sparse.visit([0, 1], [4, 4], [50, 50])
    assert dense.now - sparse.now == pytest.approx(9.5)


def test_state_goes_round() -> None:
    clock, other = Clock(2, PROFILE), Clock(2, PROFILE)
    clock.compute([1, 2])
    other.load_state_dict(clock.state_dict())
    clock.compute(1)
    assert other.times.tolist() == [2, 4]
