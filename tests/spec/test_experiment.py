"""Experiment files: what is written is what is read, with its tables."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from sparsync.errors import UsageError
from sparsync.experiment import Experiment, build, read, to_toml
from sparsync.federated import Federation
from sparsync.system import Profile

EVERYTHING = Federation(
    rounds=7,
    participation=0.25,
    minimum=2,
    sampling="weighted",
    steps=3,
    drop_last=True,
    weights="uniform",
    optimizer="sgd:lr=0.05,momentum=0.9",
    schedule="exponential:factor=0.99",
    eval_every=2,
    client_accuracy=True,
)


@pytest.mark.parametrize("federation", [Federation(), Federation(cohort=3, epochs=5), EVERYTHING])
def test_what_is_written_is_what_is_read(tmp_path: Path, federation: Federation) -> None:
    made = Experiment(
        federation=federation,
        profile=Profile(bandwidth=1e6, latency=0.25),
        strategies={"a": "fedavg:uplink=ef(topk(0.05)+q8(block=64,stochastic))", 'b "c"': "fedadam:lr=0.05"},
        target=0.9,
    )
    path = tmp_path / "experiment.toml"
    path.write_text(to_toml(made))
    again = build(read(path))
    assert again == made
    assert again.federation == federation
    assert again.fingerprint == made.fingerprint


def test_the_federation_is_part_of_what_identifies_an_experiment() -> None:
    assert Experiment().fingerprint != Experiment(federation=Federation(rounds=7)).fingerprint


def test_a_table_may_be_a_dict() -> None:
    assert Experiment(federation={"rounds": 7}).federation == Federation(rounds=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"federation": {"rond": 3}},
            "unknown [federation] key 'rond': did you mean 'rounds'? choose one of client_accuracy",
        ),
        (
            {"federation": {"xyz": 3}},
            "unknown [federation] key 'xyz': choose one of client_accuracy, cohort, drop_last, epochs",
        ),
        (
            {"profile": {"bandwith": 3}},
            "unknown [profile] key 'bandwith': did you mean 'bandwidth'? choose one of bandwidth, latency, step",
        ),
        ({"federation": {"epochs": 0}}, "federation.epochs: Input should be greater than or equal to 1, got 0"),
        ({"federation": {"epochs": 1, "steps": 1}}, "federation: give either epochs or steps of local work, not both"),
        ({"federation": {"cohort": 11}}, "federation: a cohort of 11 out of 10 clients; select at most all of them"),
        ({"federation": {"schedule": "cosine"}}, "federation: schedule 'cosine': steps: Field required"),
        (
            {"strategies": ["scaffold"], "federation": {"optimizer": "nesterov"}},
            "scaffold: its control variates assume plain SGD on the clients, not 'nesterov'; set federation.optimizer",
        ),
        (
            {"strategies": ["fda-opt"], "federation": {"sampling": "weighted"}},
            "fda-opt: clients take turns, so federation.sampling=weighted means nothing; leave it out",
        ),
    ],
)
def test_mistakes_are_found_before_anything_begins(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_documentation_lists_every_key_of_the_table_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
    section = text.split("The table `[federation]`")[1].split("The table `[profile]`")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    documented = {key.strip().strip("`"): default.strip().strip("`") for key, default in rows}
    expected = {key: json.dumps(value).replace("null", "none") for key, value in asdict(Federation()).items()}
    assert documented == {**expected, "participation": "1", "epochs": "1"}  # what none of them means


def test_the_documented_example_is_an_experiment() -> None:
    text = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    assert build(tomllib.loads(example)).federation == Federation(
        rounds=200, cohort=10, epochs=2, optimizer="sgd:lr=0.05"
    )
