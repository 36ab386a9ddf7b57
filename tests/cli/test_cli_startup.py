"""What is loaded before it is needed, from where, and what a terminal that cannot show much, or nobody reads, costs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsync
from sparsync import cli, progress
from sparsync.__main__ import main

HEAVY = ("torch", "numpy", "scipy", "networkx", "matplotlib", "sklearn", "rich")
COMMANDS = [
    ["--help"],
    ["--version"],
    ["compare", "-h"],
    ["list"],
    ["list", "fda"],
    ["list", "fdaa"],
    ["compare", "--strategy", "fdaa"],
    ["compare", "--strategy", "mine=fda:thresh=3"],
    ["compare", "--strategy", "fda:threshold=much"],
    ["compare", "--optimizer", "adma"],
    ["compare", "--data", "digit"],
    ["compare", "--stepz", "3"],
    ["compare", "--workers", "many"],
    ["compare", "missing.toml"],
    ["compare", "wrong_key.toml"],
    ["compare", "wrong_table.toml"],
    ["compare", "wrong_variant.toml"],
    ["coordinate", "wrong_key.toml"],
    ["resume", "missing"],
    ["report", "missing"],
]
SCRIPT = f"""
import sys
from sparsync.__main__ import main
for command in {COMMANDS!r}:
    sys.argv = ["sparsync", *command]
    try:
        main()
    except SystemExit:
        pass
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    assert not loaded, (command, loaded)
"""


def python(*arguments: str, where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=where,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_and_typos_load_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "wrong_key.toml").write_text("stepz = 3\n")
    (tmp_path / "wrong_table.toml").write_text("[profile]\nband = 3\n")
    (tmp_path / "wrong_variant.toml").write_text('[variants.one]\nmodel = "mlpp"\n')
    done = python("-c", SCRIPT, where=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("'fdaa'", "'thresh'", "'much'", "'adma'", "'digit'", "stepz", "'band'", "'mlpp'", "missing.toml"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        {"strategies": ["fdaa"]},
        {"strategies": ["fda:thresh=3"]},
        {"strategies": ["fda:depth=many"]},
        {"strategies": {"mine": "fedavg:uplnk=q8"}},
        {"optimizer": "sgd:lr=fast"},
        {"model": "mlp:hiden=3"},
        {"partition": "shards"},
        {"federation": {"optimizer": "sgdd"}},
        {"federation": {"round": 3}},
        {"split": {"delays": "straglers"}},
        {"profile": {"band": 3}},
        {"stepz": 3},
    ],
)
def test_a_typo_found_early_is_said_as_an_experiment_says_it(settings: dict[str, object]) -> None:
    from sparsync.experiment import build
    from sparsync.settings import check

    with pytest.raises(sparsync.UsageError) as early:
        check(settings, "file.toml")
    with pytest.raises(sparsync.UsageError) as late:
        build(dict(settings), "file.toml")
    assert str(early.value).removeprefix("file.toml: ") in str(late.value)


def test_what_is_registered_by_an_import_is_no_typo() -> None:
    from sparsync.settings import check

    check({"imports": ["mine"], "strategies": ["coin:probability=1"], "model": "tiny"})
    check({"model": "package.module:function:hidden=3", "data": "module:function"})


def test_importing_sparsync_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, sparsync; dir(sparsync); assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    done = python("-c", code, where=tmp_path)
    assert done.returncode == 0, done.stderr


def test_all_public_names_are_there() -> None:
    assert all(getattr(sparsync, name) is not None for name in [*sparsync.__all__, "__version__"])
    assert set(sparsync.__all__) <= set(dir(sparsync))
    assert "coin" not in sparsync.STRATEGIES.entries
    assert {"fda", "fedavg", "psl"} <= set(sparsync.STRATEGIES.entries)
    with pytest.raises(AttributeError):
        sparsync.nothing  # noqa: B018


def test_the_current_folder_comes_after_what_is_installed(tmp_path: Path) -> None:
    for name in ("typer", "pydantic", "json", "rich", "numpy", "torch", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w')\n")
    (tmp_path / "mine.py").write_text("print('found')\n")
    done = python("-m", "sparsync", "list", "fda", "--import", "mine", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("found")
    assert not list(tmp_path.glob("ran-*"))


def test_a_terminal_of_ascii_gets_the_table_and_the_report(tmp_path: Path) -> None:
    arguments = ("--steps", "2", "--workers", "2", "--processes", "1", "--seeds", "2", "--eval-every", "1")
    strategy = ("--strategy", "β=local-sgd:period=2", "--out", "run")
    done = python("-m", "sparsync", "compare", *arguments, *strategy, where=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    assert "report: run/report.html" in done.stdout


class Gone(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)


def test_the_report_is_written_though_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = sparsync.Experiment(steps=2, workers=2, processes=1, strategies=["synchronous"])
    sparsync.compare(experiment, tmp_path / "run")
    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises((BrokenPipeError, SystemExit)):
        cli._finish([(tmp_path / "run", None)], draw=True)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_list_may_be_cut_short(tmp_path: Path) -> None:
    command = f"{sys.executable} -m sparsync list | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_closed_standard_streams_end_nothing(tmp_path: Path) -> None:
    command = f"{sys.executable} -m sparsync list >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False).returncode == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_what_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    given = ["--steps", "1", "--workers", "2", "--processes", "1", "--strategy", "synchronous", "--no-report"]
    monkeypatch.setattr(sys, "argv", ["sparsync", "compare", *given, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = shown.getvalue()
    places = [told.index(word) for word in ("loading", "reading", "partitioning", "assembling")]
    assert places == sorted(places)
    monkeypatch.setattr(sys, "stderr", piped := io.StringIO())
    progress.tell("loading")
    assert not piped.getvalue()
