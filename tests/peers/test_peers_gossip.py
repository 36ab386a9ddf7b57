"""Averaging with neighbours in a graph: all at once (gossip), and in pairs as workers become ready (AD-PSGD)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsync.__main__ import main
from sparsync.comparison import compare
from sparsync.engines.loop import Budget
from sparsync.errors import DivergedError, UsageError
from sparsync.experiment import build
from sparsync.hetero import make_graph, metropolis, spectral_gap
from sparsync.peers import ADPSGD, Gossip, LocalSGD
from sparsync.randomness import torch_generator
from sparsync.settings import read
from sparsync.strategies import STRATEGIES
from sparsync.system import Profile
from sparsync.wire import Star
from sparsync.workers import Fleet
from tolerance import assert_alike, distance, rounding

MakeFleet = Callable[..., Fleet]
MakeRun = Callable[..., SimpleNamespace]
Train = Callable[[SimpleNamespace, int], list[Tensor]]

FREE: dict[str, Any] = {"bandwidth": math.inf, "latency": 0.0}
GRAPHS = ["ring", "torus", "exponential", "random-regular", "complete", "(0-1,1-2,2-3,3-4,4-5,5-6,6-7)"]
BOTH = [Gossip(), ADPSGD()]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


def with_batchnorm(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def spread(rows: Tensor) -> float:
    """Of the models from their mean."""
    return float((rows - rows.mean(0)).square().sum())


def go_on(fleet: Fleet, state: Any, exchanges: int = 1) -> None:
    """Local steps, of which only the time passes, and the exchange after them."""
    for _ in range(exchanges):
        fleet.clock.compute(state.local_steps(fleet))
        state.exchange(fleet)


def turns(fleet: Fleet, state: Any, count: int) -> list[int]:
    """Whose turns come next."""
    seen = []
    for _ in range(count):
        steps = state.local_steps(fleet)
        fleet.clock.compute(steps)
        (turn,) = np.flatnonzero(steps).tolist()
        seen.append(turn)
        state.exchange(fleet)
    return seen


def pairs(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Who averages with whom from now on."""
    seen: list[tuple[int, int]] = []
    average_pair = fleet.average_pair

    def watched(first: int, second: int) -> None:
        seen.append((first, second))
        average_pair(first, second)

    monkeypatch.setattr(fleet, "average_pair", watched)
    return seen


# ---------------------------------------------------------------------------------------------------------- gossip


def test_gossip_by_hand_on_a_line_of_three(make_fleet: MakeFleet) -> None:
    """Weights 1/3 between neighbours; who has one neighbour keeps 2/3 of its own."""
    fleet = make_fleet(3, 2, torch.float64)
    state = Gossip(graph="(0-1,1-2)").start(fleet)
    fleet.params.copy_(torch.tensor([[3.0, -3.0], [6.0, 0.0], [0.0, 9.0]]))
    state.exchange(fleet)
    assert fleet.params.numpy() == pytest.approx(np.array([[4, -2], [3, 2], [2, 6]]))
    state.exchange(fleet)
    assert fleet.params.numpy() == pytest.approx(np.array([[11, -2], [9, 6], [7, 14]]) / 3)
    assert fleet.syncs == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_mean_of_all_models_is_kept(graph: str, dtype: torch.dtype, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(8, 30, dtype)
    state = Gossip(graph=graph).start(fleet)
    fleet.params.copy_(normal(8, 30))
    most = float(fleet.params.abs().max())
    mean, wide = fleet.params.double().mean(0), spread(fleet.params)
    for _ in range(200):
        state.exchange(fleet)
    assert distance(fleet.params.double().mean(0), mean) <= rounding(200 * 8, most, dtype)
    assert spread(fleet.params) < 1e-5 * wide


@pytest.mark.parametrize("graph", GRAPHS)
def test_disagreement_shrinks_at_least_by_the_spectral_gap(graph: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(8, 5, torch.float64)
    state = Gossip(graph=graph).start(fleet)
    factor = (1 - spectral_gap(metropolis(make_graph(graph, 8, seed=fleet.seed)))) ** 2
    fleet.params.copy_(normal(8, 5))
    before, most = spread(fleet.params), float(fleet.params.square().sum().sqrt())
    for _ in range(10):
        state.exchange(fleet)
        after = spread(fleet.params)
        assert after <= factor * before * (1 + rounding(100)) + rounding(8, most) ** 2
        before = after


def test_the_slowest_disagreement_shrinks_by_just_that(make_fleet: MakeFleet) -> None:
    """A wave round the ring: the eigenvector of (1 + 2 cos(2 pi / K)) / 3."""
    fleet = make_fleet(12, 1, torch.float64)
    state = Gossip().start(fleet)
    wave = torch.cos(2 * math.pi * torch.arange(12, dtype=torch.float64) / 12)[:, None]
    fleet.params.copy_(wave)
    state.exchange(fleet)
    shrunk = wave * (1 + 2 * math.cos(2 * math.pi / 12)) / 3
    assert distance(fleet.params, shrunk) <= rounding(12)


@pytest.mark.parametrize("optimizer", ["sgd:lr=0.1,momentum=0.9", "adam:lr=0.01"])
def test_with_everyone_as_neighbour_it_is_local_sgd(optimizer: str, make_run: MakeRun, train: Train) -> None:
    said = {"optimizer": optimizer, "dtype": torch.float64, "model": with_batchnorm}
    ours = train(make_run(Gossip(graph="complete", period=3), **said), 6)
    assert_alike(ours, lambda nudge: train(make_run(LocalSGD(period=3), nudge=nudge, **said), 6))


def test_gossip_learns_what_no_ring_mean_does(make_run: MakeRun, train: Train) -> None:
    """On a ring of six, models differ after an exchange, less than they would without."""
    ours, alone = make_run(Gossip(period=2), 6), make_run(LocalSGD(period=20), 6)
    after = train(ours, 10)[-1]
    alone.training.train(20)
    assert 0 < spread(after) < spread(alone.fleet.params)


def test_gossip_sends_a_model_over_every_link_in_both_directions(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, 5)  # 20 bytes
    state = Gossip(graph="(0-1,0-2,0-3)", period=7).start(fleet)
    assert state.local_steps(fleet) == 7
    assert fleet.ledger.total == 0
    for exchanges in (1, 2):
        state.exchange(fleet)
        assert fleet.ledger.moved == fleet.ledger.paper == {"model": exchanges * 6 * 20}
        assert fleet.ledger.sent["model"].tolist() == [exchanges * n * 20 for n in (3, 1, 1, 1)]
        assert fleet.ledger.received["model"].tolist() == fleet.ledger.sent["model"].tolist()


@pytest.mark.parametrize(("graph", "links"), [("ring", 8), ("torus", 12), ("exponential", 20), ("complete", 28)])
def test_bytes_of_named_graphs(graph: str, links: int, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(8, 5, torch.float64)  # 40 bytes; the paper view counts float32
    Gossip(graph=graph).start(fleet).exchange(fleet)
    assert fleet.ledger.moved == {"model": 2 * links * 40}
    assert fleet.ledger.paper == {"model": 2 * links * 20}


def test_gossip_waits_for_neighbours_only(make_fleet: MakeFleet) -> None:
    """On a line, messages of 20 bytes take 2 s each, 4 s of those in the middle, after 0.5 s.

    Worker 0 needs 4 s for a step. Its neighbour feels that at once, those behind it one exchange later each.
    """
    profile = Profile(step_seconds=4.0, power="1:4:4:4", bandwidth=10.0, latency=0.5)
    fleet = make_fleet(4, 5, profile=profile)
    state = Gossip(graph="(0-1,1-2,2-3)").start(fleet)
    go_on(fleet, state)
    assert fleet.clock.times.tolist() == [8.5, 8.5, 5.5, 5.5]
    assert fleet.clock.spent["wait"].tolist() == [0, 3, 0, 0]
    go_on(fleet, state)
    assert fleet.clock.times.tolist() == [17, 17, 14, 11]
    go_on(fleet, state)
    assert fleet.clock.times.tolist() == [25.5, 25.5, 22.5, 19.5]
    assert fleet.clock.spent["compute"].tolist() == [12, 3, 3, 3]
    assert fleet.clock.spent["exchange"].tolist() == [13.5] * 4


def test_gossip_over_a_slow_link_keeps_its_neighbours_waiting_only(make_fleet: MakeFleet) -> None:
    profile = Profile(step_seconds=1.0, up=[1, 10, 10, 10], down=10.0, latency=0.5)
    fleet = make_fleet(4, 5, profile=profile)
    go_on(fleet, Gossip(graph="(0-1,1-2,2-3)").start(fleet))
    assert fleet.clock.times.tolist() == [21.5, 21.5, 5.5, 5.5]


def test_every_worker_takes_the_period(make_run: MakeRun, train: Train) -> None:
    made = make_run(Gossip(period=4), profile=Profile(power="4:2:2:1"))
    train(made, 3)
    assert [worker.steps for worker in made.training.workers] == [12] * 4
    assert made.fleet.syncs == 3


# --------------------------------------------------------------------------------------------------------- AD-PSGD


def test_whose_turn_it_is_by_hand(make_fleet: MakeFleet) -> None:
    """Steps of 1, 2 and 4 s; the first of those who are ready at the same time goes first."""
    fleet = make_fleet(3, 1, profile=Profile(step_seconds=4.0, power="4:2:1", **FREE))
    state = ADPSGD().start(fleet)
    assert turns(fleet, state, 14) == [0, 0, 1, 0, 0, 1, 2] * 2
    assert fleet.clock.times.tolist() == [8, 8, 8]
    assert not fleet.clock.spent["wait"].any()


def test_turns_take_their_exchange_into_account(make_fleet: MakeFleet) -> None:
    """Half a second of latency each. Worker 0 has trained at 1, 2.5 and 4, 1 at 2 and 4.5, and 2 at 4."""
    fleet = make_fleet(3, 1, profile=Profile(step_seconds=4.0, power="4:2:1", latency=0.5, bandwidth=math.inf))
    state = ADPSGD().start(fleet)
    assert turns(fleet, state, 6) == [0, 1, 0, 0, 2, 1]
    assert fleet.clock.times.tolist() == [4.5, 5, 4.5]
    assert fleet.clock.spent["exchange"].tolist() == [1.5, 1, 0.5]


def test_fast_workers_take_more_steps_in_proportion(make_run: MakeRun, train: Train) -> None:
    made = make_run(ADPSGD(period=3), 3, profile=Profile(step_seconds=4.0, power="4:2:1", **FREE))
    train(made, 35)
    assert [worker.steps for worker in made.training.workers] == [60, 30, 15]
    assert made.fleet.syncs == 35


def test_nobody_waits_for_the_slow_one(make_fleet: MakeFleet) -> None:
    """Two are ready after each second; the third needs 1000, answers all the same, and keeps nobody."""
    profile = Profile(step_seconds=1000.0, power="1000:1000:1", latency=0.25, bandwidth=16.0)  # 8 bytes: 0.5 s
    fleet = make_fleet(3, 2, profile=profile)
    state = ADPSGD(graph="complete").start(fleet)
    assert turns(fleet, state, 100) == [0, 1] * 50
    assert fleet.clock.times.tolist() == [50 * 1.75, 50 * 1.75, 0]
    assert not fleet.clock.spent["wait"].any()
    assert fleet.ledger.sent["model"][2] > 20 * 8


def test_a_pairing_is_the_mean_of_two(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(3, 2, torch.float64)
    seen = pairs(fleet, monkeypatch)
    state = ADPSGD().start(fleet)
    for _ in range(20):
        before = normal(3, 2)
        fleet.params.copy_(before)
        go_on(fleet, state)
        first, second = seen[-1]
        before[[first, second]] = (before[first] + before[second]) / 2
        assert distance(fleet.params, before) <= rounding(2, float(before.abs().max()))


def test_the_mean_is_kept_and_models_agree(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(8, 30, torch.float64)
    state = ADPSGD().start(fleet)
    fleet.params.copy_(normal(8, 30))
    mean, wide, most = fleet.params.mean(0), spread(fleet.params), float(fleet.params.abs().max())
    go_on(fleet, state, 1000)
    assert distance(fleet.params.mean(0), mean) <= rounding(1000, most)
    assert spread(fleet.params) < 1e-6 * wide


def test_partners_are_neighbours_drawn_from_the_seed(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for seed in (0, 0, 1):
        fleet = make_fleet(4, 1, seed=seed)
        seen = pairs(fleet, monkeypatch)
        turns(fleet, ADPSGD(graph="(0-1,1-2,2-3,0-2)").start(fleet), 120)
        drawn.append(seen)
    assert drawn[0] == drawn[1] != drawn[2]
    links = [(0, 1), (1, 2), (2, 3), (0, 2)]
    assert set(drawn[0]) == {*links, *(link[::-1] for link in links)}
    of_two = [second for first, second in drawn[0] if first == 2]
    assert len(of_two) == 30
    assert all(3 <= of_two.count(neighbour) <= 20 for neighbour in (0, 1, 3))


def test_a_pairing_sends_two_models(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(4, 5)
    seen = pairs(fleet, monkeypatch)
    state = ADPSGD().start(fleet)
    expected = np.zeros(4, int)
    for pairing in range(1, 10):
        go_on(fleet, state)
        expected[list(seen[-1])] += 20
        assert fleet.ledger.sent["model"].tolist() == fleet.ledger.received["model"].tolist() == expected.tolist()
        assert fleet.ledger.moved == fleet.ledger.paper == {"model": pairing * 2 * 20}


def test_only_the_one_whose_turn_it_is_takes_time(make_fleet: MakeFleet) -> None:
    """8 bytes over the slower of both links: 4 s for 0 and 1, whichever of the two asks."""
    profile = Profile(step_seconds=1.0, up=[2, 100], down=100.0, latency=0.5)
    fleet = make_fleet(2, 2, profile=profile)
    state = ADPSGD().start(fleet)
    go_on(fleet, state)
    assert fleet.clock.times.tolist() == [5.5, 0]
    go_on(fleet, state)
    assert fleet.clock.times.tolist() == [5.5, 5.5]


OUTAGE: list[dict[str, Any]] = [{"worker": 2, "at": 2.5}]


def test_who_is_away_for_good_is_left_behind(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = make_fleet(3, 1, profile=Profile(step_seconds=1.0, outages=OUTAGE, **FREE))
    seen = pairs(fleet, monkeypatch)
    state = ADPSGD().start(fleet)
    assert turns(fleet, state, 26) == [0, 1, 2, 0, 1, 2] + [0, 1] * 10
    assert seen[6:] == [(0, 1), (1, 0)] * 10
    assert fleet.clock.times.tolist() == [12, 12, 2]


def test_who_is_back_ends_its_step_and_takes_part(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from 2.5 to 4.25: half a step before, half after, which ends at 4.75."""
    outage = [{**OUTAGE[0], "until": 4.25}]
    fleet = make_fleet(3, 1, profile=Profile(step_seconds=1.0, outages=outage, **FREE))
    seen = pairs(fleet, monkeypatch)
    state = ADPSGD().start(fleet)
    assert turns(fleet, state, 11) == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 2]
    assert seen[6:10] == [(0, 1), (1, 0)] * 2
    assert fleet.clock.times.tolist() == [4, 4, 4.75]
    assert turns(fleet, state, 6) == [0, 1, 2] * 2
    turns(fleet, state, 30)
    assert {(0, 2), (1, 2)} & set(seen[11:])


def test_a_worker_without_neighbours_there_goes_on_alone(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, 1, profile=Profile(step_seconds=1.0, outages=[{"worker": 1, "at": 0.5}]))
    go_on(fleet, ADPSGD().start(fleet), 5)
    assert fleet.clock.times.tolist() == [5, 0]
    assert fleet.syncs == fleet.ledger.total == 0


def test_gossip_waits_for_a_neighbour_that_comes_back(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, 1, profile=Profile(step_seconds=1.0, outages=[{"worker": 0, "at": 0.5, "until": 3}], **FREE))
    go_on(fleet, Gossip(graph="(0-1,1-2,2-3)").start(fleet))
    assert fleet.clock.times.tolist() == [3.5, 3.5, 1, 1]


def test_steps_without_time_are_refused(make_fleet: MakeFleet) -> None:
    with pytest.raises(
        UsageError, match="ad-psgd: on this profile a local step takes no time, so nobody is faster; set"
    ):
        ADPSGD().start(make_fleet(2, 1, profile=Profile(step_seconds=0)))


# ------------------------------------------------------------------------------------------------------------ both


@pytest.mark.parametrize("strategy", BOTH, ids=lambda own: type(own).__name__)
def test_a_single_worker_trains_alone(strategy: Any, make_run: MakeRun, train: Train) -> None:
    made, alone = make_run(strategy, 1), make_run(LocalSGD(period=100), 1)
    train(made, 9)
    alone.training.train(9)
    assert torch.equal(made.fleet.params, alone.fleet.params)
    assert made.fleet.ledger.total == made.fleet.ledger.paper_total == 0
    assert made.fleet.clock.now == alone.fleet.clock.now


@pytest.mark.parametrize("graph", ["ring", "complete", "(0-1)"])
@pytest.mark.parametrize("kind", [Gossip, ADPSGD])
def test_two_workers_average(kind: Any, graph: str, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, 1)
    state = kind(graph=graph).start(fleet)
    fleet.params.copy_(torch.tensor([[1.0], [4.0]]))
    go_on(fleet, state)
    assert fleet.params.tolist() == [[2.5], [2.5]]
    assert fleet.ledger.moved == {"model": 8}


@pytest.mark.parametrize("policy", ["average", "local"])
def test_gossip_mixes_buffers_by_policy(policy: Any, make_run: MakeRun) -> None:
    made = make_run(Gossip(), 6, model=with_batchnorm, dtype=torch.float64, buffers=policy)
    fleet = made.fleet
    made.training.train(made.state.local_steps(fleet))
    before = fleet.arena.buffers.clone()
    assert before.shape == (6, 10)  # running means and variances
    assert spread(before) > 0
    made.state.exchange(fleet)
    mixed = torch.from_numpy(metropolis(make_graph("ring", 6))) @ before
    expected, numbers = (mixed, fleet.d + 10) if policy == "average" else (before, fleet.d)
    assert distance(fleet.arena.buffers, expected) <= rounding(8, float(before.abs().max()))
    assert fleet.ledger.moved == {"model": 12 * 8 * numbers}


@pytest.mark.parametrize("policy", ["average", "local"])
def test_pairs_average_buffers_by_policy(policy: Any, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_run(ADPSGD(), 4, model=with_batchnorm, dtype=torch.float64, buffers=policy)
    fleet = made.fleet
    seen = pairs(fleet, monkeypatch)
    made.training.train(made.state.local_steps(fleet))
    before, expected, numbers = fleet.arena.buffers.clone(), fleet.arena.buffers.clone(), fleet.d
    made.state.exchange(fleet)
    if policy == "average":
        expected[list(seen[0])] = expected[list(seen[0])].mean(0)
        numbers += 10
    assert spread(expected) > 0
    assert distance(fleet.arena.buffers, expected) <= rounding(8, float(before.abs().max()))
    assert fleet.ledger.moved == {"model": 2 * 8 * numbers}


@pytest.mark.parametrize("strategy", BOTH, ids=lambda own: type(own).__name__)
def test_a_worker_that_diverged_is_named(strategy: Any, make_run: MakeRun, make_fleet: MakeFleet, train: Train) -> None:
    fleet = make_fleet(3, 2)
    state = strategy.start(fleet)
    fleet.fail(2, 7)
    message = "worker 2: the loss is not finite at step 7; lower the learning rate"
    with pytest.raises(DivergedError, match=message):
        go_on(fleet, state, 9)
    with pytest.raises(DivergedError, match=r"worker \d: the loss is not finite at step \d"):
        train(make_run(strategy, optimizer="sgd:lr=1e30"), 20)


@pytest.mark.parametrize("spec", ["gossip", "ad-psgd"])
def test_a_star_is_refused(spec: str, make_fleet: MakeFleet) -> None:
    with pytest.raises(UsageError, match=f"^{spec}: workers pass models to one another; use topology='ring'$"):
        STRATEGIES.build(spec).start(make_fleet(3, 2, topology=Star()))


@pytest.mark.parametrize("spec", ["gossip:graph=random-regular,period=3", "ad-psgd:graph=exponential,period=2"])
def test_saved_and_restored_after_any_exchange(spec: str, stop_after_every_exchange: Any, make_run: MakeRun) -> None:
    def make() -> SimpleNamespace:
        profile = Profile(power=[5, 4, 3, 2, 1, 1], mean_up=0.5, mean_down=0.1)
        return make_run(
            STRATEGIES.build(spec), 6, model=with_batchnorm, optimizer="adam:lr=0.01", profile=profile, seed=3
        )

    _, lines, stops = stop_after_every_exchange(make, Budget(30, 10))
    assert [line["step"] // 10 for line in lines if line["kind"] == "evaluation"] == [1, 2, 3]
    assert stops >= 9


MODEL = """
from torch import nn

def make(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
"""

EXPERIMENT = """
workers = 5
steps = 20
eval_every = 10
model = "small_with_norm:make"
processes = 1
optimizer = "sgd:lr=0.1,momentum=0.9"
dtype = "float64"
strategies = ["gossip:graph=(0-1,1-2,2-3,3-4),period=2", "ad-psgd:graph=exponential"]

[profile]
power = "4:2:1:1:1"
"""


def test_however_the_workers_are_hosted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsync: Any, results: Callable[[Path], Any]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small_with_norm.py").write_text(MODEL)
    (tmp_path / "said.toml").write_text(EXPERIMENT)
    compare(build(read(tmp_path / "said.toml"), "said.toml"), tmp_path / "1")
    arguments = ["compare", tmp_path / "said.toml", "--no-report", "--processes", 2, "--out", tmp_path / "2"]
    done = sparsync(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    one, two = results(tmp_path / "1"), results(tmp_path / "2")
    assert [result["syncs"] for result in one] == [10, 100]
    same = ("label", "syncs", "steps", "bytes", "paper_bytes", "seconds", "accuracy")
    assert [[result[key] for key in same] for result in one] == [[result[key] for key in same] for result in two]
    models = [sorted((tmp_path / str(processes) / "models").iterdir()) for processes in (1, 2)]
    vectors = [[load_tensors(path) for path in paths] for paths in models]
    assert len(vectors[0]) == len(vectors[1]) == 2
    for ours, theirs in zip(*vectors, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)
    assert not torch.allclose(*vectors[0])


def load_tensors(path: Path) -> Tensor:
    return torch.cat([value.double().reshape(-1) for _, value in sorted(load_file(path).items())])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            "gossip:graph=random-regular,degree=4",
            "'random-regular': no graph has 4 workers with 4 neighbours each; give a degree",
        ),
        ("ad-psgd:graph=random-regular,degree=1", "one neighbour each leaves 4 workers in pairs; give a degree of at"),
        ("gossip:graph=(0-1,2-3)", "graph: no link leads from 0, 1 to the other workers, so their models never agree"),
        ("ad-psgd:graph=(0-1,1-2,2-4,4-3)", "graph: its nodes are not the workers 0 to 3, as 4 shows; name them so"),
        ("gossip:graph=(0-1,2)", "strategy 'gossip': graph: '(0-1,2)' are no links; expected pairs of workers such as"),
        ("ad-psgd:graph=rnig", "graph: unknown graph 'rnig': did you mean 'ring'?"),
        ("gossip:degree=0", "degree: Input should be greater than or equal to 1, got '0'"),
        ("ad-psgd:period=0", "period: Input should be greater than or equal to 1, got '0'"),
    ],
)
def test_mistakes_on_the_command_line(
    spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = "sparsync compare --no-report --workers 4 --steps 20 --processes 1 --strategy"
    monkeypatch.setattr(sys, "argv", [*fixed.split(), spec, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(said) == 1
    assert says in said[0]


def test_an_impossible_graph_ends_all_processes_in_one_line(tmp_path: Path, sparsync: Any) -> None:
    fixed = ["compare", "--no-report", "--workers", 4, "--steps", 20, "--processes", 2, "--out", tmp_path / "out"]
    done = sparsync(*fixed, "--strategy", "gossip:graph=(0-1,2-3)")
    assert done.returncode
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("sparsync: strategy 'gossip:graph=(0-1,2-3)': graph: no link leads from 0, 1 to the other")
