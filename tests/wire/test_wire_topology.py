from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.wire import HEADER_BYTES, TOPOLOGIES, Ring, Star

workers = st.integers(2, 40)
numel = st.integers(0, 10_000) | st.integers(10**8, 10**12)
itemsize = st.sampled_from([2, 4, 8])


def ring_all_reduce(workers: int, numel: int) -> tuple[list[int], list[int], list[list[list[int]]]]:
    """Reduce-scatter and all-gather, message by message, on lists of whose numbers each entry already holds."""
    bounds = [k * numel // workers for k in range(workers + 1)]
    holds = [[{k} for _ in range(numel)] for k in range(workers)]
    sent, received = [0] * workers, [0] * workers

    def pass_on(chunk_of: list[int], reduce: bool) -> None:
        messages = []
        for k in range(workers):
            low, high = bounds[chunk_of[k]], bounds[chunk_of[k] + 1]
            messages.append((low, [set(part) for part in holds[k][low:high]]))
        for k, (low, parts) in enumerate(messages):
            to = (k + 1) % workers
            sent[k] += len(parts)
            received[to] += len(parts)
            for at, part in enumerate(parts, low):
                holds[to][at] = holds[to][at] | part if reduce else part

    for step in range(workers - 1):
        pass_on([(k - step) % workers for k in range(workers)], reduce=True)
    for step in range(workers - 1):
        pass_on([(k + 1 - step) % workers for k in range(workers)], reduce=False)
    return sent, received, [[sorted(part) for part in row] for row in holds]


@pytest.mark.parametrize("workers", range(2, 10))
@pytest.mark.parametrize("numel", [0, 1, 2, 7, 8, 9, 25])
def test_ring_equals_a_literal_simulation(workers: int, numel: int) -> None:
    sent, received, holds = ring_all_reduce(workers, numel)
    assert all(part == list(range(workers)) for row in holds for part in row)  # the reference really reduces
    traffic = Ring().mean(workers, numel, 4)
    assert traffic.sent.tolist() == [4 * n for n in sent]
    assert traffic.received.tolist() == [4 * n for n in received]
    assert traffic.messages == 2 * (workers - 1)


@given(workers, numel, itemsize)
def test_ring_sums_to_exactly_two_k_minus_one(workers: int, numel: int, itemsize: int) -> None:
    traffic = Ring().mean(workers, numel, itemsize)
    exact = 2 * (workers - 1) * numel * itemsize
    assert int(traffic.sent.sum()) == int(traffic.received.sum()) == traffic.total == exact
    assert int(traffic.sent.max() - traffic.sent.min()) <= 2 * itemsize
    assert int(traffic.sent.max()) <= traffic.serial_bytes <= int(traffic.sent.min()) + 2 * workers * itemsize
    assert traffic.sent.dtype == traffic.received.dtype == np.int64


@given(workers, numel, itemsize)
def test_ring_broadcast(workers: int, numel: int, itemsize: int) -> None:
    size = numel * itemsize
    traffic = Ring().broadcast(workers, numel, itemsize)
    assert traffic.sent.tolist() == [size] * (workers - 1) + [0]
    assert traffic.received.tolist() == [0] + [size] * (workers - 1)
    assert traffic.total == (workers - 1) * size
    assert (traffic.messages, traffic.serial_bytes) == (workers - 1, (workers - 1) * size)


@given(workers, numel, itemsize)
def test_star_counts(workers: int, numel: int, itemsize: int) -> None:
    size = HEADER_BYTES + numel * itemsize
    mean = Star().mean(workers, numel, itemsize)
    assert mean.sent.tolist() == mean.received.tolist() == [size] * workers
    assert (mean.total, mean.messages, mean.serial_bytes) == (2 * workers * size, 2, 2 * size)
    broadcast = Star().broadcast(workers, numel, itemsize)
    assert (broadcast.sent.tolist(), broadcast.received.tolist()) == ([0] * workers, [size] * workers)
    assert (broadcast.total, broadcast.messages, broadcast.serial_bytes) == (workers * size, 1, size)
    decision = Star().decision(workers)
    assert (decision.sent.tolist(), decision.received.tolist()) == ([0] * workers, [21] * workers)
    assert (decision.total, decision.messages, decision.serial_bytes) == (workers * 21, 1, 21)


@pytest.mark.parametrize("name", ["ring", "star"])
def test_one_worker_says_nothing(name: str) -> None:
    traffic = TOPOLOGIES[name].mean(1, 100, 4)
    assert traffic.sent.tolist() == traffic.received.tolist() == [0]
    assert (traffic.total, traffic.messages, traffic.serial_bytes) == (0, 0, 0)


def test_a_ring_decides_for_free() -> None:
    traffic = Ring().decision(5)
    assert (traffic.total, traffic.messages, traffic.serial_bytes) == (0, 0, 0)
    assert traffic.sent.tolist() == traffic.received.tolist() == [0] * 5


def test_names_are_the_registered_ones() -> None:
    assert {name: topology.name for name, topology in TOPOLOGIES.items()} == {"ring": "ring", "star": "star"}
