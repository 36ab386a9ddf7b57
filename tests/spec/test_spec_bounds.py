"""Numbers that no machine can serve are refused in one line, at once; from Python as from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsync
from sparsync import FDA, Experiment, LocalSGD, Profile, Synchronous
from sparsync.errors import UsageError
from sparsync.experiment import build
from sparsync.federated import Federation
from sparsync.settings import read
from sparsync.split import SplitSettings
from sparsync.strategies import STRATEGIES
from sparsync.system import Outage, System
from sparsync.task import MODELS

DIGITS = "9" * 5000


def attached(strategy: Any) -> Any:
    model = nn.Linear(2, 2)
    return sparsync.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), strategy)


def one_line(error: UsageError, *says: str) -> None:
    assert all(word in str(error) for word in says), str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"steps = {DIGITS}", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("a = '" + "x" * (1 << 24) + "'", "16 MiB"),
        ("steps = 0x" + "f" * 5000, "steps"),
        ("workers = 1000000000", "workers"),
        ("processes = 1000000000\nworkers = 1000000", "processes"),
        ("seeds = 1000000000", "seeds"),
        (f"seeds = [{2**64}]", "seeds"),
        ("seeds = 0x" + "f" * 5000, "seeds"),
        ("steps = 1000000000000", "steps"),
        ("batch_size = 1000000000000", "batch_size"),
        ("[federation]\nrounds = 1000000000000", "federation.rounds"),
        ("[federation]\nsteps = 1000000000000", "federation.steps"),
        ("[split]\nepochs = 1000000000000", "split.epochs"),
        ("[split]\ndelays = 'stragglers:count=1000000000000'", "count"),
        ("[[profile.outages]]\nworker = 1000000000000\nat = 1", "worker"),
        ("model = 'mlp:depth=1000000000'", "depth"),
        ("model = 'resnet10:width=1000000000'", "width"),
        (f"model = 'mlp:hidden={DIGITS}'", "hidden"),
        ("data = 'folder:size=1000000'", "size"),
        ("strategies = ['hadfl:period=1000000000000']", "period"),
        ("strategies = ['fda:threshold=1,monitor=sketch,width=1000000000']", "width"),
        ("strategies = ['fda:threshold=1,monitor=sketch,depth=1000001']", "depth"),
        ("strategies = ['fedavg:uplink=q8(block=1000000000000)']", "block"),
        ("schedule = 'cosine:steps=1000000000000'", "steps"),
    ],
    ids=lambda text: text[:45],
)
def test_a_number_in_a_file(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        build(read(path), str(path))
    one_line(caught.value, "experiment.toml", says)


def test_power_that_begins_again_takes_no_room_until_it_is_used() -> None:
    assert Experiment(workers=1_000_000, profile=Profile(power="4:2:2:1:...")).workers == 1_000_000


def test_a_model_of_too_many_weights_is_refused_unbuilt() -> None:
    with pytest.raises(UsageError, match="hidden=1000000000"):
        MODELS.build("mlp:hidden=1000000000", (1, 8, 8), 10)


def test_a_device_that_comes_and_goes_all_the_time_is_refused() -> None:
    outages = System.of(Profile(mean_up=1e-3, mean_down=1e-3), 1).outages
    assert outages is not None
    with pytest.raises(UsageError, match=r"mean_up=0\.001"):
        outages[0].at(1e6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Experiment(steps=0), "steps: Input should be greater"),
        (lambda: Experiment(stepz=3), "unknown key 'stepz': did you mean 'steps'?"),
        (lambda: Experiment(federation={"round": 3}), "unknown [federation] key 'round'"),
        (lambda: Experiment(strategies=["fdaa"]), "unknown strategy 'fdaa'"),
        (lambda: Experiment(target=2), "target"),
        (lambda: Experiment(self=3), "unknown key 'self'"),
        (lambda: Experiment(cls=3), "unknown key 'cls'"),
        (lambda: Experiment(3), "Experiment: 3 is a positional argument"),
        (lambda: setattr(Experiment(), "steps", 0), "Experiment: steps cannot be changed"),
        (lambda: delattr(Experiment(), "steps"), "Experiment: steps cannot be changed"),
        (lambda: setattr(FDA(threshold=1), "threshold", 3), "FDA: threshold cannot be changed"),
        (lambda: delattr(FDA(threshold=1), "threshold"), "FDA: threshold cannot be changed"),
        (lambda: setattr(Federation(), "rounds", 3), "Federation: rounds cannot be changed"),
        (lambda: setattr(SplitSettings(), "more", 3), "SplitSettings: more cannot be changed"),
        (lambda: Profile(latency=-1), "Profile: latency"),
        (lambda: Profile(power=-1), "power: expected a list or a string, got -1"),
        (lambda: Profile(up=-1), "up: expected a number greater than 0 or a list, got -1"),
        (lambda: Experiment(processes="x"), "processes: expected an integer or 'auto', got 'x'"),
        (lambda: Profile("iot"), "Profile: 'iot' is a positional argument"),
        (lambda: Outage(worker=0), "Outage: at"),
        (lambda: Federation(rounds=0), "Federation: rounds"),
        (lambda: SplitSettings(epochs=0), "SplitSettings: epochs"),
        (lambda: FDA(threshold=-1), "FDA: threshold"),
        (lambda: FDA(2.0), "FDA: 2.0 is a positional argument"),
        (lambda: FDA(threshold=1, monitor="best"), "unknown monitor 'best'"),
        (lambda: LocalSGD(period=0), "LocalSGD: period"),
        (lambda: Synchronous(average="all"), "Synchronous: average"),
        (lambda: STRATEGIES.register("fda")(FDA), "registered twice"),
        (lambda: attached("fdaa"), "unknown strategy 'fdaa'"),
        (lambda: attached(FDA), "strategy"),
        (lambda: attached(3), "strategy"),
        (lambda: attached("fedavg"), "strategy"),
    ],
)
def test_a_mistake_in_python_is_ours(make: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    one_line(caught.value, says)


def test_a_mistake_within_a_list_is_told_once() -> None:
    with pytest.raises(UsageError) as caught:
        Profile(power=[1, -1])
    one_line(caught.value, "power.1: ")
    assert str(caught.value).count("power") == 1
