"""FedDIP and DPF: docs/methods/feddip.md, properties 3 to 13, and docs/methods/sparse-baselines.md B11."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sparse_federation import Small, equal_bits, lengths, pictures, springs, weighted_mean
from torch import nn

from sparsync.errors import UsageError
from sparsync.federated import DPF, FedAvg, FedDIP
from sparsync.federated.feddip import MaskTransform
from sparsync.sparsity import Cubic, Staircase, counts, erk, iou, top_k_mask
from sparsync.strategies import STRATEGIES
from sparsync.wire.positions import sizes

M = 540
SHARES = (20, 10, 15, 15)
RANKED = (("dense", "dense_on_reconfiguration"), ("dense", "dense"), ("masked", "masked"), ("masked", "dense"))


def feddip(reconfigure_on: str = "dense", upload: str = "dense_on_reconfiguration", **options) -> FedDIP:
    """FedDIP that decides every third round of twelve, with a penalty that shows."""
    options = {"reconfiguration_interval": 3, "lambda_steps": 4, "lambda_min": 0.01, "lambda_max": 0.05, **options}
    return FedDIP(reconfigure_on=reconfigure_on, upload=upload, **options)


def sprung(weight: tuple[float, float], mask: tuple[int, int], optimizer: str, strength: float = 0.0, steps: int = 1):
    """The weights (w1, w2), pulled to (3, 5), after local steps under a mask."""
    made = Small(DPF(), task=springs(), shares=(2, 2, 2, 2), optimizer=optimizer, steps=steps)
    client = made.client()
    client.params.copy_(torch.tensor(weight))
    client.train(transform=MaskTransform(made.view, torch.tensor(mask, dtype=torch.bool), strength))
    assert client.steps == steps
    return client.params.tolist()


class TestLocalStep:
    def test_4_the_gradient_is_taken_at_the_pruned_point_and_moves_what_is_pruned_too(self):
        w1, w2 = sprung((1.0, 7.0), (1, 0), "sgd:lr=0.1")
        assert w1 == pytest.approx(1.0 - 0.1 * (1.0 - 3.0))
        assert w2 == pytest.approx(7.0 - 0.1 * (0.0 - 5.0))  # not 7 - 0.1 (7 - 5)

    def test_4_feedback_adds_up_over_the_steps_of_a_round(self):
        w1, w2 = sprung((3.0, 0.0), (1, 0), "sgd:lr=0.1", steps=4)
        assert (w1, w2) == (pytest.approx(3.0), pytest.approx(4 * 0.1 * 5.0))

    def test_weight_decay_acts_on_dense_weights_and_the_penalty_on_kept_ones(self):
        w1, w2 = sprung((-1.0, 7.0), (1, 0), "sgd:lr=0.1,weight_decay=0.5", strength=0.25)
        assert w1 == pytest.approx(-1.0 - 0.1 * ((-1.0 - 3.0) + 0.25 * -1.0 + 0.5 * -1.0))
        assert w2 == pytest.approx(7.0 - 0.1 * (-5.0 + 0.5 * 7.0))

    @pytest.mark.parametrize("optimizer", ["sgd:lr=0.1,weight_decay=5e-4", "sgd:lr=0.1,momentum=0.9", "adam:lr=0.01"])
    def test_5_without_pruning_and_penalty_it_is_the_optimiser_s_bit_for_bit(self, optimizer):
        made = Small(DPF(), optimizer=optimizer, epochs=2)
        client = made.client()
        client.load(made.server.initial)
        client.train()
        plain = client.model()
        client = made.client()
        client.load(made.server.initial)
        client.train(transform=MaskTransform(made.view, torch.ones(M, dtype=torch.bool)))
        assert equal_bits(client.model(), plain)

    @pytest.mark.parametrize("order", ["2", "1", "inf"])
    def test_6_the_penalty_s_gradient_is_that_of_the_layers_norms(self, order):
        made = Small(DPF())
        raw = torch.randn(made.view.total, generator=torch.Generator().manual_seed(0))
        mask = torch.rand(M, generator=torch.Generator().manual_seed(1)) < 0.5
        mask[: made.view.sizes[0]] = False  # a layer of zeros
        at = MaskTransform(made.view, mask, 0.3, order)
        theta, grad = torch.empty_like(raw), torch.zeros_like(raw)
        at.weights(raw, theta)
        at.gradient(raw, grad)
        expected = made.prunable(theta).requires_grad_()
        layers = made.view.split(expected)[1:]
        (0.3 * sum(torch.linalg.vector_norm(layer, float(order)) for layer in layers)).backward()
        torch.testing.assert_close(made.prunable(grad), expected.grad, rtol=1e-5, atol=1e-8)
        assert not bool(made.prunable(grad)[~mask].any())
        assert not bool(made.rest(grad).any())
        assert torch.equal(made.prunable(theta), made.prunable(raw).where(mask, 0))
        assert torch.equal(made.rest(theta), made.rest(raw))

    def test_one_forward_pass_at_the_pruned_point_feeds_the_normalisation(self):
        made = Small(DPF())
        exchange = made.send(0)
        assert exchange.counters[0][0].tolist() == [4]  # batches tracked: one per step
        client = made.client(0)
        client.load(exchange.received)
        seen = []
        made.runtime.module[0].register_forward_hook(
            lambda layer, inputs, output: seen.append(layer.weight.detach().clone())
        )
        made.clients.respond(client, exchange.payload)
        first = made.view.split(made.state.mask)[0].view(4, 1, 3, 3)
        assert len(seen) == 4
        assert all(not bool(weight[~first].any()) for weight in seen)


class TestRound:
    @pytest.mark.parametrize("upload", ["dense_on_reconfiguration", "dense"])
    def test_5_without_sparsity_and_penalty_it_is_fedavg(self, upload):
        plain, dense = Small(FedAvg()), Small(DPF(sparsity=0, sparsity_init=0, upload=upload))
        plain.run(3), dense.run(3)
        assert equal_bits(plain.state.weights, dense.state.weights)

    @pytest.mark.parametrize(("on", "upload"), RANKED)
    @pytest.mark.parametrize("init", ["erk", "none"])
    def test_7_the_mask_is_that_of_the_schedule_and_lasts_until_the_next(self, on, upload, init):
        made = Small(feddip(on, upload, mask_init=init), optimizer="sgd:lr=0.3")
        ramp = Cubic(0.5, 0.9, 12)
        for round_ in range(12):
            before = made.state.mask.clone()
            exchange = made.exchange(round_)
            mask = made.state.mask
            assert not bool(made.prunable(made.state.weights)[~mask].any())
            assert exchange.journal["sparsity_target"] == ramp(round_)
            assert exchange.journal["down_density"] == pytest.approx(float(before.float().mean()))
            if round_ % 3:
                assert torch.equal(mask, before)
                assert "delta" not in exchange.journal
                continue
            k = M - round(ramp(round_) * M)
            if on == "masked" and init == "erk":  # docs/methods/feddip.md F14: the first mask has fewer
                k = min(k, int(before.sum()))
            assert int(mask.sum()) == k
            assert exchange.journal["returned"] == int((mask & ~before).sum())
            assert exchange.journal["dropped"] == int((before & ~mask).sum())

    @pytest.mark.parametrize(("on", "upload"), RANKED)
    def test_8_and_10_the_mean_is_ranked_over_all_layers_together(self, on, upload):
        made = Small(feddip(on, upload, mask_init="none"), optimizer="sgd:lr=0.3")
        made.run(3)
        old = made.state.mask.clone()
        exchange = made.exchange(3)
        models = (
            exchange.trained
            if upload != "masked"
            else {n: made.state.pruned(x, old) for n, x in exchange.trained.items()}
        )
        mean = weighted_mean(models, SHARES).float()
        ranked = made.prunable(mean) if on == "dense" else made.prunable(mean).where(old, 0)
        kept, gone = ranked[made.state.mask].abs(), ranked[~made.state.mask].abs()
        assert float(kept.min()) >= float(gone.max()) * (1 - 1e-5)
        torch.testing.assert_close(made.prunable(made.state.weights)[made.state.mask], ranked[made.state.mask])
        torch.testing.assert_close(made.rest(made.state.weights), made.rest(mean))  # biases, normalisation: untouched
        density = made.view.layer_density(made.state.mask)
        assert density["0.weight"] < 1
        assert density["6.weight"] < 1
        assert len(set(density.values())) == 3
        energy = ranked.double().square()
        assert exchange.journal["delta"] == pytest.approx(
            float(energy[~made.state.mask].sum() / energy.sum()), rel=1e-3
        )

    def test_10_the_mean_does_not_depend_on_the_order(self):
        made = Small(feddip())
        exchange = made.send(0)
        state = made.state.state_dict()
        made.finish(exchange)
        weights, mask = made.state.weights, made.state.mask
        made.state.load_state_dict(state)
        exchange.uploads = dict(reversed(exchange.uploads.items()))
        made.finish(exchange)
        torch.testing.assert_close(made.state.weights, weights, rtol=1e-6, atol=1e-7)
        assert torch.equal(made.state.mask, mask)

    def test_10_the_mean_of_equal_uploads_is_the_upload(self):
        made = Small(feddip(upload="dense", first_reconfiguration=100))
        exchange = made.send(0, [2])
        exchange.uploads = dict.fromkeys(range(4), exchange.uploads[2])
        made.finish(exchange)
        assert torch.equal(made.state.weights, made.state.pruned(exchange.trained[2], made.state.mask))

    def test_9_what_has_learnt_behind_the_mask_returns(self):
        made = Small(DPF(sparsity=0.5, mask_init="none"), task=springs(), shares=(2, 2, 2, 2), steps=8)
        made.state.mask = torch.tensor([True, False])
        made.state.weights = torch.tensor([3.0, 0.0])
        exchange = made.exchange(0)
        assert made.state.mask.tolist() == [False, True]
        assert made.state.weights.tolist() == [0, pytest.approx(8 * 0.1 * 5)]
        assert (exchange.journal["returned"], exchange.journal["dropped"]) == (1, 1)
        assert exchange.notes[0]["off_mask"] == pytest.approx(4 / 3)

    @pytest.mark.parametrize("upload", ["masked", "dense"])
    @pytest.mark.parametrize("init", ["erk", "none"])
    def test_9_masks_are_nested_if_what_is_ranked_is_masked(self, upload, init):
        made = Small(feddip("masked", upload, mask_init=init), optimizer="sgd:lr=0.3")
        masks = [made.state.mask.clone()]
        for round_ in range(12):
            assert made.exchange(round_).journal.get("returned", 0) == 0
            masks.append(made.state.mask.clone())
        for before, after in itertools.pairwise(masks):
            assert not bool((after & ~before).any())
            assert iou(before, after) == int(after.sum()) / int(before.sum())
        assert int(masks[-1].sum()) < int(masks[1].sum())

    def test_9_masks_are_not_nested_if_it_is_dense(self):
        made = Small(feddip(), optimizer="sgd:lr=0.3")
        assert sum(exchange.journal.get("returned", 0) for exchange in made.run(12)) > 0

    def test_12_delta_is_a_share(self):
        for on, upload in RANKED:
            journal = [one.journal for one in Small(feddip(on, upload), optimizer="sgd:lr=0.3").run(12)]
            deltas = [noted["delta"] for noted in journal if "delta" in noted]
            assert len(deltas) == 4
            assert all(0 <= delta <= 1 for delta in deltas)
            assert max(deltas) > 0

    def test_13_policies_that_differ_in_bytes_only(self):
        made = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for on, upload in (*RANKED, ("masked", "dense_on_reconfiguration")):
                one = made[on, upload] = Small(feddip(on, upload), optimizer="sgd:lr=0.3")
                one.sent = [sum(map(len, exchange.uploads.values())) for exchange in one.run(7)]
        for on, policies in (("dense", 2), ("masked", 3)):
            alike = [one.state.weights for (ranked, _), one in made.items() if ranked == on]
            assert len(alike) == policies
            assert all(torch.equal(one, alike[0]) for one in alike)
        assert not torch.equal(made["dense", "dense"].state.weights, made["masked", "dense"].state.weights)
        least = made["masked", "masked"].sent
        assert all(a < b for a, b in zip(least, made["masked", "dense"].sent, strict=True))
        some = made["masked", "dense_on_reconfiguration"].sent
        assert [a < b for a, b in zip(least, some, strict=True)] == [round_ % 3 == 0 for round_ in range(7)]


class TestSchedules:
    def test_the_penalty_is_the_staircase_of_the_code(self):
        made = Small(FedDIP(), rounds=40)
        stairs = Staircase(0, 5e-4, 1e-3, 20, 40)
        assert [made.state.penalty(t) for t in range(40)] == [stairs(t) for t in range(40)]
        exchanges = made.run(5)
        assert [exchange.journal["lambda"] for exchange in exchanges] == [0, 0, 5e-4, 5e-4, pytest.approx(5.26316e-4)]

    def test_clients_are_pulled_by_the_penalty_of_the_round(self):
        """With a gradient that vanishes, a step is the penalty's: -lr lambda theta / ||theta||."""
        made = Small(feddip(sparsity_init=0, lambda_min=0.02), task=springs(), shares=(2,) * 4, steps=1)
        made.state.weights = torch.tensor([3.0, 5.0])
        for round_, strength in ((0, 0.0), (3, 0.02), (11, 0.02 + 2 / 3 * 0.03)):
            pull = torch.tensor([3.0, 5.0]) * (1 - 0.1 * strength / math.hypot(3, 5))
            torch.testing.assert_close(made.send(round_).trained[0], pull, rtol=1e-6, atol=1e-7)

    def test_no_penalty(self):
        made = Small(FedDIP(lambda_max=0), rounds=3)
        assert made.state.penalty is None
        assert "lambda" not in made.exchange(0).journal

    def test_the_other_form_of_the_staircase(self):
        penalty = FedDIP(lambda_max=0.02, lambda_min=0.02 / 20).penalty(100)
        assert [penalty(t) for t in (0, 5, 10)] == [0, pytest.approx(0.001), pytest.approx(0.002)]

    @pytest.mark.parametrize(("first", "rounds"), [(0, [0, 3, 6]), (1, [3, 6]), (3, [3, 6]), (4, [6])])
    def test_which_rounds_decide(self, first, rounds):
        made = Small(feddip(first_reconfiguration=first))
        masks, decided = made.state.mask.clone(), []
        for exchange in made.run(7):
            decided += [exchange.round] if "delta" in exchange.journal else []
            if exchange.round < first:
                assert exchange.journal["down_density"] == pytest.approx(float(masks.float().mean()))
        assert decided == rounds

    def test_the_first_mask_is_random_at_erk_densities_and_the_same_for_all(self):
        made, again, other = Small(feddip()), Small(feddip()), Small(feddip(), seed=1)
        assert 0 <= M // 2 - int(made.state.mask.sum()) <= 3
        shapes = made.view.shapes
        ones = [int(part.sum()) for part in made.view.split(made.state.mask)]
        assert ones == counts(shapes, erk(shapes, 0.5)) != counts(shapes, [0.5] * 3)
        assert torch.equal(made.state.mask, again.state.mask)
        assert not torch.equal(made.state.mask, other.state.mask)
        uniform = made.view.split(Small(feddip(erk_power=0)).state.mask)
        assert [int(part.sum()) for part in uniform] == counts(shapes, [0.5] * 3)
        received = made.exchange(0).received
        assert torch.equal(made.prunable(received), made.prunable(made.server.initial).where(again.state.mask, 0))

    def test_no_first_mask(self):
        for config in (feddip(mask_init="none"), feddip(sparsity_init=0), STRATEGIES.build("dpf:mask_init=none")):
            assert bool(Small(config).state.mask.all())

    @pytest.mark.parametrize(
        ("rule", "missing"),
        [("feddip", 2), ("sparsyfed", 0), ("weights_no_ends", 2)],
    )
    def test_what_is_prunable(self, rule, missing):
        made = Small(DPF(prunable=rule), model="resnet8:width=2")
        everything = set(made.server.view("all").names)
        left = everything - set(made.view.names)
        assert len(left) == missing
        assert all("shortcut" in name for name in left) == (rule != "weights_no_ends")


class TestBytes:
    """Property 11."""

    @pytest.mark.parametrize(("on", "upload"), RANKED)
    def test_the_mask_travels_down_and_numbers_both_ways(self, on, upload):
        made = Small(feddip(on, upload))
        rest = 4 * (made.server.vector.numel - M)
        for round_ in range(7):
            mask = made.state.mask.clone()
            values = made.prunable(made.state.weights)
            values[mask.nonzero()[0]] = 0  # an exact zero travels like any number that is kept
            made.view.scatter_(made.state.weights[: made.view.total], values)
            exchange = made.exchange(round_)
            k = int(mask.sum())
            positions = mask.nonzero().squeeze(1).numpy()
            assert lengths(exchange.payload) == {
                "model": 4 * k,
                "mask": min(sizes(positions, M).values()),
                "rest": rest,
            }
            dense = upload == "dense" or (upload == "dense_on_reconfiguration" and round_ % 3 == 0)
            for number, payload in exchange.uploads.items():
                assert lengths(payload) == {"model": 4 * (M if dense else k), "rest": rest}
                assert exchange.notes[number]["up_density"] == (1 if dense else k / M)
                assert ("off_mask" in exchange.notes[number]) == dense

    def test_bytes_of_the_paper_s_resnet(self):
        """ResNet-18 on CIFAR-100 at sparsity 0.9: docs/methods/feddip.md 4."""
        dataset = pictures(100, 100, (3, 32, 32))
        config = DPF(mask_init="none")
        made = Small(config, model="resnet18", dataset=dataset, shares=(50, 50), rounds=1000)
        vector, view, m, k, r = made.server.vector, made.view, 11_038_400, 1_103_840, 191_332
        assert (vector.d, view.numel, vector.d + vector.b - view.numel) == (11_220_132, m, r)
        assert m - round(0.9 * m) == k
        assert round(100 * 0.9 * m / vector.d, 2) == 88.54  # docs/methods/feddip.md F12
        mask = torch.zeros(m, dtype=torch.bool)
        mask[torch.from_numpy(np.random.default_rng(0).choice(m, k, replace=False))] = True
        made.state.mask = mask
        made.state.weights = made.state.pruned(made.state.weights, mask)
        down = lengths(made.state.downlink(1))
        bitmap = sizes(mask.nonzero().squeeze(1).numpy(), m)["bitmap"] - 1
        assert (down["model"], down["rest"]) == (4 * k, 4 * r)
        assert bitmap + 4 * k + 4 * r == 6_560_488
        assert down["mask"] <= bitmap
        sent = {}
        for round_ in (1, 5):  # none of five and all of five decide
            client = made.client(0, round_)
            client.load(made.state.weights)
            work = made.clients.half.work_on(client, made.state.weights, mask)
            sent[round_] = lengths(made.clients.half.reply(client, work).payload)
        assert sum(sent[1].values()) == 5_180_688
        assert sum(sent[5].values()) == 44_918_928
        mean = (4 * 5_180_688 + 44_918_928) / 5
        assert mean == 13_128_336
        assert round(100 * mean / 44_918_928, 1) == 29.2

    def test_share_of_a_dense_upload(self):
        """Of prunable numbers, on average: 1/R + (1 - 1/R) d."""
        for interval, share in ((5, 0.28), (20, 0.145)):
            made = Small(DPF(sparsity=0.9, sparsity_init=0.9, reconfiguration_interval=interval), rounds=20)
            sent = [lengths(exchange.uploads[0])["model"] for exchange in made.run(20)]
            assert np.mean(sent) / (4 * M) == pytest.approx(share, abs=0.005)


class TestAgreement:
    def test_clients_are_compared_by_the_masks_that_they_would_choose(self):
        made = Small(feddip(), optimizer="sgd:lr=0.3")
        for round_ in range(4):
            exchange = made.exchange(round_)
            if round_ % 3:
                assert exchange.journal["iou_clients"] == 1
                continue
            k = M - round(Cubic(0.5, 0.9, 12)(round_) * M)
            masks = [top_k_mask(made.prunable(model), k) for model in exchange.trained.values()]
            pairs = [iou(a, b) for a, b in itertools.combinations(masks, 2)]
            assert exchange.journal["iou_clients"] == pytest.approx(np.mean(pairs))
            assert exchange.journal["iou_clients_min"] == pytest.approx(min(pairs)) != 1

    def test_error_feedback_is_seen_as_regrowth(self):
        made = Small(feddip())
        exchange = made.send(1)
        for number, model in exchange.trained.items():
            off = made.prunable(model)[~made.state.mask]
            assert exchange.notes[number]["regrown"] == int(off.count_nonzero()) > 0.5 * len(off)


def test_b11_dpf_is_feddip_without_penalty():
    one = Small(DPF(reconfiguration_interval=3)).run(4)
    other = Small(feddip(lambda_max=0)).run(4)
    assert [(exchange.payload, exchange.uploads) for exchange in one] == [
        (exchange.payload, exchange.uploads) for exchange in other
    ]


def test_3_4_combinations():
    with pytest.raises(UsageError, match="reconfigure_on=dense with upload=masked") as refused:
        FedDIP(upload="masked")
    assert "upload=dense_on_reconfiguration, or reconfigure_on=masked" in str(refused.value)
    with pytest.warns(UserWarning, match="upload=masked gives the same models for less"):
        FedDIP(reconfigure_on="masked")
    for on, upload in RANKED:
        FedDIP(reconfigure_on=on, upload=upload)


@pytest.mark.parametrize("strategy", ["feddip", "dpf"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=0.5,sparsity_init=0.6", "sparsity_init=0.6 exceeds sparsity=0.5"),
        ("reconfiguration_interval=0", "reconfiguration_interval: Input should be greater than or equal to 1"),
        ("mask_init=snip", "mask_init: Input should be 'erk', 'clients' or 'none'"),
        ("prunable=shortcuts", "prunable: Input should be 'feddip', 'sparsyfed' or 'weights_no_ends'"),
        ("uplink=ef(q8)", "the strategy itself chooses which numbers travel"),
    ],
)
def test_wrong_options(strategy, options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"{strategy}:{options}")


def test_wrong_penalties():
    with pytest.raises(UsageError, match=r"lambda_min=0\.0005 exceeds lambda_max=0\.0001; lambda_max=0 is no penalty"):
        STRATEGIES.build("feddip:lambda_max=1e-4")
    with pytest.raises(UsageError, match="norm_order: Input should be '1', '2' or 'inf', got '3'"):
        STRATEGIES.build("feddip:norm_order=3")
    with pytest.raises(UsageError, match="lambda_steps=20 in 12 rounds; ask for fewer steps or more rounds"):
        Small(FedDIP())
    assert [FedDIP(norm_order=order).norm for order in (2, 1, math.inf, "2")] == ["2", "1", "inf", "2"]


def test_a_model_with_nothing_but_prunable_entries():
    made = Small(feddip(), model=lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=False)))
    for exchange in made.run(4):
        assert set(lengths(exchange.payload)) == {"model", "mask"}
