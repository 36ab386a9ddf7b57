"""Reading a run's folder: what is there, what is cut off, what is broken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsync.errors import DataError, SparsyncError, UsageError
from sparsync.reporting import load

FDA = "fda:monitor=linear,threshold=2"


def test_reads_results_histories_and_partition(made):
    run = made(seeds=(0, 1))
    assert run.labels == ("synchronous", FDA)
    assert run.seeds == (0, 1)
    assert run.target == 0.95
    assert run.parameters == 61706
    assert len(run.results) == 4
    history = run.histories[(FDA, 1)]
    assert len(history.evaluations) == 20
    assert len(history.checks) == 400
    assert np.array_equal(np.isfinite(history.checks.variance), history.checks.sync)
    assert len(run.histories[("synchronous", 0)].checks) == 0
    assert run.partition is not None
    assert run.partition.counts.shape == (30, 10)


def test_cut_last_line_and_unknown_kinds_are_left_out(made):
    run = made()
    file = run.folder / "history.jsonl"
    before = len(run.histories[(FDA, 0)].checks)
    more = json.dumps({"kind": "weather", "label": FDA, "sun": True})
    file.write_bytes(file.read_bytes() + more.encode() + b'\n\n{"kind": "check", "label": "fda\xc3')
    assert len(load(run.folder).histories[(FDA, 0)].checks) == before


def test_broken_line_in_the_middle_is_an_error(made):
    file = made().folder / "history.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:20]
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"history\.jsonl, line 3: not JSON"):
        load(file.parent)


def test_a_resumed_run_may_repeat_steps_and_the_later_line_counts(made):
    run = made()
    file = run.folder / "history.jsonl"
    again = {"kind": "evaluation", "label": "synchronous", "seed": 0, "step": 40, "accuracy": 0.5}
    file.write_text(file.read_text() + json.dumps(again) + "\n")
    evaluations = load(run.folder).histories[("synchronous", 0)].evaluations
    assert len(evaluations) == 20
    assert evaluations.accuracy[1] == 0.5
    assert np.isnan(evaluations.bytes[1])
    assert (np.diff(evaluations.step) > 0).all()


def test_rounds_count_as_syncs(made):
    (result,) = made(labels=("fedavg:epochs=1",)).results
    assert result.in_rounds
    assert result.syncs == 50


def test_without_history_and_partition(made):
    run = made(histories=False, partition=False)
    assert run.histories == {}
    assert run.partition is None


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        load(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(UsageError, match="sparsync resume"):
        load(tmp_path)


GOOD = {"label": "a", "seed": 0}


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ("{", "summary.json: not JSON"),
        ("[]", r"summary.json: \[\] where an object was expected"),
        ("{}", "results is None, expected a list"),
        ({"results": [3]}, "result 0: 3 where an object was expected"),
        ({"results": [{"seed": 0}]}, "label is None, expected a name"),
        ({"results": [{"label": "a", "seed": "x"}]}, "seed is 'x', expected an integer"),
        ({"results": [{**GOOD, "accuracy": "high"}]}, "accuracy is 'high', expected a number"),
        ({"results": [{**GOOD, "bytes": {"model": []}}]}, r"bytes: model is \[\], expected a number"),
        ({"results": [{**GOOD, "reached": 1}]}, "reached is 1, expected true, false or null"),
        ({"results": [GOOD, GOOD]}, "label 'a' has two results for seed 0"),
        ({"results": [], "experiment": 3}, "experiment: 3 where an object was expected"),
    ],
)
def test_broken_summaries(tmp_path, summary, message):
    text = summary if isinstance(summary, str) else json.dumps(summary)
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(SparsyncError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("counts", [None, [], [[]], [[1, 2], [3]], [[1.5]], [3]])
def test_broken_partitions(made, counts):
    folder = made().folder
    (folder / "partition.json").write_text(json.dumps({"counts": counts}))
    with pytest.raises(DataError, match="counts is not a table"):
        load(folder)


@pytest.mark.parametrize("line", ['{"kind": "check"}', '{"kind": "check", "label": "a", "step": "x"}', "3"])
def test_broken_lines(made, line):
    file = made().folder / "history.jsonl"
    file.write_text(f"{line}\n" + file.read_text())
    with pytest.raises(DataError, match="line 1"):
        load(file.parent)
