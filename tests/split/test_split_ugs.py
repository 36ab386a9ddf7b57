"""UGS: docs/methods/psl.md 5.3, properties 2, 3, 4 and 8, and trap 7.

Critical values are the 0.999 quantiles of chi-square. Seeds are fixed, so what passes once passes always.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsync.split.fixed import fls, fpls
from sparsync.split.schedule import deviations, expected_deviation
from sparsync.split.ugs import ugs
from sparsync.task.partitions import partition

SMALL = np.array([4, 3, 2])  # D = 9, batches of 3
EPOCHS = 84 * 300
CIFAR10 = np.repeat(np.arange(10), 5000)
Q = np.full(10, 0.1)


def critical(freedom: int) -> float:
    return float(stats.chi2.ppf(0.999, freedom))


@pytest.fixture(scope="module")
def epochs() -> np.ndarray:
    """Schedules of the small case, (epochs, T, K)."""
    rng = np.random.default_rng(0)
    return np.stack([ugs(SMALL, 3, rng).toarray() for _ in range(EPOCHS)])


def labels_per_step(schedule, parts, rng) -> np.ndarray:
    """Every client walks through a permutation of its samples: labels of each global batch, (T, M)."""
    steps, table = np.arange(schedule.shape[0]), schedule.toarray()
    cells = [np.repeat(steps, table[:, k]) * 10 + CIFAR10[rng.permutation(part)] for k, part in enumerate(parts)]
    return np.bincount(np.concatenate(cells), minlength=len(steps) * 10).reshape(-1, 10)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=12), data=st.data())
def test_p2_sizes_differ_by_at_most_one(counts, data):
    total = sum(counts)
    batch_size = data.draw(st.integers(1, total))
    steps = -(-total // batch_size)
    sizes = ugs(counts, batch_size, np.random.default_rng(0)).sum(axis=1)
    assert len(sizes) == steps
    assert set(sizes.tolist()) <= {total // steps, -(-total // steps)}


def test_p2_sizes_of_cifar10():
    sizes = ugs([40_000, 9_999, 1], 128, np.random.default_rng(0)).sum(axis=1)
    assert Counter(sizes.tolist()) == {128: 343, 127: 48}


def test_p3_rows_follow_the_multivariate_hypergeometric_law(epochs):
    """The 84 subsets of 3 samples out of 9 are equally likely; 9 histograms of owners, so 8 degrees of freedom."""
    owners = np.repeat(np.arange(3), SMALL)
    law = Counter(tuple(np.bincount(owners[list(subset)], minlength=3)) for subset in combinations(range(9), 3))
    assert (sum(law.values()), len(law)) == (84, 9)
    for t in range(3):
        found = Counter(map(tuple, epochs[:, t]))
        assert set(found) <= set(law)
        chi2 = sum((found[row] - 300 * subsets) ** 2 / (300 * subsets) for row, subsets in law.items())
        assert chi2 < critical(8)  # 26.1


def test_p3_with_the_clients_permutations_every_subset_of_the_pooled_data_is_equally_likely(epochs):
    rng = np.random.default_rng(1)
    starts = np.cumsum(SMALL) - SMALL
    found = Counter()
    for first, second, _ in epochs:  # the second batch, which depends on the first
        batch = [
            start + rng.permutation(count)[a : a + b]
            for start, count, a, b in zip(starts, SMALL, first, second, strict=True)
        ]
        found[tuple(sorted(np.concatenate(batch).tolist()))] += 1
    assert len(found) == 84
    assert sum((n - 300) ** 2 / 300 for n in found.values()) < critical(83)  # 128.6


def test_p3_moments():
    counts, batch_size = np.array([500, 300, 150, 50, 11]), 50
    rng = np.random.default_rng(0)
    table = np.stack([ugs(counts, batch_size, rng).toarray() for _ in range(600)])  # (epochs, T, K)
    total, sizes = counts.sum(), table[0].sum(axis=1, keepdims=True)  # 48 and 49
    share = counts / total
    variance = sizes * share * (1 - share) * (total - sizes) / (total - 1)
    z = (table - sizes * share) / np.sqrt(variance)
    assert np.abs(table.mean(axis=0) - sizes * share).max() < 5 * np.sqrt(variance.max() / 600)
    assert np.all((z**2).mean(axis=(0, 1)) > 0.95)
    assert np.all((z**2).mean(axis=(0, 1)) < 1.05)


def test_p4_rows_of_an_epoch_are_negatively_correlated(epochs):
    """Rows of equal sizes with a fixed sum are exchangeable: the correlation of any two is -1/(T - 1)."""
    assert np.all(epochs.sum(axis=1) == SMALL)
    for k in range(3):
        correlation = np.corrcoef(epochs[:, :, k].T)
        assert correlation[np.triu_indices(3, 1)] == pytest.approx([-0.5] * 3, abs=0.02)  # 4 standard errors


def test_t7_more_clients_than_samples_in_a_batch():
    schedule = ugs([5] * 200, 16, np.random.default_rng(0))
    assert set(schedule.sum(axis=1).tolist()) == {15, 16}
    assert np.diff(schedule.indptr).max() <= 16  # active clients: the others are idle


@pytest.mark.parametrize(
    ("spec", "workers"),
    [("extended-dirichlet:classes=2,alpha=3", 16), ("extended-dirichlet:classes=2,alpha=3", 128), ("iid", 32)],
)
def test_p8_deviation_depends_on_no_partition(spec, workers):
    """Over three epochs; the formula's 0.2113, within 4 standard errors (one batch: 0.05)."""
    parts = partition(spec, CIFAR10, workers, 0)
    rng = np.random.default_rng(0)
    counts = list(map(len, parts))
    found = [deviations(labels_per_step(ugs(counts, 128, rng), parts, rng), Q) for _ in range(3)]
    assert np.mean(found) == pytest.approx(expected_deviation(Q, 128, 50_000), abs=4 * 0.05 / np.sqrt(3 * 391))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_p8_fixed_shares_end_in_a_tail_of_few_labels(seed):
    parts = partition("extended-dirichlet:classes=2,alpha=3", CIFAR10, 16, seed)
    rng = np.random.default_rng(0)
    counts = list(map(len, parts))
    steps = [sampler(counts, 128, rng).shape[0] for sampler in (ugs, fpls, fls)]
    assert steps[0] == 391
    assert steps == sorted(set(steps))  # FLS takes most steps, UGS least
    found = deviations(labels_per_step(fls(counts, 128, rng), parts, rng), Q)
    tenth = len(found) // 10
    assert found[:tenth].mean() < expected_deviation(Q, 128, 50_000)
    assert found[-tenth:].mean() > 5 * expected_deviation(Q, 128, 50_000)


def test_every_epoch_draws_anew_and_from_the_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # it is the global state that is looked at
    rng = np.random.default_rng(0)
    first, second = ugs(SMALL * 10, 9, rng).toarray(), ugs(SMALL * 10, 9, rng).toarray()
    assert not np.array_equal(first, second)
    assert np.array_equal(first, ugs(SMALL * 10, 9, np.random.default_rng(0)).toarray())
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
