"""Epochs of split strategies: interrupted, in several processes, ended by a target, and when they diverge."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sparsync import Experiment, compare, resume
from sparsync.assembly import SeedSetting
from sparsync.engines import EpochLoop, PaceAction
from sparsync.engines.checkpoint import Checkpoint
from sparsync.errors import Interrupted
from sparsync.task import Dataset, Task, load_dataset
from sparsync.workers.group import SingleProcess

SPECS = {
    "ugs": "psl",
    "lds": "psl:sampler=lds,delays=measured,uplink=topk(0.5)+q8(stochastic)",
    "fpls": "psl:sampler=fpls,copies=True,labels=clients",
    "splitfed": "splitfed:downlink=bf16",
    "splitfed-2": "splitfed:version=2",
    "centralised": "centralised",
}
SPLIT = {"cut": "conv2", "batch_size": 9, "epochs": 2, "schedule": "cosine:steps=20"}
LATE = {"delays": "stragglers:count=1,factor=3,jitter=0.5", "deadline": 0.2}


def unlucky(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Dropout in both halves, and a BatchNorm in the top that can do with a single sample."""
    row = nn.Sequential()
    row.add_module("unflatten", nn.Unflatten(1, (1, 2, 3)))
    row.add_module("conv1", nn.Conv2d(1, 4, 2, padding=1))
    row.add_module("drop1", nn.Dropout(0.2))
    row.add_module("conv2", nn.Conv2d(4, 4, 2))
    row.add_module("norm2", nn.BatchNorm2d(4))
    row.add_module("drop2", nn.Dropout(0.2))
    row.add_module("flatten", nn.Flatten())
    row.add_module("fc", nn.Linear(24, classes))
    return row


def assembled(
    blobs: Dataset, spec: str, *, optimizer: str = "adam:lr=0.02", target: float | None = None, **split: Any
) -> tuple[EpochLoop, list[dict[str, Any]]]:
    """A loop over five clients with 45 samples in all, and its history."""
    said = {**SPLIT, "optimizer": optimizer, **split}
    experiment = Experiment(strategies={"it": spec}, workers=5, target=target, split=said)
    parts = np.split(np.arange(45), [9, 16, 33, 35])
    lines: list[dict[str, Any]] = []
    setting = SeedSetting(experiment, Task(blobs, unlucky), parts, 0, SingleProcess())
    loop = setting.assemble(experiment.strategy("it"), lines.append)
    assert isinstance(loop, EpochLoop)
    return loop, lines


def going_on(steps: int) -> PaceAction:
    return PaceAction.GO_ON


def never() -> None:
    raise AssertionError("nothing to save")


def everything(loop: EpochLoop) -> dict[str, Any]:
    ledger = loop.ledger
    return {
        "model": [tensor.tolist() for tensor in loop.evaluated().state_dict().values()],
        "sent": {kind: own.tolist() for kind, own in ledger.sent.items()},
        "received": {kind: own.tolist() for kind, own in ledger.received.items()},
        "paper": ledger.paper,
        "clock": loop.clock.times.tolist(),
        "progress": loop.progress,
    }


# 1. Interrupted


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("ugs", "adam:lr=0.02"),
        ("lds", "sgd:lr=0.1,momentum=0.9"),
        ("fpls", "sgd:lr=0.1"),
        ("splitfed", "sgd:lr=0.1,momentum=0.9"),
        ("splitfed-2", "adam:lr=0.02"),
        ("centralised", "sgd:lr=0.1,momentum=0.9"),
    ],
)
def test_stopped_after_every_step_and_resumed_from_disk(tmp_path, blobs, name, optimizer):
    spec = SPECS[name]
    whole, expected = assembled(blobs, spec, optimizer=optimizer, **LATE)
    assert whole.run(going_on, never)
    steps = [line for line in expected if line["kind"] == "step"]
    assert any("late" in line for line in steps) == (spec != "centralised")
    checkpoint, seen = Checkpoint(tmp_path / "checkpoint", SingleProcess()), []
    for _ in steps:
        loop, lines = assembled(blobs, spec, optimizer=optimizer, **LATE)
        saved = checkpoint.load()
        if saved is not None:
            loop.load_state_dict(saved)
        torch.manual_seed(len(seen))  # a process of its own has drawn other numbers
        ended = loop.run(lambda steps: PaceAction.STOP, lambda loop=loop: checkpoint.save(loop.state_dict()))
        seen += lines
    assert ended
    assert seen == expected
    assert everything(loop) == everything(whole)


def test_saving_on_the_way_changes_nothing(tmp_path, blobs):
    plain, expected = assembled(blobs, "psl")
    assert plain.run(going_on, never)
    loop, lines = assembled(blobs, "psl")
    checkpoint = Checkpoint(tmp_path / "checkpoint", SingleProcess())
    assert loop.run(lambda steps: PaceAction.SAVE, lambda: checkpoint.save(loop.state_dict()))
    assert lines == expected
    assert everything(loop) == everything(plain)


class Stopper:
    """Presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def stepped(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def contents(folder: Path, results: Any) -> dict[str, Any]:
    models = {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}
    return {"results": results(folder), "history": (folder / "history.jsonl").read_bytes(), "models": models}


DIGITS = Experiment(
    strategies={"lds": "psl:sampler=lds", "splitfed": "splitfed:version=2,uplink=q8"},
    workers=4,
    partition="dirichlet:alpha=0.5",
    model="mlp:hidden=8",
    split={"batch_size": 120, "epochs": 2, "optimizer": "sgd:lr=0.3,momentum=0.9", "delays": "stragglers"},
    processes=1,
)


@pytest.mark.parametrize("steps", [5, 30])
def test_ctrl_c_in_the_middle_of_an_epoch(tmp_path, results, steps):
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    compare(DIGITS, whole)

    @contextmanager
    def watch(experiment: Experiment) -> Iterator[Stopper]:
        yield Stopper(steps)

    with pytest.raises(Interrupted, match="sparsync resume"):
        compare(DIGITS, folder, watch)
    begun = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "step" for line in begun) == steps
    assert begun[-1]["kind"] == "step"
    assert begun[-1]["label"] == ("lds" if steps == 5 else "splitfed")
    resume(folder)
    assert contents(folder, results) == contents(whole, results)


# 2. Several processes


def test_one_process_and_two_spawned_ones(tmp_path, results):
    one, two = tmp_path / "one", tmp_path / "two"
    strategies = {"lds": SPECS["lds"], "splitfed": "splitfed", "all": "centralised"}
    for processes, folder in ((1, one), (2, two)):
        compare(Experiment(**{**dict(DIGITS), "strategies": strategies, "processes": processes}), folder)
    mine, its = contents(one, results), contents(two, results)
    assert mine["models"] == its["models"]
    assert mine["results"] == its["results"]
    for a, b in zip(mine["history"].splitlines(), its["history"].splitlines(), strict=True):
        here, there = json.loads(a), json.loads(b)
        assert here.pop("loss", None) == pytest.approx(there.pop("loss", None))  # summed in another order
        assert here == there


# 3. What a run comes to


@pytest.mark.parametrize("stop", [True, False])
def test_a_target_ends_a_run(tmp_path, results, stop):
    said = {"strategies": {"psl": "psl"}, "target": 0.5, "stop_at_target": stop, "model": "mlp:hidden=16"}
    split = {"batch_size": 60, "epochs": 6, "optimizer": "sgd:lr=0.3"}
    compare(Experiment(**{**dict(DIGITS), **said, "split": split}), tmp_path / "run")
    (one,) = results(tmp_path / "run")
    assert one["reached"]
    assert one["epochs"] == (one["steps_to_target"] // 24 if stop else 6) < (6 if stop else 7)
    assert one["steps"] == 24 * one["epochs"]  # 1438 samples
    if stop:
        assert one["steps_to_target"] == one["steps"]
        assert one["bytes_to_target"] == one["bytes"]["total"]
        assert one["paper_bytes_to_target"] == one["paper_bytes"]["total"]
        assert one["seconds_to_target"] == one["seconds"] > 0
    else:
        assert one["steps_to_target"] < one["steps"]


def test_evaluations_come_every_so_many_epochs_and_at_the_end(blobs):
    loop, lines = assembled(blobs, "psl", epochs=5, eval_every=2)
    assert loop.run(going_on, never)
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["epochs"] for line in evaluations] == [2, 4, 5]
    assert [line["step"] for line in evaluations] == [10, 20, 25]
    assert evaluations[-1]["bytes"] == loop.ledger.total == sum(evaluations[-1]["bytes_by_kind"].values())
    assert evaluations[-1]["seconds"] == loop.clock.now


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_final_model_has_the_recorded_accuracy(blobs, spec):
    loop, lines = assembled(blobs, spec, epochs=3)
    assert loop.run(going_on, never)
    task = Task(blobs, unlucky)
    module = task.module(seed=1)
    module.load_state_dict(loop.evaluated().state_dict())
    correct, loss = task.evaluate(module, 0, len(blobs.test))
    assert lines[-1]["accuracy"] == int(correct.sum()) / len(blobs.test)
    assert lines[-1]["loss"] == pytest.approx(loss / len(blobs.test))
    labels = np.bincount(blobs.test.labels.numpy(), minlength=3)
    assert lines[-1]["macro_accuracy"] == pytest.approx((correct.numpy() / labels).mean())
    assert all(buffer.count_nonzero() for buffer in module.buffers())


def test_the_saved_model_is_the_evaluated_one(tmp_path, results):
    compare(DIGITS, tmp_path / "run")
    task = Task(load_dataset("digits"), "mlp:hidden=8")
    for one in results(tmp_path / "run"):
        module = task.module(seed=9)
        module.load_state_dict(load_file(tmp_path / "run" / "models" / f"{one['label']}-seed0.safetensors"))
        correct, _ = task.evaluate(module, 0, len(task.dataset.test))
        assert int(correct.sum()) / len(task.dataset.test) == one["accuracy"]


def test_a_run_that_diverges_is_reported_and_the_others_go_on(tmp_path, results):
    strategies = {"plain": "psl", "coded": "psl:uplink=bf16", "fed": "splitfed", "peers": "synchronous"}
    said = {"strategies": strategies, "steps": 5, "eval_every": 5, "optimizer": "sgd:lr=0.1"}
    split = {"batch_size": 60, "epochs": 2, "optimizer": "sgd:lr=1e39"}
    compare(Experiment(**{**dict(DIGITS), **said, "split": split}), tmp_path / "run")
    plain, coded, fed, peers = results(tmp_path / "run")
    assert plain["error"] == "step 2: the loss is nan; lower the learning rate"
    assert coded["error"].startswith("step 2: activations at the cut are not finite as bfloat16 carries them; lower")
    assert fed["error"].startswith("step 2: the loss is nan")
    assert peers["error"] is None
    assert peers["steps"] == 5
    assert plain["steps"] == 1
    assert {path.name for path in (tmp_path / "run" / "models").iterdir()} == {"peers-seed0.safetensors"}
