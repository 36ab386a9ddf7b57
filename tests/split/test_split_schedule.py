"""What all samplers share, and the contract that each keeps: docs/methods/psl.md 5, property 1, and traps 6 and 11."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_array

from sparsync.errors import UsageError
from sparsync.split.fixed import fls, fpls
from sparsync.split.schedule import balanced, check, deviations, expected_deviation, from_owners, serfling
from sparsync.split.ugs import ugs
from tolerance import rounding

SAMPLERS = [fls, fpls, ugs]
TENTHS = np.full(10, 0.1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], int]:
    """Counts and a batch size from 1 to their sum: below and above K."""
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    return counts, draw(st.integers(1, sum(counts)))


def assert_canonical(schedule: csr_array) -> None:
    assert isinstance(schedule, csr_array)
    assert schedule.dtype == np.int64
    fresh = csr_array((schedule.data, schedule.indices, schedule.indptr), shape=schedule.shape)  # no cached verdict
    assert fresh.has_canonical_format
    assert schedule.data.min() >= 1


# The contract of every sampler


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(problem=problems(), seed=st.integers(0, 99))
def test_an_epoch_uses_every_sample_once_and_no_batch_is_empty(sampler, problem, seed):
    counts, batch_size = problem
    schedule = sampler(counts, batch_size, np.random.default_rng(seed))
    assert schedule.sum(axis=0).tolist() == counts
    assert schedule.sum(axis=1).min() >= 1
    assert_canonical(schedule)
    again = sampler(counts, batch_size, np.random.default_rng(seed))
    assert np.array_equal(schedule.toarray(), again.toarray())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_samplers_take_integers_of_any_width_and_leave_them_alone(sampler, dtype):
    counts = np.array([100, 100, 100], dtype=dtype)  # as int8, their sum and B D_k do not fit
    schedule = sampler(counts, np.int64(30), np.random.default_rng(0))
    assert schedule.sum() == 300
    assert counts.tolist() == [100, 100, 100]
    assert_canonical(schedule)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_single_client_contributes_whole_batches(sampler, batch_size):
    assert sampler([7], batch_size, np.random.default_rng(0)).toarray().tolist() == [[batch_size]] * (7 // batch_size)


@pytest.mark.parametrize("sampler", [check, *SAMPLERS])
@pytest.mark.parametrize(
    ("counts", "batch_size", "message"),
    [
        ([], 1, r"counts has shape \(0,\); expected \(K,\)"),
        (5, 1, r"counts has shape \(\)"),
        ([[1, 2], [3, 4]], 1, r"counts has shape \(2, 2\)"),
        ([1.5, 2.0], 1, "counts is of type float64; expected integers"),
        ([True, True], 1, "counts is of type bool"),
        ([3, 0, 2, 0], 1, "client 1 has 0 samples; expected at least 1: give it some, or leave it out"),
        ([3, 1, -2], 1, "client 2 has -2 samples"),
        ([3, 2], 0, "batch_size=0; expected an integer from 1 to 5, all the clients' samples"),
        ([3, 2], -1, "batch_size=-1"),
        ([3, 2], 6, "batch_size=6; expected an integer from 1 to 5"),
        ([3, 2], 2.5, "batch_size=2.5; expected an integer"),
    ],
)
def test_mistakes(sampler, counts, batch_size, message):
    """Among them docs/methods/psl.md, trap 6: with an empty client, the authors' loop never ends."""
    rng = () if sampler is check else (np.random.default_rng(0),)
    with pytest.raises(UsageError, match=message):
        sampler(counts, batch_size, *rng)


def test_check_returns_a_copy_in_int64():
    counts = np.array([3, 2], dtype=np.int64)
    held = check(counts, 5)
    held[0] = 9
    assert held.dtype == np.int64
    assert counts.tolist() == [3, 2]


# Blocks


@given(total=st.integers(1, 500), data=st.data())
def test_balanced_blocks_are_those_of_array_split(total, data):
    batch_size = data.draw(st.integers(1, total))
    expected = [len(block) for block in np.array_split(np.arange(total), math.ceil(total / batch_size))]
    assert balanced(total, batch_size).tolist() == expected
    assert max(expected) <= batch_size


def test_balanced_blocks_of_cifar10():
    assert balanced(50_000, 128).tolist() == [128] * 343 + [127] * 48


def test_histograms_of_blocks_by_hand():
    owners = np.array([2, 0, 2, 1, 1, 3])
    schedule = from_owners(owners, np.array([3, 2, 1]), clients=5)
    assert schedule.toarray().tolist() == [[1, 0, 2, 0, 0], [0, 2, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert schedule[[0]].indices.tolist() == [0, 2]  # the active clients
    assert owners.tolist() == [2, 0, 2, 1, 1, 3]
    assert_canonical(schedule)


@given(blocks=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=20), min_size=1, max_size=8))
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_histograms_of_any_blocks(dtype, blocks):
    owners = np.concatenate(blocks).astype(dtype)
    before = owners.copy()
    schedule = from_owners(owners, np.array(list(map(len, blocks))), clients=6)
    assert schedule.toarray().tolist() == [np.bincount(block, minlength=6).tolist() for block in blocks]
    assert np.array_equal(owners, before)
    assert_canonical(schedule)


@pytest.mark.parametrize(
    ("owners", "sizes", "message"),
    [
        ([0, 1, 2], [2], "sizes must be at least 1 and sum to 3"),
        ([0, 1, 2], [2, 2], "sizes must be at least 1 and sum to 3"),
        ([0, 1, 2], [3, 0], "sizes must be at least 1"),
        ([0, 1, 2], [4, -1], "sizes must be at least 1"),
        ([], [], "sizes must be at least 1 and sum to 0"),
        ([0, 1, 3], [3], "owners 0 to 3; expected 0 to 2"),
        ([-1, 1, 2], [3], "owners -1 to 2"),
    ],
)
def test_blocks_that_do_not_fit(owners, sizes, message):
    with pytest.raises(UsageError, match=f"from_owners: {message}"):
        from_owners(np.array(owners, dtype=np.int64), np.array(sizes, dtype=np.int64), clients=3)


# Deviation


def test_deviations_by_hand():
    """Trap 11: fractions, never counts, of the batch's actual size."""
    table = [[2, 2, 4], [4, 0, 0], [0, 0, 1], [1, 1, 2], [0, 3, 1]]
    assert deviations(table, [0.25, 0.25, 0.5]).tolist() == [0, 1.5, 1, 0, 1]


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3).filter(any), min_size=1, max_size=5))
def test_deviations_are_bounded_and_do_not_depend_on_a_batch_s_size(table):
    q = np.array([0.2, 0.3, 0.5])
    found = deviations(table, q)
    assert found.shape == (len(table),)
    assert np.all((found >= 0) & (found < 2))
    assert deviations(np.multiply(table, 7), q) == pytest.approx(
        found, abs=rounding(12, 2)
    )  # of shares that sum up to 2


@pytest.mark.parametrize(
    ("table", "q", "message"),
    [
        ([[1, 2]], [0.2, 0.3, 0.5], r"shapes \(1, 2\) and \(3,\); expected \(T, M\) and \(M,\)"),
        ([1, 2], [0.5, 0.5], r"shapes \(2,\)"),
        ([[1, 2]], [50, 50], "q sums to 100; expected fractions"),
        ([[1, 2], [0, 0]], [0.5, 0.5], "step 1 has no samples"),
    ],
)
def test_mistaken_deviations(table, q, message):
    with pytest.raises(UsageError, match=f"deviations: {message}"):
        deviations(table, q)


def absolute_deviation(q: float, batch_size: int, total: int) -> float:
    """E|n/B - q|, exactly: n is hypergeometric."""
    n = np.arange(batch_size + 1)
    return float(stats.hypergeom.pmf(n, total, round(q * total), batch_size) @ np.abs(n / batch_size - q))


def test_expected_deviation():
    assert expected_deviation(TENTHS, 128, 50_000) == pytest.approx(0.2113, abs=5e-5)
    assert expected_deviation(TENTHS, 50_000, 50_000) == 0  # the batch is the whole
    assert expected_deviation([1.0], 1, 1) == 0
    for q, batch_size, total in ((TENTHS, 128, 50_000), (np.array([0.1, 0.2, 0.7]), 64, 100), (TENTHS, 64, 200)):
        exact = sum(absolute_deviation(one, batch_size, total) for one in q)
        assert expected_deviation(q, batch_size, total) == pytest.approx(exact, rel=0.02)


def test_serfling_bounds_the_exact_probability():
    assert serfling(0.1, 128, 50_000) == pytest.approx(2 * math.exp(-2.56 / (1 - 127 / 50_000)), rel=rounding(12))
    assert serfling(0.01, 128, 50_000) == 1  # says nothing
    for batch_size, total in ((10, 50), (40, 50), (50, 50), (60, 1000)):
        n = np.arange(batch_size + 1)
        law = stats.hypergeom.pmf(n, total, total // 2, batch_size)
        for eps in (0.05, 0.1, 0.2, 0.3):
            assert law[np.abs(n / batch_size - 0.5) >= eps].sum() <= serfling(eps, batch_size, total)
