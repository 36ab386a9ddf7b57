"""A run writes whole files with everybody's permissions, inside its folder only, and says which it could not write."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from small_runs import SETTING, small

from sparsync import comparison, reporting, study
from sparsync.errors import DataError, SparsyncError, UsageError
from sparsync.reporting import figures, report


@pytest.fixture(autouse=True)
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one figure, for time."""
    monkeypatch.setattr(figures, "FIGURES", figures.FIGURES[:1])
    monkeypatch.setattr(report, "FIGURES", ())


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def full(size: int) -> Iterator[None]:
    """No file can get longer than that, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_permissions_that_others_get(stopped: Callable[..., Path], mask: int, mode: int) -> None:
    with umask(mask):
        folder = stopped()
        assert stat.S_IMODE((folder / "checkpoint" / "rank-0.safetensors").stat().st_mode) == mode
        comparison.resume(folder)
        reporting.write(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".toml", ".jsonl", ".html"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


@pytest.mark.parametrize("name", ["models", "figures", "checkpoint.new"])
def test_a_folder_that_is_a_link_is_not_written_through(
    tmp_path: Path, stopped: Callable[..., Path], name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    folder = stopped()
    (folder / name).symlink_to(elsewhere)
    said = ""
    try:
        comparison.resume(folder)
        reporting.draw(reporting.load(folder), folder)
    except SparsyncError as error:
        said = str(error)
    if name != "checkpoint.new":  # that link is replaced
        assert f"{folder / name}: cannot be written (it is a link" in said
        (folder / name).unlink()
        comparison.resume(folder)
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]


FILES = [
    "history.jsonl",
    ".lock",
    "summary.json",
    "run.json",
    "experiment.toml",
    "partition.json",
    "report.html",
    "trace.json",
]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_a_link_is_not_written_through(tmp_path: Path, name: str) -> None:
    target, folder = tmp_path / "target", tmp_path / "run"
    target.write_text("kept")
    folder.mkdir()
    (folder / name).symlink_to(target)
    with suppress(SparsyncError):  # where it cannot be replaced
        comparison.compare(small(steps=2), folder)
        reporting.write(folder)
    assert target.read_text() == "kept"


def test_a_runs_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    comparison.compare(small(steps=2), tmp_path / "run")
    reporting.write(tmp_path / "run")
    assert (tmp_path / "real" / "report.html").exists()


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "history.jsonl")
    with pytest.raises(SparsyncError, match=r"history\.jsonl"):
        comparison.compare(small(steps=2), tmp_path / "run")


STUDIES = ['{"../out": {}}', '{"/out": {}}', '{"..": {}}', "[]", "{", '{"a": 3}', "[" * 100_000]


@pytest.mark.parametrize("text", STUDIES, ids=range(len(STUDIES)))
def test_a_study_stays_in_its_folder(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.json").write_text(text.replace("{}", json.dumps({**SETTING, "steps": 2})))
    for call in (study.parts, lambda folder: list(study.resume(folder))):
        with pytest.raises((UsageError, DataError), match=r"study\.json") as refused:
            call(folder)
        assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


@pytest.mark.parametrize("room", [10, 1000, 4000, 100_000])
def test_a_disk_without_room(tmp_path: Path, stopped: Callable[..., Path], room: int) -> None:
    """One line that names a path; what was saved is, and the run goes on once there is room."""
    folder, more = tmp_path / "run", {"model": "mlp:hidden=512"}
    with full(room), pytest.raises(SparsyncError) as caught:
        comparison.compare(small(**more), folder)
    said = str(caught.value)
    assert str(folder) in said
    assert "\n" not in said
    assert not any("sparsync-part" in path.name for path in folder.rglob("*"))
    begun = (folder / "run.json").exists()
    summary = comparison.resume(folder) if begun else comparison.compare(small(**more), folder)
    assert summary["results"][0]["steps"] == 6
    reporting.load(folder)


def test_a_disk_that_is_full_when_a_run_goes_on(stopped: Callable[..., Path]) -> None:
    folder = stopped()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with full(0), pytest.raises(SparsyncError, match=str(folder)):
        comparison.resume(folder)
    assert before == {path: path.read_bytes() for path in before}
    assert comparison.resume(folder)["results"][0]["steps"] == 6


@pytest.mark.parametrize("name", ["report.html", "figures"])
def test_a_report_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    comparison.compare(small(steps=2), folder)
    (folder / name).mkdir() if name == "report.html" else (folder / name).touch()
    run = reporting.load(folder)
    with pytest.raises(SparsyncError, match=name):
        reporting.write(folder, run) if name == "report.html" else reporting.draw(run, folder)
