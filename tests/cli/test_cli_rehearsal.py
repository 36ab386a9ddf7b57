"""What can be known before training is refused before training, for all strategies at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsync import PARTITIONS, comparison, study
from sparsync.errors import UsageError
from sparsync.experiment import build

SMALL = {"processes": 1, "workers": 2, "steps": 2, "eval_every": 2, "model": "logistic"}


def refused(folder: Path, **settings: Any) -> str:
    """What a comparison says that is refused; nothing has trained by then."""
    with pytest.raises(UsageError) as caught:
        comparison.compare(build({**SMALL, **settings}), folder / "run")
    assert not (folder / "run/history.jsonl").exists()
    assert not (folder / "run/summary.json").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("late", "settings", "says"),
    [
        ("feddip", {"federation": {"rounds": 3}}, "lambda_steps=20 in 3 rounds"),
        ("psl:sampler=lds,sample_size=2000", {"model": "mlp"}, "sample_size=2000"),
        ("psl:sampler=lds,strength=1e6", {"model": "mlp", "split": {"delays": "stragglers"}}, "beyond floating point"),
        ("gossip:graph=random-regular,degree=2", {}, "no graph has 2 workers with 2 neighbours each"),
        ("hadfl:members=3", {}, "3"),
        ("psl", {"split": {"cut": "layer9"}, "model": "mlp"}, "cut before 'layer9'"),
        ("splitfed", {"split": {"batch_size": 5000}, "model": "mlp"}, "batch_size=5000"),
        ("fda:threshold=1,codec=q8", {"topology": "star", "dtype": "float64"}, "codec=q8 carries float32"),
        ("fedbuff:concurrency=3", {}, "concurrency=3 of 2"),
        ("fedasync", {"profile": {"step_seconds": 0}}, "step_seconds"),
    ],
)
def test_a_strategy_that_cannot_run_is_refused_before_the_one_before_it_trains(tmp_path, late, settings, says):
    said = refused(tmp_path, strategies=["synchronous", late], **settings)
    assert f"strategy {late!r}: " in said
    assert says in said
    assert "\n" not in said


def test_all_strategies_are_named_and_those_that_share_a_reason_together(tmp_path):
    strategies = {"a": "feddip", "good": "fedavg", "b": "feddip:sparsity=0.8", "c": "hadfl:members=3"}
    said = refused(tmp_path, strategies=strategies, federation={"rounds": 3})
    assert said.count("lambda_steps") == 1
    assert "strategy 'a', 'b': " in said
    assert "strategy 'c': " in said
    assert "good" not in said


def test_a_partition_that_fails_with_a_later_seed_is_refused_before_the_first_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(PARTITIONS, "entries", dict(PARTITIONS.entries))

    @PARTITIONS.register("moody")
    def moody(labels: np.ndarray, workers: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Right with the first seed only."""
        made.append(rng)
        parts = np.array_split(np.arange(len(labels)), workers)
        return parts[:1] if rng.random() == lucky else parts

    from sparsync.randomness import generator

    made: list[Any] = []
    lucky = generator(2, "partition").random()
    said = refused(tmp_path, strategies=["synchronous"], partition="moody", seeds=3)
    assert "partition 'moody'" in said


def test_a_follower_is_tried_without_what_it_follows_and_keeps_to_its_longest_period(tmp_path):
    strategies = {"rare": "local-sgd:period=2", "control": "local-sgd:match=rare,max_period=1"}
    summary = comparison.compare(build({**SMALL, "strategies": strategies}), tmp_path / "run")
    assert [one["syncs"] for one in summary["results"]] == [1, 2]


def test_models_that_the_machine_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2}.get(name, 1))
    said = refused(tmp_path, strategies=["fedavg", "synchronous"])
    assert said.startswith("strategy 'synchronous': workers: models and gradients of 2 workers")


def test_a_study_is_refused_as_a_whole(tmp_path):
    base = {**SMALL, "strategies": ["feddip"]}
    settings = {"good": base | {"strategies": ["fedavg"]}, "bad": base | {"federation": {"rounds": 3}}}
    with pytest.raises(UsageError, match=r"variant bad: .*lambda_steps"):
        list(study.compare(settings, tmp_path / "study"))
    assert not (tmp_path / "study").exists()
