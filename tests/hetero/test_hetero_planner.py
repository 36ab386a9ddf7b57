"""The coordinator by itself: who trains how much, who averages, and how it goes on from its saved state."""

from __future__ import annotations

import numpy as np
import pytest

from sparsync.errors import UsageError
from sparsync.hetero import CyclePlanner, selection_probabilities

EVERYONE = np.arange(4)


def made(**options: object) -> CyclePlanner:
    planner = CyclePlanner(4, 5, **options)  # type: ignore[arg-type]
    planner.enter(EVERYONE)
    planner.negotiate([0.25, 0.5, 0.5, 1.0], EVERYONE)
    return planner


def test_a_plan_by_speeds() -> None:
    planner = made(period=2)
    assert planner.plan.units == (4, 2, 2, 1)
    assert planner.planned.tolist() == [40, 20, 20, 10]
    assert planner.cycle_seconds == 2 * 5 * 1.0
    assert not planner.negotiate([0.25, 0.5, 0.5, 1.0], EVERYONE)  # nothing has changed
    assert planner.negotiate([0.5, 1.0], np.array([1, 3]))
    assert planner.plan.units == (1, 2, 1, 1)


def test_the_first_selection_goes_by_the_plan() -> None:
    """Nobody has been seen twice: what is predicted is what is planned."""
    planner = made(members=2)
    chosen = planner.select_members(EVERYONE)
    assert chosen.predicted.tolist() == [20, 10, 10, 5]
    assert sorted([*chosen.ring.tolist(), *chosen.others.tolist()]) == [0, 1, 2, 3]
    assert len(chosen.ring) == 2
    assert chosen.broadcaster in chosen.ring
    p = selection_probabilities([20, 10, 10, 5])
    inclusion = p + sum(p[j] * p / (1 - p[j]) for j in range(4)) - p * p / (1 - p)
    assert chosen.expected == pytest.approx(inclusion)


def test_the_slowest_only() -> None:
    chosen = made(select="slowest", members=2).select_members(EVERYONE)
    assert 3 in chosen.ring
    assert 0 not in chosen.ring
    assert chosen.expected.sum() == 2


def test_who_begins_anew_counts_from_the_mean_version() -> None:
    planner = made()
    planner.versions[:] = [20, 10, 11, 5]
    assert planner.mean_version(np.array([0, 1])) == 15
    planner.enter(np.array([3]), 15)
    assert planner.versions.tolist() == [20, 10, 11, 15]
    assert planner.select_members(np.array([3])).predicted.tolist() == [15 + 5]


def test_one_that_was_restarted_chooses_the_same() -> None:
    one, other = made(seed=3), made(seed=3)
    for planner in (one, other):
        for _ in range(3):
            planner.cycle += 1
            planner.versions += planner.planned
            planner.select_members(EVERYONE)
    other = CyclePlanner(4, 5, seed=3)
    other.load_state_dict(one.state_dict())
    for planner in (one, other):
        planner.cycle += 1
        planner.versions += planner.planned
    left, right = one.select_members(EVERYONE), other.select_members(EVERYONE)
    assert left.ring.tolist() == right.ring.tolist()
    assert left.predicted.tolist() == right.predicted.tolist()
    assert one.state_dict() == other.state_dict()


def test_more_members_than_devices() -> None:
    with pytest.raises(UsageError, match="members=5 of 4 workers; ask for at most all of them"):
        CyclePlanner(4, 1, members=5)
