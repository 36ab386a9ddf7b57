"""When devices are away: known intervals that overlap, drawn ones that are a function of the seed, and both."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.system import Outage, Profile, System
from sparsync.system.system import Outages, RandomOutages

UNRELIABLE = Profile(mean_up=10, mean_down=3)


def drawn(seed: int, worker: int = 0) -> Outages:
    outages = System.of(UNRELIABLE, 3, seed).outages
    assert outages is not None
    return outages[worker]


@pytest.mark.parametrize(
    ("moment", "back"), [(0.9, None), (1, 8), (4.5, 8), (6, 8), (7.9, 8), (8, None), (20, 22), (25, math.inf)]
)
def test_overlapping_nested_and_adjacent_outages_are_one_absence(moment: float, back: float | None) -> None:
    own = Outages([(4, 6), (1, 5), (2, 3), (6, 8), (20, 22), (25, math.inf), (30, 40)])
    assert own.at(moment) == back


def test_the_next_outage_is_the_first_that_begins_later() -> None:
    own = Outages([(4, 6), (1, 5)])
    assert [own.next(moment) for moment in (0, 1, 3.9, 4)] == [1, 4, 4, math.inf]


def test_work_by_hand() -> None:
    own = Outages([(1, 5), (4, 6), (7, 8), (10, math.inf)])
    assert list(own.work(0, 0.5)) == [("compute", 0.5)]
    assert list(own.work(0, 1)) == [("compute", 1)]
    assert list(own.work(0, 2)) == [("compute", 1), ("away", 6), ("compute", 7)]
    assert list(own.work(2, 2)) == [("away", 6), ("compute", 7), ("away", 8), ("compute", 9)]
    assert list(own.work(9, 2)) == [("compute", 10), ("away", math.inf)]
    assert list(own.work(11, 1)) == [("away", math.inf)]
    assert list(own.work(11, 0)) == []


def test_work_that_a_rounding_error_keeps_from_its_end_is_done() -> None:
    """0.1 + 0.2 is more than 0.3 by the last bit."""
    own = Outages([(0.3, math.inf)])
    assert list(own.work(0.1, 0.2)) == [("compute", 0.1 + 0.2)]


def test_an_outage_without_an_end_hides_what_is_drawn_after_it() -> None:
    own = Outages([(5, math.inf)], RandomOutages(np.random.default_rng(0), 1e9, 1))
    assert own.at(6) == math.inf
    assert list(own.work(4, 2)) == [("compute", 5), ("away", math.inf)]


def test_a_known_outage_may_begin_within_a_drawn_one() -> None:
    own = drawn(0)
    assert own.drawn is not None
    gone = own.next(0)
    back = own.at(gone)
    assert back is not None
    both = Outages([((gone + back) / 2, back + 1)], drawn(0).drawn)
    assert both.at(gone) == back + 1


@given(st.integers(0, 50), st.lists(st.floats(0, 1000), min_size=1, max_size=20), st.randoms())
def test_drawn_outages_do_not_depend_on_the_order_of_questions(seed: int, moments: list[float], random) -> None:
    def answers(order: list[float]) -> dict[float, tuple[float | None, float]]:
        own = drawn(seed)
        return {moment: (own.at(moment), own.next(moment)) for moment in order}

    mixed = list(moments)
    random.shuffle(mixed)
    assert answers(sorted(moments)) == answers(mixed) == answers(mixed[::-1])


def absences(own: Outages, count: int = 2000) -> np.ndarray:
    edges, moment = [], 0.0
    for _ in range(count):
        gone = own.next(moment)
        back = own.at(gone)
        assert back is not None
        assert moment < gone < back
        assert own.at((gone + back) / 2) == back
        assert own.at((moment + gone) / 2) is None
        edges.append((gone, back))
        moment = back
    return np.array(edges)


def test_drawn_outages_have_the_means_that_are_asked_for() -> None:
    """Within five standard errors, and a fixed seed."""
    edges = absences(drawn(1))
    up = edges[:, 0] - np.append(0, edges[:-1, 1])
    down = edges[:, 1] - edges[:, 0]
    assert up.mean() == pytest.approx(10, rel=5 / math.sqrt(2000))
    assert down.mean() == pytest.approx(3, rel=5 / math.sqrt(2000))


def test_every_seed_and_worker_has_its_own() -> None:
    firsts = {drawn(seed, worker).next(0) for seed in range(5) for worker in range(3)}
    assert len(firsts) == 15
    assert drawn(4, 2).next(0) == drawn(4, 2).next(0)


def test_who_is_away() -> None:
    profile = Profile(outages=[Outage(worker=0, at=1, until=3), Outage(worker=2, at=2)])
    system = System.of(profile, 3)
    assert [system.away(moment).tolist() for moment in (0, 1, 2, 3)] == [
        [False, False, False],
        [True, False, False],
        [True, False, True],
        [False, False, True],
    ]
    assert not System.of(Profile(), 3).away(1).any()
    assert System.of(Profile(), 3).outages is None
