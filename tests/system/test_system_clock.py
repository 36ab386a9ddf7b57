"""The virtual clock by hand, and what holds whatever happens: time never runs backwards and nothing of it is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.errors import SparsyncError
from sparsync.system import ACTIVITIES, Clock, Profile, System

PLAIN: dict[str, Any] = {"step_seconds": 2, "bandwidth": 100, "latency": 0.5}


def clock_of(workers: int = 3, seed: int = 0, **keys: Any) -> Clock:
    return Clock(System.of(Profile(**{**PLAIN, **keys}), workers, seed))


# By hand


def test_steps_advance_each_worker_by_its_own_speed() -> None:
    clock = clock_of(power="4:2:1")
    clock.compute([1, 3, 0])
    assert clock.times.tolist() == [0.5, 3, 0]
    clock.compute(2, [2])
    clock.compute(np.array([1, 1]), np.array([0, 1]))
    assert clock.times.tolist() == [1, 4, 4]
    assert clock.now == 4
    assert clock.spent["compute"].tolist() == [1, 4, 4]


def test_a_barrier_waits_for_the_slowest_of_those_who_meet() -> None:
    clock = clock_of()
    clock.compute([1, 3, 5])
    assert clock.meet([0, 1]) == 6
    assert clock.times.tolist() == [6, 6, 10]
    assert clock.spent["wait"].tolist() == [4, 0, 0]
    clock.wait(7)
    assert clock.times.tolist() == [7, 7, 10]


def test_a_barrier_leaves_all_at_the_same_moment_to_the_last_bit() -> None:
    clock = clock_of(1000, step_seconds=0.1, spread=1)
    clock.compute(7)
    moment = clock.meet()
    assert clock.times.tolist() == [moment] * 1000


@pytest.mark.parametrize("links", [{"up": [100, 50, 80]}, {"down": [100, 50, 80]}, {"bandwidth": 50}])
def test_a_ring_lasts_as_long_as_its_slowest_link_says(links: dict[str, Any]) -> None:
    """After 6 s of waiting for the second: 4 messages of 0.5 s each, and 200 bytes at 50 per second."""
    clock = clock_of(**links)
    clock.compute([1, 3, 0])
    clock.ring(messages=4, serial_bytes=200)
    assert clock.times.tolist() == [6 + 2 + 4] * 3
    assert clock.spent["exchange"].tolist() == [6] * 3
    assert clock.spent["wait"].tolist() == [4, 0, 6]


def test_a_slow_link_that_is_no_member_slows_no_ring() -> None:
    clock = clock_of(up=[100, 1, 100])
    clock.ring(2, 100, [0, 2])
    assert clock.times.tolist() == [2, 0, 2]


def test_each_sends_to_a_server_when_it_is_ready_over_its_own_link() -> None:
    """Ready at 2, 6, 0; 100 bytes take 1 s, 2 s and 10 s after the latency: there at 3.5, 8.5 and 10.5."""
    clock = clock_of(up=[100, 50, 10])
    clock.compute([1, 3, 0])
    clock.gather(100)
    assert clock.times.tolist() == [10.5] * 3
    assert clock.spent["send"].tolist() == [1.5, 2.5, 10.5]
    assert clock.spent["wait"].tolist() == [7, 2, 0]


def test_each_receives_over_its_own_link() -> None:
    clock = clock_of(down=[100, 50, 10])
    clock.scatter(np.array([100, 100, 0]))
    assert clock.times.tolist() == [1.5, 2.5, 0.5]
    assert clock.spent["receive"].tolist() == [1.5, 2.5, 0.5]


def test_a_shared_channel_is_a_bottleneck() -> None:
    """Three messages of 100 bytes need 3 s of it, though each link would need 1 s."""
    clock = clock_of(shared=100)
    clock.gather(100)
    assert clock.times.tolist() == [3.5] * 3
    assert clock.spent["send"].tolist() == [1.5] * 3
    clock.scatter(100)
    assert clock.times.tolist() == [7] * 3
    wide = clock_of(shared=1000)
    wide.gather(100)
    assert wide.now == 1.5


def test_a_shared_channel_that_has_been_idle_does_not_catch_up() -> None:
    """Ready at 0, 10 and 10: the last two share it from then on, whatever it did before."""
    clock = clock_of(shared=100)
    clock.compute([0, 5, 5])
    clock.gather(100)
    assert clock.now == 10 + 0.5 + 2


def test_one_message_through_a_shared_channel_is_as_fast_as_the_slower_of_both() -> None:
    clock = clock_of(1, shared=50)
    clock.gather(100)
    clock.scatter(100)
    assert clock.now == 2 * (0.5 + 2)


def test_a_round_takes_two_latencies_and_the_slowest_clients_steps_and_bytes() -> None:
    """Client 0: 3 steps, 30 bytes down and 70 up, 7 s; client 2: 1 step, 30 and 570, 8 s."""
    clock = clock_of()
    clock.visit([0, 2], [3, 1], 30, np.array([70, 570]))
    assert clock.times.tolist() == [1 + 8, 0, 1 + 8]
    clock.visit([1], [0], 0, 0)  # begins when the round before has ended
    assert clock.times.tolist() == [9, 10, 9]
    assert clock.now == 10
    assert clock.spent["wait"].tolist() == [1, 9, 0]


def test_a_round_of_nobody_takes_no_time() -> None:
    clock = clock_of()
    clock.visit([], [], 100, np.array([], np.int64))
    assert clock.now == 0


def test_whoever_sends_less_is_faster_by_exactly_that() -> None:
    dense, sparse = clock_of(5), clock_of(5)
    dense.visit([0, 1], [4, 4], 1000, np.array([1000, 1000]))
    sparse.visit([0, 1], [4, 4], 1000, np.array([50, 50]))
    assert dense.now - sparse.now == pytest.approx(9.5)


def test_a_transfer_is_as_fast_as_the_slower_link_and_the_sender_goes_on_meanwhile() -> None:
    clock = clock_of(up=[100, 10, 100], down=[100, 100, 20])
    clock.compute([1, 0, 0])
    assert clock.transfer(0, 1, 100) == 2 + 1 + 0.5
    assert clock.transfer(1, 0, 100) == 10 + 0.5
    assert clock.times.tolist() == [2, 0, 0]


def test_transfers_of_one_sender_follow_one_another() -> None:
    clock = clock_of()
    assert [clock.transfer(0, 1, 100), clock.transfer(0, 2, 100)] == [1.5, 2.5]
    assert clock.transfer(1, 2, 100) == 1.5


def test_all_advance_together() -> None:
    clock = clock_of()
    clock.compute([1, 0, 0])
    clock.advance(3)
    assert clock.times.tolist() == [5] * 3
    assert clock.spent["compute"].tolist() == [5, 3, 3]


def test_the_steps_that_fit_are_those_that_begin_before_a_moment_and_end_before_an_outage() -> None:
    clock = clock_of(4, outages=[{"worker": 1, "at": 5}, {"worker": 2, "at": 0, "until": 9}])
    assert clock.fit(6.0).tolist() == [3, 2, 0, 3]
    assert clock.fit(6.5).tolist() == [4, 2, 0, 4]
    clock.compute([4, 0, 0, 0])
    assert clock.fit(np.array([8.0, 1.0, -math.inf, 3.0])).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(("at", "steps"), [(0.3, 3), (0.7, 7), (1.2, 12), (0.65, 6)])
def test_steps_that_a_rounding_error_keeps_from_their_end_fit(at: float, steps: int) -> None:
    clock = clock_of(1, step_seconds=0.1, outages=[{"worker": 0, "at": at}])
    assert clock.fit(9.0).tolist() == [steps]
    clock.compute(steps)
    assert clock.times.tolist() == [pytest.approx(steps / 10)]


# Outages


def test_work_rests_while_a_device_is_away() -> None:
    """Three steps of 2 s, from which 5 s are taken off after the first second."""
    clock = clock_of(2, outages=[{"worker": 1, "at": 1, "until": 6}])
    clock.compute(3)
    assert clock.times.tolist() == [6, 11]
    assert clock.spent["away"].tolist() == [0, 5]
    assert clock.timeline.finish() == [
        (1, "compute", 0, 1),
        (1, "away", 1, 6),
        (0, "compute", 0, 6),
        (1, "compute", 6, 11),
    ]


def test_work_that_ends_as_the_device_goes_is_done_and_what_follows_waits() -> None:
    clock = clock_of(1, outages=[{"worker": 0, "at": 2, "until": 3}])
    clock.compute(1)
    assert clock.now == 2
    clock.compute(1)
    assert clock.now == 5


@pytest.mark.parametrize("until", [3, math.inf])
def test_no_work_needs_no_device(until: float) -> None:
    clock = clock_of(2, outages=[{"worker": 1, "at": 0, "until": until}])
    clock.compute([1, 0])
    assert clock.times.tolist() == [2, 0]


def test_a_device_that_never_returns_ends_the_run_with_one_line() -> None:
    clock = clock_of(2, outages=[{"worker": 1, "at": 3}], mean_up=1e6, mean_down=1)
    clock.compute(1)
    with pytest.raises(SparsyncError, match=r"^worker 1 is away for good after 3 virtual seconds, and .*$"):
        clock.compute(1)


# Whatever happens

SPEEDS = st.floats(0.05, 20)


@st.composite
def profiles(draw: Callable[..., Any], workers: int) -> Profile:
    keys: dict[str, Any] = {
        "step_seconds": draw(st.sampled_from([0, 0.01, 0.3, 7])),
        "latency": draw(st.sampled_from([0, 0.005, 1])),
        "shared": draw(st.sampled_from([None, 50.0])),
    }
    for name in ("power", "up", "down"):
        keys[name] = draw(st.none() | st.lists(SPEEDS, min_size=workers, max_size=workers))
    if draw(st.booleans()):
        keys |= {"mean_up": draw(st.sampled_from([0.5, 20])), "mean_down": draw(st.sampled_from([0.5, 20]))}
    who = st.integers(0, workers - 1)
    for worker, at, lasts in draw(st.lists(st.tuples(who, st.floats(0, 30), st.floats(0.1, 30)), max_size=4)):
        keys.setdefault("outages", []).append({"worker": worker, "at": at, "until": at + lasts})
    return Profile(**keys)


@st.composite
def happenings(draw: Callable[..., Any]) -> tuple[Clock, list[Callable[[Clock], object]]]:
    """A clock, and what shall happen on it."""
    workers = draw(st.integers(1, 4))
    clock = Clock(System.of(draw(profiles(workers)), workers, draw(st.integers(0, 3))))
    numbers, nbytes = st.integers(0, 9), st.integers(0, 500)
    some = st.lists(st.integers(0, workers - 1), min_size=1, unique=True)

    def event() -> Callable[[Clock], object]:
        who, n, size = draw(some), draw(numbers), draw(nbytes)
        sizes, steps = size * np.arange(len(who)), [n + i for i in range(len(who))]
        events: dict[str, Callable[[Clock], object]] = {
            "steps of all": lambda c: c.compute(n),
            "steps": lambda c: c.compute(steps, who),
            "wait": lambda c: c.wait(n / 3, who),
            "meet": lambda c: c.meet(who),
            "ring": lambda c: c.ring(n, size, who),
            "ring of all": lambda c: c.ring(n, size),
            "gather": lambda c: c.gather(sizes, who),
            "gather of all": lambda c: c.gather(size),
            "scatter": lambda c: c.scatter(sizes, who),
            "scatter to all": lambda c: c.scatter(size),
            "visit": lambda c: c.visit(who, steps, size, sizes),
            "transfer": lambda c: c.transfer(who[0], who[-1], size),
            "advance": lambda c: c.advance(n / 7),
            "spend": lambda c: c.spend("away", n / 11, who),
        }
        return events[draw(st.sampled_from(list(events)))]

    return clock, [event() for _ in range(draw(st.integers(1, 12)))]


@given(happenings())
def test_time_never_runs_backwards_and_is_what_has_been_spent(
    made: tuple[Clock, list[Callable[[Clock], object]]],
) -> None:
    clock, events = made
    for event in events:
        before, spent = clock.times.copy(), {name: own.copy() for name, own in clock.spent.items()}
        event(clock)
        assert (clock.times >= before).all()
        assert all((clock.spent[name] >= spent[name]).all() for name in ACTIVITIES)
        assert sum(clock.spent.values()) == pytest.approx(clock.times, rel=1e-9)


@given(happenings())
def test_the_pieces_of_a_worker_follow_one_another_and_are_all_of_its_time(
    made: tuple[Clock, list[Callable[[Clock], object]]],
) -> None:
    clock, events = made
    for event in events:
        event(clock)
    pieces = clock.timeline.finish()
    for worker, time in enumerate(clock.times):
        own = [piece for piece in pieces if piece[0] == worker]
        edges = [0.0, *(end for *_, end in own)]
        assert [start for *_, start, _ in own] == edges[:-1]  # each begins where the one before has ended
        assert edges[-1] == time
        assert all(start < end for *_, start, end in own)
        assert all(one[1] != next_[1] for one, next_ in pairwise(own))  # merged
        for name in ACTIVITIES:
            length = sum(end - start for _, what, start, end in own if what == name)
            assert length == pytest.approx(clock.spent[name][worker], rel=1e-9)


@given(happenings(), st.integers(0, 12))
def test_state_goes_round_at_any_moment(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[Clock, list[Callable[[Clock], object]]], at: int
) -> None:
    clock, events = made
    other = Clock(clock.system)
    for event in events[:at]:
        event(clock)
    path = tmp_path_factory.mktemp("clock") / "state.safetensors"
    save_tree(clock.state_dict(), path)
    other.load_state_dict(load_tree(path))
    moved = clock.times.copy()
    for event in events[at:]:
        event(clock)
    assert (other.times == moved).all()  # a copy, not a view
    for event in events[at:]:
        event(other)
    assert (other.times == clock.times).all()
    assert (other.free == clock.free).all()
    assert all((other.spent[name] == clock.spent[name]).all() for name in ACTIVITIES)
    assert other.timeline.finish() == clock.timeline.finish()


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10**6)), max_size=9))
def test_equal_devices_and_free_links_but_count_steps(workers: int, events: list[tuple[int, int]]) -> None:
    clock = Clock(System.of(Profile(step_seconds=1, bandwidth=math.inf, latency=0), workers))
    everyone, steps = list(range(workers)), 0
    for i, (n, nbytes) in enumerate(events):
        if i % 2:
            clock.compute(n)
            clock.ring(2 * workers, nbytes)
            clock.gather(nbytes)
            clock.scatter(nbytes)
        else:
            clock.visit(everyone, [n] * workers, nbytes, np.full(workers, nbytes))
        steps += n
    assert clock.times.tolist() == clock.spent["compute"].tolist() == [steps] * workers
    assert all(not clock.spent[name].any() for name in ACTIVITIES if name != "compute")
