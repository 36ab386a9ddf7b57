"""FDA against its specification: the properties of docs/methods/fda.md 11, and the traps of its section 10."""

from __future__ import annotations

import copy
import itertools
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from processes import GIVEN_UP
from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.engines.loop import Budget, PeerLoop
from sparsync.engines.pace import PaceAction
from sparsync.errors import DivergedError, UsageError
from sparsync.peers import FDA, LocalSGD, Synchronous
from sparsync.peers.monitors import (
    ExactMonitor,
    LinearMonitor,
    Monitor,
    NaiveMonitor,
    SketchMonitor,
    StateMonitor,
    default_epsilon,
    distance_to,
    squared_norms,
    unit_vector,
)
from sparsync.randomness import generator, torch_generator
from sparsync.sketch import Sketch, _Blocks, _Matrix
from sparsync.strategies import STRATEGIES
from sparsync.task import Dataset, load_dataset
from sparsync.wire import Ring, Star
from sparsync.workers import Fleet, SingleProcess
from tolerance import Nudge, assert_alike, distance, rounding

MONITORS = ("naive", "linear", "sketch", "exact")
STATE_BYTES = {"naive": 4, "linear": 8, "sketch": 5004}

MakeFleet = Callable[..., Fleet]
Drive = Callable[..., list[int]]
MakeRun = Callable[..., SimpleNamespace]
Train = Callable[[SimpleNamespace, int], list[Tensor]]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "test"), dtype=dtype)


def variance(rows: Tensor, weights: Tensor | None = None) -> float:
    """The models' variance, from its definition."""
    rows = rows.double()
    p = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) if weights is None else weights
    return float((p * (rows - p @ rows).square().sum(1)).sum())


def estimate(monitor: StateMonitor, u: Tensor) -> float:
    return monitor.estimate(monitor.state(u).mean(0))


# ---------------------------------------------------------------------------------------------------- by hand


def test_identity_by_hand_on_two_workers_and_three_parameters(make_fleet: MakeFleet, drive: Drive) -> None:
    """w0 = 0, u = (6, 0, 8) and (0, 0, 0): S1 = 50, ubar = (3, 0, 4), Var = 50 - 25 = 25."""
    moves = torch.tensor([[6.0, 0.0, 8.0], [0.0, 0.0, 0.0]])
    assert squared_norms(moves).tolist() == [100, 0]
    for monitor, h in (("naive", 50.0), ("exact", 25.0)):
        for threshold, syncs in ((math.nextafter(h, 0), [1]), (h, [])):  # docs/methods/fda.md, trap 2: strict
            fleet = make_fleet(2, 3)
            state = FDA(threshold=threshold, monitor=monitor).start(fleet)
            fleet.journal = []
            assert drive(fleet, state, [moves]) == syncs
            assert fleet.journal[0]["estimate"] == h
            assert fleet.params.tolist() == ([[3, 0, 4], [3, 0, 4]] if syncs else moves.tolist())
    linear = LinearMonitor(torch.tensor([0.8, 0.6, 0.0]))  # <xi, ubar> = 2.4
    assert estimate(linear, moves) == pytest.approx(50 - 2.4**2, rel=1e-6)


def test_per_parameter_is_times_d(make_fleet: MakeFleet) -> None:
    assert FDA(per_parameter=4.91e-5).start(make_fleet(2, 1000)).threshold == 4.91e-5 * 1000


# ---------------------------------------------------------------------------------------------- properties 1 to 6


@pytest.mark.parametrize("k", [1, 2, 7])
def test_property_01_variance_is_s1_minus_squared_mean_drift(k: int, make_fleet: MakeFleet) -> None:
    w0, u = normal(50), normal(k, 50, seed=1) + normal(50, seed=2)
    p = torch.arange(1.0, k + 1, dtype=torch.float64)
    p /= p.sum()
    mean_drift = u.mean(0)
    s1, most = squared_norms(u).mean(), rounding(50 * k, float(squared_norms(u).max()))
    assert float(s1 - mean_drift.square().sum()) == pytest.approx(variance(w0 + u), rel=1e-6, abs=most)
    weighted = p @ squared_norms(u) - (p @ u).square().sum()
    assert float(weighted) == pytest.approx(variance(w0 + u, p), rel=1e-6, abs=most)
    fleet = make_fleet(k, 50, torch.float64, samples=range(1, k + 1))
    fleet.params.copy_(w0 + u)
    for flag, weights in ((False, None), (True, p)):
        h = ExactMonitor(50).variance(fleet, w0, weighted=flag)
        assert h == pytest.approx(variance(w0 + u, weights), rel=1e-6, abs=most)
        mean = fleet.mean(fleet.params, None, weighted=flag)
        assert distance_to(mean, fleet, weighted=flag) == pytest.approx(h, rel=1e-6, abs=most)


@pytest.mark.parametrize("seed", range(10))
def test_property_02_naive_linear_variance_are_ordered_for_any_direction(seed: int) -> None:
    u = normal(5, 40, seed=seed) + 3 * normal(40, seed=seed + 100)
    xi = normal(40, seed=seed + 200)
    naive, linear = estimate(NaiveMonitor(), u), estimate(LinearMonitor(xi / xi.norm()), u)
    assert naive >= linear >= variance(u) - rounding(u.numel(), naive)
    assert naive > linear  # this direction says something, if little


def test_property_02_limits_of_linear() -> None:
    u = normal(5, 40) + 3 * normal(40, seed=1)
    mean, most = u.mean(0), rounding(u.numel(), estimate(NaiveMonitor(), u))
    assert estimate(LinearMonitor(mean / mean.norm()), u) == pytest.approx(variance(u), abs=most)
    assert estimate(LinearMonitor(-mean / mean.norm()), u) == pytest.approx(variance(u), abs=most)
    across = normal(40, seed=2)
    across -= mean * (across @ mean) / (mean @ mean)
    assert estimate(LinearMonitor(across / across.norm()), u) == pytest.approx(estimate(NaiveMonitor(), u), abs=most)


@pytest.mark.parametrize("layout", ["block", "count"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_property_03_sketch_is_linear(layout: Any, dtype: torch.dtype) -> None:
    sketch = Sketch(1234, 5, 50, generator(0, "sketch"), layout, dtype=dtype)
    u = normal(6, 1234, dtype=dtype)
    of_mean, mean_of = sketch(u.mean(0)[None])[0], sketch(u).mean(0)
    assert of_mean.dtype == dtype
    assert (of_mean - mean_of).norm() <= 1e-5 * of_mean.norm()
    assert (sketch(-2.5 * u) + 2.5 * sketch(u)).norm() <= 1e-5 * sketch(u).norm()
    assert torch.equal(sketch(torch.zeros_like(u)), torch.zeros(6, 5, 50, dtype=dtype))


HASHES = 401
"""Independent 5-row hashes: all rows of one deep sketch, five by five."""


def many_sketches(v: Tensor, layout: Any, width: int = 250, hashes: int = HASHES, seed: int = 0) -> Tensor:
    """(hashes, 5, width)."""
    sketch = Sketch(v.numel(), 5 * hashes, width, generator(seed, "sketch"), layout, dtype=v.dtype)
    return sketch(v[None])[0].view(hashes, 5, width)


@pytest.mark.parametrize("layout", ["block", "count"])
def test_property_04_quality_of_the_estimate(layout: Any) -> None:
    """Median of 5 x 250: standard deviation about 0.048, one-sided failure about 0.09, none beyond 1.2."""
    beyond, m2 = 0, []
    for seed in range(3):
        v = normal(1500, seed=seed)
        v /= v.norm()
        m2 += [Sketch.squared_norm(one) for one in many_sketches(v, layout, seed=seed)]
    values = np.array(m2)
    assert len(values) >= 1000
    assert 0.038 < values.std() < 0.054
    assert 0.04 < (values > 1 + default_epsilon(250)).mean() < 0.15
    beyond = int((values > 1.2).sum())
    assert beyond / len(values) < 1e-3
    assert abs(values.mean() - 1) < 0.01


@pytest.mark.parametrize("shape", ["flat", "peaked"])
def test_property_04_one_row_is_unbiased_with_the_variance_of_count(shape: str) -> None:
    m, d, rows = 40, 400, 4001
    v = torch.ones(d, dtype=torch.float64) if shape == "flat" else 0.9 ** torch.arange(d, dtype=torch.float64)
    v /= v.norm()
    squared = Sketch(d, rows, m, generator(1, "sketch"), "count", dtype=v.dtype)(v[None])[0].square().sum(1)
    relative_variance = 2 / m * (1 - float(v.pow(4).sum()))
    assert abs(float(squared.mean()) - 1) < 4 * math.sqrt(relative_variance / rows)
    assert float(squared.var()) == pytest.approx(relative_variance, rel=0.15)


@pytest.mark.parametrize("layout", ["block", "count"])
def test_property_05_sketch_misses_as_often_as_its_median_exceeds(layout: Any) -> None:
    """With rho = 0.5: P[H < Var] = P[M2 > (1 + eps) ||ubar||^2], and H >= Var - 0.15 ||ubar||^2 in 1000 draws."""
    u = normal(4, 600)
    u += normal(600, seed=1) * math.sqrt(0.5)
    s1, var, along = float(squared_norms(u).mean()), variance(u), float(u.mean(0).square().sum())
    monitor = SketchMonitor(Sketch(600, 5, 250, generator(0, "sketch"), layout, dtype=u.dtype), default_epsilon(250))
    exceeds, gaps = [], []
    for one in many_sketches(u.mean(0), layout, hashes=1001):
        h = monitor.estimate(torch.cat((torch.tensor([s1], dtype=u.dtype), one.flatten())))
        gaps.append(h - var)
        exceeds.append(Sketch.squared_norm(one) > (1 + default_epsilon(250)) * along)
    misses = [gap < 0 for gap in gaps]
    assert misses == exceeds
    assert 0.04 < np.mean(misses) < 0.15
    assert min(gaps) >= -0.15 * along


def test_property_06_unshared_hashes_kill_the_correction() -> None:
    """Drifts that are all but equal: ||ubar||^2 is about S1, yet M2 comes out at S1/K. Trap 5."""
    k, d = 8, 800
    u = normal(d, seed=1) + 0.1 * normal(k, d)
    s1, along = float(squared_norms(u).mean()), float(u.mean(0).square().sum())
    shared = Sketch(d, 5, 250, generator(0, "sketch"), dtype=u.dtype)
    assert Sketch.squared_norm(shared(u).mean(0)) == pytest.approx(along, rel=0.2)
    apart = [Sketch(d, 5, 250, generator(seed, "sketch"), dtype=u.dtype)(u[seed : seed + 1])[0] for seed in range(k)]
    wrong = Sketch.squared_norm(torch.stack(apart).mean(0))
    assert wrong == pytest.approx(s1 / k, rel=0.2)
    assert wrong < 0.2 * along


# --------------------------------------------------------------------------------------------- properties 7 to 12


@pytest.mark.parametrize("monitor", ["naive", "linear", "sketch"])
@pytest.mark.parametrize("optimizer", ["sgd:lr=0.1", "sgd:lr=0.05,momentum=0.9", "adam"])
def test_property_07_threshold_zero_is_parameter_averaging(
    monitor: str, optimizer: str, make_run: MakeRun, train: Train
) -> None:
    fda = make_run(FDA(threshold=0, monitor=monitor, width=10), optimizer=optimizer)
    every = make_run(Synchronous(), optimizer=optimizer)
    for ours, theirs in zip(train(fda, 25), train(every, 25), strict=True):
        assert torch.equal(ours, theirs)
    assert fda.fleet.syncs == every.fleet.syncs == 25
    assert fda.fleet.ledger.paper["model"] == every.fleet.ledger.paper["model"] == 2 * 4 * 4 * fda.fleet.d * 25


def test_property_07_threshold_zero_with_sgd_is_one_big_batch(make_run: MakeRun, train: Train) -> None:
    options: dict[str, Any] = {"dtype": torch.float64, "optimizer": "sgd:lr=0.1"}
    fda = make_run(FDA(threshold=0, monitor="naive"), **options)
    seen = train(fda, 20)

    def one_big_batch(nudge: Nudge) -> list[Tensor]:
        module, own = nudge(fda.task.module(0, torch.float64)), []
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for step in range(20):
            indices = np.concatenate([worker.batches[step] for worker in fda.training.workers])
            x, y = fda.task.dataset.train.batch(indices, torch.float64)
            optimizer.zero_grad()
            fda.task.loss(module(x), y).backward()
            optimizer.step()
            own.append(nn.utils.parameters_to_vector(module.parameters()).detach().expand(4, -1))
        return own

    assert_alike(seen, one_big_batch)


@pytest.mark.parametrize("monitor", ["naive", "linear", "sketch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_property_08_threshold_inf_is_independent_training(
    monitor: str, optimizer: str, make_run: MakeRun, train: Train
) -> None:
    k, steps = 4, 15
    fda = make_run(FDA(threshold=math.inf, monitor=monitor), k, optimizer=optimizer)
    together = train(fda, steps)
    assert fda.fleet.syncs == 0
    assert fda.fleet.ledger.paper_total == 8 * k * fda.fleet.d + k * STATE_BYTES[monitor] * steps
    assert set(fda.fleet.ledger.moved) == {"state"}
    for worker in range(k):
        alone = make_run(LocalSGD(period=10**6), 1, optimizer=optimizer, numbers=[worker])
        for params in together:
            alone.training.train(1)
            assert torch.equal(params[worker], alone.fleet.params[0])


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("threshold", [0.0, 1e-9, 1.0])
def test_property_09_one_worker_never_syncs(monitor: str, threshold: float, make_run: MakeRun, train: Train) -> None:
    """Also docs/methods/fda.md, trap 4: naive, linear and sketch have H > 0 there, and would fire for nothing."""
    one = make_run(FDA(threshold=threshold, monitor=monitor), 1)
    train(one, 10)
    assert one.fleet.syncs == 0
    assert one.fleet.ledger.total == 0


@pytest.mark.parametrize("k", [3, 7])
@pytest.mark.parametrize("topology", [Ring(), Star()], ids=lambda topology: topology.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_property_09_equal_workers_have_no_variance(
    k: int, topology: Any, dtype: torch.dtype, make_run: MakeRun, train: Train
) -> None:
    """Identical data and seed on all workers: exact never syncs, for any threshold >= 0."""
    alike = make_run(FDA(threshold=0, monitor="exact"), k, numbers=[0] * k, dtype=dtype, topology=topology)
    alike.fleet.journal = []
    for params in train(alike, 10):
        assert torch.equal(params, params[:1].expand_as(params))
    assert [check["estimate"] for check in alike.fleet.journal] == [0.0] * 10
    assert alike.fleet.syncs == 0


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("policy", ["average", "local"])
def test_property_10_right_after_a_sync(monitor: str, policy: Any, make_run: MakeRun) -> None:
    def model(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.Linear(8, classes))

    made = make_run(FDA(threshold=0.0, monitor=monitor), model=model, optimizer="adam", buffers=policy)
    fleet, state = made.fleet, made.state
    for _ in range(3):
        made.training.train(state.local_steps(fleet))
        optimizers = copy.deepcopy(made.training.state_dict()["optimizers"])
        buffers, counters = fleet.arena.buffers.clone(), fleet.arena.others[0].clone()
        assert not torch.equal(buffers[0], buffers[1])
        before = fleet.syncs
        state.exchange(fleet)
        assert fleet.syncs == before + 1
        assert torch.equal(fleet.params, state.anchor.expand_as(fleet.params))  # u_k = 0, bit by bit
        assert state.anchor.untyped_storage().data_ptr() != fleet.params.untyped_storage().data_ptr()  # by value
        assert variance(fleet.params) == 0.0
        for one, two in zip(optimizers, made.training.state_dict()["optimizers"], strict=True):
            assert one.keys() == two.keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(one[name], two[name]) for name in one)
        assert torch.equal(fleet.arena.others[0], counters)
        if policy == "local":
            assert torch.equal(fleet.arena.buffers, buffers)
        else:
            assert torch.allclose(fleet.arena.buffers, buffers.mean(0).expand_as(buffers), atol=1e-6)
            assert torch.equal(fleet.arena.buffers, fleet.arena.buffers[:1].expand_as(buffers))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.mark.parametrize("monitor", ["naive", "linear", "exact"])
def test_property_11_round_invariant_on_digits(monitor: str, digits: Dataset, make_run: MakeRun) -> None:
    """Every step without a sync has Var <= Theta, by the test's own count."""
    threshold = 0.05
    made = make_run(
        FDA(threshold=threshold, monitor=monitor),
        5,
        dataset=digits,
        model="mlp:hidden=16",
        batch_size=8,
        parts=np.array_split(np.argsort(digits.train.labels.numpy(), kind="stable"), 5),  # unlike as can be
    )
    quiet = 0
    for _ in range(120):
        made.training.train(made.state.local_steps(made.fleet))
        drifted, before = variance(made.fleet.params), made.fleet.syncs
        made.state.exchange(made.fleet)
        if made.fleet.syncs == before:
            quiet += 1
            assert drifted <= threshold * (1 + 1e-6)
        elif monitor == "exact":
            assert drifted > threshold * (1 - 1e-6)
        assert variance(made.fleet.params) <= threshold * (1 + 1e-6)
    assert 10 < quiet < 115
    assert made.fleet.syncs == 120 - quiet


@pytest.fixture(scope="module")
def recording(digits: Dataset, make_run: MakeRun, train: Train) -> SimpleNamespace:
    """A recorded run on digits: two common models, then 40 steps on which five workers drift apart."""
    made = make_run(LocalSGD(period=10), 5, dataset=digits, model="mlp:hidden=16", batch_size=8)
    first = made.fleet.params[0].clone()
    train(made, 1)
    made.state.period = 1.0  # from here on the test takes the steps alone
    anchor = made.fleet.params[0].clone()
    seen = []
    for _ in range(40):
        made.training.train(1)
        seen.append(made.fleet.params.clone())
    return SimpleNamespace(before=first, anchor=anchor, params=seen, fleet=made.fleet)


def test_property_02_and_11_monitors_on_one_recorded_trajectory(recording: SimpleNamespace) -> None:
    """Naive >= linear >= exact >= 0 at every step; the first triggers come in that order, and later for more Theta."""
    fleet, d = recording.fleet, recording.fleet.d
    linear = LinearMonitor(unit_vector(fleet))
    linear.synced(recording.anchor, recording.before)
    monitors: dict[str, Monitor] = {"naive": NaiveMonitor(), "linear": linear, "exact": ExactMonitor(d)}
    series: dict[str, list[float]] = {name: [] for name in monitors}
    for params in recording.params:
        fleet.params.copy_(params)
        for name, monitor in monitors.items():
            series[name].append(monitor.variance(fleet, recording.anchor))
        assert series["exact"][-1] == pytest.approx(variance(params), rel=1e-6)
    for naive, line, exact in zip(*series.values(), strict=True):
        assert naive >= line * (1 - 1e-6)
        assert line >= exact * (1 - 1e-6)
        assert exact >= 0
    assert series["naive"][-1] > 1.02 * series["linear"][-1]  # the direction helps: they move on together
    assert series["linear"][-1] > series["exact"][-1]

    def first(name: str, threshold: float) -> int:
        return next((t for t, h in enumerate(series[name]) if h > threshold), len(recording.params))

    thresholds = np.geomspace(series["exact"][0] / 2, series["naive"][-1] * 2, 40)
    for threshold in thresholds:
        assert first("naive", threshold) <= first("linear", threshold) <= first("exact", threshold)
    for name in monitors:
        triggers = [first(name, threshold) for threshold in thresholds]
        assert triggers == sorted(triggers)
        assert triggers[0] == 0
        assert triggers[-1] == len(recording.params)


def test_property_12_direction_of_linear(make_run: MakeRun, train: Train) -> None:
    made = make_run(FDA(threshold=0.0))
    monitor = made.state.monitor
    random = torch.randn(made.fleet.d, generator=torch_generator(0, "xi"), dtype=torch.float64)
    assert torch.allclose(monitor.xi.double(), random / random.norm(), atol=1e-7)  # round 1
    assert torch.equal(monitor.xi, make_run(FDA(threshold=1.0)).state.monitor.xi)  # all draw the same
    assert not torch.equal(monitor.xi, make_run(FDA(threshold=1.0), seed=1).state.monitor.xi)
    commons = [made.state.anchor]
    for _ in range(5):
        commons.append(train(made, 1)[0][0])
        moved = (commons[-1] - commons[-2]).double()
        assert monitor.xi.double().norm().item() == pytest.approx(1, abs=1e-6)
        assert torch.allclose(monitor.xi.double(), moved / moved.norm(), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e15])
def test_property_12_direction_is_a_unit_vector_at_any_scale(scale: float) -> None:
    linear = LinearMonitor(torch.tensor([1.0, 0.0, 0.0]))
    linear.synced(torch.tensor([3.0, 0.0, 4.0]) * scale, torch.zeros(3))
    assert torch.allclose(linear.xi.float(), torch.tensor([0.6, 0.0, 0.8]), atol=1e-6)


def test_property_12_coinciding_common_models_fall_back_to_the_random_direction(
    make_fleet: MakeFleet, drive: Drive
) -> None:
    """Trap 6: a zero difference must not become NaN, which would never sync again."""
    fleet = make_fleet(2, 3)
    state = FDA(threshold=0.5).start(fleet)
    random = state.monitor.xi.clone()
    apart = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])  # the mean stays where it is
    onward = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert drive(fleet, state, [onward]) == [1]
    assert state.monitor.xi.tolist() == [1, 0, 0]
    assert drive(fleet, state, [apart]) == [1]
    assert torch.equal(state.monitor.xi, random)
    assert drive(fleet, state, [apart, onward]) == [1, 2]  # and so it goes on


# -------------------------------------------------------------------------------------------- properties 13 to 19


@pytest.mark.parametrize(
    ("strategy", "jumps", "syncs", "model", "state", "total"),
    [
        ("synchronous", (), 1000, 6_400_000_000, 0, 6_400_000_000),
        ("fda:monitor=linear,threshold=1", (*range(40, 1000, 39), 1000), 26, 166_400_000, 64_000, 166_464_000),
        ("fda:monitor=sketch,threshold=1", range(40, 1000, 48), 20, 134_400_000, 40_032_000, 174_432_000),
        ("fda:monitor=linear,threshold=inf", (500, 1000), 0, 6_400_000, 64_000, 6_464_000),
    ],
)
def test_property_13_worked_example(
    strategy: str,
    jumps: tuple[int, ...],
    syncs: int,
    model: int,
    state: int,
    total: int,
    make_fleet: MakeFleet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """docs/methods/fda.md 6: d = 100,000, K = 8, T = 1000. A sync of step T is on the wire only."""
    fleet = make_fleet(8, 100_000)
    # What a sketch holds is tested elsewhere; here only its size matters, and a thousand real ones take long.
    monkeypatch.setattr(Sketch, "__call__", lambda self, v: torch.zeros(len(v), self.depth, self.width))
    monkeypatch.setattr("sparsync.peers.monitors.squared_norms", lambda u: u[:, 0].double().square())
    started = STRATEGIES.build(strategy).start(fleet)
    for step in range(1, 1001):
        fleet.ledger.step_begins()
        if step in jumps:
            fleet.params[:, 0] += torch.arange(8.0)
        assert started.local_steps(fleet) == 1
        started.exchange(fleet)
    assert fleet.syncs == syncs
    assert fleet.ledger.paper.get("model", 0) == model
    assert fleet.ledger.paper.get("state", 0) == state
    assert fleet.ledger.paper_total == total
    assert fleet.ledger.moved.get("model", 0) == 5_600_000 * syncs
    wire_state = {0: 0, 64_000: 112_000, 40_032_000: 14 * 5004 * 1000}[state]
    assert fleet.ledger.moved.get("state", 0) == wire_state
    assert fleet.ledger.total == 5_600_000 * syncs + wire_state


def test_property_13_on_a_star(make_fleet: MakeFleet, drive: Drive) -> None:
    """Payload up, result down, one decision; d = 10, K = 3, two checks of which one averages."""
    fleet = make_fleet(3, 10, topology=Star())
    still, jump = torch.zeros(3, 10), torch.eye(3, 10)
    assert drive(fleet, FDA(threshold=0.1).start(fleet), [still, jump]) == [2]
    assert fleet.ledger.moved == {
        "state": 2 * 2 * 3 * (20 + 8),
        "control": 2 * 3 * (20 + 1),
        "model": 2 * 3 * (20 + 40),
    }
    assert fleet.ledger.paper == {"state": 2 * 3 * 8, "model": 8 * 3 * 10}


@pytest.mark.parametrize("monitor", MONITORS)
def test_property_13_state_on_the_ring(monitor: str, make_fleet: MakeFleet, drive: Drive) -> None:
    """docs/methods/fda.md 3: s = 4, 8, 5004 and 4d + 4 bytes; each ring worker sends 2 (K-1)/K of it.

    Exact, the measure of the others, really sends its d numbers in float64.
    """
    fleet = make_fleet(4, 10)
    drive(fleet, FDA(threshold=math.inf, monitor=monitor).start(fleet), [normal(4, 10).float()])
    size = STATE_BYTES.get(monitor, 4 * 10 + 4)
    assert fleet.ledger.paper["state"] == 4 * size
    assert fleet.ledger.moved["state"] == 2 * 3 * (8 * 10 + 4 if monitor == "exact" else size)


def test_property_14_least_squares_through_the_origin() -> None:
    """docs/methods/fda.md 7; the rounded constants stand in FDA's docstring."""
    d = np.array([61_706, 2_592_202, 6_964_106, 18_112_148], float)
    chosen = {"4.911e-5": (5, 100, 325, 900), "3.887e-5": (1.5, 50, 300, 700), "2.740e-5": (0.5, 20, 200, 500)}
    for slope, thresholds in chosen.items():
        fitted = np.linalg.lstsq(d[:, None], np.array(thresholds, float), rcond=None)[0][0]
        assert f"{fitted * 1e5:.3f}e-5" == slope
        assert f"{fitted * 1e5:.2f}e-5" in (FDA.__doc__ or "")


def by_definition(v: Tensor, buckets: np.ndarray[Any, Any], signs: np.ndarray[Any, Any], width: int) -> Tensor:
    """sk(v)[i, b] = sum over j with h_i(j) = b of s_i(j) v_j, number by number."""
    rows = [[0.0] * width for _ in range(len(buckets))]
    for i, j in itertools.product(range(len(buckets)), range(v.numel())):
        rows[i][int(buckets[i, j])] += int(signs[i, j]) * v[j].item()
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 7, 15, 16, 17, 32, 100, 16 * 16, 700])
def test_property_18_both_kernels_equal_the_definition(d: int, dtype: torch.dtype) -> None:
    """The block layout is the count layout with h(j) = (j + r_block(j)) mod m; d below, at and beyond the width."""
    depth, width = 3, 16
    rng = np.random.default_rng(d)
    rotations = rng.integers(width, size=(depth, -(-d // width)))
    signs = (2 * rng.integers(2, size=(depth, rotations.shape[1] * width)) - 1).astype(np.int8)
    j = np.arange(d)
    buckets = (j + rotations[:, j // width]) % width
    matrix = _Matrix(buckets, signs[:, :d], width, torch.device("cpu"), dtype)
    blocks = _Blocks(d, rotations, signs, width, torch.device("cpu"), dtype)
    for seed in range(3):  # more than once: the block kernel keeps a buffer
        v = normal(d, seed=seed, dtype=dtype)
        expected = by_definition(v, buckets, signs, width)
        tolerance = rounding(d, float(v.abs().sum()), dtype)
        for kernel in (matrix, blocks):
            assert kernel(v).shape == (depth, width)
            assert kernel(v).dtype == dtype
            assert torch.allclose(kernel(v).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("workers", [2, 7, 20])
def test_property_3_one_sketch_of_the_summed_drift_serves_all_workers(workers: int, make_fleet: MakeFleet) -> None:
    """The estimate is that of the mean of everybody's own state, and so is what is booked."""
    fleet = make_fleet(workers, 600)
    fleet.params.copy_(normal(workers, 600).float())
    anchor = normal(600, seed=9).float()
    monitor = FDA(threshold=1.0, monitor="sketch", width=50).start(fleet).monitor
    assert isinstance(monitor, SketchMonitor)
    each = monitor.estimate(monitor.state(fleet.params - anchor).mean(0))
    assert monitor.variance(fleet, anchor) == pytest.approx(each, rel=1e-5)
    assert fleet.ledger.moved["state"] == 2 * (workers - 1) * 4 * (1 + 5 * 50)


@pytest.mark.parametrize("d", [3, 250, 1001])
def test_property_18_kernels_draw_the_same_hash(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    v = normal(2, d)
    small = Sketch(d, 5, 250, generator(3, "sketch"), dtype=v.dtype)
    monkeypatch.setattr("sparsync.sketch._MATRIX_LIMIT", 0)
    large = Sketch(d, 5, 250, generator(3, "sketch"), dtype=v.dtype)
    assert {type(small._apply), type(large._apply)} == {_Matrix, _Blocks}
    assert distance(small(v), large(v)) <= rounding(d, float(v.abs().sum(1).max()))
    assert torch.equal(large(v), large(v))


@pytest.mark.parametrize("layout", ["block", "count"])
def test_property_18_coordinates_of_a_block_never_collide(layout: Any) -> None:
    width = 20
    sketch = Sketch(3 * width, 5, width, generator(0, "sketch"), layout)
    of_one = sketch(torch.eye(3 * width))  # (coordinates, rows, buckets)
    assert set(of_one.unique().tolist()) == {-1, 0, 1}
    assert torch.equal(of_one.abs().sum(2), torch.ones(3 * width, 5))
    bucket = of_one.abs().argmax(2).T.reshape(5, 3, width)
    distinct = [len(set(block.tolist())) for row in bucket for block in row]
    assert (min(distinct) == width) is (layout == "block")
    across = [len(set(row.flatten().tolist())) for row in bucket]
    assert max(across) <= width


@pytest.mark.parametrize("shape", ["flat", "peaked"])
def test_property_18_a_block_row_is_unbiased_with_less_variance(shape: str) -> None:
    m, d, rows = 40, 400, 4001
    v = torch.ones(d, dtype=torch.float64) if shape == "flat" else 0.97 ** torch.arange(d, dtype=torch.float64)
    v /= v.norm()
    squared = Sketch(d, rows, m, generator(2, "sketch"), "block", dtype=v.dtype)(v[None])[0].square().sum(1)
    relative_variance = 2 / m * (1 - float(v.view(-1, m).square().sum(1).square().sum()))
    assert relative_variance < 0.95 * 2 / m * (1 - float(v.pow(4).sum()))  # below count's, visibly
    assert abs(float(squared.mean()) - 1) < 4 * math.sqrt(relative_variance / rows)
    assert float(squared.var()) == pytest.approx(relative_variance, rel=0.15)


@pytest.mark.parametrize("stop_at", [9, 12, 25])
@pytest.mark.parametrize(
    "strategy",
    [
        "fda:threshold=0.01,check_every=5",
        "fda:threshold=0.01,check_every=5,monitor=sketch,width=20",
        "fda:threshold=0.01,monitor=exact",
        "fda:cadence=4",
        "fda:cadence=11,monitor=naive",
        "local-sgd:period=2,growth=1.3,warmup=3",
        "synchronous:average=gradients",
    ],
)
def test_property_19_saved_and_restored_mid_round(
    strategy: str, stop_at: int, tmp_path: Path, make_run: MakeRun
) -> None:
    """Stopped between two exchanges, written to a file, read into a new run: the same bits as without."""

    def assemble(lines: list[dict[str, Any]]) -> PeerLoop:
        made = make_run(STRATEGIES.build(strategy), optimizer="adam:lr=0.01", schedule="cosine:steps=40")
        made.fleet.journal = []
        return PeerLoop(made.fleet, made.training, made.state, made.task, Budget(40, 3), lines.append)

    whole: list[dict[str, Any]] = []
    straight = assemble(whole)
    assert straight.run(lambda steps: PaceAction.GO_ON, lambda: None)
    assert straight.fleet.syncs >= 2

    lines: list[dict[str, Any]] = []
    first = assemble(lines)
    path = tmp_path / "saved.safetensors"

    def pace(steps: int) -> PaceAction:
        return PaceAction.STOP if first.progress.step >= stop_at else PaceAction.GO_ON

    assert not first.run(pace, lambda: save_tree(first.state_dict(), path))
    assert stop_at <= first.progress.step < 40
    second = assemble(lines)
    second.load_state_dict(load_tree(path))
    assert second.run(lambda steps: PaceAction.GO_ON, lambda: None)
    assert lines == whole
    assert torch.equal(second.fleet.params, straight.fleet.params)
    assert str(second.state_dict()) == str(straight.state_dict())


# ------------------------------------------------------------------------------------------------------------ traps


def test_trap_02_a_step_is_taken_between_a_sync_and_the_next_check(make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(2, 2)
    fleet.journal = []
    jump, still = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert drive(fleet, FDA(threshold=0.0, monitor="exact").start(fleet), [jump, still, jump]) == [1, 3]
    assert [check["estimate"] for check in fleet.journal] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("check_every", [1, 3])
def test_check_every(check_every: int, make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(2, 2)
    state = FDA(threshold=0.0, monitor="naive", check_every=check_every).start(fleet)
    assert drive(fleet, state, [torch.eye(2)] * 12) == list(range(check_every, 13, check_every))
    assert fleet.ledger.paper["state"] == 2 * 4 * (12 // check_every)


def test_trap_04_sketch_at_threshold_zero_may_skip_a_sync_of_almost_equal_drifts() -> None:
    """H <= 0 while Var > 0 happens, on about one hash in eleven; it is no error."""
    u = normal(3000, seed=1) + 1e-3 * normal(3, 3000)
    s1 = float(squared_norms(u).mean())
    monitor = SketchMonitor(Sketch(3000, 5, 250, generator(0, "sketch"), dtype=u.dtype), default_epsilon(250))
    stacked = many_sketches(u.mean(0), "block")
    h = [monitor.estimate(torch.cat((torch.tensor([s1], dtype=u.dtype), one.flatten()))) for one in stacked]
    assert 0.04 < np.mean([one <= 0 for one in h]) < 0.15
    assert variance(u) > 0


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_trap_06_an_estimate_that_is_not_finite_is_an_error(
    monitor: str, bad: float, make_fleet: MakeFleet, drive: Drive
) -> None:
    for threshold in (0.0, math.inf):
        fleet = make_fleet(2, 3)
        state = FDA(threshold=threshold, monitor=monitor).start(fleet)
        move = torch.zeros(2, 3)
        move[1, 2] = bad
        with pytest.raises(DivergedError, match="lower the learning rate or clip"):
            drive(fleet, state, [move])
        assert fleet.syncs == 0


def test_trap_07_anchor_is_held_by_value(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, 3)
    for config in (FDA(threshold=1.0), FDA(cadence=2)):
        state = config.start(fleet)
        fleet.params.add_(1.0)
        assert torch.equal(state.anchor, fleet.params[0] - 1)


def test_trap_08_norms_are_accumulated_in_float64() -> None:
    u = (1e4 * normal(3, 30_000) + 3e4).float()
    assert squared_norms(u).dtype == torch.float64
    exact = [math.fsum(float(x) ** 2 for x in row) for row in u]
    assert squared_norms(u).tolist() == pytest.approx(exact, rel=rounding(30_000))


def test_trap_08_dot_products_are_accumulated_in_float64() -> None:
    """ "Accumulate norms and dot products in fp64": H = S1 - along^2 cancels when workers move together."""
    u, xi = normal(3, 100_000).float() + 1, normal(100_000, seed=1).float() + 1
    xi /= xi.norm()
    exact = [math.fsum(float(a) * float(b) for a, b in zip(row.tolist(), xi.tolist(), strict=True)) for row in u]
    most = rounding(100_000, float((u * xi).abs().sum(1).max()))
    assert LinearMonitor(xi).state(u)[:, 1].tolist() == pytest.approx(exact, rel=0, abs=most)


def test_trap_08_exact_does_not_cancel(make_fleet: MakeFleet) -> None:
    """Workers that moved together by 1000 and apart by 1e-3: S1 - ||ubar||^2 in float32 would be noise."""
    fleet = make_fleet(4, 100)
    fleet.params.copy_(1000 + 1e-3 * normal(4, 100))
    h = ExactMonitor(100).variance(fleet, torch.zeros(100))
    assert h == pytest.approx(variance(fleet.params), rel=1e-9)
    assert 0 < h < 1e-3


class Together:
    """One of several processes, here threads: sums in the order of ranks."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, desk: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._desk = barrier, desk

    def _all(self, mine: Any) -> list[Any]:
        self._desk[self.rank] = mine
        self._barrier.wait(GIVEN_UP)
        seen = list(self._desk)
        self._barrier.wait(GIVEN_UP)
        return seen

    def mean(self, total: Tensor, divisor: float, topology: Any, codec: Any) -> Tensor:
        mean: Tensor = sum(self._all(total.clone())) / divisor
        return codec.round(mean) if topology.name == "star" else mean

    def broadcast(self, x: Tensor) -> Tensor:
        return x.copy_(self._all(x.clone())[0])

    def minimum(self, value: int) -> int:
        return int(min(self._all(value)))

    def barrier(self) -> None:
        self._barrier.wait(GIVEN_UP)


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("size", [2, 3, 6])
def test_trap_12_all_processes_take_the_same_branch(
    monitor: str, size: int, make_fleet: MakeFleet, drive: Drive
) -> None:
    """Six workers in several processes: the same syncs, the same bits in all, and the numbers of one process."""
    moves = 0.3 * normal(30, 6, 40)
    barrier, desk = threading.Barrier(size), [None] * size

    def process(group: Any) -> tuple[list[int], list[Any], Tensor]:
        share = range(6 * group.rank // group.size, 6 * (group.rank + 1) // group.size)
        fleet = make_fleet(len(share), 40, torch.float64)
        fleet = Fleet(fleet.arena, 6, group=group)
        fleet.journal = []
        state = FDA(threshold=40.0, monitor=monitor, width=16).start(fleet)
        synced = drive(fleet, state, moves[:, share.start : share.stop])
        return synced, fleet.journal, fleet.params

    with ThreadPoolExecutor(size) as pool:
        parts = list(pool.map(process, [Together(rank, size, barrier, desk) for rank in range(size)]))
    synced, journal, params = process(SingleProcess())
    assert 0 < len(synced) < 30
    for theirs, notes, _ in parts:
        assert theirs == synced
        assert notes == parts[0][1]
    for ours, theirs in zip(journal, parts[0][1], strict=True):
        assert theirs["estimate"] == pytest.approx(ours["estimate"], rel=1e-9)
    most = rounding(30 * 6, float(moves.abs().sum(0).max()))  # thirty moves, and means of six
    assert distance(torch.cat([part[2] for part in parts]), params) <= most


def test_trap_13_even_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="depth 4 is even; take an odd one"):
        Sketch(10, 4, 8, generator(0, "sketch"))
    rows = torch.tensor([[1.0], [3.0], [2.0]])
    assert Sketch.squared_norm(rows) == 4.0  # the median of 1, 9 and 4


# --------------------------------------------------------------------------------------------- weights and cadence


def test_weights_by_samples_by_hand(make_fleet: MakeFleet, drive: Drive) -> None:
    """p = (1/4, 3/4), w = (0, 4): mean 3, Var = 1/4 9 + 3/4 1 = 3, S1 = 12."""
    moves = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    for monitor, h in (("naive", 12.0), ("exact", 3.0)):
        fleet = make_fleet(2, 2, samples=[10, 30])
        fleet.journal = []
        state = FDA(threshold=1.0, monitor=monitor, weights="samples").start(fleet)
        assert drive(fleet, state, [moves]) == [1]
        assert fleet.journal[0]["estimate"] == h
        assert fleet.params.tolist() == [[3, 0], [3, 0]]


def test_weights_by_samples_need_samples(make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(2, 2)
    with pytest.raises(UsageError, match="does not know its workers' samples; use weights 'uniform'"):
        drive(fleet, FDA(threshold=1.0, weights="samples").start(fleet), [torch.eye(2)])


def grow(fleet: Fleet, state: Any, law: Callable[[int, int], float], rounds: int) -> list[tuple[int, float]]:
    """Two workers at +-x with Var = law(round, steps in it); return steps and next threshold of each round."""
    done: list[tuple[int, float]] = []
    steps = 0
    while len(done) < rounds:
        steps += state.local_steps(fleet)
        x = math.sqrt(law(len(done), steps))
        fleet.params.copy_(torch.tensor([[x], [-x]]))
        before = fleet.syncs
        state.exchange(fleet)
        if fleet.syncs > before:
            done.append((steps, state.threshold))
            steps = 0
    return done


@pytest.mark.parametrize("cadence", [1, 5, 20])
@pytest.mark.parametrize("monitor", ["exact", "naive"])
def test_cadence_has_its_fixed_point_where_variance_grows_linearly(
    cadence: int, monitor: str, make_fleet: MakeFleet
) -> None:
    """docs/methods/fda.md 13.2: Theta = V(tau) at first; Var = 3 t then exceeds it, strictly, at tau + 1, for ever."""
    fleet = make_fleet(2, 1, torch.float64)
    rounds = grow(fleet, FDA(cadence=cadence, monitor=monitor).start(fleet), lambda number, t: 3.0 * t, 12)
    assert rounds[0] == (cadence, pytest.approx(3.0 * cadence))
    for steps, threshold in rounds[1:]:
        assert steps == pytest.approx(cadence + 0.5, abs=0.51)  # sqrt and square may round either way
        assert threshold == pytest.approx(3.0 * cadence)


def test_cadence_comes_back_from_a_jump_by_factors_of_two(make_fleet: MakeFleet) -> None:
    """Growth sixteen times as fast from round 3 on, and back from round 12 on."""
    fleet = make_fleet(2, 1, torch.float64)
    state = FDA(cadence=10, monitor="exact").start(fleet)
    rounds = grow(fleet, state, lambda number, t: t * (16.0 if 3 <= number < 12 else 1.0), 24)
    steps, thresholds = [one[0] for one in rounds], [one[1] for one in rounds]
    for before, after in itertools.pairwise(thresholds):
        assert 0.5 <= after / before <= 2
    assert thresholds[2:8] == pytest.approx([10, 20, 40, 80, 160, 160])
    assert steps[3] == 1
    assert thresholds[11:17] == pytest.approx([160, 80, 40, 20, 10, 10])
    assert steps[12] == 40  # four times the cadence, though the threshold was not reached
    assert max(steps) == 40
    assert steps[-1] == pytest.approx(10.5, abs=0.51)


def test_cadence_converges_where_drift_is_coherent(make_fleet: MakeFleet) -> None:
    """Var = t^2: tau halves its distance to the wish, in the logarithm, per round."""
    fleet = make_fleet(2, 1, torch.float64)
    state = FDA(cadence=16, monitor="exact").start(fleet)
    rounds = grow(fleet, state, lambda number, t: float(t * t) * (1 if number < 2 else 4), 12)
    assert [steps for steps, _ in rounds[-4:]] == pytest.approx([16.5] * 4, abs=1.0)


@pytest.mark.parametrize("check_every", [1, 3])
@pytest.mark.parametrize("cadence", [2, 2.5, 4])
def test_cadence_caps_the_round(cadence: float, check_every: int, make_fleet: MakeFleet) -> None:
    """ "A round never exceeds 4 tau steps", even if Var stays below Theta for good."""
    fleet = make_fleet(2, 1, torch.float64)
    state = FDA(cadence=cadence, monitor="exact", check_every=check_every).start(fleet)
    rounds = grow(fleet, state, lambda number, t: 1.0 if number == 0 else 1e-9, 4)
    assert rounds[0][0] == round(cadence)
    assert all(steps <= 4 * cadence for steps, _ in rounds)
    assert all(steps > 4 * cadence - check_every for steps, _ in rounds[1:])


def test_cadence_survives_equal_models(make_fleet: MakeFleet) -> None:
    """V = 0 says nothing about a threshold: it is measured again, or kept."""
    fleet = make_fleet(2, 1, torch.float64)
    state = FDA(cadence=3, monitor="exact").start(fleet)
    rounds = grow(fleet, state, lambda number, t: 0.0 if number < 2 or number == 4 else float(t), 6)
    assert rounds[:2] == [(3, None), (3, None)]
    assert rounds[2] == (3, pytest.approx(3))
    assert rounds[4][0] == 12
    assert rounds[4][1] == rounds[3][1]


def test_cadence_books_one_float32_per_worker_and_average(make_fleet: MakeFleet) -> None:
    """docs/methods/fda.md 13.2: V is one more number per worker and average, booked as state, in both views."""
    fleet = make_fleet(2, 1)
    grow(fleet, FDA(cadence=3, monitor="naive").start(fleet), lambda number, t: float(t), 1)  # calibration: no check
    assert fleet.ledger.moved["state"] == 2 * 1 * 4
    assert fleet.ledger.paper["state"] == 2 * 4


def test_readouts_cost_nothing(make_fleet: MakeFleet, drive: Drive) -> None:
    books = []
    for watched in (False, True):
        fleet = make_fleet(3, 5)
        fleet.readouts, fleet.journal = watched, []
        drive(fleet, FDA(threshold=1.0).start(fleet), [normal(3, 5).float()] * 4)
        assert all((check["variance"] is not None) is (watched and check["sync"]) for check in fleet.journal)
        books.append(str(fleet.ledger.state_dict()))
    assert books[0] == books[1]


# ------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fda", "give exactly one of threshold, per_parameter and cadence, got none of them"),
        (
            "fda:threshold=1,cadence=2",
            "give exactly one of threshold, per_parameter and cadence, got threshold and cad",
        ),
        ("fda:threshold=-1", "threshold=-1.0: a variance is at least 0; give a number >= 0, or inf for no averaging"),
        ("fda:threshold=nan", "threshold=nan: a variance is at least 0"),
        ("fda:per_parameter=-1e-5", "per_parameter=-1e-05: a variance is at least 0"),
        (
            "fda:threshold=much",
            "threshold: Input should be a valid number, unable to parse string as a number, got 'muc",
        ),
        ("fda:cadence=0.5", "cadence: Input should be greater than or equal to 1, got '0.5'"),
        ("fda:cadence=inf", "cadence: Input should be a finite number, got 'inf'"),
        ("fda:threshold=1,depth=4", "depth=4: give an odd number, whose median is one of the rows"),
        ("fda:threshold=1,depth=-1", "depth: Input should be greater than or equal to 1, got '-1'"),
        ("fda:threshold=1,width=1", "width: Input should be greater than or equal to 2, got '1'"),
        ("fda:threshold=1,epsilon=-0.1", "epsilon: Input should be greater than or equal to 0, got '-0.1'"),
        ("fda:threshold=1,epsilon=nan", "epsilon: Input should be a finite number, got 'nan'"),
        ("fda:threshold=1,check_every=0", "check_every: Input should be greater than or equal to 1, got '0'"),
        ("fda:threshold=1,check_every=1.5", "check_every: Input should be a valid integer"),
        ("fda:threshold=1,monitor=kamp", "monitor: unknown monitor 'kamp'"),
        ("fda:threshold=1,layout=tree", "layout: Input should be 'block' or 'count', got 'tree'"),
        ("fda:threshold=1,weights=equal", "weights: Input should be 'uniform' or 'samples', got 'equal'"),
        (
            "fda:theta=1",
            "strategy 'fda' has no parameter 'theta': its parameters are threshold, per_parameter, cadence",
        ),
    ],
)
def test_bad_inputs(spec: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        STRATEGIES.build(spec)
    assert says in str(caught.value)
    assert re.fullmatch(r"[^\n]+", str(caught.value))  # one line


def test_one_object_serves_many_runs(make_fleet: MakeFleet, drive: Drive) -> None:
    config = FDA(threshold=0.1)
    runs = []
    for _ in range(2):
        fleet = make_fleet(3, 5)
        runs.append((drive(fleet, config.start(fleet), [normal(3, 5).float()] * 3), fleet.params.clone()))
    assert runs[0][0] == runs[1][0] != []
    assert torch.equal(runs[0][1], runs[1][1])
