"""One process, two spawned ones, or torchrun with a rank per worker: the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

STRATEGIES = (
    "fda:threshold=0.4,monitor=linear",
    "fda:threshold=0.4,monitor=sketch",
    "local-sgd:period=7",
    "hadfl:unit=5,members=2",
)


def arguments(dtype: str, out: Path) -> list[str]:
    strategies = [part for spec in STRATEGIES for part in ("--strategy", spec)]
    fixed = "compare --no-report --workers 4 --steps 100 --eval-every 50 --partition sorted --optimizer"
    return [*fixed.split(), "sgd:lr=0.1,momentum=0.9", *strategies, "--dtype", dtype, "--out", str(out)]


def sync_steps(folder: Path) -> dict[str, list[int]]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {spec: [one["step"] for one in lines if one["label"] == spec and one.get("sync")] for spec in STRATEGIES}


def distance(one: Path, other: Path) -> float:
    """Largest relative distance of a strategy's final models, all parameters together."""
    worst = 0.0
    for path in (one / "models").iterdir():
        a, b = load_file(path), load_file(other / "models" / path.name)
        apart = sum((a[name].double() - b[name].double()).square().sum() for name in a)
        worst = max(worst, float((apart / sum(x.double().square().sum() for x in a.values())).sqrt()))
    return worst


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-9), pytest.param("float32", 1e-4, marks=pytest.mark.slow)]
)
def test_same_syncs_and_models_however_the_workers_are_hosted(tmp_path, sparsync, torchrun, results, dtype, tolerance):
    one, two, four = tmp_path / "one", tmp_path / "two", tmp_path / "four"
    for done in (
        sparsync(*arguments(dtype, one), "--processes", 1),
        sparsync(*arguments(dtype, two), "--processes", 2),
        torchrun(4, "-m", "sparsync", *arguments(dtype, four)),
    ):
        assert done.returncode == 0, done.stderr
    assert all(len(steps) > 3 for label, steps in sync_steps(one).items() if label.startswith("fda"))
    assert sync_steps(one) == sync_steps(two) == sync_steps(four)
    assert distance(one, two) < tolerance
    assert distance(one, four) < tolerance
    booked = [
        [(result["bytes"], result["paper_bytes"], result["syncs"]) for result in results(folder)]
        for folder in (one, two, four)
    ]
    assert booked[0] == booked[1] == booked[2]


def test_two_runs_of_the_same_command_are_bitwise_equal(tmp_path, sparsync, results):
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second):
        done = sparsync(*arguments("float32", out), "--processes", 2, "--steps", 30, "--model", "mlp:depth=2")
        assert done.returncode == 0, done.stderr
    assert (first / "history.jsonl").read_bytes() == (second / "history.jsonl").read_bytes()
    assert results(first) == results(second)
    for path in (first / "models").iterdir():
        assert path.read_bytes() == (second / "models" / path.name).read_bytes()


def test_star_moves_real_payloads_and_agrees_with_its_simulation(tmp_path, sparsync, torchrun, results):
    setting = "compare --no-report --workers 3 --steps 40 --topology star --precision bfloat16 --optimizer sgd"
    arguments = [*setting.split(), "--strategy", "fda:threshold=0.1,monitor=naive"]
    simulated, real = tmp_path / "simulated", tmp_path / "real"
    done = sparsync(*arguments, "--processes", 1, "--out", simulated)
    assert done.returncode == 0, done.stderr
    done = torchrun(3, "-m", "sparsync", *arguments, "--out", real)
    assert done.returncode == 0, done.stderr
    assert results(simulated)[0]["syncs"] > 2
    for key in ("syncs", "bytes", "paper_bytes"):
        assert results(simulated)[0][key] == results(real)[0][key]
    assert distance(simulated, real) < 1e-2  # a rounding of bfloat16 may fall the other way
