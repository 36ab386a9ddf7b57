"""Golden runs: constant gradients, so that every stored number can be derived by hand.

Three workers of two parameters start at zero and take SGD steps at rate 0.25 on constant gradients
g = (-4, 0), (-8, 0), (-12, 0): a step moves them by (1, 0), (2, 0), (3, 0), whatever the optimiser has not done to it.
All numbers are small integers and quarters of them, so every line below is exact.

After t steps on their own from a common model the drifts are t, 2t and 3t along the first axis, hence

    S1   = t^2 (1 + 4 + 9) / 3 = 14/3 t^2,      ubar = 2t,      Var = 14/3 t^2 - 4 t^2 = 2/3 t^2.

``fda-exact``: Theta = 2. Var is 0.667, 2.667: every second step averages, and moves the common model by 4.
``fda-naive``: Theta = 20. H = S1 is 4.667, 18.667, 42: every third step averages, and moves it by 6.
``fda-linear``: Theta = 20. In round 1 xi is random, so H lies between Var and S1; afterwards xi is the first axis,
    along which all drifts lie: H = Var = 0.667, 2.667, 6, 10.667, 16.667, 24: rounds of six steps.
``local-sgd``: period 4: moves of 8.
``momentum``: period 1 with momentum 0.5: the mean's velocity is v <- v / 2 - 8, its moves 2, 3, 3.5, 3.75, ...
``cadence``: tau = 4 with the exact monitor. Theta = 2/3 16 = 10.667 after step 4; then Var exceeds it at t = 5 with
    16.667, and Theta <- 4/5 16.667 = 13.333; 16.667 exceeds that at t = 5 again: Theta stays.

``SPARSYNC_WRITE_GOLDEN=1 pytest tests/golden`` rewrites the fixture; look at the difference before you commit it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsync.strategies import STRATEGIES
from sparsync.workers import OPTIMIZERS, Arena, Fleet

FIXTURE = Path(__file__).with_name("constant_gradients.json")
STEPS = 24
RUNS = {
    "fda-exact": ("fda:threshold=2,monitor=exact", "sgd:lr=0.25"),
    "fda-naive": ("fda:threshold=20,monitor=naive", "sgd:lr=0.25"),
    "fda-linear": ("fda:threshold=20,monitor=linear", "sgd:lr=0.25"),
    "fda-sketch": ("fda:threshold=20,monitor=sketch,width=4,depth=3", "sgd:lr=0.25"),
    "local-sgd": ("local-sgd:period=4", "sgd:lr=0.25"),
    "momentum": ("synchronous", "sgd:lr=0.25,momentum=0.5"),
    "cadence": ("fda:cadence=4,monitor=exact", "sgd:lr=0.25"),
}


def golden_run(strategy: str, optimizer: str) -> dict[str, Any]:
    module = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(module.weight)
    fleet = Fleet(Arena(module, 3, torch.device("cpu"), torch.float32), 3)
    fleet.journal = []
    state = STRATEGIES.build(strategy).start(fleet)
    optimizers = [OPTIMIZERS.build(optimizer, [fleet.arena.row(i)]) for i in range(3)]
    synced, models, left = [], [], 0
    for step in range(1, STEPS + 1):
        if left == 0:
            wished = state.local_steps(fleet)
            assert isinstance(wished, int)
            left = wished
        fleet.ledger.step_begins()
        for i, one in enumerate(optimizers):
            fleet.grads[i].copy_(torch.tensor([-4.0 * (i + 1), 0.0]))
            one.step()
        left -= 1
        before = fleet.syncs
        if left == 0:
            state.exchange(fleet)
        if fleet.syncs > before:
            synced.append(step)
            models.append(fleet.params[0].tolist())
    return {
        "synced": synced,
        "models": models,
        "checks": [[check["estimate"], check["threshold"]] for check in fleet.journal],
        "bytes": fleet.ledger.moved,
        "paper_bytes": fleet.ledger.paper,
        "final": fleet.params.tolist(),
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if os.environ.get("SPARSYNC_WRITE_GOLDEN") == "1":
        runs = {name: golden_run(*asked) for name, asked in RUNS.items()}
        lines = [f"{json.dumps(name)}: {json.dumps(run)}" for name, run in runs.items()]
        FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    stored: dict[str, Any] = json.loads(FIXTURE.read_text())
    return stored


def near(value: Any) -> Any:
    """Numbers to rounding, everything else as it is."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-5, abs=1e-6)
    if isinstance(value, list):
        return [near(one) for one in value]
    if isinstance(value, dict):
        return {key: near(one) for key, one in value.items()}
    return value


@pytest.mark.parametrize("name", RUNS)
def test_golden(name: str, golden: dict[str, Any]) -> None:
    assert golden_run(*RUNS[name]) == near(golden[name])


def test_the_fixture_holds_these_runs_and_no_other(golden: dict[str, Any]) -> None:
    assert list(golden) == list(RUNS)


def test_the_fixture_is_what_the_formulas_say(golden: dict[str, Any]) -> None:
    """The derivation above, so that nobody has to take the stored numbers on trust."""

    def every(period: int) -> tuple[list[int], Any]:
        synced = list(range(period, STEPS + 1, period))
        return synced, near([[2.0 * step, 0.0] for step in synced])

    for name, period in (("fda-exact", 2), ("fda-naive", 3), ("local-sgd", 4)):
        assert (golden[name]["synced"], golden[name]["models"]) == every(period)
    for name, factor, period in (("fda-exact", 2 / 3, 2), ("fda-naive", 14 / 3, 3)):
        expected = [factor * (step % period + 1) ** 2 for step in range(STEPS)]
        assert [check[0] for check in golden[name]["checks"]] == near(expected)
    linear = golden["fda-linear"]
    first = linear["synced"][0]
    assert 3 <= first <= 6
    assert linear["synced"][1:] == list(range(first + 6, STEPS + 1, 6))
    tail = [check[0] for check in linear["checks"][first:]]
    assert tail == near([2 / 3 * (step % 6 + 1) ** 2 for step in range(STEPS - first)])
    position, velocity, models = 0.0, 0.0, []
    for _ in range(STEPS):
        velocity = velocity / 2 - 8
        position -= velocity / 4
        models.append([position, 0.0])
    assert golden["momentum"]["models"] == near(models)
    cadence = golden["cadence"]
    assert cadence["synced"] == [4, 9, 14, 19, 24]
    assert [check[1] for check in cadence["checks"]] == near([None, *[32 / 3] * 5, *[40 / 3] * 15])
    for name, run in golden.items():
        opened = 1 + sum(step < STEPS for step in run["synced"])
        assert run["paper_bytes"]["model"] == 8 * 3 * 2 * opened
        assert run["bytes"]["model"] == 2 * 2 * 8 * len(run["synced"]), name
