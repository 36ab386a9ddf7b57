"""What a run left may have been damaged: each kind of damage is one line, and nothing goes on from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small

from sparsync import comparison, reporting
from sparsync.engines import checkpoint
from sparsync.engines.checkpoint import check_like, load_tree, save_tree
from sparsync.errors import DataError, SparsyncError
from sparsync.experiment import build
from sparsync.records import Records
from sparsync.storage import PARTIAL, file_name
from sparsync.workers import SingleProcess

FAMILIES = {
    "peers": ["fda:threshold=0.1"],
    "hadfl": ["hadfl:unit=1"],
    "federated": ["fedadam:uplink=ef(topk(0.1)+q8)"],
    "masked": ["prunefl"],
    "asynchronous": ["fedbuff:buffer=2,concurrency=2"],
    "split": ["psl:sampler=lds"],
}


HUGE = b'{"kind": "evaluation", "step": 1' + b"0" * 400 + b"}"


def refused(folder: Path, error: type[SparsyncError] = DataError) -> str:
    with pytest.raises(error) as caught:
        comparison.resume(folder)
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("strategies", FAMILIES.values(), ids=FAMILIES)
def test_a_checkpoint_is_like_what_it_is_restored_into(stopped: Callable[..., Path], strategies: list[str]) -> None:
    """What every family saves fits, and goes on."""
    folder = stopped(strategies=strategies, optimizer="adam", model="mlp:hidden=8")
    assert comparison.resume(folder)["results"][0]["error"] is None


@pytest.mark.parametrize("left", [0, 300])
def test_a_history_shorter_than_its_checkpoint_says(stopped: Callable[..., Path], left: int) -> None:
    folder = stopped(strategies=["synchronous", "local-sgd:period=2"])
    history = folder / "history.jsonl"
    whole = history.read_bytes()
    left = min(left, len(whole) - 1)
    history.write_bytes(whole[:left])
    said = refused(folder)
    assert f"holds {left} bytes" in said
    assert str(len(whole)) in said
    assert history.read_bytes() == whole[:left]  # nothing is made up
    history.write_bytes(whole)
    comparison.resume(folder)
    reporting.load(folder)


def test_a_history_shorter_than_its_summary_says(tmp_path: Path) -> None:
    comparison.compare(small(), tmp_path / "run")
    history = tmp_path / "run" / "history.jsonl"
    os.truncate(history, history.stat().st_size - 1)
    assert "summary.json says" in refused(tmp_path / "run")


def test_what_a_crash_left_of_a_line_beyond_the_checkpoint_is_dropped(stopped: Callable[..., Path]) -> None:
    folder = stopped()
    with (folder / "history.jsonl").open("ab") as file:
        file.write(b'{"kind": "eval')
    assert comparison.resume(folder)["results"][0]["steps"] == 6
    reporting.load(folder)


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [9, -1])
@pytest.mark.parametrize("name", ["rank-0.safetensors", "manifest.json"])
def test_one_flipped_bit_in_a_checkpoint(stopped: Callable[..., Path], name: str, at: int) -> None:
    folder = stopped()
    path = folder / "checkpoint" / name
    flipped(path, min(at, path.stat().st_size - 1))
    assert "checkpoint" in refused(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda saved: (saved / "rank-0.safetensors").unlink(), "rank-0.safetensors is missing"),
        (lambda saved: (saved / "manifest.json").unlink(), "manifest.json"),
        (lambda saved: (saved / "rank-1.safetensors").write_bytes(b""), "rank-1.safetensors does not belong there"),
        (lambda saved: (saved / "manifest.json").write_text("[" * 100_000), "manifest.json"),
        (lambda saved: (saved / "manifest.json").write_text("[]"), "manifest.json"),
        (lambda saved: os.truncate(saved / "rank-0.safetensors", 100), "rank-0.safetensors"),
    ],
)
def test_files_of_a_checkpoint(stopped: Callable[..., Path], change: Callable[[Path], object], says: str) -> None:
    folder = stopped()
    change(folder / "checkpoint")
    assert says in refused(folder)


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a checkpoint holds, by somebody who also makes the manifest fit."""
    saved = folder / "checkpoint"
    tree = load_tree(saved / "rank-0.safetensors")
    change(tree)
    save_tree(tree, saved / "rank-0.safetensors")
    (saved / "manifest.json").write_text(
        json.dumps({"rank-0.safetensors": checkpoint._digest(saved / "rank-0.safetensors")})
    )


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        place: Any = tree
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value(place[path[-1]]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("loop", "fleet", "params", value=lambda own: own[:1]), "loop.fleet.params holds float32 [1, 650]"),
        (put("loop", "fleet", "params", value=lambda own: own.double()), "loop.fleet.params holds float64"),
        (put("loop", "fleet", "params", value=lambda own: own.sum()), "loop.fleet.params holds float32 []"),
        (put("loop", "fleet", "params", value=3), "loop.fleet.params holds 3"),
        (put("loop", "fleet", "syncs", value=float("nan")), "loop.fleet.syncs holds nan"),
        (put("loop", "progress", "step", value=None), "loop.progress.step holds None"),
        (put("loop", "progress", "total", value="6"), "loop.progress.total holds a str"),
        (put("loop", "training", "optimizers", value=[]), "argument"),
        (put("loop", "fleet", "clock", value=[]), "loop.fleet.clock holds a list"),
        (put("loop", value={}), "fleet"),
        (put("history_bytes", value=float("nan")), "history_bytes holds nan"),
    ],
)
def test_a_checkpoint_that_no_such_run_can_have_left(
    stopped: Callable[..., Path], change: Callable[[dict[str, Any]], None], says: str
) -> None:
    folder = stopped()
    edited(folder, change)
    assert says in refused(folder)


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        ({"a": {"b": [1, torch.ones(2)]}}, {"a": {"b": [0, torch.zeros(2)]}}),
        ({"new": 3, "b": 1}, {"b": 0, "gone": 1}),
        ([1, 2, 3], []),
        ({"x": torch.ones(3)}, {"x": None}),
        ({"1": 2.0}, {1: 0.0}),
        ([1, 2.5], (0, 1.0)),
    ],
)
def test_states_that_grow_are_let_in(saved: Any, live: Any) -> None:
    check_like(saved, live)


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (torch.ones(1), torch.ones(3)),
        (torch.ones(3, dtype=torch.float64), torch.ones(3)),
        (1.0, torch.ones(())),
        (True, 1),
        (1, True),
        (float("nan"), 1),
        (None, 1.0),
        ("x", 1.0),
        ([], {}),
        ({}, []),
    ],
)
def test_states_of_another_kind_are_not(saved: Any, live: Any) -> None:
    with pytest.raises(DataError, match=r"a\.b\.0 holds"):
        check_like([saved], [live], "a.b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[" * 100_000,
        '{"results": 3}',
        '{"results": [], "parameters": 1, "history_bytes": "many"}',
        '{"results": [], "parameters": 1, "history_bytes": -1}',
        '{"results": [{"label": [], "seed": 0}], "parameters": 1, "history_bytes": 0}',
        '{"results": [], "parameters": 1, "history_bytes": NaN}',
        "\xff",
    ],
)
def test_a_damaged_summary(stopped: Callable[..., Path], text: str) -> None:
    folder = stopped()
    (folder / "summary.json").write_bytes(text.encode("latin-1"))
    assert "summary.json" in refused(folder)


@pytest.mark.parametrize("text", ["", "null", "[" * 100_000, '{"results": 3}', '{"results": [{"seed": 0}]}', "\xff"])
def test_a_report_of_a_damaged_summary(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"summary\.json"):
        reporting.load(tmp_path)


@pytest.mark.parametrize(
    "line", [b"\0" * 20, b"\xff\xfe", b"[" * 100_000, b'{"kind": "evaluation", "step": 1' + b"0" * 400 + b"}"]
)
def test_a_damaged_line_of_history(tmp_path: Path, line: bytes) -> None:
    comparison.compare(small(), tmp_path / "run")
    history = tmp_path / "run" / "history.jsonl"
    history.write_bytes(line + b"\n" + history.read_bytes())
    with pytest.raises(DataError, match=r"history.jsonl") as caught:
        reporting.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_what_refers_to_a_file_is_written_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Callable[..., Path]
) -> None:
    """A power cut keeps what was brought to the disk: a history and a checkpoint's parts, before its new name."""
    events: list[str] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("sync " + (path.name.rsplit(".", 2)[0] if path.name.endswith(PARTIAL) else path.name))
        fsync(descriptor)

    def renamed(self: Path, target: Any) -> Path:
        events.append(f"{self.name} -> {target.name}")
        return rename(self, target)

    def removed(path: Any, *rest: Any, **more: Any) -> None:
        events.append("remove " + path.name)
        rmtree(path, *rest, **more)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    folder = stopped()
    saving = [
        "sync history.jsonl",
        "sync rank-0.safetensors",
        "sync checkpoint.new",
        "sync manifest.json",
        "sync checkpoint.new",
        "checkpoint.new -> checkpoint",
        "sync run",
    ]
    assert events[-len(saving) :] == saving
    events.clear()
    comparison.resume(folder)
    finishing = [
        "sync history.jsonl",
        f"sync {file_name('local-sgd:period=2')}-seed0.safetensors",
        "sync models",
        "sync summary.json",
        "sync run",
        "checkpoint -> checkpoint.gone",
        "remove checkpoint.gone",
    ]
    events = events[events.index("sync history.jsonl") :]
    assert list(dict.fromkeys(event for event in events if event in finishing)) == finishing


def test_a_changed_line_of_history_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    group = SingleProcess()
    experiment = build({"steps": 2, "workers": 2, "processes": 1, "strategies": ["synchronous"]})
    folder.mkdir()
    records = Records(folder, experiment, group)
    records.rewind(0, "")
    length, digest = records.append([{"label": "one"}, {"label": "two"}])
    whole = records.history.read_bytes()
    records.rewind(length, digest)
    records.history.write_bytes(whole.replace(b"two", b"twa") + b"more")
    with pytest.raises(DataError, match=r"history\.jsonl"):
        records.rewind(length, digest)
    records.history.write_bytes(whole + b"more")
    records.rewind(length, digest)
    assert records.history.read_bytes() == whole
    assert records.append([]) == (length, digest)
