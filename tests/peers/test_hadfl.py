"""HADFL in simulation: the properties of docs/methods/hadfl.md 10, the traps of its section 9, and the baseline."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from processes import GIVEN_UP
from sparsync.__main__ import main
from sparsync.attaching import attach
from sparsync.comparison import compare, resume
from sparsync.engines.loop import Budget, PeerLoop
from sparsync.engines.pace import PaceAction
from sparsync.errors import DivergedError, Interrupted, SparsyncError, UsageError
from sparsync.experiment import Experiment
from sparsync.hetero import ideal_throughput
from sparsync.peers import FDA, HADFL, DecentralisedFedAvg, LocalSGD, Synchronous
from sparsync.randomness import torch_generator
from sparsync.strategies import STRATEGIES
from sparsync.system import Profile
from sparsync.task import Task
from sparsync.wire import Star
from sparsync.workers import Fleet, LocalTraining
from sparsync.workers.batches import Batches
from tolerance import Nudge, assert_alike, distance, exactly, rounding

MakeFleet = Callable[..., Fleet]
MakeRun = Callable[..., SimpleNamespace]
Train = Callable[[SimpleNamespace, int], list[Tensor]]

FREE: dict[str, Any] = {"bandwidth": math.inf, "latency": 0.0}
PAPER = "4:2:2:1"


def profile(power: str | None = PAPER, **said: Any) -> Profile:
    """A device of power 1 takes a second per step; links are free unless the test says otherwise."""
    return Profile(**{"step_seconds": 1.0, "power": power, **FREE, **said})


def next_exchange(fleet: Fleet, state: Any, training: LocalTraining | None = None) -> list[int]:
    """Local steps (of time only, without a training) and the exchange after them; return how many each took."""
    steps = list(state.local_steps(fleet))
    if training is None:
        fleet.clock.compute(steps)
    else:
        training.train(steps)
    state.exchange(fleet)
    return steps


def cycles(made: Any, count: int) -> list[dict[str, Any]]:
    """Train for so many cycles; return what was recorded of each."""
    made.fleet.journal = made.fleet.journal or []
    while made.state.planner.cycle < count:
        next_exchange(made.fleet, made.state, made.training)
    notes: list[dict[str, Any]] = made.fleet.journal
    return notes


def by_hand(fleet: Fleet, **said: Any) -> SimpleNamespace:
    """A fleet whose models a test writes; only its time passes."""
    return SimpleNamespace(fleet=fleet, state=HADFL(**{"warmup": 0, "unit": 1, **said}).start(fleet), training=None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


def with_batchnorm(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def blends(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Whose model is moved towards another one from now on, and by how much of the way."""
    seen: list[tuple[int, float]] = []
    blend = fleet.blend

    def watched(worker: int, model: Any, weight: float) -> None:
        seen.append((worker, weight))
        blend(worker, model, weight)

    monkeypatch.setattr(fleet, "blend", watched)
    return seen


# ------------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize(
    ("power", "rule", "units"),
    [
        (PAPER, "coarse", [4, 2, 2, 1]),
        ("3:3:1:1", "coarse", [3, 3, 1, 1]),
        ("1:1:1:1", "coarse", [1, 1, 1, 1]),
        ("3:2:2:2", "fine", [3, 2, 2, 2]),
    ],
)
def test_p2_nobody_idles_with_exact_ratios(power: str, rule: Any, units: list[int], make_run: MakeRun) -> None:
    made = make_run(HADFL(warmup=0, unit=3, period=2, rule=rule), profile=profile(power))
    notes = cycles(made, 5)
    clock, each = made.fleet.clock, np.array(units)
    assert [note["units"] for note in notes] == [units] * 5
    assert made.state.planner.versions.tolist() == (5 * 2 * 3 * each).tolist()  # H_k = T_sync E_k U
    assert clock.spent["compute"] / clock.times == pytest.approx(np.ones(4), rel=rounding(5 * 2 * 3 * 4))
    assert clock.times == pytest.approx(np.full(4, 5 * 2 * 3 * max(clock.system.step_seconds * each)))


@pytest.mark.parametrize(("power", "ratio"), [(PAPER, 2.25), ("3:3:1:1", 2.0)])
def test_p11_throughput_without_communication(power: str, ratio: float, make_run: MakeRun) -> None:
    ours = make_run(HADFL(warmup=0, unit=4, members=2), profile=profile(power))
    cycles(ours, 6)
    lockstep = make_run(LocalSGD(period=4), profile=profile(power))
    for _ in range(6):
        lockstep.training.train(lockstep.state.local_steps(lockstep.fleet))
        lockstep.state.exchange(lockstep.fleet)
    assert ours.fleet.clock.now == pytest.approx(lockstep.fleet.clock.now)
    taken = [sum(worker.steps for worker in made.training.workers) for made in (ours, lockstep)]
    assert taken[0] / taken[1] == ratio == ideal_throughput([float(one) for one in power.split(":")])


@pytest.mark.parametrize("optimizer", ["sgd:lr=0.1", "sgd:lr=0.1,momentum=0.9", "adam:lr=0.01"])
@pytest.mark.parametrize("model", ["mlp:hidden=8", with_batchnorm], ids=["mlp", "batchnorm"])
def test_p6_all_members_at_equal_speed_are_decentralised_fedavg(
    optimizer: str, model: Any, make_run: MakeRun, train: Train
) -> None:
    runs = []
    for strategy in (
        HADFL(members=4, unit=5, warmup=0, mixing=0.3),
        DecentralisedFedAvg(),
        LocalSGD(period=5),
    ):
        made = make_run(strategy, model=model, optimizer=optimizer, profile=profile(None), epoch_steps=5)
        runs.append((train(made, 4), made.fleet))
    for seen, fleet in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0][0], seen, strict=True))
        assert torch.equal(runs[0][1].arena.buffers, fleet.arena.buffers)
        assert runs[0][1].ledger.moved["model"] == fleet.ledger.moved["model"]
        assert fleet.clock.now == pytest.approx(runs[0][1].clock.now)


def test_p6_the_unit_is_an_epoch_by_default(make_run: MakeRun, train: Train) -> None:
    one = make_run(HADFL(members=4, warmup=0), profile=profile(None), epoch_steps=7)
    other = make_run(DecentralisedFedAvg(epochs=2), profile=profile(None), epoch_steps=7)
    two = make_run(HADFL(members=4, warmup=0, period=2), profile=profile(None), epoch_steps=7)
    train(one, 2), train(other, 1), train(two, 1)
    assert [made.training.workers[0].steps for made in (one, other, two)] == [14, 14, 14]
    assert torch.equal(two.fleet.params, other.fleet.params)
    assert not torch.equal(one.fleet.params, other.fleet.params)


@pytest.mark.parametrize(("optimizer", "same"), [("sgd:lr=0.1", 1), ("sgd:lr=0.1,momentum=0.9", 1), ("adam", 0)])
def test_p6_one_step_per_cycle_is_data_parallel_training(
    optimizer: str, same: int, make_run: MakeRun, train: Train
) -> None:
    """By linearity; so not with Adam."""

    def trained(strategy: Any, nudge: Nudge = exactly) -> Tensor:
        options: dict[str, Any] = {"optimizer": optimizer, "dtype": torch.float64, "profile": profile(None)}
        return train(make_run(strategy, nudge=nudge, **options), 30)[-1]

    ours, lock_step = trained(HADFL(members=4, unit=1, warmup=0)), Synchronous(average="gradients")
    if same:
        assert_alike(ours, lambda nudge: trained(lock_step, nudge))
    else:
        assert distance(ours, trained(lock_step)) > 1e-4


@pytest.mark.parametrize("mixing", [0.0, 0.25, 0.5, 1.0])
def test_p7_ring_and_merge_by_hand(mixing: float, make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, 9, torch.float64, profile=profile())
    made = by_hand(fleet, members=2, mixing=mixing)
    for cycle in range(1, 5):
        before = normal(4, 9, seed=cycle)
        most = rounding(4, float(before.abs().max()))  # two products, their sum, and a division
        fleet.params.copy_(before)
        note = cycles(made, cycle)[-1]
        mean = made.state.model(fleet).params
        members, others = note["ring"], sorted({0, 1, 2, 3} - set(note["ring"]))
        assert len(set(members)) == 2
        assert note["broadcaster"] in members
        assert distance(mean, before[members].mean(0)) <= most
        assert all(torch.equal(fleet.params[one], mean) for one in members)
        assert torch.equal(fleet.params[others], before[others])  # not yet
        next_exchange(fleet, made.state)  # they arrive at once
        assert made.state.planner.cycle == cycle
        assert distance(fleet.params[others], (1 - mixing) * before[others] + mixing * mean) <= most
        if mixing in (0, 1):
            assert torch.equal(fleet.params[others], before[others] if mixing == 0 else mean.expand(2, -1))
        assert all(torch.equal(fleet.params[one], mean) for one in members)


@pytest.mark.parametrize(("policy", "buffers"), [("average", 10), ("local", 0)])
@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_p9_traffic_of_a_cycle(members: int, policy: str, buffers: int, make_run: MakeRun) -> None:
    strategy = HADFL(members=members, unit=2, warmup=2, backup_every=3)
    made = make_run(strategy, 5, model=with_batchnorm, profile=profile("4:2:2:1:1"), buffers=policy)
    fleet, ledger = made.fleet, made.fleet.ledger
    m = 4 * (6 * 5 + 5 + 10 + 15 + 3 + buffers)  # M_b: bytes of a model, with running means and variances
    assert fleet.model_bytes == m
    for cycle in range(1, 8):
        before = ledger.state_dict()
        cycles(made, cycle)
        moved = ledger.moved["model"] - before["moved"].get("model", 0)
        sent, received = (
            int(book["model"].sum() - (torch.as_tensor(old["model"]).sum() if "model" in old else 0))
            for book, old in ((ledger.sent, before["sent"]), (ledger.received, before["received"]))
        )
        assert received == 2 * m * (members - 1) + (5 - members) * m  # among devices
        assert sent == moved == received + (m if cycle % 3 == 0 else 0)  # and the backup; nothing comes back
    assert ledger.paper["model"] == 7 * (2 * (members - 1) + 5 - members) * 4 * fleet.d


def test_p9_each_member_sends_its_chunks_and_one_all_the_others_copies(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(6, 13, profile=profile(None))
    note = cycles(by_hand(fleet, members=4), 1)[0]
    ring, broadcaster = note["ring"], note["broadcaster"]
    sent = fleet.ledger.sent["model"].copy()
    sent[broadcaster] -= 2 * 13 * 4
    assert sorted(sent[ring].tolist()) == [4 * 19, 4 * 19, 4 * 20, 4 * 20]
    assert sent.sum() == sent[ring].sum() == 2 * 13 * 4 * 3
    assert fleet.ledger.received["model"].sum() == fleet.ledger.sent["model"].sum()


def test_control_messages_are_booked(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(5, 3, profile=profile(None))
    made = by_hand(fleet, members=2)
    assert fleet.ledger.moved == {"control": 5 * (24 + 32)}
    cycles(made, 1)
    assert fleet.ledger.moved["control"] == 5 * (24 + 32) + 5 * 24 + 2 * (16 + 8) + 3 * 8
    assert fleet.ledger.sent["control"].tolist() == [48] * 5


@pytest.mark.parametrize("until", [10.0, 30.0])
def test_p10_a_returning_device_gets_the_current_mean_and_its_version(until: float, make_run: MakeRun) -> None:
    """Cycles of 8 s; worker 1 leaves in the second one, and is back in that one or in the fourth."""
    outages = [{"worker": 1, "at": 9.0, "until": until}]
    made = make_run(HADFL(warmup=0, unit=8, members=2), profile=profile(outages=outages))
    fleet, state, clock = made.fleet, made.state, made.fleet.clock
    missed = 1 if until == 10 else 3
    cycles(made, missed)
    before = fleet.params[1].clone()
    assert fleet.ledger.moved["model"] == fleet.ledger.sent["model"].sum()
    notes = cycles(made, missed + 1)
    taken = made.training.workers[1].steps
    assert taken == 16 + 2
    assert [1 in note["available"] for note in notes] == [True] + [False] * missed
    assert not torch.equal(fleet.params[1], before)
    assert torch.equal(fleet.params[1], state.model(fleet).params)
    versions = dict(zip(notes[-1]["available"], notes[-1]["versions"], strict=True))
    assert state.planner.versions[1] == round(np.mean([versions[one] for one in notes[-1]["ring"]]))
    assert fleet.ledger.moved["model"] == fleet.ledger.sent["model"].sum() + fleet.model_bytes  # from the coordinator
    assert clock.times[1] == 8 * (missed + 1) == clock.spent["compute"][1] + clock.spent["away"][1]
    # and from then on it counts its own steps again, whatever is merged
    start = int(state.planner.versions[1])
    note = cycles(made, missed + 2)[-1]
    assert state.planner.versions[1] == start + 16 == note["predicted"][1]
    assert made.training.workers[1].steps == taken + 16


def test_p10_the_plan_follows_the_devices_that_are_there(make_run: MakeRun) -> None:
    outages = [{"worker": 3, "at": 3.0, "until": 13.0}]
    made = make_run(HADFL(warmup=0, unit=4), profile=profile(outages=outages))
    notes = cycles(made, 7)
    assert [note["hyperperiod"] for note in notes] == [4, 2, 2, 2, 2, 2, 4]
    assert [note["units"] for note in notes] == [[4, 2, 2, 1], *[[2, 1, 1, 1]] * 5, [4, 2, 2, 1]]
    assert [len(note["available"]) for note in notes] == [3, 3, 3, 3, 3, 3, 4]
    assert made.fleet.clock.times.tolist() == [18] * 4
    assert made.fleet.ledger.moved["control"] == (
        4 * (24 + 32)  # the plan: of four, of three, of four again
        + 3 * 32
        + 4 * 32
        + 24  # the one that is back
        + 6 * (3 * 24 + 2 * 24 + 8)
        + (4 * 24 + 2 * 24 + 2 * 8)
    )


@pytest.mark.parametrize("said", [{}, {"bandwidth": 40.0, "latency": 0.7}], ids=["free", "slow"])
def test_p12_versions_count_the_steps_really_taken(said: dict[str, float], make_run: MakeRun) -> None:
    made = make_run(HADFL(unit=3, members=2), epoch_steps=5, profile=profile("5:3:2:1", **said))
    last = np.zeros(4, np.int64)
    while made.state.planner.cycle < 12:
        next_exchange(made.fleet, made.state, made.training)
        assert made.state.planner.versions.tolist() == [worker.steps for worker in made.training.workers]
        assert (made.state.planner.versions >= last).all()
        last = made.state.planner.versions.copy()
    assert len(set(last.tolist())) > 1


# ----------------------------------------------------------------------------------------------------------- time


def test_warmup_is_equal_work_at_a_small_rate_and_then_all_meet(make_run: MakeRun) -> None:
    made = make_run(HADFL(unit=4, warmup=6, warmup_rate=0.01), profile=profile())
    start = made.fleet.params.clone()
    assert next_exchange(made.fleet, made.state, made.training) == [6] * 4
    assert made.fleet.clock.times.tolist() == [6] * 4
    assert made.state.due == 10  # a hyperperiod of 4 s follows
    small = (made.fleet.params - start).norm()
    assert made.fleet.rate == 1
    cycles(made, 1)
    assert made.state.planner.versions.tolist() == [22, 14, 14, 10]
    other = make_run(HADFL(unit=4, warmup=6, warmup_rate=1.0), profile=profile())
    next_exchange(other.fleet, other.state, other.training)
    assert 0 < small < 0.02 * (other.fleet.params - start).norm()


@pytest.mark.parametrize("seed", range(3))
def test_trap_8_merges_at_the_first_step_boundary_after_the_arrival(seed: int, make_run: MakeRun) -> None:
    slow = profile("4:3:2:1", bandwidth=60.0, latency=0.3)  # a model takes 6.7 s, the slowest one 5 steps of 1 s
    made = make_run(HADFL(unit=5, warmup=0, members=2), seed=seed, profile=slow)
    fleet, state, seconds = made.fleet, made.state, made.fleet.clock.system.step_seconds
    merges = 0
    while state.planner.cycle < 10:
        before = fleet.clock.times.copy()
        steps = next_exchange(fleet, state, made.training)
        for when, device, _ in state.merging:
            boundary = fleet.clock.times[device]
            assert boundary >= when
            assert boundary == before[device] if steps[device] == 0 else boundary - when < seconds[device]
            merges += 1
        if state.merging:  # nobody else is held up, and nobody else is ahead
            assert {one for one in range(4) if steps[one]} <= {device for _, device, _ in state.merging}
    assert merges > 5
    assert fleet.clock.spent["wait"].sum() < fleet.clock.spent["compute"].sum()
    assert state.means.keys() == {state.last, *(cycle for _, _, cycle in state.arrivals)}  # nothing piles up


def test_trap_8_an_older_mean_is_dropped(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker 0's link is slow: what it sends after the first cycle is overtaken by what worker 1 sends later."""
    fleet = make_fleet(3, 4, profile=profile(None, up=[8.0, math.inf, math.inf]))
    made = by_hand(fleet, members=1)
    state = made.state
    seen = blends(fleet, monkeypatch)
    wanted = iter([0, 1, 1, 1, 1, 1])
    monkeypatch.setattr(state.planner, "_draw", lambda predicted, rng: (np.array([next(wanted)]), np.ones(3)))
    cycles(made, 6)
    # The mean of cycle 1 is at workers 1 and 2 after 3 and 5 s; by then both have newer ones, which arrive at once.
    assert seen == [(0, 1.0), (1, 1.0), *[(0, 0.5), (2, 0.5), (1, 1.0)] * 4]
    assert {cycle for _, _, cycle in state.arrivals} == {6}


@pytest.mark.parametrize("said", [{}, {"bandwidth": 4000.0, "latency": 0.1}], ids=["free", "fast"])
def test_a_cycle_notes_its_ring_and_who_has_merged_the_last_one(said: dict[str, float], make_run: MakeRun) -> None:
    made = make_run(HADFL(unit=4, warmup=2, members=2), profile=profile(**said))
    fleet, dues = made.fleet, []
    for cycle in range(1, 8):
        next_exchange(fleet, made.state, made.training)  # after which the cycle's end is known
        dues.append(made.state.due)
        notes = cycles(made, cycle)
    exchanges = [piece for piece in fleet.clock.timeline.finish() if piece[1] == "exchange"]
    for note, due in zip(notes, dues, strict=True):
        assert due <= note["met"] <= note["averaged"] <= fleet.clock.now
        assert note["met"] < due + 1  # who has begun a step completes it
        between = [(worker, "exchange", note["met"], note["averaged"]) for worker in sorted(note["ring"])]
        assert [piece for piece in exchanges if piece[2] == note["met"]] == (between if said else [])
    assert notes[0]["merges"] == []
    for one, other in pairwise(notes):
        assert sorted(device for device, _ in other["merges"]) == sorted({0, 1, 2, 3} - set(one["ring"]))
        for device, when in other["merges"]:
            arrived = one["averaged"] + 2 * fleet.clock.system.latency  # or a little later
            assert arrived <= when < min(arrived + fleet.clock.system.step_seconds[device] + 0.3, other["averaged"])


@pytest.mark.parametrize("seed", range(2))
def test_every_merge_is_noted_once(seed: int, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links slower than a cycle, and devices that come and go: nobody merges while it averages or is away."""
    made = make_run(HADFL(unit=2, warmup=2, members=2), seed=seed, profile=profile(**RUGGED))
    seen = blends(made.fleet, monkeypatch)
    notes = cycles(made, 25)
    merges = [(device, when) for note in notes for device, when in note["merges"]] + made.state.merges
    assert [device for device, _ in merges] == [device for device, weight in seen if weight == 0.5]
    assert len(merges) > 5
    assert all(0 < when <= note["averaged"] for note in notes for _, when in note["merges"])
    for device, activity, start, end in made.fleet.clock.timeline.finish():
        if activity != "compute":
            assert not [when for who, when in merges if who == device and start < when < end], activity


@pytest.mark.parametrize("said", [{}, {"bandwidth": 400.0, "latency": 0.25}], ids=["free", "slow"])
def test_a_capped_device_waits_for_the_end_of_the_cycle(said: dict[str, float], make_run: MakeRun) -> None:
    """E_max = 2 of 8: two units of 3 steps in 3 s at eight steps per second."""
    strategy = HADFL(unit=3, warmup=0, max_units=2, members=1, select="slowest")  # so it is never held up by a ring
    made = make_run(strategy, 3, profile=profile("8:2:1", **said))
    fleet, state = made.fleet, made.state
    last = np.zeros(3, np.int64)
    for cycle in range(1, 9):
        due = state.due
        cycles(made, cycle)
        taken = state.planner.versions - last
        assert taken[0] <= 6
        assert (fleet.clock.times >= due - 1e-9).all()
        last = state.planner.versions.copy()
    if not said:
        assert last.tolist() == [48, 48, 24]
        assert fleet.clock.times == pytest.approx(np.full(3, 24.0))
        assert fleet.clock.spent["wait"] == pytest.approx([24 - 48 / 8, 0, 0], abs=1e-9)


def test_links_slower_than_a_cycle(make_run: MakeRun) -> None:
    """A broadcast takes eight cycles, and a ring as long: everybody goes on, and nothing piles up."""
    made = make_run(HADFL(unit=1, warmup=0, members=2), profile=profile(bandwidth=40.0))
    fleet, lines = made.fleet, []
    loop = PeerLoop(fleet, made.training, made.state, made.task, Budget(150, 50), lines.append)
    assert loop.run(lambda steps: PaceAction.GO_ON, lambda: None)
    assert fleet.clock.system.up[0] < fleet.model_bytes / 8
    assert fleet.syncs >= 10
    assert (made.state.planner.versions > 30).all()
    assert made.state.merged.min() > 0
    assert [line["step"] // 50 for line in lines if line.get("kind") == "evaluation"] == [1, 2, 3]
    assert sum(worker.steps for worker in made.training.workers) == loop.progress.total


def test_a_ring_of_all_that_is_longer_than_a_cycle(make_run: MakeRun) -> None:
    made = make_run(HADFL(unit=2, warmup=0, members=4), profile=profile(latency=1.0))  # 6 s of 2
    cycles(made, 5)
    assert made.state.planner.versions.tolist() == [5 * 8, 5 * 4, 5 * 4, 5 * 2]
    assert made.fleet.clock.times == pytest.approx(np.full(4, 5 * (2 + 6.0)))


# --------------------------------------------------------------------------------------------------------- outages


def test_a_device_that_never_returns_is_done_without(make_run: MakeRun) -> None:
    """It is still there at the end of the warm-up, after 1 s, and missed after the first cycle, of 4 s."""
    made = make_run(HADFL(unit=4, warmup=2), profile=profile(outages=[{"worker": 3, "at": 1.5}]))
    notes = cycles(made, 6)
    assert [note["available"] for note in notes] == [[0, 1, 2]] * 6
    assert made.state.planner.versions.tolist() == [2 + 16 + 5 * 8, 2 + 8 + 5 * 4, 2 + 8 + 5 * 4, 1]
    assert [worker.steps for worker in made.training.workers] == made.state.planner.versions.tolist()


def test_devices_leave_and_return_during_the_warm_up(make_run: MakeRun) -> None:
    outages = [{"worker": 0, "at": 0.0, "until": 1.0}, {"worker": 1, "at": 0.6, "until": 7.0}]
    made = make_run(HADFL(unit=4, warmup=4), profile=profile(outages=outages))
    assert next_exchange(made.fleet, made.state, made.training) == [0, 1, 4, 4]
    assert made.state.there.tolist() == [True, False, True, True]
    assert made.fleet.clock.times.tolist() == [4, 0.5, 4, 4]
    notes = cycles(made, 2)
    assert [note["available"] for note in notes] == [[0, 2, 3], [0, 1, 2, 3]]
    assert made.fleet.clock.spent["away"].tolist() == [4, 7.5, 0, 0]


def test_all_are_away_for_a_while(make_run: MakeRun) -> None:
    """Nobody counts cycles meanwhile, however long it lasts."""
    back = [1e9, 1e9 + 1, 2e9, 2e9]
    outages = [{"worker": k, "at": 6.0, "until": until} for k, until in enumerate(back)]
    made = make_run(HADFL(unit=4, warmup=0), profile=profile(outages=outages))
    notes = cycles(made, 5)
    assert [note["available"] for note in notes] == [[0, 1, 2, 3], [0], [0, 1], [0, 1]]
    assert made.fleet.clock.times[:2].min() > 1e9
    assert torch.isfinite(made.fleet.params).all()


def test_all_are_away_for_good(make_run: MakeRun) -> None:
    outages = [{"worker": k, "at": 6.0 + k} for k in range(4)]
    made = make_run(HADFL(unit=4, warmup=0), profile=profile(outages=outages))
    with pytest.raises(SparsyncError, match=r"^hadfl: all devices are away for good after \d+ virtual seconds$"):
        cycles(made, 9)
    assert made.state.planner.cycle < 9


def test_a_device_that_left_during_a_long_ring_is_missed(make_run: MakeRun) -> None:
    """Rings of all last 12 s from second 2 on; worker 2 is away from 10 to 15, and then registers again."""
    made = make_run(
        HADFL(unit=2, warmup=0, members=4),
        profile=profile(latency=2.0, outages=[{"worker": 2, "at": 10.0, "until": 15.0}]),
    )
    cycles(made, 1)
    assert made.fleet.clock.times.tolist() == [14] * 4
    cycles(made, 2)
    assert made.fleet.clock.times.tolist() == [24, 24, 26, 24]  # after the others' ring there is a mean to receive
    notes = cycles(made, 3)
    assert [len(note["available"]) for note in notes] == [4, 3, 4]
    assert made.fleet.clock.spent["away"][2] > 0
    assert made.state.planner.versions[2] > 4


def test_random_outages(make_run: MakeRun) -> None:
    made = make_run(
        HADFL(unit=4, warmup=4, members=2),
        6,
        parts=[np.arange(k, 180, 6) for k in range(6)],
        profile=profile("4:2:2:1:1:3", bandwidth=500.0, latency=0.1, mean_up=20.0, mean_down=10.0),
    )
    notes = cycles(made, 60)
    clock, state = made.fleet.clock, made.state
    assert {len(note["available"]) for note in notes} >= {3, 4, 5}
    assert all(set(note["ring"]) <= set(note["available"]) for note in notes)
    assert (clock.spent["away"] > 0).all()
    assert sum(clock.spent.values()) == pytest.approx(clock.times)
    assert (state.planner.versions > 0).all()
    assert torch.isfinite(made.fleet.params).all()


# ------------------------------------------------------------------------------------------ selection and weights


def test_the_worst_case_is_always_the_slowest(make_run: MakeRun) -> None:
    made = make_run(HADFL(unit=2, warmup=2, members=2, select="slowest"), profile=profile("4:1:3:2"))
    notes = cycles(made, 8)
    assert [sorted(note["ring"]) for note in notes] == [[1, 3]] * 8
    assert [note["expected"] for note in notes] == [[0, 1, 0, 1]] * 8


def test_who_averages_differs_from_cycle_to_cycle_and_not_from_run_to_run(make_fleet: MakeFleet) -> None:
    def rings(seed: int, count: int) -> list[list[int]]:
        return [note["ring"] for note in cycles(by_hand(make_fleet(4, 2, profile=profile(), seed=seed)), count)]

    seen = rings(1, 150)
    assert seen[:20] == rings(1, 20) != rings(2, 20)
    counted = np.bincount(np.array(seen).ravel(), minlength=4) / 150
    assert counted == pytest.approx([0.339, 0.661, 0.661, 0.339], abs=0.12)  # as specified, within 3 standard errors
    assert {tuple(ring) for ring in seen} >= {(0, 1), (1, 0), (1, 2), (2, 1)}  # the ring's order is drawn, too


def test_versions_predicted_and_actual(make_run: MakeRun) -> None:
    """The plan until there are two observations, exact at constant speed; then the forecast lags at first."""
    made = make_run(HADFL(unit=4, warmup=4), profile=profile())
    notes = cycles(made, 12)
    assert notes[0]["predicted"] == notes[0]["versions"] == [20, 12, 12, 8]
    errors = np.array([np.subtract(note["versions"], note["predicted"]) for note in notes])
    assert (errors[1:3] > 0).all()
    assert np.abs(errors[-1]).max() < 0.2
    assert all(errors[j, 0] == pytest.approx(4 * errors[j, 3]) for j in range(1, 12))  # the lag shifts no choice


def test_weights_by_samples(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(3, 5, torch.float64, samples=[1, 3, 50], profile=profile(None))
    start = normal(3, 5)
    for seed in range(6):
        fleet.params.copy_(start)
        fleet.seed = seed
        note = cycles(by_hand(fleet, weights="samples"), 1)[-1]
        p = np.array([1.0, 3.0, 50.0])[note["ring"]]
        expected = torch.from_numpy(p / p.sum()) @ start[note["ring"]]
        most = rounding(8, float(start.abs().max()))
        assert distance(fleet.params[note["ring"][0]], expected) <= most
    with pytest.raises(UsageError, match="does not know its workers' samples; use weights 'uniform'"):
        cycles(by_hand(make_fleet(3, 5, profile=profile(None)), weights="samples"), 1)


def test_divergence_names_the_worker_once_it_is_in_a_ring(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(4, 3, profile=profile(None))
    made = by_hand(fleet, members=2)
    fleet.fail(2, 17)
    with pytest.raises(DivergedError, match=r"^worker 2: the loss is not finite at step 17; lower the learning rate"):
        cycles(made, 30)
    assert torch.isfinite(fleet.params[[0, 1, 3]]).all()


# ------------------------------------------------------------------------------------------------------- the result


def test_trap_10_the_last_mean_is_evaluated(make_run: MakeRun) -> None:
    made = make_run(HADFL(unit=3, warmup=3, members=2), model=with_batchnorm, profile=profile())
    fleet, state = made.fleet, made.state
    loop = PeerLoop(fleet, made.training, state, made.task, Budget(100, 50), lambda line: None)
    next_exchange(fleet, state, made.training)
    assert state.model(fleet) is None
    assert torch.equal(loop.final()[0], fleet.mean(fleet.params, None))  # so far there is no other
    note = cycles(made, 1)[0]
    params, buffers = loop.final()
    for _ in range(2):  # merges do not change it
        assert torch.equal(loop.final()[0], params)
        next_exchange(fleet, state, made.training)
    cycles(made, 1)
    assert note["cycle"] == 1
    assert not torch.allclose(params, fleet.mean(fleet.params, None))
    one = next(k for k in note["ring"])
    assert params.shape == fleet.params[one].shape
    assert buffers.shape == fleet.arena.buffers[one].shape


# ------------------------------------------------------------------------------------------------ saved, and shared

RUGGED = {
    "power": "4:2:2:1",
    "bandwidth": 150.0,  # a model takes longer than a cycle
    "latency": 0.1,
    "outages": [{"worker": 1, "at": 20.0, "until": 33.0}, {"worker": 3, "at": 31.0, "until": 32.0}],
}


def test_saved_and_restored_after_any_exchange(stop_after_every_exchange: Any, make_run: MakeRun) -> None:
    def make() -> SimpleNamespace:
        made = make_run(
            HADFL(unit=2, warmup=3, members=2, max_units=1, backup_every=4),
            model=with_batchnorm,
            optimizer="adam:lr=0.01",
            profile=profile(**RUGGED),
        )
        made.fleet.journal = []
        return made

    straight, lines, stops = stop_after_every_exchange(make, Budget(40, 10))
    assert straight.strategy.planner.cycle > 12
    assert sum(len(line.get("merges", [])) for line in lines) > 5  # before every one of them it was stopped
    assert straight.strategy.arrivals
    assert stops > 25


class Stopper:
    """Presses Ctrl-C, as it were, at some steps."""

    def __init__(self, at: int) -> None:
        self.at, self.result = at, None

    @contextmanager
    def __call__(self, experiment: Experiment) -> Iterator[Stopper]:
        yield self

    def started(self, *_: Any) -> None: ...

    def moved(self, *_: Any) -> None: ...

    def finished(self, *_: Any) -> None: ...

    def stepped(self, label: str, seed: int, step: int, syncs: int, nbytes: int) -> None:
        if step >= self.at:
            self.at = sys.maxsize
            os.kill(os.getpid(), signal.SIGINT)


def test_stopped_and_resumed_comparison(tmp_path: Path, results: Callable[[Path], Any]) -> None:
    experiment = Experiment(
        workers=4,
        steps=120,
        eval_every=30,
        model="mlp:hidden=4",
        strategies={"hadfl": "hadfl:unit=3,warmup=2", "fda": "fda:threshold=0.1,pace=speed"},
        processes=1,
        profile=profile(**{**RUGGED, "bandwidth": 2000.0}),
    )
    compare(experiment, tmp_path / "whole")
    with pytest.raises(Interrupted):
        compare(experiment, tmp_path / "stopped", Stopper(50))
    with pytest.raises(Interrupted):
        resume(tmp_path / "stopped", Stopper(75))
    resume(tmp_path / "stopped")
    for name in ("history.jsonl", *(f"models/{path.name}" for path in (tmp_path / "whole" / "models").iterdir())):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    assert results(tmp_path / "whole") == results(tmp_path / "stopped")


class Together:
    """One of several processes, here threads: sums in the order of ranks."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, desk: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._desk = barrier, desk

    def mean(self, total: Tensor, divisor: float, topology: Any, codec: Any) -> Tensor:
        self._desk[self.rank] = total.clone()
        self._barrier.wait(GIVEN_UP)
        mean: Tensor = sum(self._desk) / divisor
        self._barrier.wait(GIVEN_UP)
        return mean


@pytest.mark.parametrize("size", [2, 4])
def test_shared_by_processes(size: int, make_run: MakeRun) -> None:
    """Rings whose members sit in one process, in several or not here: the same choices, the same models."""

    building = threading.Lock()  # models are tried out with torch's global generator, which all threads share

    def process(group: Any | None, nudge: Nudge = exactly) -> SimpleNamespace:
        rows = range(4) if group is None else range(4 * group.rank // size, 4 * (group.rank + 1) // size)
        with building:
            said: dict[str, Any] = {"numbers": rows, "model": with_batchnorm, "dtype": torch.float64, "nudge": nudge}
            made = make_run(LocalSGD(period=1), len(rows), **said)
            fleet = Fleet(made.fleet.arena, 4, group=group, profile=profile(**RUGGED))
            task = Task(made.task.dataset, with_batchnorm)
            parts = np.array_split(np.arange(180), 4)
            batches = [Batches(parts[n], 4, "epochs", 0, n) for n in rows]
            training = LocalTraining(fleet, task, task.module(0, torch.float64), batches, "sgd:lr=0.1")
        made = SimpleNamespace(fleet=fleet, training=training, state=HADFL(unit=2, warmup=2).start(fleet))
        made.notes = cycles(made, 15)
        return made

    barrier, desk = threading.Barrier(size), [None] * size
    with ThreadPoolExecutor(size) as pool:
        parts = list(pool.map(process, [Together(rank, size, barrier, desk) for rank in range(size)]))
    alone = process(None)
    assert all(part.notes == alone.notes for part in parts)
    means = [part.state.model(part.fleet).params for part in parts]
    assert all(torch.equal(mean, means[0]) for mean in means)
    assert_alike(torch.cat([part.fleet.params for part in parts]), lambda nudge: process(None, nudge).fleet.params)
    assert all(part.fleet.ledger.moved == alone.fleet.ledger.moved for part in parts)
    assert all((part.fleet.clock.times == alone.fleet.clock.times).all() for part in parts)


# ------------------------------------------------------------------------------------------------ FDA at every speed


def test_fda_at_equal_speeds_is_fda(make_run: MakeRun, train: Train) -> None:
    ends = []
    for pace in ("equal", "speed"):
        made = make_run(FDA(threshold=0.05, monitor="exact", check_every=2, pace=pace), profile=profile(None))
        made.fleet.journal = []
        ends.append((train(made, 20), made.fleet.journal))
    assert all(torch.equal(one, other) for one, other in zip(ends[0][0], ends[1][0], strict=True))
    assert ends[0][1] == ends[1][1]
    assert 1 < sum(check["sync"] for check in ends[0][1]) < 20


@pytest.mark.parametrize("spec", ["threshold=0.3", "cadence=6"])
def test_fda_at_every_devices_speed(spec: str, make_run: MakeRun) -> None:
    made = make_run(STRATEGIES.build(f"fda:monitor=exact,check_every=3,pace=speed,{spec}"), profile=profile())
    fleet = made.fleet
    fleet.journal, fleet.readouts = [], True
    for _ in range(25):
        steps = made.state.local_steps(fleet)
        assert steps in ([[12, 6, 6, 3]] if "threshold" in spec else [[12, 6, 6, 3], [24, 12, 12, 6]])
        made.training.train(steps)
        made.state.exchange(fleet)
        variance = float((fleet.params - fleet.params.mean(0)).double().square().sum(1).mean())
        assert variance <= made.state.threshold * (1 + 1e-6)
    taken = np.array([worker.steps for worker in made.training.workers])
    assert (taken == taken[3] * np.array([4, 2, 2, 1])).all()
    assert 1 < fleet.syncs < 25
    assert fleet.clock.spent["compute"] == pytest.approx(np.full(4, taken[3]))
    assert fleet.clock.spent["wait"].max() < 1e-9


# ---------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("hadfl:members=5,unit=3", {}, "hadfl: members=5 of 4 workers; ask for at most all of them"),
        ("hadfl", {"topology": Star()}, "hadfl: workers pass models to one another; use topology='ring'"),
        ("decentralised-fedavg", {"topology": Star()}, "decentralised-fedavg: workers pass models to one another; use"),
        ("hadfl", {"profile": profile(step_seconds=0.0)}, "hadfl: on this profile a local step takes no time"),
        (
            "fda:threshold=1,pace=speed",
            {"profile": profile(step_seconds=0.0)},
            "fda: pace=speed: on this profile a local",
        ),
        ("hadfl:members=0", {}, "members: Input should be greater than or equal to 1, got '0'"),
        ("hadfl:unit=0", {}, "unit: Input should be greater than or equal to 1, got '0'"),
        ("hadfl:period=0", {}, "period: Input should be greater than or equal to 1, got '0'"),
        ("hadfl:max_units=0", {}, "max_units: Input should be greater than or equal to 1, got '0'"),
        ("hadfl:warmup=-1", {}, "warmup: Input should be greater than or equal to 0, got '-1'"),
        ("hadfl:warmup_rate=2", {}, "warmup_rate: Input should be less than or equal to 1, got '2'"),
        ("hadfl:smoothing=1", {}, "smoothing: Input should be less than 1, got '1'"),
        ("hadfl:mixing=1.5", {}, "mixing: Input should be less than or equal to 1, got '1.5'"),
        ("hadfl:mixing=nan", {}, "mixing: Input should be"),
        ("hadfl:rule=exact", {}, "rule: Input should be 'coarse' or 'fine'"),
        ("hadfl:select=fastest", {}, "select: Input should be 'probability' or 'slowest'"),
        ("hadfl:backup_every=0", {}, "backup_every: Input should be greater than or equal to 1, got '0'"),
        ("hadfl:lam=0.5", {}, "strategy 'hadfl' has no parameter 'lam': its parameters are members, period, unit"),
        ("decentralised-fedavg:epochs=0", {}, "epochs: Input should be greater than or equal to 1, got '0'"),
        ("fda:threshold=1,pace=fast", {}, "pace: Input should be 'equal' or 'speed'"),
    ],
)
def test_wrong_inputs(spec: str, options: dict[str, Any], says: str, make_fleet: MakeFleet) -> None:
    with pytest.raises(UsageError) as caught:
        STRATEGIES.build(spec).start(make_fleet(4, 3, **options))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hadfl:unit=3", "attach: HADFL plans on the virtual clock how long each worker trains; use compare"),
        ("ad-psgd", "attach: ADPSGD plans on the virtual clock how long each worker trains; use compare"),
        ("hadfl", "this fleet does not know how many steps a local epoch has; state local steps instead"),
        ("decentralised-fedavg", "this fleet does not know how many steps a local epoch has"),
    ],
)
def test_what_no_loop_of_your_own_can_do(spec: str, says: str) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(UsageError, match=says), attach(model, torch.optim.SGD(model.parameters(), 0.1), spec):
        pass


@pytest.mark.parametrize(
    ("arguments", "file", "says"),
    [
        (["--strategy", "hadfl:members=3"], "", ": hadfl: members=3 of 2 workers; ask for at most all of them"),
        (["--strategy", "hadfl", "--topology", "star"], "", ": hadfl: workers pass models to one another; use"),
        (["--strategy", "hadfl"], "[profile]\nstep_seconds = 0", ": hadfl: on this profile a local step takes"),
    ],
)
def test_wrong_inputs_are_one_line_on_the_terminal(
    arguments: list[str], file: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("said.toml").write_text("workers = 2\nsteps = 20\nprocesses = 1\n" + file)
    monkeypatch.setattr(sys, "argv", ["sparsync", "compare", "said.toml", "--no-report", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(said) == 1
    assert says in said[0]
