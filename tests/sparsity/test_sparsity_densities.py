"""ERK: the vectors of docs/methods/feddip.md 2.1 and property 1; random masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.sparsity import ParamView, counts, erk, prunable_names, random_mask, uniform
from sparsync.task.models import resnet18
from sparsync.workers.layout import Layout

LENET = [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
SHAPES = st.lists(
    st.tuples(st.integers(1, 64), st.integers(1, 64))
    | st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 5), st.integers(1, 5)),
    min_size=1,
    max_size=8,
)


def test_lenet():
    densities = erk(LENET, 0.5)
    assert densities == pytest.approx([1, 0.524603, 0.426240, 0.796273, 1], abs=5e-7)
    assert densities[2] / (520 / 48000) == pytest.approx(39.345238, abs=5e-7)  # eps
    assert densities[0] == densities[4] == 1


def test_resnet18_with_shortcuts():
    module = resnet18((3, 32, 32), 100)
    view = ParamView(Layout.of_parameters(module).slots, prunable_names(module))
    expected = {(256, 256, 3, 3): 0.716748, (512, 256, 3, 3): 0.535486, (512, 512, 3, 3): 0.356299}
    densities = erk(view.shapes, 0.5)
    assert densities == pytest.approx([expected.get(shape, 1.0) for shape in view.shapes], abs=5e-7)
    assert densities[-2] / (1030 / (512 * 512 * 9)) == pytest.approx(816.129937, abs=1e-5)
    assert 0 <= 0.5 * view.numel - sum(counts(view.shapes, densities)) <= len(view.shapes)


@given(shapes=SHAPES, density=st.floats(0, 1), power=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_any_network(shapes, density, power):
    densities = erk(shapes, density, power)
    sizes = [math.prod(shape) for shape in shapes]
    assert all(0 <= one <= 1 for one in densities)
    total = sum(one * size for one, size in zip(densities, sizes, strict=True))
    assert total == pytest.approx(density * sum(sizes), rel=1e-9, abs=1e-9)
    kept = counts(shapes, densities)
    assert all(0 <= count <= size for count, size in zip(kept, sizes, strict=True))
    assert total - len(shapes) - 1e-6 <= sum(kept) <= total + 1e-6
    if power == 0:
        assert densities == pytest.approx(uniform(shapes, density), rel=1e-9, abs=1e-12)


def test_limits_and_layers_that_are_dense_from_the_start():
    assert erk(LENET, 0) == [0] * 5
    assert erk(LENET, 1) == pytest.approx([1] * 5)
    densities = erk(LENET, 0.5, dense=[3])
    assert densities[3] == 1
    sizes = [math.prod(shape) for shape in LENET]
    assert sum(np.multiply(densities, sizes)) == pytest.approx(0.5 * sum(sizes))
    assert erk([(2, 2)], 1, dense=[0]) == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: erk(LENET, 1.1), "density=1.1; expected a fraction of non-zeros from 0 to 1"),
        (lambda: uniform(LENET, -0.1), "density=-0.1"),
        (lambda: erk(LENET, 0.5, dense=[2]), r"density=0.5 is less than the dense layers \[2\] hold"),
        (lambda: erk([(2, 2)], 0.5, dense=[0]), "density=0.5 is less than"),
        (lambda: random_mask([(2, 2)], [5], np.random.default_rng(0)), "5 ones in a layer of 4 entries"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_random_masks_have_exact_counts_and_depend_on_the_generator_only():
    shapes, ones = [(3, 4), (5,), (2, 2), (4,)], [5, 0, 4, 1]
    mask = random_mask(shapes, ones, np.random.default_rng(1))
    assert mask.dtype == torch.bool
    assert [int(part.sum()) for part in mask.split([12, 5, 4, 4])] == ones
    assert torch.equal(mask, random_mask(shapes, ones, np.random.default_rng(1)))
    assert not torch.equal(mask, random_mask(shapes, ones, np.random.default_rng(2)))


def test_random_positions_are_uniform():
    rng = np.random.default_rng(0)
    hits = sum(random_mask([(10,)], [3], rng).int() for _ in range(2000))
    assert hits.min() > 500
    assert hits.max() < 700
