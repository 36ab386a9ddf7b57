"""Killed at any moment and resumed: the same bits as a run that was not."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from processes import Program

SETTING = "compare --no-report --workers 6 --steps 300 --eval-every 10 --save-seconds 0.05 --optimizer adam"
ARGUMENTS = [
    *SETTING.split(),
    *("--model", "mlp:hidden=32", "--partition", "dirichlet:alpha=0.5"),
    *("--strategy", "fda:cadence=8,monitor=sketch", "--strategy", "local-sgd:match=fda"),
    *("--strategy", "synchronous:average=gradients"),
]


def everything(folder: Path, results) -> dict[str, object]:
    models = {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}
    return {"results": results(folder), "history": (folder / "history.jsonl").read_bytes(), "models": models}


def begin(programs: Path, folder: Path, *more: object) -> Program:
    return Program(programs, ("-m", "sparsync", *ARGUMENTS, *more, "--out", folder))


def go_on(programs: Path, folder: Path) -> Program:
    return Program(programs, ("-m", "sparsync", "resume", "--no-report", folder))


def until(ready: Callable[[], bool], running: Program) -> None:
    """Wait for something to come true, or for the program's end."""
    while running.poll() is None and not ready():
        time.sleep(0.002)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[int, Path]:
    folders = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp("whole")
        done = begin(folder, folder / "run", "--processes", processes).wait()
        assert done.returncode == 0, done.stderr
        folders[processes] = folder / "run"
    return folders


@pytest.mark.parametrize(
    ("processes", "seed"),
    [(1, 0), (2, 3), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((1, 1), (1, 2), (2, 4)))],
    ids=str,
)
def test_kill_9_then_resume_gives_the_same_bits(tmp_path, programs, results, uninterrupted, processes, seed):
    whole, folder = uninterrupted[processes], tmp_path / "killed"
    rng, final = np.random.default_rng(seed), size(whole / "history.jsonl")
    kills = 0
    for _ in range(3):  # at three places in the history, wherever the process then is
        place = final * rng.uniform(0.05, 0.9)
        running = go_on(programs, folder) if kills else begin(programs, folder, "--processes", processes)
        until(lambda place=place: size(folder / "history.jsonl") >= place, running)
        if running.poll() is None:
            running.kill()
            kills += 1
        running.wait()
    assert kills
    done = go_on(programs, folder).wait()
    assert done.returncode == 0, done.stderr
    assert everything(folder, results) == everything(whole, results)


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path, programs, results, uninterrupted):
    folder = tmp_path / "stopped"
    running = begin(programs, folder, "--processes", 2, "--save-seconds", 1000)
    until(lambda: size(folder / "history.jsonl") > 0, running)
    running.kill(signal.SIGINT)  # as a terminal does: to all processes of the job
    said = running.wait()
    assert said.returncode == 130
    assert f"sparsync resume {folder}" in said.stderr
    assert "Traceback" not in said.stderr
    done = go_on(programs, folder).wait()
    assert done.returncode == 0, done.stderr
    assert everything(folder, results) == everything(uninterrupted[2], results)


def test_a_run_in_progress_is_not_entered_twice(tmp_path, programs):
    folder = tmp_path / "busy"
    running = begin(programs, folder, "--processes", 1, "--steps", 100_000)
    try:
        until((folder / "checkpoint").exists, running)
        assert running.poll() is None
        done = go_on(programs, folder).wait()
        assert done.returncode == 2
        assert "another process is running in it" in done.stderr
    finally:
        running.kill()
        running.wait()
