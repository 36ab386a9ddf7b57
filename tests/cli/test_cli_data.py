"""Data of the user's own, from a file to the run's folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsync.__main__ import main
from sparsync.reporting import load

Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run a short ``sparsync compare`` in this process: (exit status, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        small = ("--processes", 1, "--workers", 2, "--steps", 2, "--eval-every", 2, "--no-report", "--out", "run")
        given = ("--model", "logistic", "--strategy", "synchronous", *small, *arguments)
        monkeypatch.setattr(sys, "argv", ["sparsync", "compare", *map(str, given)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


def test_labels_that_are_renumbered_are_said_once_and_keep_their_text(compared: Cli) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez("data.npz", x_train=x, y_train=np.where(x[:, 0] > 0, 57, 7), x_test=x[:9], y_test=[7] * 9)
    status, said = compared("--data", "npz", "--data-root", "data.npz")
    assert status == 0
    assert said.count("labels 7, 57 are classes 0 to 1") == 1
    partition = json.loads(Path("run/partition.json").read_text())
    assert partition["class_names"] == ["7", "57"]
    assert [len(row) for row in partition["counts"]] == [2, 2]
    assert json.loads(Path("run/summary.json").read_text())["parameters"] == 3 * 2 + 2


def test_class_names_of_any_text_fit_the_run_folder(compared: Cli) -> None:
    names = ["<b>&", "$x^$", "\udcff", "", "line\nbreak", "α" * 5000, "😀", "\0"]
    Path("texts.py").write_text(
        "import numpy as np\nfrom sparsync import from_arrays\n\n"
        f"def make():\n    x = np.ones((8, 3), 'f4')\n    return from_arrays(x, {names!r}, x, {names!r})\n"
    )
    status, said = compared("--data", "texts:make")
    assert status == 0, said
    shown = ["''", r"'\x00'", "$x^$", "<b>&", r"'line\nbreak'", "α" * 5000, r"'\udcff'", "😀"]
    assert json.loads(Path("run/partition.json").read_text())["class_names"] == shown
    partition = load(Path("run")).partition
    assert partition is not None
    assert partition.class_names == tuple(shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "npz", "--data-root", "table.csv"], "table.csv: not a readable .npz file"),
        (["--data", "npz", "--data-root", "pipe"], "pipe: is no regular file"),
        (["--data", "broken:make"], "cannot import 'broken' (ZeroDivisionError"),
        (["--model", "broken:make"], "cannot import 'broken' (ZeroDivisionError"),
        (["--import", "broken"], "cannot import 'broken' (ZeroDivisionError"),
        (["--data", "leaves:make"], "cannot import 'leaves' (SystemExit: 0"),
    ],
)
def test_a_mistake_with_data_or_modules_is_one_line(compared: Cli, arguments: list[str], message: str) -> None:
    Path("table.csv").write_text("a,b\n1,2\n")
    os.mkfifo("pipe")
    Path("broken.py").write_text("1 / 0\n")
    Path("leaves.py").write_text("raise SystemExit(0)\n")
    status, said = compared(*arguments)
    assert status != 0
    assert message in said
    assert len(said.strip().splitlines()) == 1
