"""Where the time of a local step comes from: stated, measured once on this machine, or counted in operations."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsync import comparison
from sparsync.assembly import step_seconds
from sparsync.errors import UsageError
from sparsync.experiment import Experiment
from sparsync.system import Profile
from sparsync.task import Task, load_dataset
from sparsync.workers import SingleProcess

# 64 x 10 weights of the digits' pixels: 1280 operations forward and twice as many backward, of 32 samples each.
OPERATIONS = 3 * 1280 * 32


def experiment(**keys: Any) -> Experiment:
    profile = {"bandwidth": float("inf"), "latency": 0, "power": "2:1", **keys.pop("profile", {})}
    said = {
        "model": "logistic",
        "workers": 2,
        "steps": 6,
        "eval_every": 3,
        "processes": 1,
        "strategies": ["synchronous"],
    }
    return Experiment(**{**said, **keys, "profile": profile})


def made(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def seconds(summary: dict[str, Any]) -> list[float]:
    return [result["seconds"] for result in summary["results"]]


def test_stated(tmp_path: Path) -> None:
    """Six steps of 3 s each, of the slower device."""
    summary = comparison.compare(experiment(profile={"step_seconds": 3}), tmp_path)
    assert seconds(summary) == [18]
    assert (made(tmp_path)["compute"], made(tmp_path)["step_seconds"]) == ("stated", 3)


def test_by_operations(tmp_path: Path) -> None:
    """A device of so many operations per second takes a second per step."""
    said = experiment(profile={"compute": "flops", "flops": OPERATIONS, "step_seconds": 99})
    assert seconds(comparison.compare(said, tmp_path)) == [6]
    assert (made(tmp_path)["compute"], made(tmp_path)["step_seconds"]) == ("flops", 1)
    said = tomllib.loads((tmp_path / "experiment.toml").read_text())
    assert said["profile"]["compute"] == "flops"  # as it was said


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_measured_once_for_all_strategies_and_kept(tmp_path: Path, processes: int) -> None:
    said = experiment(profile={"compute": "measured"}, strategies=["synchronous", "local-sgd:period=3"])
    said = said.model_copy(update={"processes": processes})
    summary = comparison.compare(said, tmp_path)
    assert made(tmp_path)["compute"] == "measured"
    step = made(tmp_path)["step_seconds"]
    assert 0 < step < 60
    assert seconds(summary) == pytest.approx([6 * step] * 2)


@pytest.mark.parametrize("compute", ["measured", "flops"])
def test_a_resumed_run_goes_on_with_the_number_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: str
) -> None:
    comparison.compare(experiment(profile={"compute": compute}), tmp_path)
    (tmp_path / "summary.json").unlink()  # as if it had been killed before
    (tmp_path / "run.json").write_text(json.dumps({**made(tmp_path), "step_seconds": 7.0}))
    monkeypatch.setattr(comparison, "step_seconds", lambda *_: pytest.fail("measured again"))
    assert seconds(comparison.resume(tmp_path)) == [42]


def test_a_run_that_was_killed_while_it_measured_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "step_seconds", killed)
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(experiment(profile={"compute": "measured"}), tmp_path)
    assert made(tmp_path)["step_seconds"] is None
    monkeypatch.setattr(comparison, "step_seconds", lambda *_: 2.0)
    assert seconds(comparison.resume(tmp_path)) == [12]
    assert made(tmp_path)["step_seconds"] == 2


class Rank1(SingleProcess):
    """The second of two processes, the first of which has found 0.25."""

    rank, size = 1, 2

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x.fill_(0.25)


@pytest.mark.parametrize("compute", ["measured", "flops"])
def test_the_others_take_over_what_the_first_process_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: str
) -> None:
    monkeypatch.setattr(comparison, "step_seconds", lambda *_: pytest.fail("measured by another process"))
    said = experiment(profile={"compute": compute})
    task = Task(load_dataset("digits", None), "logistic")
    timed = comparison._timed(said, tmp_path / "is not here", task, Rank1())
    assert timed.profile == Profile(bandwidth=float("inf"), latency=0, power="2:1", step_seconds=0.25)


def test_a_model_that_cannot_be_counted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    said = experiment(model="odd_models:uncounted", profile={"compute": "flops"})
    with pytest.raises(UsageError, match="compute='flops' counts no operations in model 'odd_models:uncounted'; use"):
        comparison.compare(said, tmp_path)


def test_a_measurement_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    said = experiment(model="odd_models:forgetful", profile={"compute": "measured"})
    task = Task(load_dataset("digits", None), said.model)
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    assert step_seconds(said, task) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 2


def test_processes_of_torchrun_agree(tmp_path: Path, torchrun: Any) -> None:
    """A server and a client, each of which has a clock."""
    file, folder = tmp_path / "experiment.toml", tmp_path / "run"
    file.write_text("workers = 1\nstrategies = ['psl']\n[split]\nepochs = 1\n[profile]\ncompute = 'measured'\n")
    done = torchrun(2, "-m", "sparsync", "compare", file, "--out", folder, "--no-report")
    assert done.returncode == 0, done.stderr
    assert made(folder)["step_seconds"] > 0
