"""The ring of HADFL: docs/methods/hadfl.md 4.6, properties 5 and 7. The oracle passes real messages."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.hetero import RingPlan, ring_mean
from tolerance import distance, rounding


def passed_around(vectors, weights=None):
    """Every member's result and what each sent, by the algorithm as published: two loops, one message at a time."""
    n = len(vectors)
    shares = None if weights is None else np.array(weights) / np.sum(weights)
    held = [w.clone() if shares is None else w * float(shares[k]) for k, w in enumerate(vectors)]
    chunks = [list(torch.tensor_split(w, n)) for w in held]
    sent = [0] * n
    for s in range(n - 1):
        messages = [chunks[i][(i - s) % n].clone() for i in range(n)]
        for i in range(n):
            own = (i - s - 1) % n
            chunks[i][own] = messages[(i - 1) % n] + chunks[i][own]
            sent[i] += messages[i].numel()
    for s in range(n - 1):
        messages = [chunks[i][(i + 1 - s) % n].clone() for i in range(n)]
        for i in range(n):
            chunks[i][(i - s) % n] = messages[(i - 1) % n]
            sent[i] += messages[i].numel()
    whole = [torch.cat(c) for c in chunks]
    return [w / n if shares is None else w for w in whole], sent


def some(n, d, dtype=torch.float32, seed=0):
    """Numbers of many magnitudes, so that the order of summation shows."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, d)) * 10.0 ** rng.integers(-3, 4, (n, d))).to(dtype)


def test_three_members_by_hand():
    """2^24 + 1 is 2^24 in float32: chunk 0 is (big + 1) - big, chunk 1 (1 - big) + big, chunk 2 (-big + big) + 1."""
    big = 2.0**24
    vectors = torch.tensor([[big, big, big], [1, 1, 1], [-big, -big, -big]])
    assert (ring_mean(vectors) * 3).tolist() == [0, 1, 1]
    assert vectors.mean(dim=0).tolist() == [0, 0, 0]


@given(n=st.integers(1, 9), d=st.integers(0, 40), seed=st.integers(0, 99), weighted=st.booleans())
def test_what_every_member_of_a_real_ring_holds(n, d, seed, weighted):
    vectors = some(n, d, seed=seed)
    weights = np.random.default_rng(seed).integers(1, 100, n) if weighted else None
    results, sent = passed_around(vectors, weights)
    mean = ring_mean(vectors, weights)
    for result in results:
        assert torch.equal(result, mean)
    assert sent == RingPlan(n, d).floats_sent.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_many_numbers_of_every_type(dtype):
    vectors = some(5, 100_003, dtype)
    mean = ring_mean(vectors)
    assert mean.dtype == dtype
    assert torch.equal(mean, passed_around(vectors)[0][3])
    weights = [3, 1, 4, 1, 5]
    assert torch.equal(ring_mean(vectors, weights), passed_around(vectors, weights)[0][2])


def test_it_is_the_arithmetic_mean():
    vectors = some(7, 1001)
    exact = vectors.double()
    assert distance(ring_mean(vectors), exact.mean(dim=0)) <= rounding(9, float(exact.abs().max()), torch.float32)
    most = rounding(9, float(exact.abs().max()))  # a product, sums of seven, a division
    assert distance(ring_mean(exact), exact.mean(dim=0)) <= most
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 7]).double()
    expected = (weights[:, None] * exact).sum(dim=0) / 28
    assert distance(ring_mean(exact, weights), expected) <= most


def test_the_mean_of_the_members_stays():
    vectors = some(4, 33, torch.float64)
    after = ring_mean(vectors).repeat(4, 1)
    assert distance(after.mean(dim=0), vectors.mean(dim=0)) <= rounding(12, float(vectors.abs().max()))


def test_the_order_of_members_decides_the_last_bits():
    vectors = some(5, 1000)
    turned = ring_mean([vectors[k] for k in (1, 0, 2, 4, 3)])
    assert not torch.equal(turned, ring_mean(vectors))
    assert turned == pytest.approx(ring_mean(vectors), rel=1e-3, abs=1e-3)


def test_rows_of_anything_and_left_as_they_are():
    vectors = some(3, 10)
    before = vectors.clone()
    expected = ring_mean(vectors)
    assert torch.equal(ring_mean([*vectors]), expected)
    assert torch.equal(ring_mean([torch.nn.Parameter(row.clone()) for row in vectors]), expected)
    assert torch.equal(ring_mean(vectors.T.contiguous().T), expected)  # rows that are not contiguous
    ring_mean(vectors, [1, 2, 3])
    assert torch.equal(vectors, before)
    assert not expected.requires_grad


def test_a_member_alone_keeps_what_it_has():
    vector = some(1, 10)
    mean = ring_mean(vector)
    assert torch.equal(mean, vector[0])
    assert torch.equal(ring_mean(vector, [17]), vector[0])
    mean.zero_()
    assert vector.any()
    assert RingPlan(1, 10).steps == 0
    assert RingPlan(1, 10).floats_sent.tolist() == [0]


# The plan


def test_thirteen_numbers_on_four_members():
    plan = RingPlan(4, 13)
    assert plan.bounds == (0, 4, 7, 10, 13)
    assert plan.steps == 6
    assert plan.floats_sent.tolist() == [20, 20, 19, 19]


@given(n=st.integers(1, 12), d=st.integers(0, 60))
def test_chunks_are_those_of_array_split(n, d):
    plan = RingPlan(n, d)
    cut = [len(part) for part in np.array_split(np.arange(d), n)]
    assert np.diff(plan.bounds).tolist() == cut
    assert plan.bounds[0] == 0
    sent = plan.floats_sent
    assert sent.sum() == 2 * d * (n - 1)
    assert np.abs(sent - 2 * d * (n - 1) / n).max() <= 2


@given(n=st.integers(1, 8), d=st.integers(0, 30))
def test_following_the_plan_gives_the_ring(n, d):
    """Members who know nothing but the plan: what they hold, and what they sent."""
    plan, vectors = RingPlan(n, d), some(n, d)
    cuts = [slice(*pair) for pair in pairwise(plan.bounds)]
    held, sent = vectors.clone(), np.zeros(n, int)
    for step in range(plan.steps):
        messages = [held[i, cuts[plan.sends(step, i)]].clone() for i in range(n)]
        for i in range(n):
            chunk, message = plan.receives(step, i), messages[i - 1]
            assert chunk == plan.sends(step, (i - 1) % n)
            own = held[i, cuts[chunk]]
            own.copy_(message + own if plan.adds(step) else message)
            sent[i] += messages[i].numel()
    for row in held:
        assert torch.equal(row / n, ring_mean(vectors))
    assert sent.tolist() == plan.floats_sent.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RingPlan(0, 5), "^ring: members=0; expected at least 1$"),
        (lambda: RingPlan(2, -1), "ring: numel=-1; expected at least 0"),
        (lambda: ring_mean([]), "ring: vectors are none; expected at least one"),
        (lambda: ring_mean(torch.zeros(0, 3)), "ring: vectors are none"),
        (lambda: ring_mean(torch.zeros(3)), r"ring: vectors are torch.float32 \(\) on cpu"),
        (lambda: ring_mean(torch.zeros(2, 3, dtype=torch.int64)), r"ring: vectors are torch.int64 \(3,\) on cpu"),
        (lambda: ring_mean([torch.zeros(3), torch.zeros(4)]), r"torch.float32 \(3,\) on cpu, torch.float32 \(4,\)"),
        (lambda: ring_mean([torch.zeros(3), torch.zeros(3).double()]), r"torch.float32 \(3,\) on cpu, torch.float64"),
        (lambda: ring_mean(torch.zeros(2, 3), [1]), r"ring: weights has shape \(1,\); expected \(2,\)"),
        (lambda: ring_mean(torch.zeros(2, 3), [1, 0]), r"ring: weights\[1\] is 0; expected a finite number above 0"),
        (lambda: ring_mean(torch.zeros(2, 3), [1, math.nan]), r"ring: weights\[1\] is nan"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()
