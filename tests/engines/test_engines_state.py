"""Whatever ``state_dict()`` holds is trained, kept and saved: a saved model loads strictly, and computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sparsync import comparison
from sparsync.errors import PayloadError
from sparsync.experiment import Experiment
from sparsync.federated.exact import ExactState
from sparsync.task import Task, load_dataset
from sparsync.wire import MessageSection, pack_parcel
from sparsync.workers import Arena

TABLE = [0, 16777217, 2**62 + 1]


class Everything(nn.Module):
    """All that a model may hold, most of it in use."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(64, 12).requires_grad_(False)
        self.norm = nn.GroupNorm(2, 12)
        self.fc = nn.Linear(12, 10)
        self.again = self.fc
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("level", torch.tensor(2.0))
        self.register_buffer("precise", torch.tensor(16777217.0, dtype=torch.float64))
        self.register_buffer("small", torch.tensor([0.1], dtype=torch.half))
        self.register_buffer("table", torch.tensor(TABLE))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("bits", torch.tensor([1, 0, 255], dtype=torch.uint8))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("own", torch.tensor(5.0), persistent=False)
        self.register_buffer("shared", torch.ones(2))
        self.norm.register_buffer("shared", self.shared)

    def forward(self, x: Tensor) -> Tensor:
        assert self.table.tolist() == TABLE
        assert self.precise >= 16777217
        level = self.level
        self.level = 0.9 * self.level + 0.1 * x.mean()  # in evaluation, too
        self.count = self.count + 1
        self.precise += 1
        self.own = self.own + self.scale  # it has a graph
        return self.again(self.norm(self.frozen(x.flatten(1)) * level)) * self.scale


def model(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Everything()


HERE = f"{__name__}:model"
FAMILIES = [
    "local-sgd:period=2",
    "gossip",
    "hadfl",
    "fedavg",
    "scaffold",
    "sparsyfed",
    "fda-opt:max_epochs=2",
    "fedasync",
]


def compared(folder: Path, strategies: list[str], **said: Any) -> dict[str, dict[str, Tensor]]:
    settings = {"workers": 2, "steps": 3, "eval_every": 3, "processes": 1, "strategies": strategies}
    settings |= {"federation": {"rounds": 2, "participation": 1.0, "steps": 2}}
    experiment = Experiment(model=HERE, **{**settings, **said})
    comparison.compare(experiment, folder)
    return {path.stem: safetensors.torch.load_file(path) for path in sorted((folder / "models").iterdir())}


@pytest.mark.parametrize("family", ["peers", "rounds"])
def test_a_saved_model_loads_strictly_and_computes_the_same(tmp_path: Path, family: str) -> None:
    strategies = FAMILIES[:3] if family == "peers" else FAMILIES[3:]
    task = Task(load_dataset("digits"), model)
    first = task.module(0)
    for name, saved in compared(tmp_path / "run", strategies).items():
        fresh = Everything()
        fresh.load_state_dict(saved, strict=True)
        assert all(saved[key].dtype == value.dtype for key, value in first.state_dict().items()), name
        assert torch.equal(fresh.frozen.weight, first.frozen.weight)
        assert saved["table"].tolist() == TABLE
        assert saved["bits"].tolist() == [1, 0, 255]
        assert saved["mask"].tolist() == [True, False]
        assert saved["small"].item() == first.small.item()
        assert 0 < saved["level"].item() < 1.95, name
        assert saved["count"].item() >= 2, name
        assert saved["precise"].item() == 16777217 + saved["count"].item(), name
        assert torch.equal(saved["fc.weight"], saved["again.weight"])
        assert not torch.equal(saved["fc.weight"], first.fc.weight)
        (result,) = [one for one in _results(tmp_path / "run") if name.startswith(one["label"].split(":")[0])]
        correct, _ = task.evaluate(fresh, 0, len(task.dataset.test))
        assert int(correct.sum()) / len(task.dataset.test) == result["accuracy"]


def _results(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text())["results"]
    return found


def test_evaluations_change_nothing(tmp_path: Path) -> None:
    once = compared(tmp_path / "once", FAMILIES[:1], steps=4, eval_every=4)
    often = compared(tmp_path / "often", FAMILIES[:1], steps=4, eval_every=1)
    for one, other in zip(once.values(), often.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def exact() -> ExactState:
    return ExactState(Arena(Everything(), 1, torch.device("cpu"), torch.float32))


def test_the_server_moves_each_number_by_the_mean_change_rounded() -> None:
    state, ones = exact(), [(1.0, 1), (3.0, 5)]
    weighted = torch.zeros(state.numel, dtype=torch.float64)
    for weight, count in ones:
        state.write()
        state.arena.others[[rows.dtype for rows in state.arena.others].index(torch.int64)][0, -1] = count
        weighted += weight * state.change(state.read())
    state.move(weighted / 4)
    (integers,) = [value for value in state.values if value.dtype is torch.int64]
    assert integers.tolist() == [*TABLE, 4]


def test_messages_are_checked() -> None:
    state = exact()
    model = pack_parcel([MessageSection("model", b"1234", 0)])
    whole = state.join(model, state.values)
    rest, values = state.split(whole)
    assert rest == model
    assert values is not None
    assert all(torch.equal(one, other) for one, other in zip(values, state.values, strict=True))
    control = pack_parcel([MessageSection("control", b"")])
    assert state.split(state.join(control, state.values)) == (control, None)
    at = [value.dtype for value in state.values].index(torch.bool)
    for broken in (
        model,
        pack_parcel([MessageSection("model", b"1234", 0), MessageSection("model", bytes(state.nbytes - 1))]),
        pack_parcel([MessageSection("model", b"1234", 0), MessageSection("model", bytes(state.nbytes), 0)]),
        state.join(model, [torch.full_like(one, torch.nan) if one.is_floating_point() else one for one in values]),
        state.join(model, [torch.full((2,), 2, dtype=torch.uint8) if i == at else one for i, one in enumerate(values)]),
    ):
        with pytest.raises(PayloadError):
            state.split(broken)


def lonely(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))


def test_a_clients_last_sample_joins_the_batch_before_it(tmp_path: Path) -> None:
    """84 clients hold 17 or 18 samples each, in batches of 16."""
    said = {"workers": 84, "batch_size": 16, "federation": {"rounds": 1, "cohort": 4, "epochs": 1}}
    experiment = Experiment(model=f"{__name__}:lonely", strategies=["fedavg"], processes=1, **said)
    summary = comparison.compare(experiment, tmp_path / "run")
    assert np.isfinite(summary["results"][0]["accuracy"])
