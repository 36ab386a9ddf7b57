"""A federation that was killed, or whose clients all failed, goes on: with the same bits as one that was not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from processes import Program
from sparsync import Experiment, SparsyncError, compare, resume

HERE = str(Path(__file__).parent)
SETTING = "compare --no-report --workers 12 --rounds 25 --cohort 5 --save-seconds 0 --model mlp:hidden=16"
ARGUMENTS = [
    *SETTING.split(),
    *("--partition", "dirichlet:alpha=0.5", "--processes", "1"),
    *("--strategy", "fedadam:uplink=ef(topk(0.1)+q8),downlink=bf16", "--strategy", "scaffold"),
    *("--strategy", "fda-opt:max_epochs=4"),
]


def everything(folder: Path, results) -> dict[str, object]:
    models = {path.name: path.read_bytes() for path in sorted((folder / "models").iterdir())}
    return {"results": results(folder), "history": (folder / "history.jsonl").read_bytes(), "models": models}


def test_killed_and_resumed(tmp_path, programs, sparsync, results):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    done = sparsync(*ARGUMENTS, "--out", whole)
    assert done.returncode == 0, done.stderr
    history, size = folder / "history.jsonl", (whole / "history.jsonl").stat().st_size // 2
    running = Program(programs, ("-m", "sparsync", *ARGUMENTS, "--out", folder))
    while running.poll() is None and not (history.exists() and history.stat().st_size >= size):
        time.sleep(0.002)
    assert running.poll() is None, "it ended before it could be killed"
    running.kill()
    running.wait()
    assert (folder / "checkpoint").exists()
    done = sparsync("resume", "--no-report", folder)
    assert done.returncode == 0, done.stderr
    assert everything(folder, results) == everything(whole, results)


def lines(folder: Path, kind: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_clients_that_all_fail_stop_the_run_until_they_are_mended(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import faulty_clients

    monkeypatch.setattr(faulty_clients, "MENDED", False)
    folder = tmp_path / "run"
    experiment = Experiment(
        imports=["faulty_clients"],
        strategies=["faulty", "fedavg"],
        workers=20,
        federation={"rounds": 5, "cohort": 2, "minimum": 2},
        processes=1,
    )
    with pytest.raises(SparsyncError, match=r"^round 3: 3 cohorts in a row sent too little; the last: 0 valid uploads"):
        compare(experiment, folder)
    assert (folder / "checkpoint").is_dir()
    assert [line["rounds"] for line in lines(folder, "evaluation")] == [1, 2]
    refused = lines(folder, "rejection")
    assert len(refused) == 6
    assert all(line["round"] == 3 and "its header declares" in str(line["reason"]) for line in refused)
    assert len({line["client"] for line in refused}) > 2  # not one cohort again and again
    with pytest.raises(SparsyncError, match="round 3: 3 cohorts in a row"):  # they fail still
        resume(folder)
    faulty_clients.MENDED = True
    faulty, plain = resume(folder)["results"]
    assert faulty["error"] is None
    assert faulty["rounds"] == plain["rounds"] == 5
    assert [line["rounds"] for line in lines(folder, "evaluation")] == [1, 2, 3, 4, 5] * 2
    assert len(lines(folder, "rejection")) == 12
    assert faulty["bytes"]["total"] > plain["bytes"]["total"]  # what failed was sent all the same
    assert not (folder / "checkpoint").exists()
