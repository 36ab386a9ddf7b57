"""PruneFL after the port: docs/methods/sparse-baselines.md 2.5 and B9."""

from __future__ import annotations

import pytest
import torch
from sparse_federation import Small, equal_bits, lengths, weighted_mean

from sparsync.errors import UsageError
from sparsync.federated import PruneFL
from sparsync.federated.prunefl import worthwhile
from sparsync.sparsity import Cubic, counts, erk
from sparsync.strategies import STRATEGIES
from sparsync.wire import KnownSupport
from sparsync.workers import Client
from tolerance import distance, rounding

M = 540
SHARES = (20, 10, 15, 15)


def prunefl(**options) -> PruneFL:
    """A new mask after every second round."""
    return PruneFL(**{"reconfiguration_interval": 2, "initial_mask": "erk", **options})


def taken(squares: list[float], times: list[float], least: float) -> list[int]:
    mask = worthwhile(torch.tensor(squares), torch.tensor(times, dtype=torch.float64), least)
    return mask.nonzero().squeeze(1).tolist()


class TestWorthwhile:
    def test_by_hand(self):
        # T = 0.2, 1.2, 2.2, 3.2 and D = 0, 4, 7, 9: asked for are 0, 3.33, 3.18, 2.81
        assert taken([2, 4, 1, 3], [1] * 4, 0) == [1]
        assert taken([3.5, 4, 1, 3], [1] * 4, 0) == [0, 1]
        # j is the number kept before: no more than least
        assert taken([2, 4, 1, 3], [1] * 4, 1) == [1, 3]
        assert taken([2, 4, 1, 3], [1] * 4, 2) == [0, 1, 3]
        assert taken([2, 4, 1, 3], [1] * 4, 2.9) == [0, 1, 3]
        assert taken([2, 4, 1, 3], [1] * 4, 3) == [0, 1, 2, 3]

    def test_gain_is_divided_by_time_where_it_stops_but_not_where_it_sorts(self):
        # the second gains 3 in 0.5: 6 >= 4 / 1.2; then 2.9 >= 7 / 1.7 fails
        assert taken([2.9, 4, 1, 3], [1, 1, 1, 0.5], 0) == [1, 3]
        # a slow first one: 3.9 >= 4 / 10.2
        assert taken([3.9, 4, 0.1, 0.1], [1, 10, 1, 1], 0) == [0, 1]
        # and one that is too slow itself: 3.9 / 10 < 4 / 1.2
        assert taken([3.9, 4, 3.8, 3.7], [10, 1, 1, 1], 0) == [1]

    @pytest.mark.parametrize("least", [0, 0.5, 17, 100.5, 539, 540, 1000])
    @pytest.mark.parametrize("uniform", [True, False])
    def test_b9_a_prefix_of_the_order_and_as_many_as_asked_for(self, least, uniform):
        draw = torch.Generator().manual_seed(4)
        squares = torch.randn(M, generator=draw).square() ** 3
        times = torch.ones(M) if uniform else torch.rand(M, generator=draw) + 0.5
        mask = worthwhile(squares, times.double(), least)
        kept = int(mask.sum())
        assert kept >= min(least, M)
        order = squares.argsort(descending=True)
        assert bool(mask[order[:kept]].all())
        assert not bool(mask[order[kept:]].any())
        assert kept == self.by_the_loop(squares[order].tolist(), times[order].tolist(), least)

    def by_the_loop(self, squares: list[float], times: list[float], least: float) -> int:
        """How many coordinates the port's loop takes."""
        gained, spent = 0.0, 0.2
        for kept, (gain, time) in enumerate(zip(squares, times, strict=True)):
            if gain / time < gained / spent and kept > least:
                return kept
            gained, spent = gained + gain, spent + time
        return len(squares)


class TestRounds:
    def gradient(
        self, made: Small, number: int, round_: int, received: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Dense squared gradient of a client's last batch, by other means."""
        client = made.client(number, round_)
        client.load(received)
        on = torch.ones(made.view.total)
        made.view.scatter_(on, mask.float())
        steps = len(client.batches)
        client.train(range(steps - 1), before_step=lambda _, grad: grad.mul_(on))
        return made.view.gather(client.gradient(client.batches[steps - 1])).square()

    def test_b9_a_round_that_decides(self):
        made = Small(prunefl())
        made.exchange(0)
        mask = made.state.mask.clone()
        exchange = made.send(1)
        sent = {n: made.state.up.decode(x, KnownSupport(mask), [M]) for n, x in exchange.uploads.items()}
        squares = {n: x[-M:] for n, x in sent.items()}
        for number, found in squares.items():
            expected = self.gradient(made, number, 1, exchange.received, mask)
            assert distance(found, expected) <= rounding(64, float(expected.max()), torch.float32)
            assert bool(found[~mask].any())
            assert not bool(made.prunable(exchange.trained[number])[~mask].any())
        made.finish(exchange)
        least = (1 - Cubic(0.5, 0.9, 12)(1)) * M
        mean = weighted_mean(squares, SHARES)
        assert torch.equal(made.state.mask, worthwhile(mean, torch.ones(M).double(), least))
        assert int(made.state.mask.sum()) >= least
        models = weighted_mean({n: x[:-M] for n, x in sent.items()}, SHARES).float()
        torch.testing.assert_close(made.state.weights, made.state.pruned(models, made.state.mask))
        assert "iou_clients" in exchange.journal

    def test_b9_the_density_does_not_fall_below_the_schedule(self):
        made, ramp = Small(prunefl()), Cubic(0.5, 0.9, 12)
        for round_ in range(12):
            before = made.state.mask.clone()
            exchange = made.exchange(round_)
            assert not bool(made.prunable(made.state.weights)[~made.state.mask].any())
            assert exchange.journal["sparsity_target"] == ramp(round_)
            if round_ % 2 == 0:
                assert torch.equal(made.state.mask, before)
            else:
                assert float(made.state.mask.float().mean()) >= 1 - ramp(round_)
            for model in exchange.trained.values():
                assert not bool(made.prunable(model)[~before].any())
        assert int(made.state.mask.sum()) < 0.4 * M

    def test_gradients_travel_in_rounds_that_decide_only(self):
        made = Small(prunefl())
        rest = 4 * (made.server.vector.numel - M)
        for round_ in range(4):
            ones = int(made.state.mask.sum())
            exchange = made.exchange(round_)
            assert lengths(exchange.payload)["model"] == 4 * ones
            assert "mask" in lengths(exchange.payload)
            for number, payload in exchange.uploads.items():
                assert lengths(payload) == {"model": 4 * ones, "rest": rest} | (
                    {"gradient": 4 * M} if round_ % 2 else {}
                )
                assert exchange.notes[number]["up_density"] == ones / M

    def test_layers_that_take_longer_are_pruned_more(self):
        plain, slow = Small(prunefl()), Small(prunefl(layer_time={"6.weight": 50.0}))
        for made in (plain, slow):
            made.run(2)
        assert torch.equal(
            slow.state.decided.times, slow.view.expand(torch.tensor([1.0, 1.0, 50.0], dtype=torch.float64))
        )
        assert (
            slow.view.layer_density(slow.state.mask)["6.weight"]
            <= plain.view.layer_density(plain.state.mask)["6.weight"]
        )


class TestFirstMask:
    def test_erk(self):
        made = Small(prunefl())
        assert sum(counts(made.view.shapes, erk(made.view.shapes, 0.5))) == int(made.state.mask.sum())
        first = made.prunable(made.server.initial)
        assert torch.equal(made.prunable(made.state.weights), first.where(made.state.mask, 0))

    def alone(self, monkeypatch, accuracies: list[float], **options):
        """The first exchange, with a client whose accuracy is scripted."""
        asked = []

        def accuracy(client, most=500):
            asked.append(client.steps // len(client.batches))
            return accuracies[len(asked) - 1] if len(asked) <= len(accuracies) else 0.0

        monkeypatch.setattr(Client, "accuracy", accuracy)
        made = Small(prunefl(initial_mask="client", **options))
        return made, made.exchange(0), asked

    def test_one_client_trains_until_it_is_better_than_chance(self, monkeypatch):
        better = 1 / 3 + 0.011
        made, first, asked = self.alone(monkeypatch, [1 / 3 + 0.009] * 3 + [better])
        assert not first.over
        assert list(first.uploads) == [0]
        assert asked == [5, 6, 7, 8]
        assert first.steps == {0: 8 * 4}
        assert made.exchange(0).over
        assert self.alone(monkeypatch, [], initial_rounds=12)[2] == [5, 6, 7, 8, 9, 10, 11, 12]

    def test_only_its_mask_is_kept(self, monkeypatch):
        made, first, _ = self.alone(monkeypatch, [1.0])
        assert set(lengths(first.uploads[0])) == {"mask"}
        mask = made.state.mask
        assert M // 2 <= int(mask.sum()) < M
        assert equal_bits(made.state.weights, made.state.pruned(made.server.initial, mask))
        client = made.client()
        client.load(made.server.initial)
        steps = 5 * len(client.batches)
        client.train(range(steps - 1))
        squares = made.view.gather(client.gradient(client.batches[steps - 1])).square()
        assert torch.equal(mask, worthwhile(squares, torch.ones(M).double(), M / 2))

    def test_it_trains_on_the_mask_of_its_fifth_round_from_then_on(self, monkeypatch):
        made, first, asked = self.alone(monkeypatch, [0, 0, 0, 1.0], sparsity_init=0.9)
        assert asked[-1] == 8
        held = made.prunable(first.trained[0])
        assert torch.equal(held != 0, made.state.mask & (held != 0))
        assert int((held != 0).sum()) > 0.8 * int(made.state.mask.sum())

    def test_momentum_does_not_move_what_was_dropped(self, monkeypatch):
        monkeypatch.setattr(Client, "accuracy", lambda client, most=500: float(client.steps >= 7 * len(client.batches)))
        made = Small(prunefl(initial_mask="client", sparsity_init=0.9), optimizer="sgd:lr=0.1,momentum=0.9")
        held = made.prunable(made.exchange(0).trained[0])
        assert not bool(held[~made.state.mask].any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=0.4", "sparsity_init=0.5 exceeds sparsity=0.4"),
        ("initial_rounds=4", "initial_rounds: Input should be greater than or equal to 5"),
        ("initial_mask=random", "initial_mask: Input should be 'client' or 'erk'"),
        ("reconfiguration_interval=0", "reconfiguration_interval: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"prunefl:{options}")


def test_wrong_layer_times():
    with pytest.raises(
        UsageError, match=r"layer_time of 'fc', which is not pruned; expected some of 0.weight, 3.weight"
    ):
        Small(prunefl(layer_time={"fc": 2.0}))
    with pytest.raises(UsageError, match=r"layer_time.*greater than 0"):
        prunefl(layer_time={"0.weight": 0.0})
