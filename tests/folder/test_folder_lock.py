"""One run per folder: who comes second is told, and who is refused leaves nothing in the way."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_runs import SETTING, small

from sparsync import cli, comparison, study
from sparsync.__main__ import main
from sparsync.errors import UsageError
from sparsync.experiment import Experiment, build
from sparsync.settings import read
from sparsync.settings import variants as variants_of
from sparsync.storage import locked

REFUSED: list[dict[str, Any]] = [
    {"workers": 1800},  # more than samples
    {"model": "lenet5"},  # not for these pictures
    {"strategies": ["psl"], "split": {"cut": "nowhere"}},
    {"data": "mnist"},  # without a folder
]


def held(folder: Path, call: Callable[[], object]) -> str:
    with pytest.raises(UsageError, match="another process is running") as refused:
        call()
    said = str(refused.value)
    assert str(folder) in said
    assert f"process {os.getpid()} on " in said
    assert "\n" not in said
    return said


def test_who_comes_second_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seen: list[str] = []

    @contextmanager
    def watch(_: Experiment) -> Iterator[None]:
        second = small(steps=4)
        seen.append(held(folder, lambda: comparison.compare(second, folder)))
        seen.append(held(folder, lambda: comparison.resume(folder)))
        yield

    summary = comparison.compare(small(), folder, watch)
    assert len(seen) == 2
    assert read(folder / "experiment.toml")["steps"] == 6 == summary["results"][0]["steps"]
    comparison.opened(folder)


def test_who_comes_second_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder, make=True):
        held(folder, lambda: comparison.compare(small(), folder))
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert not folder.exists()


def test_studies_are_locked_too(tmp_path: Path) -> None:
    variants = variants_of({**SETTING, "steps": 2, "variants": {"one": {}, "two": {}}})
    assert variants is not None
    folder = tmp_path / "study"
    runs = study.compare(variants, folder)
    next(runs)
    held(folder, lambda: list(study.compare(variants, folder)))
    held(folder, lambda: list(study.resume(folder)))
    runs.close()
    assert len(list(study.resume(folder))) == 2


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had the folder removes the file between another's opening it and locking it."""
    flock, path, calls = fcntl.flock, tmp_path / "run" / ".lock", []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            path.unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path / "run", make=True):
        assert len(calls) == 2
        with pytest.raises(UsageError, match="another process"), locked(tmp_path / "run"):
            pass


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = tmp_path / "runs" / "mine"
    with pytest.raises(UsageError):
        comparison.compare(small(**wrong), folder)
    assert not folder.exists()
    comparison.compare(small(steps=2), folder)


@pytest.mark.parametrize("wrong", REFUSED[:1], ids=str)
def test_what_was_there_before_stays(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "experiment.toml").write_text("steps = 3\n")
    (tmp_path / "notes.part").write_text("mine")
    with pytest.raises(UsageError):
        comparison.compare(small(**wrong), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == ["experiment.toml", "notes.part"]
    assert (tmp_path / "experiment.toml").read_text() == "steps = 3\n"
    comparison.compare(small(steps=2), tmp_path)
    assert (tmp_path / "notes.part").exists()


def test_a_refusal_costs_no_result(stopped: Callable[..., Path]) -> None:
    """What is refused when a run goes on leaves the run."""
    folder = stopped()
    text = (folder / "experiment.toml").read_text()
    (folder / "experiment.toml").write_text(text.replace("steps = 6", "steps = 8"))
    with pytest.raises(UsageError):
        comparison.resume(folder)
    with pytest.raises(UsageError, match="already holds a run"):
        comparison.compare(small(), folder)
    (folder / "experiment.toml").write_text(text)
    assert comparison.resume(folder)["results"][0]["steps"] == 6


def test_a_study_that_is_refused_can_be_corrected(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for workers in (1800, 2):
        variants = variants_of({**SETTING, "steps": 2, "workers": workers, "variants": {"one": {}}})
        assert variants is not None
        if workers == 1800:
            with pytest.raises(UsageError, match="1800"):
                list(study.compare(variants, folder))
            assert not folder.exists()
        else:
            assert len(list(study.compare(variants, folder))) == 1


def test_the_next_free_folder_is_one_commands_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with cli._folder(None, "digits") as first, cli._folder(None, "digits") as second:
        assert {first, second} == {Path("runs/digits-1"), Path("runs/digits-2")}
        (second / "file").touch()
    assert [path.name for path in Path("runs").iterdir()] == ["digits-2"]
    with cli._folder(None, "digits") as third:
        assert third == first


@pytest.mark.parametrize("arguments", [("--workers", "1800"), ("--model", "lenet5")], ids=str)
def test_a_refused_command_leaves_no_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sparsync", "compare", "--processes", "1", "--no-report", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_a_folder_that_is_a_file(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=str(tmp_path / out)) as refused:
        comparison.compare(build(SETTING), tmp_path / out)
    assert "\n" not in str(refused.value)
    variants = variants_of({**SETTING, "variants": {"one": {}}})
    with pytest.raises(UsageError, match=str(tmp_path / out)):
        list(study.compare(variants or {}, tmp_path / out))
