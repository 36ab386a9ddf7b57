"""Killed at any moment and resumed: the same bits as a run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SETTING = "compare --no-report --workers 6 --steps 300 --eval-every 10 --save-seconds 0 --optimizer adam"
ARGUMENTS = [
    *SETTING.split(),
    *("--model", "mlp:hidden=32", "--partition", "dirichlet:alpha=0.5"),
    *("--strategy", "fda:cadence=8,monitor=sketch", "--strategy", "local-sgd:match=fda"),
    *("--strategy", "synchronous:average=gradients"),
]


def everything(folder: Path, results) -> dict[str, object]:
    models = {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}
    return {"results": results(folder), "history": (folder / "history.jsonl").read_bytes(), "models": models}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, request) -> dict[int, Path]:
    folders = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp("whole") / str(processes)
        command = [sys.executable, "-m", "sparsync", *ARGUMENTS, "--processes", str(processes), "--out", str(folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        folders[processes] = folder
    return folders


@pytest.mark.parametrize(("processes", "seed"), [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)], ids=lambda value: str(value))
def test_kill_9_then_resume_gives_the_same_bits(tmp_path, sparsync, results, uninterrupted, processes, seed):
    whole, folder = uninterrupted[processes], tmp_path / "killed"
    rng = np.random.default_rng(seed)
    command = [sys.executable, "-m", "sparsync", *ARGUMENTS, "--processes", str(processes), "--out", str(folder)]
    final = (whole / "history.jsonl").stat().st_size
    kills = 0
    for _ in range(3):  # at three places in the history, wherever the process then is
        size = final * rng.uniform(0.05, 0.9)
        running = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        history = folder / "history.jsonl"
        while running.poll() is None and not (history.exists() and history.stat().st_size >= size):
            time.sleep(0.002)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            kills += 1
        running.wait()
        command = [sys.executable, "-m", "sparsync", "resume", "--no-report", str(folder)]
    assert kills
    done = sparsync("resume", "--no-report", folder)
    assert done.returncode == 0, done.stderr
    assert everything(folder, results) == everything(whole, results)


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path, sparsync, results, uninterrupted):
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "sparsync", *ARGUMENTS, "--processes", "2", "--save-seconds", "1000"]
    running = subprocess.Popen(
        [*command, "--out", str(folder)], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    history = folder / "history.jsonl"
    while running.poll() is None and not (history.exists() and history.stat().st_size):
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all processes of the job
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert f"sparsync resume {folder}" in said
    assert "Traceback" not in said
    done = sparsync("resume", "--no-report", folder)
    assert done.returncode == 0, done.stderr
    assert everything(folder, results) == everything(uninterrupted[2], results)


def test_a_run_in_progress_is_not_entered_twice(tmp_path, sparsync):
    folder = tmp_path / "busy"
    command = [sys.executable, "-m", "sparsync", *ARGUMENTS, "--processes", "1", "--steps", "100000"]
    running = subprocess.Popen(
        [*command, "--out", str(folder)], start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while not (folder / "checkpoint").exists():
            assert running.poll() is None
            time.sleep(0.01)
        done = sparsync("resume", "--no-report", folder)
        assert done.returncode == 2
        assert "another process is running in it" in done.stderr
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
