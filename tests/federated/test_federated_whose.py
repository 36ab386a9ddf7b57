"""Whose is what: FedDIP with masks of the clients' own, PruneFL's original order, each against a loop by hand."""

from __future__ import annotations

import pytest
import torch
from sparse_federation import Small, lengths, weighted_mean
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from sparsync.errors import UsageError
from sparsync.federated import FedDIP, PruneFL
from sparsync.federated.prunefl import worthwhile
from sparsync.sparsity import counts, erk, random_mask
from sparsync.strategies import STRATEGIES

SHARES = (20, 10, 15, 15)
RATE, DECAY, EVERY = 0.1, 5e-4, 2
ZEROS = (0.5, 0.5 + 0.4 * (1 - (11 / 12) ** 3), 0.5 + 0.4 * (1 - (10 / 12) ** 3))  # of the ramp to 0.9 in 12 rounds


def plain_net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, classes))


def feddip(**options) -> Small:
    config = FedDIP(
        **{"mask_init": "clients", "reconfigure_on": "masked", "upload": "masked", **options},
        reconfiguration_interval=EVERY,
        lambda_steps=12,
        lambda_min=0.01,
        lambda_max=0.05,
    )
    return Small(config, model=plain_net, optimizer=f"sgd:lr={RATE},weight_decay={DECAY}", dtype=torch.float64)


def own_mask(made: Small, number: int) -> Tensor:
    ones = counts(made.view.shapes, erk(made.view.shapes, 0.5))
    return random_mask(made.view.shapes, ones, made.client(number).generator("mask"))


def by_hand(made: Small, rounds: int) -> tuple[list[Tensor], Tensor]:
    """The global parameters after some rounds, and the mask: a second model, pruned anew for each batch's gradient."""
    module, train = made.task.module(0, torch.float64), made.task.dataset.train
    names = [name for name, _ in module.named_parameters()]
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    pruned = [name.endswith("weight") for name in names]
    sizes = [weight.numel() for weight, prune in zip(weights, pruned, strict=True) if prune]
    mask = None
    for round_ in range(rounds):
        models = {}
        for number in range(4):
            flat = iter((own_mask(made, number) if mask is None else mask).split(sizes))
            on = [next(flat).view(w.shape) if prune else 1 for w, prune in zip(weights, pruned, strict=True)]
            omega, client = [weight.clone() for weight in weights], made.client(number, round_)
            for step in range(len(client.batches)):
                batch = client.batches[step]
                theta = [(w * m).requires_grad_() for w, m in zip(omega, on, strict=True)]
                outputs = functional_call(module, dict(zip(names, theta, strict=True)), train.inputs[batch].double())
                norms = [t.norm() for t, prune in zip(theta, pruned, strict=True) if prune]
                penalty = 0 if round_ == 0 else 0.01 + 0.04 / 11 * (round_ - 1)
                loss = cross_entropy(outputs, train.labels[batch]) + penalty * sum(norms)
                slopes = torch.autograd.grad(loss, theta)
                omega = [w - RATE * (g + DECAY * w) for w, g in zip(omega, slopes, strict=True)]
            models[number] = torch.cat([w.flatten() for w in omega])
        mean = weighted_mean(models, SHARES).split([w.numel() for w in weights])
        ranked = torch.cat([w for w, prune in zip(mean, pruned, strict=True) if prune])
        ranked = ranked if mask is None else ranked * mask
        if round_ % EVERY == 0:
            keep = len(ranked) - round(ZEROS[round_] * len(ranked))
            mask = torch.zeros(len(ranked), dtype=torch.bool)
            mask[ranked.abs().argsort(descending=True)[:keep]] = True
        kept = iter((ranked * mask).split(sizes))
        found = [next(kept) if prune else w for w, prune in zip(mean, pruned, strict=True)]
        weights = [w.view(old.shape) for w, old in zip(found, weights, strict=True)]
    return weights, mask


class TestClientsMasks:
    @pytest.mark.parametrize("upload", ["masked", "dense"])
    def test_three_rounds_are_those_of_a_loop_by_hand(self, upload):
        made = feddip(upload=upload)
        made.run(3)
        weights, mask = by_hand(made, 3)
        assert torch.equal(made.state.mask, mask)
        expected = torch.cat([weight.flatten() for weight in weights])
        torch.testing.assert_close(made.state.weights.double(), expected, rtol=1e-4, atol=1e-5)  # float32 on the wire

    def test_the_first_round_is_dense_on_the_wire_and_each_client_trains_a_mask_of_its_own(self):
        made = feddip()
        exchange = made.send(0)
        assert bool(made.state.mask.all())
        assert torch.equal(exchange.received, made.server.initial)
        for payload in (exchange.payload, *exchange.uploads.values()):
            assert lengths(payload)["model"] == 4 * made.view.numel
        masks = [own_mask(made, number) for number in range(4)]
        assert len({tuple(mask.tolist()) for mask in masks}) == 4
        for number, mask in enumerate(masks):
            assert exchange.notes[number]["off_mask"] == pytest.approx(
                float(
                    made.prunable(exchange.trained[number])[~mask].norm()
                    / made.prunable(exchange.trained[number])[mask].norm()
                )
            )
        made.finish(exchange)
        again = made.exchange(1)
        assert lengths(again.uploads[0])["model"] == 4 * int(made.state.mask.sum())

    def test_later_masks_are_nested_in_the_first_of_the_server_but_in_no_client_s(self):
        made = feddip()
        made.run(1)
        first = made.state.mask.clone()
        assert all(bool((first & ~own_mask(made, number)).any()) for number in range(4))
        made.run(2, start=1)
        assert not bool((made.state.mask & ~first).any())

    def test_the_server_s_first_mask_must_follow_the_clients(self):
        with pytest.raises(UsageError, match=r"mask_init=clients with first_reconfiguration=3"):
            STRATEGIES.build("feddip:mask_init=clients,first_reconfiguration=3")


def original(squares, times, mask, weights, droppable: float) -> list[int]:
    """What one layer keeps: all but the smallest weights, then what gains most per time, while that is worth it."""
    held = sorted((j for j, on in enumerate(mask) if on), key=lambda j: abs(weights[j]))
    kept = held[int(droppable * len(held)) :]
    gained, spent = sum(squares[j] for j in kept), 0.2 + sum(times[j] for j in kept)
    others = [j for j in range(len(squares)) if j not in kept]
    for j in sorted(others, key=lambda j: -squares[j] / times[j]):
        if squares[j] / times[j] < gained / spent:
            break
        kept, gained, spent = [*kept, j], gained + squares[j], spent + times[j]
    return sorted(kept)


class TestOriginalOrder:
    def taken(self, squares, times, **options) -> list[int]:
        mask = worthwhile(torch.tensor(squares), torch.tensor(times, dtype=torch.float64), 0, **options)
        return mask.nonzero().squeeze(1).tolist()

    def test_by_rate_by_hand(self):
        # per time 0.4, 2, 3: the third first, then 2 >= 3 / 1.2 fails
        assert self.taken([4.0, 2.0, 3.0], [10, 1, 1], by_rate=True) == [2]
        # 2.6 >= 3 / 1.2 holds, then 4 / 10 >= 5.6 / 2.2 fails
        assert self.taken([4.0, 2.6, 3.0], [10, 1, 1], by_rate=True) == [1, 2]
        assert self.taken([4.0, 2.6, 3.0], [10, 1, 1]) == [0, 1, 2]  # by G2: 4, then 3 >= 4 / 10.2, then 2.6

    def test_what_stays_is_kept_and_counts_first(self):
        stays = torch.tensor([True, False, False, False])
        # 0.1 in 1.2: then 3, 2 and 1 are worth it one after the other, as long as they exceed the mean
        assert self.taken([0.1, 3.0, 1.0, 2.0], [1] * 4, stays=stays) == [0, 1, 3]
        # 9 in 1.2 is 7.5 per time: nothing else is worth its time
        assert self.taken([9.0, 3.0, 1.0, 2.0], [1] * 4, stays=stays) == [0]

    @pytest.mark.parametrize("droppable", [0.0, 0.25, 0.3, 1.0])
    def test_a_decision_is_that_of_a_loop_by_hand(self, droppable):
        made = Small(PruneFL(initial_mask="erk", order="rate", droppable=droppable, sparsity=0.99, sparsity_init=0.99))
        state, draw = made.state, torch.Generator().manual_seed(3)
        squares = torch.randn(540, generator=draw).square() ** 3
        weights, mask = torch.randn(540, generator=draw), torch.rand(540, generator=draw) < 0.5
        state.decided.times = torch.rand(540, generator=draw).double() + 0.5
        made.view.sizes = (540,)  # as one layer
        found = state.decided(squares, mask, weights, 1 - 1e-9)
        every = [x.tolist() for x in (squares.double(), state.decided.times, mask, weights)]
        assert found.nonzero().squeeze(1).tolist() == original(*every, droppable)

    def test_large_weights_are_never_dropped_in_any_layer(self):
        options = {"initial_mask": "erk", "reconfiguration_interval": 1, "sparsity": 0.99, "sparsity_init": 0.5}
        made = Small(PruneFL(order="rate", droppable=0.3, **options))
        for round_ in range(3):
            before = made.state.mask.clone()
            exchange = made.exchange(round_)
            mean = made.prunable(weighted_mean(exchange.trained, SHARES))
            for old, new, weight in zip(*map(made.view.split, (before, made.state.mask, mean)), strict=True):
                ones = int(old.sum())
                large = weight.abs().where(old, -1).argsort(descending=True)[: ones - 3 * ones // 10]
                assert bool(new[large].all())

    def test_all_may_go_by_default(self):
        made = Small(PruneFL(initial_mask="erk"))
        squares = torch.zeros(540)
        squares[7] = 1
        found = made.state.decided(squares, made.state.mask, torch.ones(540), 1.0)
        assert found.nonzero().tolist() == [[7]]

    @pytest.mark.parametrize("options", ["order=gain", "droppable=1.5", "droppable=-0.1"])
    def test_wrong_options(self, options):
        with pytest.raises(UsageError, match=options.partition("=")[0]):
            STRATEGIES.build(f"prunefl:{options}")
