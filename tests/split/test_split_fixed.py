"""FLS and FPLS: docs/methods/psl.md 5.1, 5.2, property 9 and trap 7."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.split.fixed import fls, fpls

RNG = np.random.default_rng(0)


def rows(schedule) -> list[list[int]]:
    return schedule.toarray().tolist()


def as_written(counts: list[int], shares: list[int]) -> list[list[int]]:
    """The pseudocode of 5.1."""
    remaining, schedule = list(counts), []
    while any(remaining):
        row = [min(share, left) for share, left in zip(shares, remaining, strict=True)]
        remaining = [left - taken for left, taken in zip(remaining, row, strict=True)]
        schedule.append(row)
    return schedule


def test_fls_by_hand():
    assert rows(fls([5, 2, 1], 6, RNG)) == [[2, 2, 1], [2, 0, 0], [1, 0, 0]]


def test_fpls_by_hand():
    """B D_k / D = 2.5, 1, 0.5: half to even, 0 lifted to 1."""
    assert rows(fpls([5, 2, 1], 4, RNG)) == [[2, 1, 1], [2, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(("batch_size", "each"), [(1, 1), (3, 2), (5, 2), (7, 4)])
def test_half_is_rounded_to_even_and_lifted_to_one(batch_size, each):
    assert fls([20, 20], batch_size, RNG)[[0]].toarray().tolist() == [[each, each]]
    assert fpls([20, 20], batch_size, RNG)[[0]].toarray().tolist() == [[each, each]]


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=10), data=st.data())
def test_both_are_the_pseudocode(counts, data):
    batch_size = data.draw(st.integers(1, sum(counts)))
    equal = [max(1, round(batch_size / len(counts)))] * len(counts)
    proportional = [max(1, round(batch_size * count / sum(counts))) for count in counts]
    for sampler, shares in ((fls, equal), (fpls, proportional)):
        schedule = sampler(counts, batch_size, RNG)
        assert rows(schedule) == as_written(counts, shares)
        assert schedule.shape[0] == max(math.ceil(n / share) for n, share in zip(counts, shares, strict=True))


def test_p9_steps_are_those_of_global_sampling_where_clients_are_equal_and_shares_whole():
    for sampler in (fls, fpls):
        assert sampler([40] * 4, 16, RNG).shape[0] == 160 // 16
    assert fls([100, 20, 20, 20], 16, RNG).shape[0] == 100 // 4
    assert fpls([100, 20, 20, 20], 16, RNG).shape[0] == 160 // 16  # 10, 2, 2, 2
    assert fpls([103, 19, 19, 19], 16, RNG).shape[0] == 11  # rounded: 10, 2, 2, 2
    assert fls([10] * 3, 10, RNG).shape[0] == 4  # not 3: shares of 3
    assert fls([10] * 3, 5, RNG).shape[0] == 5  # not 6: shares of 2


def test_t7_more_clients_than_samples_in_a_batch():
    """The effective batch is K; with proportional shares at least K."""
    counts = [3] * 19 + [9]
    assert fls(counts, 8, RNG).sum(axis=1).tolist() == [20] * 3 + [1] * 6
    assert fpls(counts, 8, RNG).sum(axis=1).tolist() == [20] * 3 + [1] * 6
    assert fpls([3] * 19 + [57], 8, RNG).sum(axis=1).tolist() == [23] * 3 + [4] * 11 + [1]


def test_nothing_is_drawn():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    for sampler in (fls, fpls):
        assert rows(sampler([5, 2, 1], 4, rng)) == rows(sampler([5, 2, 1], 4, np.random.default_rng(1)))
    assert rng.bit_generator.state == before


def test_batches_shrink():
    for sampler in (fls, fpls):
        sizes = sampler([5000, 120, 37, 800, 1], 64, RNG).sum(axis=1)
        assert np.all(np.diff(sizes) <= 0)
        assert sizes[-1] < sizes[0]
