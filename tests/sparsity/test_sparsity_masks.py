"""Exact selection: docs/methods/sparse-baselines.md B1, docs/methods/sparsyfed.md P5; and counts on supports."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsync.errors import UsageError
from sparsync.sparsity import (
    ParamView,
    deactivated,
    iou,
    kept,
    layer_top_k_mask,
    overlap,
    prunable_names,
    regrown,
    top_k_mask,
)
from sparsync.workers.layout import Layout

FEW_VALUES = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -math.inf, math.nan, 1e-45]), min_size=1, max_size=30)


def rank(value: float) -> float:
    """By magnitude; NaN above infinity."""
    return math.inf if math.isnan(value) else min(abs(value), 1e300)


def by_sorting(values: list[float], k: int) -> list[bool]:
    """The readable truth: a stable sort by falling magnitude keeps equal ones in order."""
    chosen = sorted(range(len(values)), key=lambda i: -rank(values[i]))[:k]
    return [i in chosen for i in range(len(values))]


@pytest.mark.parametrize(
    ("numel", "sparsity", "k"),
    [(11_164_352, 0.95, 558_218), (11_164_352, 0.9, 1_116_435), (11_038_400, 0.9, 1_103_840), (5, 0.5, 3), (7, 0, 7)],
)
def test_kept_of_the_methods(numel, sparsity, k):
    assert kept(numel, sparsity) == k
    assert kept(numel, 1.0) == 0


@given(values=FEW_VALUES, data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_exactly_the_k_first_largest_despite_ties_zeros_and_nan(values, data, dtype):
    k = data.draw(st.integers(0, len(values)))
    x = torch.tensor(values, dtype=dtype)
    assert top_k_mask(x, k).tolist() == by_sorting(x.tolist(), k)


@pytest.mark.parametrize("n", [1000, 100_000])
def test_kept_magnitudes_are_at_least_dropped_ones(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)).relu()
    for k in (1, n // 20, n // 3, n - n // 3, n - 1):
        mask = top_k_mask(x, k)
        assert mask.sum() == k
        assert x[mask].abs().min() >= x[~mask].abs().max()


def test_the_same_for_any_tensor_layout():
    x = torch.randn(40, 50).round()
    assert torch.equal(top_k_mask(x.T[3], 7), top_k_mask(x.T[3].clone(), 7))


def test_global_selection_gives_layers_what_their_magnitudes_earn():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    view = ParamView(Layout.of_parameters(module).slots, prunable_names(module))
    x = torch.tensor([4.0, -5.0, 3.0, 0.1, 1.0, 0.2, -2.0, 0.3])
    assert view.layer_density(top_k_mask(x, 4)) == {"0.weight": 0.75, "1.weight": 0.25}
    mask = layer_top_k_mask(view, x, [1, 2])
    assert mask.tolist() == [0, 1, 0, 0, 1, 0, 1, 0]
    assert layer_top_k_mask(view, x, [0, 4]).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kept(10, 1.5), "sparsity=1.5; expected a fraction of zeros from 0 to 1"),
        (lambda: kept(10, math.nan), "sparsity=nan"),
        (lambda: top_k_mask(torch.zeros(3), 4), "k=4 of 3 entries"),
        (lambda: top_k_mask(torch.zeros(3), -1), "k=-1 of 3 entries"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_counts_on_supports():
    received = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0])
    trained = torch.tensor([1.5, -0.1, 0.0, 0.0, 3.0])
    uploaded = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0])
    assert regrown(received, trained) == 1
    assert deactivated(received, trained, uploaded) == 3
    assert deactivated(received != 0, trained != 0, uploaded != 0) == 3


def test_agreement_of_supports():
    a, b = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0.0, -2.0, 3.0, 1.0, 0.0])
    assert (iou(a, b), overlap(a, b)) == (1 / 4, 1 / 3)
    assert iou(a, a) == overlap(a, a) == 1
    empty = torch.zeros(5)
    assert iou(empty, empty) == overlap(empty, empty) == 1
    assert iou(a, empty) == overlap(a, empty) == 0
