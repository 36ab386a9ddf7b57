"""FLASH as re-implemented: docs/methods/sparse-baselines.md 2.3 and B7."""

from __future__ import annotations

import math

import pytest
import torch
from sparse_federation import Small, equal_bits, lengths, weighted_mean

from sparsync.errors import UsageError
from sparsync.federated import FedAvg, Flash
from sparsync.sparsity import layer_top_k_mask
from sparsync.strategies import STRATEGIES

M = 540
SHARES = (20, 10, 15, 15)


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_b7_after_the_first_round_layers_are_as_dense_as_clients_found_them_on_average(weights):
    made = Small(Flash(sparsity=0.8), weights=weights)
    first = made.send(0)
    models = {number: made.state.up.decode_mask(payload) for number, payload in first.uploads.items()}
    own = {"samples": SHARES, "uniform": (1, 1, 1, 1)}[weights]
    counts = [0.0, 0.0, 0.0]
    for number, (model, mask) in models.items():
        trained = made.prunable(first.trained[number])
        assert int(mask.count_nonzero()) == M - round(0.8 * M)
        assert float(trained[mask].abs().min()) >= float(trained[~mask].abs().max())
        assert torch.equal(made.prunable(model), trained.where(mask, 0))
        for layer, part in enumerate(made.view.split(mask)):
            counts[layer] += own[number] / sum(own) * int(part.sum())
    made.finish(first)
    expected = [math.floor(count + 1e-9) for count in counts]
    assert [int(part.sum()) for part in made.view.split(made.state.mask)] == expected
    assert sum(expected) in range(M - round(0.8 * M) - 2, M - round(0.8 * M) + 1)
    mean = weighted_mean({number: model for number, (model, _) in models.items()}, own).float()
    values = made.prunable(mean)
    assert torch.equal(made.state.mask, layer_top_k_mask(made.view, values, expected))
    torch.testing.assert_close(made.prunable(made.state.weights), values.where(made.state.mask, 0))
    torch.testing.assert_close(made.rest(made.state.weights), made.rest(mean))


def test_b7_a_mask_that_all_agree_on_stays():
    made = Small(Flash(sparsity=0.8), weights="samples", shares=(7, 11, 13, 29))
    first = made.send(0, [0])
    _, mask = made.state.up.decode_mask(first.uploads[0])
    first.uploads = dict.fromkeys(range(4), first.uploads[0])
    made.finish(first)
    assert torch.equal(made.state.mask, mask)


def test_b7_from_the_second_round_on_there_is_one_mask():
    made = Small(Flash(sparsity=0.8), optimizer="sgd:lr=0.1,momentum=0.9,weight_decay=1e-3")
    made.run(1)
    mask = made.state.mask.clone()
    for round_ in range(1, 4):
        exchange = made.exchange(round_)
        assert torch.equal(made.state.mask, mask)
        assert not bool(made.prunable(exchange.received)[~mask].any())
        for model in exchange.trained.values():
            values = made.prunable(model)
            assert equal_bits(values[~mask], torch.zeros(int((~mask).sum())))
            assert not torch.equal(values[mask], made.prunable(exchange.received)[mask])
        assert exchange.journal["iou_clients"] == 1
        assert all(notes["regrown"] == 0 for notes in exchange.notes.values())
        torch.testing.assert_close(
            made.state.weights.double(),
            weighted_mean({n: made.state.pruned(x, mask) for n, x in exchange.trained.items()}, SHARES),
            rtol=1e-5,
            atol=1e-6,
        )


def test_b7_biases_and_normalisation_train_also_if_they_start_at_zero():
    made = Small(Flash(sparsity=0.8))
    made.run(1)
    zeros = made.rest(made.server.initial) == 0  # shifts of the normalisation among them
    before = made.rest(made.state.weights).clone()
    made.run(2, start=1)
    after = made.rest(made.state.weights)
    assert int(zeros.sum()) >= 8
    assert bool((after[zeros] != 0).all())
    assert int((after != before).sum()) > 0.8 * len(after)


def test_uploads_tell_their_support_in_the_first_round_only():
    made = Small(Flash(sparsity=0.8))
    first, second = made.run(2)
    rest = 4 * (made.server.vector.numel - M)
    assert lengths(first.payload) == {"model": 4 * M, "mask": 1, "rest": rest}
    for payload in first.uploads.values():
        assert lengths(payload)["model"] == 4 * 108
        assert 1 < lengths(payload)["mask"] <= 1 + math.ceil(M / 8)
    ones = int(made.state.mask.sum())
    assert lengths(second.payload)["model"] == 4 * ones
    assert lengths(second.payload)["mask"] > 1
    for payload in second.uploads.values():
        assert lengths(payload) == {"model": 4 * ones, "rest": rest}


def test_the_first_round_trains_dense_and_may_last_longer():
    plain, flash, longer = Small(FedAvg()), Small(Flash(sparsity=0.8)), Small(Flash(sparsity=0.8, warmup=2))
    for one, other in zip(plain.exchange(0).trained.values(), flash.exchange(0).trained.values(), strict=True):
        assert equal_bits(one, other)
    first, second = longer.run(2)
    assert first.steps == {0: 12, 1: 6, 2: 9, 3: 9}
    assert second.steps == {0: 4, 1: 2, 2: 3, 3: 3}


def test_what_is_seen_of_the_first_round():
    made = Small(Flash(sparsity=0.8))
    (first,) = made.run(1)
    assert first.journal["down_density"] == 1
    assert first.journal["sparsity_target"] == 0.8
    assert 0 < first.journal["iou_clients"] < 1
    assert all(notes["up_density"] == 108 / M for notes in first.notes.values())
    assert all(notes["deactivated"] == M - 108 for notes in first.notes.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=1", "sparsity: Input should be less than 1"),
        ("warmup=-1", "warmup: Input should be greater than or equal to 0"),
        ("uplink=topk(0.1)+q8", "the strategy itself chooses which numbers travel"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"flash:{options}")
