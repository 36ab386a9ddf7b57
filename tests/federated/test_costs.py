"""Costs by formula: the authors' count, docs/methods/feddip.md 4, and operations, docs/methods/sparsyfed.md 6."""

from __future__ import annotations

import pytest
import torch
from sparse_federation import small_net
from torch import nn

from sparsync.federated.costs import authors_cost, training_flops
from sparsync.task import forward_flops


def test_feddip_s_authors_count_32_bits_per_value_and_a_dense_upload():
    assert authors_cost(61_706, 5, 0.0) == 5 * 2 * 32 * 61_706 / 2**20
    assert authors_cost(61_706, 5, 0.5) == 5 * (16 * 61_706 + 32 * 61_706) / 2**20
    assert authors_cost(61_706, 1, 0.9, 0.9) == 2 * int(32 * (1 - 0.9) * 61_706) / 2**20
    assert authors_cost(10, 3, 0.97) == 3 * (9 + 320) / 2**20  # 9.6 bits are cut to 9


def test_operations_of_a_forward_pass():
    module = small_net((1, 8, 8), 3)
    module[4].eval()
    modes = [part.training for part in module.modules()]
    before = [buffer.clone() for buffer in module.buffers()]
    assert forward_flops(module, (1, 8, 8)) == {
        "0.weight": 2 * 36 * 8 * 8,
        "3.weight": 2 * 216 * 4 * 4,
        "6.weight": 2 * 288,
    }
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(before, module.buffers(), strict=True))
    assert not any(part._forward_hooks for part in module.modules())


def test_operations_of_groups_and_of_layers_used_twice():
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    assert forward_flops(grouped, (4, 5, 5)) == {"0.weight": 2 * 8 * 2 * 9 * 9}
    layer = nn.Linear(6, 6)
    assert forward_flops(nn.Sequential(layer, layer), (6,)) == {"0.weight": 2 * 2 * 36}
    assert forward_flops(layer, (5, 6)) == {"weight": 2 * 36 * 5}


def test_operations_of_training():
    forward = {"a": 100, "b": 10}
    assert training_flops(forward, {"a": 1, "b": 1}) == 330
    assert training_flops(forward, {"a": 0.1, "b": 0.5}) == pytest.approx(100 * (0.2 + 1) + 10 * (1 + 1))
    sparse = {"a": 0.1, "b": 0.5}
    assert training_flops(forward, sparse, sparse) == pytest.approx(3 * (0.1 * 100 + 0.5 * 10))
    fewest = training_flops(forward, sparse, sparse, masked_gradients=True)
    assert fewest == pytest.approx(100 * (0.2 + 0.01) + 10 * (1 + 0.25))
