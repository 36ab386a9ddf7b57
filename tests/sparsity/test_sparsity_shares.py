"""Counts that are shares of a whole, where the product in floating point lies beside the whole number it should be."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from sparsync.shares import exact
from sparsync.sparsity import ActivationPruning, CosineDrop, Cubic, counts, erk, kept, uniform

BIG = 100 * 2**27  # counts above 2^24, which float32 does not hold


@pytest.mark.parametrize("share", [0.05, np.float64(0.05), Fraction(1, 20)])
def test_a_share_is_the_fraction_that_its_decimal_text_says(share):
    assert exact(share) == Fraction(1, 20)


@pytest.mark.parametrize(("share", "ones"), [(0.29, 29), (0.57, 57), (0.58, 58)])
def test_a_layer_s_share_is_rounded_down_but_not_by_rounding_errors(share, ones):
    assert counts([(10, 10)], [share]) == counts([(10, 10)], uniform([(10, 10)], share)) == [ones]
    assert counts([(BIG,)], [share]) == [ones * 2**27]


@pytest.mark.parametrize("sparsity", [0.34, 0.55, 0.56, 0.78, 0.8])
def test_erk_gives_alike_layers_their_whole_numbers(sparsity):
    shapes = [(10, 10), (10, 10)]
    densities = erk(shapes, 1 - exact(sparsity))
    assert counts(shapes, densities) == [100 - round(100 * sparsity)] * 2


def test_erk_of_large_layers_is_whole_too():
    wide = (10 * 2**12, 10 * 2**12)
    assert counts([wide, wide], erk([wide, wide], Fraction(22, 100))) == [22 * 2**24] * 2


@pytest.mark.parametrize(
    ("ramp", "numel", "zeros"), [((0.2, 0.8, 2), 100, 72), ((0.5, 0.8, 2), 1000, 762), ((0.2, 0.8, 2), BIG + 100, None)]
)
def test_the_ramp_s_middle_is_the_decimal_number_and_halves_go_to_the_even_one(ramp, numel, zeros):
    at = Cubic(*ramp)(1)
    assert at in (0.725, 0.7625)
    assert numel - kept(numel, at) == (725 * BIG // 1000 + 72 if zeros is None else zeros)


@pytest.mark.parametrize(("share", "end"), [(0.1, 3), (0.1, 6), (0.4, 9)])
def test_a_third_of_the_cosine_is_three_quarters(share, end):
    drop = CosineDrop(share, end)
    assert (drop(end // 3), drop(2 * end // 3)) == (float(exact(share) * 3 / 4), float(exact(share) / 4))
    assert drop(0) == share


@pytest.mark.parametrize(
    ("ones", "weights", "inputs", "stay"), [(11, 20, 100, 55), (7, 25, 50, 14), (7, 25, 300, 84), (14, 25, 75, 42)]
)
def test_saved_inputs_are_as_dense_as_the_weight_and_not_by_one_denser(ones, weights, inputs, stay):
    layer = nn.Linear(5, weights // 5)
    with torch.no_grad():
        layer.weight.view(-1)[ones:] = 0
    assert int(layer.weight.count_nonzero()) == ones
    x = torch.arange(1, inputs + 1, dtype=torch.float32).view(-1, 5)
    with ActivationPruning(layer) as pruning:
        layer(x)
        assert pruning.densities["weight"] * inputs == pytest.approx(stay)


@pytest.mark.parametrize(("sparsity", "stay"), [(0.95, 5), (0.7, 30)])
def test_a_density_that_is_given_as_a_fraction_is_meant_exactly(sparsity, stay):
    layer = nn.Linear(5, 5)
    with ActivationPruning(layer, density=1 - exact(sparsity)) as pruning:
        layer(torch.arange(1.0, 101).view(-1, 5))
        assert pruning.densities["weight"] * 100 == pytest.approx(stay)


def test_a_density_that_is_typed_is_meant_exactly():
    layer = nn.Linear(5, 5)
    with ActivationPruning(layer, density=0.07) as pruning:
        layer(torch.arange(1.0, 101).view(-1, 5))
        assert pruning.densities["weight"] * 100 == pytest.approx(7) != math.ceil(0.07 * 100)
