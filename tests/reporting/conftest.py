"""Small made-up runs, written as the engine would write them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federated_runs import add_federation
from split_runs import add_split

from sparsync.reporting import ComparisonRecord, load

TWO = ("synchronous", "fda:monitor=linear,threshold=2")
FOURTEEN = (
    "synchronous",
    "local-sgd:period=8",
    "local-sgd:period=64",
    "fda:monitor=linear,threshold=2",
    "fda:monitor=linear,threshold=8",
    "fda:monitor=sketch,threshold=2,width=250,depth=5,seed=1",
    "fda:monitor=sketch,threshold=8,width=250,depth=5,seed=1",
    "fda:monitor=exact,threshold=2",
    "hadfl:selected=3,power=2",
    "fedavg:epochs=1,participation=0.1",
    "fedadam:epochs=1,participation=0.1,server-learning-rate=0.01",
    "sparsyfed:density=0.05,beta=1.25",
    "feddip:density=0.05,period=20",
    "psl:sampler=ugs,cut=2",
)


def make(
    folder: Path,
    labels: tuple[str, ...] = TWO,
    seeds: tuple[int, ...] = (0,),
    target: float | None = 0.95,
    steps: int = 400,
    workers: int = 30,
    missed: tuple[tuple[str, int], ...] = (),
    failed: tuple[tuple[str, int], ...] = (),
    histories: bool = True,
    partition: bool = True,
    parameters: int = 61706,
) -> Path:
    """Write a run; ``missed`` pairs never reach the target, ``failed`` ones end with an error."""
    folder.mkdir(parents=True, exist_ok=True)
    results, lines = [], []
    for i, label in enumerate(labels):
        for seed in seeds:
            rng = random.Random(f"{label} {seed}")
            results.append(
                _one(
                    label,
                    i,
                    seed,
                    rng,
                    target,
                    steps,
                    workers,
                    parameters,
                    (label, seed) in missed,
                    (label, seed) in failed,
                    lines,
                )
            )
    experiment = {
        "data": "mnist",
        "model": "lenet5",
        "workers": workers,
        "partition": "dirichlet:alpha=0.5",
        "batch_size": 32,
        "optimizer": "adam:lr=0.001",
        "steps": steps,
        "target": target,
        "eval_every": 20,
        "seeds": list(seeds),
        "topology": "ring",
        "processes": 2,
    }
    summary = {"version": "0.1.0", "experiment": experiment, "parameters": parameters, "results": results}
    (folder / "summary.json").write_text(json.dumps(summary))
    if histories:
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if partition:
        rng = random.Random(1)
        counts = [[int(6000 / workers * rng.gammavariate(0.5, 2)) for _ in range(10)] for _ in range(workers)]
        names = [str(c) for c in range(10)]
        (folder / "partition.json").write_text(json.dumps({"counts": counts, "class_names": names}))
    return folder


def _one(
    label: str,
    i: int,
    seed: int,
    rng: random.Random,
    target: float | None,
    steps: int,
    workers: int,
    parameters: int,
    missed: bool,
    failed: bool,
    lines: list[dict[str, Any]],
) -> dict[str, Any]:
    fda, federated = label.startswith("fda"), label.startswith(("fed", "sparsyfed"))
    period = 1 if label.startswith("sync") else 8 + 5 * i
    speed = steps / (5 + 0.3 * i) * rng.uniform(0.9, 1.1)
    best = (0.94 if missed else 0.985) - 0.0005 * i
    drift, syncs, state, model, reached = 0.0, 0, 0, 0, None
    top, accuracy, end = 0.0, 0.1, steps
    for step in range(1, steps + 1):
        drift += 2 / period * rng.uniform(0.5, 1.5) * (1 + step / steps)
        sync = drift > 2 if fda else step % period == 0
        state += 8 * workers * 2 if fda else 0
        if fda:
            lines.append(
                {
                    "kind": "check",
                    "label": label,
                    "seed": seed,
                    "step": step,
                    "estimate": drift,
                    "threshold": 2.0,
                    "sync": sync,
                    "variance": drift * rng.uniform(0.6, 1) if sync else None,
                }
            )
        if sync:
            drift, syncs, model = 0.0, syncs + 1, model + 8 * parameters * workers
        if step % 20 == 0:
            accuracy = best - (best - 0.1) * math.exp(-step / speed) + rng.uniform(-0.002, 0.002)
            top = max(top, accuracy)
            seconds = step * 0.02 + (state + model) / 1e9
            lines.append(
                {
                    "kind": "evaluation",
                    "label": label,
                    "seed": seed,
                    "step": step,
                    "accuracy": accuracy,
                    "loss": 1 - accuracy,
                    "train_loss": 1 - accuracy,
                    "bytes": state + model,
                    "paper_bytes": (state + model) // 2,
                    "syncs": syncs,
                    "seconds": seconds,
                    "bytes_by_kind": {"model": model, "state": state},
                }
            )
            if target is not None and reached is None and accuracy >= target and not missed:
                reached = (step, state + model, seconds)
        if failed and step == steps // 2:
            end = step
            break
    kinds = {"total": state + model, "model": model, **({"state": state} if state else {})}
    steps_to, bytes_to, seconds_to = reached or (None, None, None)
    return {
        "label": label,
        "strategy": label.partition(":")[0],
        "spec": label,
        "seed": seed,
        "workers": workers,
        "steps": end,
        "rounds" if federated else "epochs" if label.startswith("psl") else "syncs": syncs,
        "accuracy": None if failed else accuracy,
        "best_accuracy": top,
        "bytes": kinds,
        "paper_bytes": {k: v // 2 for k, v in kinds.items()},
        "reached": None if target is None else reached is not None,
        "steps_to_target": steps_to,
        "bytes_to_target": bytes_to,
        "paper_bytes_to_target": None if bytes_to is None else bytes_to // 2,
        "seconds_to_target": seconds_to,
        "seconds": end * 0.02 + (state + model) / 1e9,
        "wall_seconds": 12.3 + i,
        "error": f"diverged at step {end}, worker 3" if failed else None,
    }


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., ComparisonRecord]:
    """Make a run with :func:`make` and read it back."""
    return lambda **given: load(make(tmp_path / "run", **given))


@pytest.fixture
def fourteen() -> tuple[str, ...]:
    return FOURTEEN


@pytest.fixture
def write_run() -> Callable[..., Path]:
    return make


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[..., ComparisonRecord]:
    """Make a run of peers and federated strategies, two seeds and one refused upload, and read it back.

    ``split`` adds split strategies.
    """

    def build(
        peers: tuple[str, ...] = ("synchronous",),
        seeds: tuple[int, ...] = (0, 1),
        split: tuple[str, ...] = (),
        **given: Any,
    ) -> ComparisonRecord:
        folder = add_federation(make(tmp_path / "mixed", labels=peers, seeds=seeds), seeds=seeds, **given)
        return load(add_split(folder, labels=split, seeds=seeds) if split else folder)

    return build


@pytest.fixture
def split_run(tmp_path: Path) -> Callable[..., ComparisonRecord]:
    """Make a run of split strategies with :func:`split_runs.add_split`, and read it back."""

    def build(seeds: tuple[int, ...] = (0, 1), **given: Any) -> ComparisonRecord:
        return load(add_split(make(tmp_path / "split", labels=(), seeds=seeds, target=None), seeds=seeds, **given))

    return build
