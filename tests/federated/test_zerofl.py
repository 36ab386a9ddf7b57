"""ZeroFL as re-implemented: docs/methods/sparse-baselines.md 2.2 and B6."""

from __future__ import annotations

import pytest
import torch
from sparse_federation import Small, equal_bits
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.federated import ZeroFL
from sparsync.federated.zerofl import SwatTransform
from sparsync.sparsity import ParamView, layer_top_k_mask
from sparsync.strategies import STRATEGIES
from sparsync.workers.layout import Layout

M = 540
SIZES = (36, 216, 288)
KEPT = (36, 44, 58)  # at sparsity 0.8; the first layer is left as it is


def computed(made: Small, number: int = 0, round_: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Weights that a client's forward passes compute with, and what it holds before each; prunable entries (M,)."""
    effective, held = [], []
    learner = made.runtime.learner
    backward = learner.backward

    def watched(parameters, *args):
        effective.append(made.prunable(torch.cat([parameter.detach().flatten() for parameter in parameters])))
        return backward(parameters, *args)

    learner.backward = watched
    client = made.client(number, round_)
    train = client.train

    def run(*steps, transform, **options):
        weights = transform.weights

        def noted(raw, out):
            held.append(made.prunable(raw))
            weights(raw, out)

        transform.weights = noted
        train(*steps, transform=transform, **options)

    client.train = run
    made.clients.respond(client, made.state.downlink(round_))
    return effective, held


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 108), (0.1, 162), (0.8, 540)])
def test_b6_an_upload_has_exactly_so_many_non_zeros(ratio, count):
    made = Small(ZeroFL(sparsity=0.8, mask_ratio=ratio), epochs=2)
    exchange = made.send(0)
    for number, payload in exchange.uploads.items():
        sent, trained = made.prunable(made.state.decode(payload)), made.prunable(exchange.trained[number])
        live = sent != 0
        assert int(live.count_nonzero()) == min(count, int(trained.count_nonzero()))
        if ratio == 0:
            assert float(trained[live].abs().min()) >= float(trained[~live].abs().max())
    assert made.finish(exchange).journal["sparsity_target"] == pytest.approx(1 - count / M)


def test_b6_the_first_forward_pass_is_that_of_the_largest_weights_of_each_layer():
    made = Small(ZeroFL(sparsity=0.8))
    effective, held = computed(made)
    expected = made.prunable(made.server.initial)
    assert equal_bits(held[0], expected)
    assert torch.equal(effective[0], expected.where(layer_top_k_mask(made.view, expected, KEPT), 0))


def test_b6_later_a_convolution_keeps_its_threshold_and_a_linear_layer_its_number():
    made = Small(ZeroFL(sparsity=0.8))
    effective, held = computed(made)
    first = made.view.split(effective[0])
    threshold = float(first[1][first[1] != 0].abs().min())
    assert len(effective) == 4
    counts = set()
    for computes, holds in zip(effective[1:], held[1:], strict=True):
        now, was = made.view.split(computes), made.view.split(holds)
        assert torch.equal(now[0], was[0])
        assert torch.equal(now[1], was[1].where(was[1].abs() >= threshold, 0))
        assert torch.equal(now[2], was[2].where(layer_top_k_mask(made.view, holds, KEPT)[-SIZES[2] :], 0))
        assert int(now[2].count_nonzero()) == KEPT[2]
        counts.add(int(now[1].count_nonzero()))
    assert counts != {KEPT[1]}


def test_weights_are_pruned_in_place_and_their_gradient_is_not_masked():
    made = Small(ZeroFL(sparsity=0.8), optimizer="sgd:lr=0.05")
    effective, held = computed(made)
    gone = effective[0] == 0
    moved = held[1][gone]  # one step from zero, not from where they were
    assert int(moved.count_nonzero()) > 0.5 * int(gone.sum())
    assert float(moved.abs().max()) < float(held[0][gone].abs().max())
    effective, held = computed(Small(ZeroFL(sparsity=0.8), optimizer="sgd:lr=0"))
    assert torch.equal(held[1], effective[0])


def test_b6_evaluation_drops_nothing():
    made = Small(ZeroFL(sparsity=0.8, mask_ratio=0.5))
    made.run(2)
    assert equal_bits(made.state.model(), made.state.weights)
    inputs, _ = made.task.dataset.test.batch(torch.arange(20))
    plain = made.task.module(0)
    named = {name: slot for slot in made.runtime.arena.layout.slots for name in slot.names}
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            slot = named[name]
            parameter.copy_(made.state.weights[slot.start : slot.stop].view(slot.shape))
        made.runtime.vector.write(made.state.model())
        for buffer, own in zip(plain.buffers(), made.runtime.module.buffers(), strict=True):
            buffer.copy_(own)
        assert torch.equal(made.runtime.module.eval()(inputs), plain.eval()(inputs))
    assert int(made.prunable(made.state.weights).count_nonzero()) > sum(KEPT)


def test_activations_have_the_same_density_whatever_the_weights():
    (exchange,) = Small(ZeroFL(sparsity=0.8, act_threshold="per_batch")).run(1)
    for notes in exchange.notes.values():
        assert set(notes) >= {"act_density/3.weight", "act_density/6.weight"}
        assert "act_density/0.weight" not in notes
        assert notes["act_density/3.weight"] == pytest.approx(0.2, abs=0.005)  # up to ties
        assert notes["act_density/6.weight"] == pytest.approx(0.2, abs=0.005)
    (cached,) = Small(ZeroFL(sparsity=0.8)).run(1)
    assert cached.notes[0]["act_density/3.weight"] != exchange.notes[0]["act_density/3.weight"]


def test_the_first_layer_and_shortcuts_are_ordinary_layers():
    made = Small(ZeroFL(sparsity=0.9), model="resnet8:width=2")
    names = made.view.names
    plain = [name for name in names if name not in made.clients.half.swat.names]
    assert plain == ["conv1.weight", *(name for name in names if "shortcut" in name)]
    assert len(plain) == 3
    effective, _ = computed(made)
    density = made.view.layer_density(effective[0])
    assert {name for name in names if density[name] == 1} == set(plain)
    everything = Small(ZeroFL(sparsity=0.9, skip_first=False), model="resnet8:width=2")
    assert everything.clients.half.swat.names[0] == "conv1.weight"


@pytest.mark.parametrize(("sparsity", "kept"), [(0.95, 5), (0.9, 10), (0.949, 6), (0.0, 100), (0.999, 1)])
def test_what_a_layer_keeps_is_rounded_up_but_not_by_rounding_errors(sparsity, kept):
    layers = Layout.of_parameters(nn.Linear(10, 10))
    assert SwatTransform(ParamView(layers.slots, ["weight"]), sparsity).keep == [kept]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=0.8,mask_ratio=0.9", "mask_ratio=0.9 exceeds sparsity=0.8"),
        ("mask_ratio=-0.1", "mask_ratio: Input should be greater than or equal to 0"),
        ("act_threshold=never", "act_threshold: Input should be 'cached_per_round' or 'per_batch'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"zerofl:{options}")


def test_a_model_of_one_layer():
    with pytest.raises(UsageError, match="skip_first leaves nothing of a model of one layer; try skip_first=no"):
        Small(ZeroFL(), model="logistic")
    Small(ZeroFL(skip_first=False), model="logistic").run(1)
