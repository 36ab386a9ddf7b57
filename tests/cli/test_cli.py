"""The command line as a user types it: what works, and one clear line for every mistake."""

from __future__ import annotations

import gzip
import json
import struct
import tomllib
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)


SMALL = ("--processes", 1, "--workers", 2, "--steps", 30, "--eval-every", 10, "--no-report")

MISTAKES = [
    (["--strategy", "fdaa:threshold=1"], "unknown strategy 'fdaa': did you mean 'fda'?"),
    (["--strategy", "fda:treshold=1"], "strategy 'fda' has no parameter 'treshold': its parameters are threshold"),
    (["--strategy", "fda:threshold=-1"], "threshold=-1.0: a variance is at least 0"),
    (["--strategy", "fda:threshold=nan"], "threshold=nan: a variance is at least 0"),
    (["--strategy", "fda:per_parameter=-1"], "per_parameter=-1.0: a variance is at least 0"),
    (["--strategy", "fda"], "give exactly one of threshold, per_parameter and cadence, got none of them"),
    (["--strategy", "fda:threshold=1,cadence=5"], "got threshold and cadence"),
    (
        ["--strategy", "fda:threshold=1,monitor=best"],
        "monitor: unknown monitor 'best': choose one of exact, linear, naive, sketch",
    ),
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
    (["--rounds", "0"], "federation.rounds: Input should be greater than or equal to 1"),
    (
        ["--strategy", "fedavg", "--cohort", "3"],
        "federation: a cohort of 3 out of 2 clients; select at most all of them",
    ),
    (
        ["--cohort", "1", "--participation", "0.5"],
        "federation: give either cohort (clients per round) or participation",
    ),
    (["--participation", "1.5"], "federation.participation: Input should be less than or equal to 1"),
    (["--client-optimizer", "adm"], "federation: unknown optimizer 'adm': did you mean 'adam'?"),
    (["--strategy", "fedavgg"], "unknown strategy 'fedavgg': did you mean 'fedavg'?"),
    (["--strategy", "fedavg:uplink=zip"], "strategy 'fedavg': uplink: chain 'zip': unknown codec 'zip'"),
    (["--strategy", "fedavg:downlink=topk(0.1)"], "a client that holds nothing cannot fill in what is left out"),
    (["--strategy", "scaffold", "--client-optimizer", "adam"], "control variates assume plain SGD on the clients, not"),
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
        (
            "[profile]\nbandwith = 3",
            "unknown [profile] key 'bandwith': did you mean 'bandwidth'? choose one of bandwidth, com",
        ),
        ("[profile]\nbandwidth = -3", "profile.bandwidth: Input should be greater than 0, got -3"),
        ("[profile]\nlatency = nan", "profile.latency: Input should be"),
        ("[profile]\nup = [1, 0]", "profile.up.1: Input should be greater than 0, got 0"),
        (
            "[profile]\npower = 'fast'",
            "profile: power='fast': expected positive numbers, one per worker, such as 4:2:2:1",
        ),
        ("workers = 3\n[profile]\npower = '4:2:2:1'", "profile: power has 4 numbers for 3 workers; give one for each"),
        ("[profile]\nmean_up = 5", "profile: mean_up and mean_down describe one process; give both, or neither"),
        (
            "[profile]\npreset = 'wifi'",
            "profile: unknown preset 'wifi': choose one of cross-silo-wan, datacenter, iot, phones-4g",
        ),
        ("[profile]\noutages = 3", "profile.outages: Input should be a valid list, got 3"),
        ("[[profile.outages]]\nworker = 10\nat = 1", "profile: outages name worker 10 of 10; the last is 9"),
        ("[[profile.outages]]\nworker = 1\nat = 3\nuntil = 2", "until=2: worker 1 goes at 3; give a later time"),
        (
            "[[profile.outages]]\nworker = 1\nat = 3\nto = 2",
            "unknown [profile.outages] key 'to': choose one of at, until, worker",
        ),
        ("seeds = [1, 1]", "names one twice"),
        (
            "[federation]\nround = 3",
            "unknown [federation] key 'round': did you mean 'rounds'? choose one of client_acc",
        ),
        ("[federation]\nrounds = 'all'", "federation.rounds: Input should be a valid integer"),
        ("[federation]\ncohort = 2\nparticipation = 0.5", "federation: give either cohort (clients per round) or part"),
        (
            "strategies = ['fedavg']\n[federation]\nminimum = 20",
            "federation: minimum=20 valid uploads of a cohort of 10; ask for fewer",
        ),
        ("federation = 3", "federation: Input should be a dictionary"),
        ("strategies = ['fda-opt']\n[federation]\nsteps = 5", "fda-opt: rounds are counted in epochs"),
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
    assert "Bytes to 20.00 %" in cli("report", "run", "--markdown", "--target", 0.2)[1]
    assert "| 2/2 |" in cli("report", "run", "--markdown", "--target", "common")[1]
    status, _, said = cli("report", "run", "--target", "much")
    assert (status, said) == (2, "sparsync: --target much: an accuracy between 0 and 1 (0.985 is 98.5 %), or common\n")


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


FEDERATED = ("--processes", 1, "--workers", 6, "--no-report")


def federation(folder: str) -> dict[str, object]:
    table: dict[str, object] = tomllib.loads(Path(folder, "experiment.toml").read_text())["federation"]
    return table


def test_one_comparison_of_peers_and_federations(cli):
    strategies = ("synchronous", "local-sgd:period=5", "fedavg", "local=local-sgd:match=fedavg")
    named = [part for spec in strategies for part in ("--strategy", spec)]
    status, shown, said = cli(
        *("compare", *FEDERATED, *named, "--steps", 30, "--eval-every", 10, "--rounds", 4, "--cohort", 3),
        *("--epochs", 2, "--client-optimizer", "sgd:lr=0.2", "--out", "run"),
    )
    assert status == 0, said
    assert "fedavg" in shown
    summary = json.loads(Path("run/summary.json").read_text())
    every, local, fedavg, follower = summary["results"]
    assert [one["label"] for one in summary["results"]] == ["synchronous", "local-sgd:period=5", "fedavg", "local"]
    assert (every["syncs"], local["syncs"], fedavg["rounds"]) == (30, 6, 4)
    assert "rounds" not in every
    assert "syncs" not in fedavg
    assert (every["steps"], fedavg["steps"]) == (30, 4 * 2 * 8)  # 240 samples in batches of 32
    assert set(every) - {"syncs"} == set(fedavg) - {"rounds"}
    model = 4 * summary["parameters"]
    assert fedavg["paper_bytes"] == {"total": 4 * 3 * 2 * model, "model": 4 * 3 * 2 * model}
    assert fedavg["bytes"]["total"] == fedavg["bytes"]["model"] == 4 * 3 * 2 * (model + 20 + 1 + 8)
    assert follower["spec"] == "local-sgd:period=16"  # 64 local steps in 4 rounds
    assert all(one["error"] is None and 0.1 < one["accuracy"] <= one["best_accuracy"] for one in summary["results"])
    history = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    evaluations = [line for line in history if line["kind"] == "evaluation"]
    assert [line["rounds"] for line in evaluations if line["label"] == "fedavg"] == [1, 2, 3, 4]
    assert evaluations[-1]["bytes"] == follower["bytes"]["total"]
    assert len(list(Path("run/models").iterdir())) == 4


def profile(folder: str) -> dict[str, object]:
    table: dict[str, object] = tomllib.loads(Path(folder, "experiment.toml").read_text())["profile"]
    return table


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_without_a_word_hadfl_is_there_and_virtual_time_on_equal_devices(cli, workers):
    short = ("--processes", 1, "--steps", 20, "--eval-every", 10, "--rounds", 20, "--no-report")
    status, shown, said = cli("compare", "--workers", workers, *short, "--out", "run")
    assert status == 0, said
    summary = json.loads(Path("run/summary.json").read_text())
    assert [one["strategy"] for one in summary["results"]].count("hadfl") == 1
    assert "hadfl:unit=10" in shown
    assert all(one["seconds"] > 0 and one["error"] is None for one in summary["results"])
    assert "power" not in profile("run")
    head, _, rest = shown.partition("───")
    assert "Virtual" in head
    assert "virtual time: 10 ms per local step, links of 12.5 MB/s, latency 5 ms" in " ".join(rest.split())


def test_strategies_of_the_users_own_keep_equal_devices(cli):
    assert cli("compare", *SMALL, "--strategy", "hadfl", "--out", "run")[0] == 0
    assert "power" not in profile("run")
    assert profile("run")["bandwidth"] == 12.5e6
    shown = " ".join(cli("report", "run")[1].split())
    assert "virtual time: 10 ms per local step, links of 12.5 MB/s, latency 5 ms" in shown


def test_a_target_ends_a_federation(cli, results):
    arguments = ("--rounds", 40, "--client-optimizer", "sgd:lr=0.5", "--target", 0.5, "--strategy", "fedavg")
    assert cli("compare", *FEDERATED, *arguments, "--out", "run")[0] == 0
    (one,) = results(Path("run"))
    assert one["reached"]
    assert one["rounds"] < 40
    assert one["steps_to_target"] == one["steps"]
    assert one["bytes_to_target"] == one["bytes"]["total"]
    assert one["seconds_to_target"] == one["seconds"] > 0


def test_flags_override_the_files_table_and_what_says_the_same_otherwise(cli, tmp_path):
    table = "[federation]\nrounds = 9\nparticipation = 0.5\nsteps = 3\nsampling = 'weighted'\nclient_accuracy = true\n"
    (tmp_path / "experiment.toml").write_text(f"strategies = ['fedavg']\n{table}")
    assert cli("compare", "experiment.toml", *FEDERATED, "--rounds", 2, "--out", "one")[0] == 0
    expected = {"rounds": 2, "participation": 0.5, "steps": 3, "sampling": "weighted", "client_accuracy": True}
    assert expected.items() <= federation("one").items()
    flags = ("--rounds", 1, "--cohort", 2, "--epochs", 2, "--client-optimizer", "adam")
    assert cli("compare", "experiment.toml", *FEDERATED, *flags, "--out", "two")[0] == 0
    expected = {"rounds": 1, "cohort": 2, "epochs": 2, "optimizer": "adam", "sampling": "weighted"}
    assert expected.items() <= federation("two").items()
    assert not {"participation", "steps"} & federation("two").keys()
    assert cli("compare", "two/experiment.toml", "--no-report", "--out", "three")[0] == 0
    assert federation("three") == federation("two")


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
    for start in (
        "  fda: threshold=none",
        "  local-sgd: period=none",
        "  synchronous: average=parameters",
        "  fedavg: uplink=none, downlink=none  Average the models that the clients",
        "  fda-opt: uplink=none, downlink=none, max_epochs=none, threshold=0, adaptive=True, server=sgd:lr=1, depth=5",
    ):
        assert any(line.startswith(start) for line in lines), start
    for name in ("lenet5", "resnet18", "mnist", "digits", "dirichlet", "extended-dirichlet", "adamw", "cosine"):
        assert any(line.strip().split(":")[0].split(" ")[0] == name for line in lines), name
