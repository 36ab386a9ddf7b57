"""SNIP: docs/methods/sparse-baselines.md 2.6 and B10."""

from __future__ import annotations

import pytest
import torch
from sparse_federation import Small, equal_bits, lengths
from torch.func import functional_call

from sparsync.errors import UsageError
from sparsync.federated import Snip
from sparsync.sparsity import top_k_mask
from sparsync.strategies import STRATEGIES

M = 540


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.951])
@pytest.mark.parametrize("init", ["xavier", "model"])
def test_b10_exactly_so_many_ones_for_ever(sparsity, init):
    made = Small(Snip(sparsity=sparsity, saliency_init=init))
    first = made.exchange(0)
    assert not first.over
    mask = made.state.mask.clone()
    assert int(mask.sum()) == M - round(sparsity * M)
    for round_ in range(3):
        exchange = made.exchange(round_)
        assert exchange.over
        assert torch.equal(made.state.mask, mask)
        for model in exchange.trained.values():
            assert not bool(made.prunable(model)[~mask].any())
        assert exchange.journal["iou_clients"] == 1


def test_b10_the_score_is_the_gradient_by_a_mask_of_ones():
    """By its definition: the loss of a model whose weights are multiplied by a mask, differentiated at 1."""
    made = Small(Snip(sparsity=0.8, saliency_init="model", client=2))
    made.exchange(0)
    module = made.task.module(0)
    weights, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    inputs, labels = made.task.dataset.train.batch(made.client(2).batches[0])

    masks = {name: torch.ones_like(weights[name], requires_grad=True) for name in made.view.names}
    scaled = {name: weights[name] * mask for name, mask in masks.items()}
    loss = made.task.loss(functional_call(module, {**weights, **buffers, **scaled}, inputs), labels)
    scores = torch.cat([score.flatten() for score in torch.autograd.grad(loss, list(masks.values()))])
    assert torch.equal(made.state.mask, top_k_mask(scores, 108))


def test_b10_training_starts_from_the_model_s_own_weights_and_masked():
    made = Small(Snip(sparsity=0.8))
    first, second = made.run(1)
    assert equal_bits(first.received, made.server.initial)
    masked = made.state.pruned(made.server.initial, made.state.mask)
    assert equal_bits(second.received, masked)
    model, mask = made.state.down.decode_mask(second.payload)
    assert equal_bits(model, masked)
    assert torch.equal(mask, made.state.mask)
    assert lengths(second.payload)["model"] == 4 * 108


def test_saliency_is_measured_at_weights_of_its_own_or_the_model_s():
    masks = {}
    for init in ("xavier", "model"):
        one, again, other = (Small(Snip(sparsity=0.8, saliency_init=init)) for _ in range(3))
        other.view.scatter_(other.state.weights[: other.view.total], 3 * other.prunable(other.state.weights))
        for made in (one, again, other):
            made.exchange(0)
        assert torch.equal(one.state.mask, again.state.mask)
        assert torch.equal(one.state.mask, other.state.mask) == (init == "xavier")  # whatever the model's weights
        masks[init] = one.state.mask
    assert not torch.equal(masks["xavier"], masks["model"])
    seeds = {tuple(mask_of(seed).tolist()) for seed in range(3)}
    assert len(seeds) == 3


def mask_of(seed: int) -> torch.Tensor:
    made = Small(Snip(sparsity=0.8), seed=seed)
    made.exchange(0)
    return made.state.mask


def test_the_drawn_weights_are_xavier_s():
    made = Small(Snip(), model="mlp:hidden=200")
    client = made.client()
    client.load(made.server.initial)
    made.clients.half.draw(client)
    for part, (out, into) in zip(made.view.split(made.view.gather(client.params)), made.view.shapes, strict=True):
        assert float(part.std()) == pytest.approx((2 / (out + into)) ** 0.5, rel=0.05)
    assert torch.equal(made.rest(client.model()), made.rest(made.server.initial))


def test_one_client_sends_a_mask_and_later_nobody():
    made = Small(Snip(sparsity=0.8, client=3))
    first, second = made.run(1)
    assert list(first.uploads) == [3]
    assert set(lengths(first.uploads[3])) == {"mask"}
    assert first.steps == {3: 0}
    rest = 4 * (made.server.vector.numel - M)
    for payload in second.uploads.values():
        assert lengths(payload) == {"model": 4 * 108, "rest": rest}


def test_which_labels_decided_is_noted():
    made = Small(Snip(client=1))
    labels = made.task.dataset.train.labels[made.client(1).batches[0]].tolist()
    first = made.exchange(0)
    assert first.notes[1] == {f"scored_label/{label}": labels.count(label) for label in set(labels)}
    assert sum(first.notes[1].values()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=1", "sparsity: Input should be less than 1"),
        ("client=-1", "client: Input should be greater than or equal to 0"),
        ("saliency_init=he", "saliency_init: Input should be 'xavier' or 'model'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"snip:{options}")


def test_a_client_that_does_not_exist():
    with pytest.raises(UsageError, match="snip: client=4 of 4; they are numbered from 0"):
        Small(Snip(client=4))
