"""Top-K: docs/methods/sparse-baselines.md B4, B5 and B12, where supports are what uploads hold."""

from __future__ import annotations

import math

import pytest
import torch
from sparse_federation import Small, equal_bits, lengths, weighted_mean

from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.errors import UsageError
from sparsync.federated import FedAvg, SparsyFed, TopK
from sparsync.federated.watching import SupportWatch
from sparsync.sparsity import iou
from sparsync.strategies import STRATEGIES
from sparsync.wire.positions import sizes

M = 540
SHARES = (20, 10, 15, 15)


def test_an_upload_is_the_largest_weights_of_the_whole_trained_model_and_all_else():
    made = Small(TopK(sparsity=0.8))
    for round_ in range(3):
        exchange = made.send(round_)
        for number, payload in exchange.uploads.items():
            model, trained = made.state.decode(payload), exchange.trained[number]
            sent, was = made.prunable(model), made.prunable(trained)
            live = sent != 0
            assert int(live.count_nonzero()) == M - round(0.8 * M)
            assert torch.equal(sent[live], was[live])
            assert float(was[live].abs().min()) >= float(was[~live].abs().max())
            assert equal_bits(made.rest(model), made.rest(trained))
            assert len({round(density, 3) for density in made.view.layer_density(live).values()}) == 3
        made.finish(exchange)


def test_b4_the_server_takes_the_weighted_mean_and_prunes_nothing():
    made = Small(TopK(sparsity=0.8))
    for round_ in range(3):
        exchange = made.send(round_)
        models = {number: made.state.decode(payload) for number, payload in exchange.uploads.items()}
        made.finish(exchange)
        torch.testing.assert_close(made.state.weights.double(), weighted_mean(models, SHARES), rtol=1e-6, atol=1e-7)
        union = torch.stack([made.prunable(model) != 0 for model in models.values()]).any(0)
        assert torch.equal(made.prunable(made.state.weights) != 0, union)
        assert 0.2 < exchange.journal["down_density"] <= 1
    assert exchange.journal["down_density"] == pytest.approx(float((made.prunable(exchange.received) != 0).sum()) / M)


def test_b4_the_mean_of_equal_uploads_is_the_upload():
    made = Small(TopK(sparsity=0.8))
    exchange = made.send(0, [1])
    payload = exchange.uploads[1]
    sent = made.state.decode(payload)
    exchange.uploads = dict.fromkeys(range(4), payload)
    made.finish(exchange)
    assert equal_bits(made.state.weights, sent)


def test_b5_without_sparsity_it_is_fedavg_bit_for_bit():
    plain, sparse = Small(FedAvg()), Small(TopK(sparsity=0))
    for _ in plain.run(3), sparse.run(3):
        pass
    assert torch.equal(plain.state.weights, sparse.state.weights)


def test_b5_it_is_sparsyfed_without_re_parametrisation_and_activation_pruning_bit_for_bit():
    one = Small(TopK(sparsity=0.8)).run(4)
    other = Small(SparsyFed(sparsity=0.8, beta=1, activation_pruning=False)).run(4)
    assert [exchange.uploads for exchange in one] == [exchange.uploads for exchange in other]
    assert [exchange.payload for exchange in one] == [exchange.payload for exchange in other]


def test_regrowth_is_almost_the_whole_complement():
    _, second = Small(TopK(sparsity=0.8)).run(2)
    zeros = M * (1 - second.journal["down_density"])
    assert all(0.8 * zeros < notes["regrown"] <= zeros for notes in second.notes.values())


def test_numbers_of_a_client_s_round():
    made = Small(TopK(sparsity=0.8))
    made.exchange(0)
    exchange = made.send(1)
    before = made.prunable(exchange.received) != 0
    for number, payload in exchange.uploads.items():
        after, sent = made.prunable(exchange.trained[number]) != 0, made.prunable(made.state.decode(payload)) != 0
        assert exchange.notes[number] == {
            "up_density": 108 / M,
            "regrown": int((after & ~before).sum()),
            "deactivated": int(((before | after) & ~sent).sum()),
        }


def test_b12_positions_in_the_shortest_code_and_four_bytes_per_number():
    made = Small(TopK(sparsity=0.8))
    made.exchange(0)
    exchange = made.send(1)
    positions = made.prunable(exchange.received).nonzero().squeeze(1).numpy()
    rest = 4 * (made.server.vector.numel - M)
    assert lengths(exchange.payload) == {
        "model": 4 * len(positions),
        "mask": min(sizes(positions, M).values()),
        "rest": rest,
    }
    for payload in exchange.uploads.values():
        found = lengths(payload)
        assert (found["model"], found["rest"]) == (4 * 108, rest)
        assert found["mask"] <= 1 + math.ceil(M / 8)


def test_b12_a_support_within_what_was_received_is_told_within_it():
    made = Small(TopK(sparsity=0.8))
    made.exchange(0)
    exchange = made.send(1)
    received = made.prunable(exchange.received) != 0
    within = {n for n, x in exchange.uploads.items() if not (made.prunable(made.state.decode(x)) != 0)[~received].any()}
    assert within
    for number in within:
        assert lengths(exchange.uploads[number])["mask"] <= 1 + math.ceil(int(received.sum()) / 8) < 1 + M // 8


def test_b12_fedavg_sends_four_bytes_per_number_both_ways():
    made = Small(FedAvg())
    exchange = made.exchange(0)
    for payload in (exchange.payload, *exchange.uploads.values()):
        assert sum(lengths(payload).values()) == 4 * made.server.vector.numel
        assert len(payload) < 4 * made.server.vector.numel + 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=1", "sparsity: Input should be less than 1, got '1'"),
        ("sparsity=-0.1", "sparsity: Input should be greater than or equal to 0"),
        ("uplink=topk(0.1)", r"uplink=topk\(0.1\): the strategy itself chooses which numbers travel"),
        ("downlink=ef(q8)", "downlink=ef"),
        ("density=0.1", "has no parameter 'density': its parameters are"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"top-k:{options}")


class TestSupportWatch:
    def supports(self, n: int) -> list[torch.Tensor]:
        return list(torch.rand(n, M, generator=torch.Generator().manual_seed(3)) < 0.3)

    def test_rounds_are_compared_with_the_one_before_also_when_they_are_repeated(self):
        made = Small(TopK(), rounds=100)
        watch = SupportWatch(made.server, made.view)
        first, dense, second, third = self.supports(4)
        for round_, mask, before in ((0, first, None), (1, dense, first), (1, second, first), (2, third, second)):
            made.server.journal.clear()
            watch.sent(round_, mask)
            expected = None if before is None else pytest.approx(iou(mask, before))
            assert made.server.journal.get("iou_rounds") == expected
            assert made.server.journal["down_density"] == pytest.approx(float(mask.float().mean()))

    def test_about_twelve_rounds_are_compared_with_each_other(self):
        made = Small(TopK(), rounds=100)
        watch, masks = SupportWatch(made.server, made.view), self.supports(100)
        seen = {}
        for round_, mask in enumerate(masks):
            made.server.journal.clear()
            watch.sent(round_, mask)
            if "iou_history" in made.server.journal:
                seen[round_] = made.server.journal["iou_history"]
            assert len(watch.supports) <= 14
        assert list(seen) == list(range(0, 100, 9))
        for round_, pairs in seen.items():
            then = [other for other in seen if other <= round_]
            assert pairs == [[other + 1, pytest.approx(iou(masks[round_], masks[other]))] for other in then]

    def test_clients_agree_as_far_as_their_pairs_do(self):
        made = Small(TopK())
        watch = SupportWatch(made.server, made.view)
        stale, a, b, c = self.supports(4)
        watch.received(7, stale)  # of an exchange that failed
        watch.sent(0, a)
        for number, mask in enumerate((a, b, c)):
            watch.received(number, mask)
        watch.agreement()
        pairs = [iou(a, b), iou(a, c), iou(b, c)]
        assert made.server.journal["iou_clients"] == pytest.approx(sum(pairs) / 3)
        assert made.server.journal["iou_clients_min"] == pytest.approx(min(pairs))

    def test_it_goes_on_from_a_checkpoint(self, tmp_path):
        made = Small(TopK(), rounds=30)
        masks = self.supports(7)
        one, other = SupportWatch(made.server, made.view), SupportWatch(made.server, made.view)
        for round_ in range(5):
            one.sent(round_, masks[round_])
        save_tree(one.state_dict(), tmp_path / "watch")
        other.load_state_dict(load_tree(tmp_path / "watch"))
        for round_ in (5, 6):
            seen = []
            for watch in (one, other):
                made.server.journal.clear()
                watch.sent(round_, masks[round_])
                seen.append(dict(made.server.journal))
            assert seen[0] == seen[1]
            assert "iou_rounds" in seen[1]
