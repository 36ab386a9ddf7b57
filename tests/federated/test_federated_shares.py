"""Shares in federations: of a model, of a layer's ones, of the clients, each exact at any size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sparse_federation import Small, pictures
from torch import nn

from sparsync.federated import Federation, Flash, Upload, ZeroFL, flash
from sparsync.federated.feddst import drop_and_grow
from sparsync.federated.messages import pack_numbers
from sparsync.federated.prunefl import worthwhile
from sparsync.shares import exact


@pytest.mark.parametrize(("sparsity", "kept"), [(0.8, 80), (0.9, 40), (0.55, 180), (0.67, 132), (0.75, 101)])
def test_prunefl_keeps_what_the_port_s_loop_keeps(sparsity, kept):
    """One coordinate gains all: the others are there because they are asked for, while no more than n_req are kept."""
    squares, times = torch.zeros(400), torch.ones(400, dtype=torch.float64)
    squares[7] = 1.0
    least = (1 - sparsity) * 400
    assert sum(j <= least for j in range(400)) == kept
    assert int(worthwhile(squares, times, least).sum()) == kept


@pytest.mark.parametrize(("share", "moved"), [(0.07, 7), (0.14, 14), (0.28, 28)])
def test_feddst_moves_the_share_and_not_one_more(share, moved):
    view = SimpleNamespace(split=lambda x: (x,))
    mask = torch.arange(200) < 100
    weights = torch.where(mask, torch.arange(1.0, 201), 0)
    made, values = drop_and_grow(view, mask, weights, torch.where(mask, 0.0, 1.0), share)
    assert int(made.sum()) == 100
    assert int(values.count_nonzero()) == 100 - moved


@pytest.mark.parametrize(
    "spec",
    [
        "feddst:sparsity=0.8,mask_init=random",
        "dpf:sparsity_init=0.8",
        "prunefl:sparsity_init=0.8,initial_mask=erk",
    ],
)
def test_two_alike_layers_keep_a_fifth_each(spec):
    def alike(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(10, 10), nn.Linear(10, classes))

    made = Small(spec, model=alike, dataset=pictures(classes=10, shape=(1, 2, 5)))
    assert [int(part.sum()) for part in made.view.split(made.state.mask)] == [20, 20]


def test_zerofl_s_activations_are_as_sparse_as_is_asked():
    made = Small(ZeroFL(sparsity=0.95))
    made.run(1)
    assert {layer.density for layer in made.clients.half.pruning._layers.values()} == {exact(0.05)}
    assert Small(ZeroFL(sparsity=0.95, mask_ratio=0.05)).state.sparsity == 0.9


def test_flash_counts_the_ones_of_layers_beyond_float32(monkeypatch):
    made, ones = Small(Flash(sparsity=0.8)), 2**24 + 1
    model, mask = torch.zeros_like(made.state.weights), torch.ones(made.view.numel, dtype=torch.bool)
    made.state.up = SimpleNamespace(decode_mask=lambda payload: (model, mask))
    asked = []

    def chosen(view, x, wished):
        asked.extend(wished)
        return torch.ones(made.view.numel, dtype=torch.bool)

    monkeypatch.setattr(flash, "layer_top_k_mask", chosen)
    monkeypatch.setattr(made.view, "split", lambda mask: [mask[:1].expand(ones)] * len(made.view.sizes))
    monkeypatch.setattr(made.state.watch, "agreement", lambda: None)
    payload = pack_numbers(torch.ones(1), "control")
    made.state.aggregate(0, iter([Upload(number, payload) for number in range(4)]))
    assert asked == [ones] * 3


@pytest.mark.parametrize(("participation", "clients", "cohort"), [(0.35, 90, 32), (0.15, 30, 4), (0.1, 50, 5)])
def test_participation_is_rounded_half_to_even_and_exact(participation, clients, cohort):
    assert Federation(participation=participation).cohort_of(clients) == cohort
