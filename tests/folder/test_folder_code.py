"""Files that name Python code: whoever goes on with one, or runs it, is told; a report imports none of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_runs import SETTING, small

from sparsync import comparison
from sparsync.__main__ import main
from sparsync.reporting import figures, report
from sparsync.settings import code

MODULE = (
    "from torch import nn\n\ndef build(inputs, classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
)


@pytest.fixture
def sparsync_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):  # -> (exit status, standard error)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model_of_a_file.py").write_text(MODULE)

    def run(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["sparsync", *arguments])
        monkeypatch.delitem(sys.modules, "model_of_a_file", raising=False)
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr().err.splitlines()

    yield run
    sys.modules.pop("model_of_a_file", None)


def test_code_is_named_before_it_runs(sparsync_here, tmp_path: Path) -> None:
    (tmp_path / "said.toml").write_text(
        "data = 'digits'\nmodel = 'model_of_a_file:build'\nimports = ['model_of_a_file']\nprocesses = 1\nworkers = 2\n"
        "steps = 2\nstrategies = ['synchronous']\n"
    )
    for arguments in (("compare", "said.toml", "--out", "run", "--no-report"), ("resume", "run", "--no-report")):
        status, (line, *_) = sparsync_here(*arguments)
        assert status == 0
        assert "model 'model_of_a_file:build', imports 'model_of_a_file'" in line
        assert "data" not in line


def test_code_that_fails_was_named(sparsync_here, tmp_path: Path) -> None:
    (tmp_path / "said.toml").write_text("data = 'os:no_such_function'\n")
    status, lines = sparsync_here("compare", "said.toml")
    assert status == 2
    assert "data 'os:no_such_function'" in lines[0]


def test_a_report_imports_nothing(sparsync_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", figures.FIGURES[:1])  # for time
    monkeypatch.setattr(report, "FIGURES", figures.FIGURES[:1])
    comparison.compare(small(steps=2, model="model_of_a_file:build"), tmp_path / "run")
    text = (tmp_path / "run" / "experiment.toml").read_text()
    (tmp_path / "run" / "experiment.toml").write_text(
        "imports = ['no_such_module']\n" + text.replace("imports = []", "")
    )
    status, lines = sparsync_here("report", "run")
    assert (status, lines) == (0, [])
    assert "model_of_a_file" not in sys.modules
    assert (tmp_path / "run" / "report.html").exists()


def test_what_is_code() -> None:
    assert code({"data": "os:system", "model": "a.b:c", "imports": ["x"]}) == [
        "data 'os:system'",
        "model 'a.b:c'",
        "imports 'x'",
    ]
    assert code({"data": "digits", "model": "mlp:hidden=3", "imports": []}) == []
    assert code({"data": 3, "imports": "x"}) == []
    assert code({"data": "\x1b[31m.x:f"}) == [r"data '\x1b[31m.x:f'"]
    assert code(SETTING) == []
