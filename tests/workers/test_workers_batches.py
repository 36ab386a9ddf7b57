from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.workers.batches import Batches, Order

numbers = st.integers(1, 23)


def taken(batches: Batches, steps: int) -> list[list[int]]:
    return [batches[step].tolist() for step in range(steps)]


@given(numbers, st.integers(1, 30), st.integers(0, 9), st.integers(0, 5))
def test_epochs_meet_every_sample_once_per_pass(n: int, size: int, seed: int, worker: int) -> None:
    indices = np.arange(100, 100 + n)
    batches = Batches(indices, size, "epochs", seed, worker)
    rows = taken(batches, 3 * n)
    assert {len(row) for row in rows} == {min(size, n)}  # all of full size, straddling two passes if need be
    stream = list(chain.from_iterable(rows))
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == indices.tolist()


@given(numbers, st.integers(1, 30), st.integers(0, 9))
def test_draws_are_without_replacement_within_a_batch(n: int, size: int, seed: int) -> None:
    batches = Batches(np.arange(100, 100 + n), size, "draws", seed, 0)
    for row in taken(batches, 70):  # beyond one block of draws
        assert len(row) == len(set(row)) == min(size, n)
        assert set(row) <= set(range(100, 100 + n))


@pytest.mark.parametrize("order", ["epochs", "draws"])
@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 5), (3, 8), (1, 1), (200, 7)])
def test_a_batch_is_a_pure_function_of_the_step(order: Order, n: int, size: int) -> None:
    expected = taken(Batches(np.arange(n), size, order, 7, 2), 150)
    jumping = Batches(np.arange(n), size, order, 7, 2)
    for step in (149, 0, 64, 63, 1, 149, 3, 128, 2):
        assert jumping[step].tolist() == expected[step]


@pytest.mark.parametrize("order", ["epochs", "draws"])
def test_seeds_and_workers_have_streams_of_their_own(order: Order) -> None:
    streams = [
        tuple(map(tuple, taken(Batches(np.arange(50), 5, order, seed, worker), 20)))
        for seed in range(3)
        for worker in range(3)
    ]
    assert len(set(streams)) == 9


def test_passes_are_reshuffled() -> None:
    rows = taken(Batches(np.arange(20), 20, "epochs", 0, 0), 5)
    assert len({tuple(row) for row in rows}) == 5
    assert rows[0] != list(range(20))


def test_draws_are_uniform() -> None:
    counts = Counter(chain.from_iterable(taken(Batches(np.arange(10), 3, "draws", 1, 0), 2000)))
    assert min(counts.values()) > 520  # 600 expected, standard deviation 20
    assert max(counts.values()) < 680


@pytest.mark.parametrize("order", ["epochs", "draws"])
def test_fewer_samples_than_a_batch_are_all_taken(order: Order) -> None:
    for row in taken(Batches(np.array([4, 9, 2]), 100, order, 0, 0), 70):
        assert sorted(row) == [2, 4, 9]
