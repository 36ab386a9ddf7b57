"""A run is its settings, its data, its model and its versions: whichever has changed is said in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsync import comparison, identity
from sparsync.errors import UsageError
from sparsync.experiment import Experiment
from sparsync.task import Task, from_arrays, load_dataset

MODEL = """
from torch import nn

def build(inputs, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
"""


def arrays(root: Path, **changed: Any) -> None:
    rng = np.random.default_rng(3)
    data = {
        "x_train": rng.normal(size=(40, 5)).astype(np.float32),
        "y_train": np.arange(40) % 3,
        "x_test": rng.normal(size=(12, 5)).astype(np.float32),
        "y_test": np.arange(12) % 3,
    }
    np.savez(root / "data.npz", **{**data, **changed})


def resumed(folder: Path) -> str:
    with pytest.raises(UsageError) as refused:
        comparison.resume(folder)
    said = str(refused.value)
    assert "\n" not in said
    return said


def test_nothing_has_changed(stopped: Callable[..., Path]) -> None:
    assert comparison.resume(stopped())["results"][0]["steps"] == 6


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("x_train", lambda x: x + (np.arange(40) == 17)[:, None], "training inputs"),
        ("x_test", lambda x: -x, "test inputs"),
        ("y_train", lambda y: np.roll(y, 1), "training labels"),
        ("y_test", lambda y: np.roll(y, 1), "test labels"),
    ],
)
def test_other_data(
    tmp_path: Path, stopped: Callable[..., Path], name: str, change: Callable[[Any], Any], says: str
) -> None:
    arrays(tmp_path)
    folder = stopped(data="npz", data_root=tmp_path / "data.npz")
    data = dict(np.load(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **{**data, name: change(data[name])})
    assert f"data, {says}" in resumed(folder)


def test_fewer_data(tmp_path: Path, stopped: Callable[..., Path]) -> None:
    arrays(tmp_path)
    folder = stopped(data="npz", data_root=tmp_path / "data.npz")
    data = dict(np.load(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **{**data, "x_train": data["x_train"][:30], "y_train": data["y_train"][:30]})
    assert "training samples: 40 then, 30 now" in resumed(folder)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "64, 8), nn.ReLU(), nn.Linear(8",
            "64, 9), nn.ReLU(), nn.Linear(9",
            "1.weight: float32 [8, 64] then, float32 [9",
        ),
        ("nn.Linear(8, 10)", "nn.Linear(8, 10, bias=False)", "3.bias: float32 [10] then, missing now"),
        ("ReLU", "Tanh", "outputs"),  # the same parameters, another function
        ("ReLU()", "Sequential(nn.ReLU(), nn.Dropout(0.5))", "in training"),  # the same in evaluation
        ("ReLU()", "BatchNorm1d(8)", "2.weight: missing then, float32 [8] now"),
    ],
)
def test_another_model(
    tmp_path: Path,
    stopped: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    says: str,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "edited_model.py"
    file.write_text(MODEL)
    folder = stopped(model="edited_model:build")
    assert old in MODEL
    file.write_text(MODEL.replace(old, new))
    monkeypatch.delitem(sys.modules, "edited_model")
    said = resumed(folder)
    monkeypatch.delitem(sys.modules, "edited_model")
    assert "model, " in said
    assert says in said


@pytest.mark.parametrize("what", ["sparsync", "torch", "python"])
def test_another_version(stopped: Callable[..., Path], what: str) -> None:
    folder = stopped()
    made = json.loads((folder / "run.json").read_text())
    made["versions"][what] = "0.0.7"
    (folder / "run.json").write_text(json.dumps(made))
    assert f"versions, {what}: 0.0.7 then, " in resumed(folder)


def test_a_run_that_does_not_say_what_it_is(stopped: Callable[..., Path]) -> None:
    folder = stopped()
    made = json.loads((folder / "run.json").read_text())
    old = {"fingerprint": made["fingerprint"], "processes": 1, "step_seconds": None, "sparsync": "0.0.9"}
    (folder / "run.json").write_text(json.dumps(old))
    assert "0.0.9" in resumed(folder)


def test_devices_agree_on_data_and_model_and_not_on_where_they_compute() -> None:
    digits = load_dataset("digits")
    said = Experiment()
    common = identity.common(said, Task(digits, "mlp"))
    assert common == identity.common(said.model_copy(update={"device": "meta"}), Task(digits, "mlp"))
    turned = [part.inputs.flip(2).numpy() for part in (digits.train, digits.test)]
    other = from_arrays(turned[0], digits.train.labels.numpy(), turned[1], digits.test.labels.numpy())
    pieces = [
        identity.common(*args).split("-")
        for args in (
            (said, Task(other, "mlp")),
            (said, Task(digits, "mlp:hidden=3")),
            (Experiment(steps=7), Task(digits, "mlp")),
        )
    ]
    differs = [[mine != own for mine, own in zip(common.split("-"), one, strict=True)] for one in pieces]
    assert differs == [[False, True, False], [False, False, True], [True, False, False]]
    assert len(common) <= 64  # as a device says it
