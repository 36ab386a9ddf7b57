"""FedDST: docs/methods/sparse-baselines.md 2.4, B4 and B8."""

from __future__ import annotations

import math

import pytest
import torch
from sparse_federation import Small, equal_bits, lengths, weighted_mean

from sparsync.errors import UsageError
from sparsync.federated import FedDST
from sparsync.federated.feddst import drop_and_grow
from sparsync.sparsity import counts, erk, layer_top_k_mask
from sparsync.strategies import STRATEGIES
from sparsync.wire import KnownSupport, MaskedSupport

M = 540
SHARES = (20, 10, 15, 15)


def feddst(**options) -> FedDST:
    """Clients move ones in every second round."""
    return FedDST(**{"sparsity": 0.8, "readjustment_interval": 2, **options})


def per_layer(made: Small, mask: torch.Tensor) -> list[int]:
    return [int(part.count_nonzero()) for part in made.view.split(mask)]


class TestDropAndGrow:
    def numbers(self, seed: int) -> torch.Tensor:
        return torch.randn(M, generator=torch.Generator().manual_seed(seed))

    @pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 1.0])
    def test_b8_each_layer_keeps_its_number_of_ones_and_grown_weights_are_zero(self, fraction):
        made = Small(feddst())
        mask, grad = made.state.mask, self.numbers(1)
        weights = self.numbers(0).where(mask, 0)
        moved, values = drop_and_grow(made.view, mask, weights, grad, fraction)
        layers = [made.view.split(x) for x in (mask, weights, grad, moved, values)]
        for on, weight, slope, new, value in zip(*layers, strict=True):
            ones, take = int(on.sum()), math.ceil(fraction * int(on.sum()))
            assert int(new.sum()) == ones
            live = value != 0
            assert int(live.sum()) == ones - take
            assert torch.equal(value[live], weight[live])
            assert bool((on & new)[live].all())
            if take:
                lost = weight[on & ~live].abs()
                assert len(lost) == take
                assert ones == take or float(weight[live].abs().min()) >= float(lost.max())
                assert float(slope[new & ~live].abs().min()) >= float(slope[~new].abs().max())

    def test_b8_what_was_dropped_may_grow_again_from_zero(self):
        made = Small(feddst())
        mask, grad = made.state.mask, torch.zeros(M)
        weights = self.numbers(0).where(mask, 0)
        _, values = drop_and_grow(made.view, mask, weights, grad, 0.5)
        grad[(values == 0) & mask] = 1.0  # steepest where something is dropped
        moved, values = drop_and_grow(made.view, mask, weights, grad, 0.5)
        assert torch.equal(moved, mask)
        assert per_layer(made, values) == [ones - math.ceil(0.5 * ones) for ones in per_layer(made, mask)]


class TestMove:
    def watched(self, optimizer: str = "sgd:lr=0.1", number: int = 0, **options):
        """A client's round in which it moves ones: weights and dense gradients of its batches; upload and new mask."""
        made = Small(feddst(**options), optimizer=optimizer)
        client, held, grads = made.client(number, 1), [], []
        backward = made.runtime.learner.backward

        def noted(parameters, *args):
            held.append(made.view.gather(client.params))
            loss = backward(parameters, *args)
            grads.append(made.view.gather(client.grad))
            return loss

        made.runtime.learner.backward = noted
        payload = made.clients.respond(client, made.state.downlink(1)).payload
        model, mask = made.state.up.decode_mask(payload)
        return made, held, grads, made.prunable(model), mask

    @pytest.mark.parametrize("optimizer", ["sgd:lr=0.1,weight_decay=1e-3", "sgd:lr=0.1,momentum=0.9", "adam:lr=0.01"])
    def test_b8_half_way_and_with_a_mask_that_holds_before_and_after(self, optimizer):
        made, held, grads, sent, mask = self.watched(optimizer)
        old = made.state.mask
        assert len(held) == 4 + 1  # and one batch for the dense gradient
        assert equal_bits(held[2], held[2].where(old, 0))
        for before, step in ((old, held[0]), (old, held[1]), (old, held[2]), (mask, held[3]), (mask, held[4])):
            assert not bool(step[~before].any())
        assert not bool(made.view.gather(made.runtime.raw.data)[~mask].any())
        assert per_layer(made, mask) == per_layer(made, old)
        fraction = made.state.drop(1)
        stay = layer_top_k_mask(made.view, held[2], [n - math.ceil(fraction * n) for n in per_layer(made, old)])
        assert bool(mask[stay].all())
        assert torch.equal(held[3], held[2].where(stay, 0))  # grown ones start at 0
        grown = mask & ~old
        assert int(grown.sum()) > 0
        candidates = ~stay
        assert float(grads[2][candidates & mask].abs().max()) == float(grads[2][candidates].abs().max())
        assert torch.equal(sent, made.view.gather(made.runtime.raw.data))

    def test_b8_grown_weights_are_worth_something_when_they_are_sent(self):
        _, held, grads, sent, mask = self.watched()
        grown = mask & (held[3] == 0)
        assert torch.equal(sent[grown] != 0, ((grads[3] != 0) | (grads[4] != 0))[grown])
        assert int((sent[grown] != 0).sum()) > 0.5 * int(grown.sum())

    def test_a_round_of_one_step_moves_before_it(self):
        made = Small(feddst(), steps=1)
        exchange = made.send(1)
        for number, payload in exchange.uploads.items():
            model, mask = made.state.up.decode_mask(payload)
            assert not torch.equal(mask, made.state.mask)
            assert bool((made.prunable(model)[mask & ~made.state.mask] != 0).any())
            assert exchange.steps[number] == 1

    def test_clients_differ_in_the_rounds_that_move_and_only_there(self):
        made = Small(feddst())
        agreement = [exchange.journal["iou_clients"] for exchange in made.run(6)]
        assert [one < 1 for one in agreement] == [False, True] * 3


class TestServer:
    @pytest.mark.parametrize("init", ["magnitude", "random"])
    def test_b8_every_layer_is_at_its_erk_count_from_the_start(self, init):
        made = Small(feddst(mask_init=init))
        ones = counts(made.view.shapes, erk(made.view.shapes, 1 - 0.8))
        first = made.prunable(made.server.initial)
        largest = layer_top_k_mask(made.view, first, ones)
        assert torch.equal(made.state.mask, largest) == (init == "magnitude")
        assert torch.equal(made.prunable(made.state.weights), first.where(made.state.mask, 0))
        for round_ in range(4):
            assert per_layer(made, made.state.mask) == ones
            made.exchange(round_)
            assert not bool(made.prunable(made.state.weights)[~made.state.mask].any())
        assert not torch.equal(made.state.mask, largest)

    def crafted(self, aggregate: str) -> tuple[Small, torch.Tensor]:
        """Four uploads of the same values, each with a mask of its own, none shared by all."""
        made = Small(feddst(aggregate=aggregate))
        values = torch.linspace(1, 2, M)[torch.randperm(M, generator=torch.Generator().manual_seed(2))]
        exchange = made.send(1)
        model = made.server.initial.clone()
        made.view.scatter_(model[: made.view.total], values)
        union = made.state.mask.clone()
        each = layer_top_k_mask(made.view, values.flip(0) * union, [n // 2 for n in made.state.ones])
        for number in exchange.uploads:
            mask = each if number < 2 else union & ~each
            exchange.uploads[number] = made.state.up.encode(model, support=MaskedSupport(mask))
        made.finish(exchange)
        return made, values.where(union, 0)

    def test_b4_the_mean_is_over_those_who_kept_a_coordinate(self):
        made, expected = self.crafted("mask_weighted")
        torch.testing.assert_close(made.prunable(made.state.weights), expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(made.rest(made.state.weights), made.rest(made.server.initial))

    def test_b4_or_over_all(self):
        made, expected = self.crafted("fedavg")
        torch.testing.assert_close(made.prunable(made.state.weights), 0.5 * expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("round_", [0, 1])
    @pytest.mark.parametrize("aggregate", ["mask_weighted", "fedavg"])
    def test_mean_and_pruning_of_real_uploads(self, round_, aggregate):
        made = Small(feddst(aggregate=aggregate))
        exchange = made.send(round_)
        models, masks = {}, {}
        for number, payload in exchange.uploads.items():
            if round_:
                models[number], masks[number] = made.state.up.decode_mask(payload)
            else:
                models[number], masks[number] = (
                    made.state.up.decode(payload, KnownSupport(made.state.mask)),
                    made.state.mask,
                )
        made.finish(exchange)
        mean = weighted_mean(models, SHARES)
        values = made.prunable(mean)
        if aggregate == "mask_weighted":
            holders = weighted_mean({n: mask.float() for n, mask in masks.items()}, SHARES)
            values = (values / holders).nan_to_num(0)
        mask = layer_top_k_mask(made.view, values.float(), made.state.ones)
        assert torch.equal(made.state.mask, mask)
        torch.testing.assert_close(made.prunable(made.state.weights), values.where(mask, 0).float())
        torch.testing.assert_close(made.rest(made.state.weights), made.rest(mean).float())


def test_uploads_tell_their_mask_where_it_is_new():
    made = Small(feddst())
    ones, rest = sum(made.state.ones), 4 * (made.server.vector.numel - M)
    for exchange in made.run(4):
        assert lengths(exchange.payload)["model"] == 4 * ones
        assert 1 < lengths(exchange.payload)["mask"] <= 1 + math.ceil(M / 8)
        for payload in exchange.uploads.values():
            found = lengths(payload)
            assert (found["model"], found["rest"]) == (4 * ones, rest)
            assert ("mask" in found) == (exchange.round % 2 == 1)


def test_b8_the_share_that_is_moved_falls_to_zero():
    shares = [exchange.journal["drop_fraction"] for exchange in Small(feddst(drop_fraction=0.4), rounds=4).run(4)]
    assert shares == pytest.approx([0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))])
    early = Small(feddst(drop_until=3))
    assert [early.state.drop(t) for t in (0, 3, 4)] == [0.5, 0, 0]
    made = early.run(6)
    assert [exchange.journal["iou_clients"] < 1 for exchange in made] == [False, True, False, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=1", "sparsity: Input should be less than 1"),
        ("drop_fraction=0", "drop_fraction: Input should be greater than 0"),
        ("drop_until=0", "drop_until: Input should be greater than or equal to 1"),
        ("readjustment_interval=0", "readjustment_interval: Input should be greater than or equal to 1"),
        ("aggregate=median", "aggregate: Input should be 'mask_weighted' or 'fedavg'"),
        ("mask_init=erk", "mask_init: Input should be 'magnitude' or 'random'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"feddst:{options}")
