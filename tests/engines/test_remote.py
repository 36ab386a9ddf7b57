"""Split learning between processes: one server, each client a process of its own, on loopback."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from processes import Program, ranks

EXPERIMENT = """
workers = 3
partition = "extended-dirichlet:classes=4"
strategies = {strategies}
save_seconds = 0.2
[split]
batch_size = 64
epochs = {epochs}
optimizer = "sgd:lr=0.1,momentum=0.5"
"""


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Complete lines of a kind that the history holds by now."""
    path = folder / "history.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in found if line["kind"] == kind]


def until(condition: Callable[[], bool], running: list[Program]) -> None:
    """Wait for something to come true while all processes live."""
    while not condition():
        ended = [program.wait() for program in running if program.poll() is not None]
        assert not ended, ended
        time.sleep(0.01)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(epochs: int = 9, strategies: tuple[str, ...] = ("psl",)) -> str:
        path = tmp_path / "split.toml"
        path.write_text(EXPERIMENT.format(epochs=epochs, strategies=list(strategies)))
        return str(path)

    return write


@pytest.mark.parametrize("epochs", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_a_server_and_three_clients_train_as_one_process_does(tmp_path, written, torchrun, sparsync, epochs):
    """Losses to 1e-5; bytes and virtual time exactly."""
    file = written(epochs, strategies=("psl", "splitfed:labels=clients"))
    there, here = tmp_path / "there", tmp_path / "here"
    done = torchrun(4, "-m", "sparsync", "compare", file, "--out", there, "--no-report")
    assert done.returncode == 0, done.stderr
    done = sparsync("compare", file, "--out", here, "--no-report")
    assert done.returncode == 0, done.stderr
    pairs = list(zip(lines(there, "evaluation"), lines(here, "evaluation"), strict=True))
    assert {one["label"]: one["step"] for one, _ in pairs}["psl"] == 23 * epochs
    for one, other in pairs:
        for key in ("loss", "train_loss"):
            assert one[key] == pytest.approx(other[key], abs=1e-5)
        for key in ("bytes", "paper_bytes", "bytes_by_kind", "seconds"):
            assert one[key] == other[key]
    steps = zip(lines(there, "step"), lines(here, "step"), strict=True)
    assert all(one == other for one, other in steps)


def test_a_killed_client_is_left_out_and_named(tmp_path, programs, written):
    """The epoch ends with the others' samples, and training goes on to its end."""
    folder = tmp_path / "run"
    arguments = ("-m", "sparsync", "compare", written(epochs=20), "--out", folder, "--no-report")
    with ranks(programs, 4, arguments) as running:
        until(lambda: len(lines(folder, "step")) >= 30, running)
        running[2].kill()
        done = [program.wait() for program in running]
    assert [one.returncode for one in done] == [0, 0, -signal.SIGKILL, 0], done
    (lost,) = lines(folder, "lost")
    assert lost["client"] == 1
    assert lost["reason"]
    held = np.array(json.loads((folder / "partition.json").read_text())["counts"]).sum(1)
    used = np.bincount([one["epoch"] for one in lines(folder, "step")], [one["size"] for one in lines(folder, "step")])
    assert (used[1 : lost["epoch"]] == held.sum()).all()
    assert held[[0, 2]].sum() <= used[lost["epoch"]] <= held.sum()
    assert (used[lost["epoch"] + 1 :] == held[[0, 2]].sum()).all()
    (result,) = json.loads((folder / "summary.json").read_text())["results"]
    assert result["epochs"] == 20
    assert result["error"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads TCP_INFO, which only Linux has")
def test_ledger_agrees_with_the_sockets_to_3_percent(tmp_path, written, torchrun):
    """Both directions, as the server's kernel counted them on its connections."""
    folder = tmp_path / "run"
    script = Path(__file__).with_name("split_bytes.py")
    file = written(epochs=3, strategies=("psl:sampler=lds", "psl:labels=clients"))
    done = torchrun(4, script, tmp_path / "kernel.json", "compare", file, "--out", folder, "--no-report")
    assert done.returncode == 0, done.stderr
    booked = sum(result["bytes"]["total"] for result in json.loads((folder / "summary.json").read_text())["results"])
    assert sum(json.loads((tmp_path / "kernel.json").read_text())) == pytest.approx(booked, rel=0.03)


def test_a_run_between_processes_resumes_with_the_same_bits(tmp_path, programs, written, torchrun):
    """All processes killed in mid-epoch, started again, and the end is that of an undisturbed run."""
    file, folder, whole = written(epochs=8), tmp_path / "run", tmp_path / "whole"
    with ranks(programs, 4, ("-m", "sparsync", "compare", file, "--out", folder, "--no-report")) as running:
        until(lambda: (folder / "checkpoint").exists() and len(lines(folder, "step")) > 30, running)
    done = torchrun(4, "-m", "sparsync", "resume", folder, "--no-report")
    assert done.returncode == 0, done.stderr
    done = torchrun(4, "-m", "sparsync", "compare", file, "--out", whole, "--no-report")
    assert done.returncode == 0, done.stderr
    assert [(one["loss"], one["step"]) for one in lines(folder, "evaluation")] == [
        (one["loss"], one["step"]) for one in lines(whole, "evaluation")
    ]


def test_strategies_with_and_without_a_server_are_compared_apart(tmp_path, torchrun):
    done = torchrun(2, "-m", "sparsync", "compare", "--strategy", "psl", "--strategy", "synchronous", "--out", tmp_path)
    assert done.returncode != 0
    assert (
        "under torchrun 'psl' has a process for its server, 'synchronous' has none; compare them apart" in done.stderr
    )
    assert 'Traceback (most recent call last):\n  File "/work' not in done.stderr
