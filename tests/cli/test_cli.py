"""The command line as a user types it: what works, and one clear line for every mistake."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from pathlib import Path

import pytest

from sparsync.cli import main

HERE = str(Path(__file__).parent)


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run ``sparsync ARGUMENTS`` in this process: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparsync", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


SMALL = ("--processes", 1, "--workers", 2, "--steps", 30, "--eval-every", 10, "--no-report")

MISTAKES = [
    (["--strategy", "fdaa:threshold=1"], "unknown strategy 'fdaa': did you mean 'fda'?"),
    (["--strategy", "fda:treshold=1"], "strategy 'fda' has no parameter 'treshold': its parameters are threshold"),
    (["--strategy", "fda:threshold=-1"], "threshold=-1.0: a variance is at least 0"),
    (["--strategy", "fda:threshold=nan"], "threshold=nan: a variance is at least 0"),
    (["--strategy", "fda:per_parameter=-1"], "per_parameter=-1.0: a variance is at least 0"),
    (["--strategy", "fda"], "give exactly one of threshold, per_parameter and cadence, got none of them"),
    (["--strategy", "fda:threshold=1,cadence=5"], "got threshold and cadence"),
    (["--strategy", "fda:threshold=1,monitor=best"], "monitor: Input should be 'linear', 'sketch', 'naive' or 'exact'"),
    (["--strategy", "fda:threshold=1,monitor=sketch,depth=4"], "depth=4: give an odd number"),
    (["--strategy", "fda:threshold"], "expected name:key=value"),
    (["--strategy", "local-sgd"], "give either period"),
    (["--strategy", "local-sgd:period=0"], "period: Input should be greater than or equal to 1"),
    (["--strategy", "local-sgd:match=fda"], "no earlier strategy has that label or name"),
    (["--strategy", "synchronous", "--strategy", "synchronous"], "'synchronous' is given twice"),
    (["--data", "mnits"], "unknown dataset 'mnits': did you mean 'mnist'?"),
    (["--data", "mnist"], "--data-root"),
    (["--data", "mnist", "--data-root", "nowhere"], "nowhere"),
    (["--model", "resnet9"], "resnet"),
    (["--model", "mlp:hiden=3"], "has no parameter 'hiden'"),
    (["--model", "no_such_module_here:build"], "no_such_module_here"),
    (["--model", "nan_model:eleven"], "10 classes"),
    (["--model", "lenet5"], "lenet5"),
    (["--partition", "sortd"], "unknown partition 'sortd': did you mean 'sorted'?"),
    (["--partition", "dirichlet:alpha=0"], "alpha"),
    (["--workers", "1800"], "1800"),
    (["--workers", "0"], "workers: Input should be greater than or equal to 1"),
    (["--target", "1.5"], "target: an accuracy between 0 and 1"),
    (["--optimizer", "adm"], "unknown optimizer 'adm': did you mean 'adam'?"),
    (["--optimizer", "adam:lr=-1"], "lr: Input should be greater than or equal to 0"),
    (["--schedule", "cosine"], "steps: Field required"),
    (["--topology", "mesh"], "topology: Input should be 'ring' or 'star'"),
    (["--precision", "bfloat16"], "use topology='star'"),
    (["--processes", "3"], "processes: 3 for 2 workers"),
    (["--device", "toaster"], "device: 'toaster' cannot be used here"),
    (["--import", "no_such_module_here"], "imports: cannot import 'no_such_module_here'"),
    (["missing.toml"], "missing.toml: No such file"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value)[:50])
def test_a_mistake_is_one_clear_line_and_a_non_zero_exit(cli, arguments, message):
    status, _, said = cli("compare", *SMALL, *arguments)
    assert status != 0
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = = 3", "experiment.toml: not valid TOML"),
        ("worker = 3", "unknown key 'worker': did you mean 'workers'?"),
        ("steps = 'many'", "steps: Input should be a valid integer"),
        ("strategies = []", "strategies: give at least one strategy"),
        ("[profile]\nbandwith = 3", "profile.bandwith"),
        ("seeds = [1, 1]", "names one twice"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(cli, tmp_path, text, message):
    (tmp_path / "experiment.toml").write_text(text)
    status, _, said = cli("compare", "experiment.toml")
    assert status == 2
    assert "experiment.toml" in said
    assert message in said
    assert len(said.strip().splitlines()) == 1


def idx(path: Path, shape: tuple[int, ...], body: bytes) -> None:
    head = struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(gzip.compress(head + body))


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "missing"])
def test_damaged_data_are_named(cli, tmp_path, damage):
    for part, n in (("train", 20), ("t10k", 10)):
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", (n, 28, 28), bytes(n * 784))
        idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", (n,), bytes(i % 10 for i in range(n)))
    broken = tmp_path / "train-images-idx3-ubyte.gz"
    if damage == "truncated":
        broken.write_bytes(broken.read_bytes()[:-12])
    elif damage == "not gzip":
        broken.write_bytes(b"<html>moved</html>")
    else:
        broken.unlink()
    status, _, said = cli("compare", *SMALL, "--data", "mnist", "--data-root", tmp_path)
    assert status == 1
    assert "train-images-idx3-ubyte" in said
    assert len(said.strip().splitlines()) == 1


def test_a_mistake_found_by_several_processes_is_said_once(sparsync, tmp_path):
    done = sparsync("compare", "--workers", 2, "--processes", 2, "--data", "mnist", "--data-root", tmp_path)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(tmp_path) in done.stderr


def test_a_loss_that_becomes_nan_names_worker_and_step_and_the_others_go_on(cli, tmp_path):
    strategies = ("--strategy", "local-sgd:period=5", "--strategy", "synchronous")
    status, shown, said = cli("compare", *SMALL, *strategies, "--model", "nan_model:build", "--out", "run")
    # 10 forward passes per worker and two rounds: the 40th is worker 1's step 20
    assert status == 1
    failed, other = json.loads(Path("run/summary.json").read_text())["results"]
    assert failed["error"].startswith("worker 1: the loss is not finite at step 20")
    assert other["error"] is None
    assert other["steps"] == 30
    assert "local-sgd:period=5 (seed 0): worker 1: the loss is not finite at step 20" in said
    assert "synchronous" in shown


def test_compare_writes_its_folder_and_report_draws_it_again(cli):
    status, shown, said = cli(
        *("compare", "--processes", 1, "--workers", 2, "--steps", 20, "--eval-every", 10, "--seeds", 2),
        *("--strategy", "fda:threshold=0.01", "--strategy", "local-sgd:match=fda", "--out", "run"),
    )
    assert status == 0, said
    assert "report: run/report.html" in shown
    for name in ("experiment.toml", "run.json", "partition.json", "history.jsonl", "summary.json", "report.html"):
        assert Path("run", name).is_file(), name
    for name in ("accuracy-bytes", "accuracy-steps", "bytes-by-kind", "variance-threshold", "who-holds-what"):
        assert Path("run/figures", f"{name}.png").is_file()
        assert Path("run/figures", f"{name}.svg").is_file()
    summary = json.loads(Path("run/summary.json").read_text())
    assert [(one["label"], one["seed"]) for one in summary["results"]] == [
        (label, seed) for seed in (0, 1) for label in ("fda:threshold=0.01", "local-sgd:match=fda")
    ]
    fda, control = summary["results"][:2]
    assert control["spec"] == f"local-sgd:period={round(fda['steps'] / fda['syncs'])}"
    Path("run/report.html").unlink()
    assert cli("report", "run")[0] == 0
    assert Path("run/report.html").is_file()


def test_the_resolved_experiment_runs_again_to_the_same_end(cli, results):
    assert cli("compare", *SMALL, "--strategy", "fda:cadence=4", "--out", "first")[0] == 0
    assert cli("compare", "first/experiment.toml", "--no-report", "--out", "second")[0] == 0
    assert results(Path("first")) == results(Path("second"))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda run: None, "already holds a run"),
        (lambda run: (run / "run.json").unlink(), ""),
    ],
)
def test_a_folder_that_holds_a_run_is_not_overwritten(cli, prepare, message):
    assert cli("compare", *SMALL, "--strategy", "synchronous", "--out", "run")[0] == 0
    before = Path("run/summary.json").read_bytes()
    prepare(Path("run"))
    status, _, said = cli("compare", *SMALL, "--strategy", "fda:threshold=1", "--out", "run")
    assert (status == 2) == bool(message)
    assert message in said
    if message:
        assert Path("run/summary.json").read_bytes() == before


def test_resume_of_what_is_no_run_or_another_experiments_run(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no run" in cli("resume", "empty")[2]
    assert "holds no run" in cli("report", "nowhere")[2] or "nowhere" in cli("report", "nowhere")[2]
    assert cli("compare", *SMALL, "--strategy", "synchronous", "--out", "run")[0] == 0
    path = Path("run/experiment.toml")
    path.write_text(path.read_text().replace("steps = 30", "steps = 40"))
    status, _, said = cli("resume", "run")
    assert status == 2
    assert "made by another experiment" in said


def test_a_strategy_of_the_users_own_is_imported_in_every_process(sparsync, tmp_path, results):
    arguments = ["--import", "own_strategy", "--strategy", "primes", "--workers", 2, "--processes", 2, "--steps", 30]
    done = sparsync("compare", *arguments, "--no-report", "--out", tmp_path / "run", PYTHONPATH=HERE)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")[0]["syncs"] == 10


def test_data_of_the_users_own(cli, results):
    own = ("--data", "own_data:blobs", "--model", "logistic", "--optimizer", "sgd:lr=0.5", "--strategy", "synchronous")
    assert cli("compare", *SMALL, *own, "--out", "run")[0] == 0
    assert results(Path("run"))[0]["accuracy"] > 0.9
    status, _, said = cli("compare", *SMALL, "--data", "own_data:nothing")
    assert status == 2
    assert "dataset 'own_data:nothing': it returned a NoneType; expected a sparsync.Dataset" in said
    status, _, said = cli("compare", *SMALL, "--data", "own_data:missing")
    assert "module 'own_data' has no function 'missing'" in said


def test_list_shows_everything_with_parameters_and_defaults(cli):
    status, shown, _ = cli("list")
    assert status == 0
    lines = shown.splitlines()
    for start in ("  fda: threshold=none", "  local-sgd: period=none", "  synchronous: average=parameters"):
        assert any(line.startswith(start) for line in lines), start
    for name in ("lenet5", "resnet18", "mnist", "digits", "dirichlet", "extended-dirichlet", "adamw", "cosine"):
        assert any(line.strip().split(":")[0].split(" ")[0] == name for line in lines), name
