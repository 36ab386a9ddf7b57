"""Experiment files: what is written is what is read, with its tables."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import pytest

from sparsync.errors import UsageError
from sparsync.experiment import DEFAULT_STRATEGIES, Experiment, build, to_toml
from sparsync.federated import Federation
from sparsync.settings import read
from sparsync.system import PRESETS, Outage, Profile

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


PROFILES = [
    Profile(),
    Profile(bandwidth=math.inf, up=[1.0, math.inf, 2.5], down=1e-5, shared=3.0, spread=0.5, mean_up=4, mean_down=2),
    Profile(preset="iot", power="4:2:1", outages=[Outage(worker=2, at=0), Outage(worker=0, at=1.5, until=1e22)]),
    Profile(preset="phones-4g", bandwidth=2e6, compute="flops", flops=3e9, power=[1, 0.5, 2]),
    Profile(power="4:2:...", bandwidth=1.25e6),
    Profile(preset="datacenter", compute="measured", outages=[Outage(worker=1, at=2.0, until=math.inf)]),
]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_read_as_it_was_written(tmp_path: Path, profile: Profile) -> None:
    made = Experiment(workers=3, profile=profile)
    path = tmp_path / "experiment.toml"
    path.write_text(to_toml(made))
    again = build(read(path))
    assert again == made
    assert again.profile == profile
    assert again.fingerprint == made.fingerprint
    assert to_toml(again) == to_toml(made)


def test_the_profile_is_part_of_what_identifies_an_experiment() -> None:
    prints = {Experiment(workers=3, profile=profile).fingerprint for profile in PROFILES}
    assert len(prints) == len(PROFILES)


def _documented() -> list[tuple[str, str, str]]:
    """Table, key and default of every row of the documentation that has a default which can be typed."""
    text = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
    found = []
    for table, section in re.findall(r"(^# |The table `\[\w+\]`)(.*?)(?=The table `|\Z)", text, re.DOTALL):
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `?([^|`]+)`? \|", section.split("\n## V")[0], re.MULTILINE)
        name = "".join(re.findall(r"\[(\w+)\]", table))
        found += [(name, key, default) for keys, default in rows for key in re.findall(r"\w+", keys)]
    return [row for row in found if re.fullmatch(r'[\d.e+-]+|"[^"]*"|true|false|\[.*\]', row[2])]


def test_the_documentation_has_defaults_of_all_tables() -> None:
    assert len(_documented()) >= 40
    assert {table for table, _, _ in _documented()} == {"", "federation", "profile", "split"}


@pytest.mark.parametrize(("table", "key", "default"), _documented())
def test_a_default_that_is_given_changes_nothing(table: str, key: str, default: str) -> None:
    head = f"[{table}]\n" if table else ""
    given = build(tomllib.loads(f"{head}{key} = {default}"))
    assert given.fingerprint == Experiment().fingerprint
    assert given == Experiment()


def test_what_is_said_of_one_thing_changes_no_other() -> None:
    plain = Experiment().model_dump()
    for change in ({"strategies": ["fedavg"]}, {"profile": {"latency": 1}}, {"federation": {"rounds": 7}}):
        changed = build(change).model_dump()
        assert {key for key in plain if changed[key] != plain[key]} == set(change)
        for key in change.keys() - {"strategies"}:
            assert {one for one in plain[key] if changed[key][one] != plain[key][one]} == set(change[key])  # type: ignore[call-overload, attr-defined]


@pytest.mark.parametrize(
    ("settings", "user"),
    [
        ({"federation": {"cohort": 11}}, "fedavg"),
        ({"federation": {"minimum": 11}}, "fedbuff"),
        ({"workers": 1, "split": {"delays": "stragglers:count=2"}}, "psl"),
    ],
)
def test_a_familys_table_is_checked_only_if_it_is_used(settings: dict[str, object], user: str) -> None:
    build({**settings, "strategies": ["local-sgd:period=2"]})
    with pytest.raises(UsageError, match=r"of 1[0 ]"):
        build({**settings, "strategies": ["local-sgd:period=2", user]})


def test_the_models_own_type_is_no_other_precision() -> None:
    assert Experiment(dtype="float64", precision="float64") == Experiment(dtype="float64")
    assert Experiment(topology="star", precision="bfloat16").precision == "bfloat16"


def test_the_selection_on_a_star_leaves_out_what_needs_a_ring() -> None:
    labels = [label for label in DEFAULT_STRATEGIES if not label.startswith("hadfl")]
    assert list(Experiment(topology="star").strategies) == labels
    assert len(labels) == len(DEFAULT_STRATEGIES) - 1


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
            "unknown [profile] key 'bandwith': did you mean 'bandwidth'? choose one of bandwidth, compute, down",
        ),
        (
            {"profile": {"outages": [{"worker": 0, "at": 1}, {"worker": 1, "at": 1, "til": 2}]}},
            "unknown [profile.outages] key 'til': did you mean 'until'? choose one of at, until, worker",
        ),
        ({"profile": {"power": "2:1"}}, "profile: power has 2 numbers for 10 workers; give one for each"),
        ({"profile": {"outages": [{"worker": 10, "at": 1}]}}, "profile: outages name worker 10 of 10; the last is 9"),
        ({"profile": 3}, "profile: Input should be a dictionary"),
        ({"federation": {"epochs": 0}}, "federation.epochs: Input should be greater than or equal to 1, got 0"),
        ({"federation": {"epochs": 1, "steps": 1}}, "federation: give either epochs or steps of local work, not both"),
        (
            {"strategies": ["fedavg"], "federation": {"cohort": 11}},
            "federation: a cohort of 11 out of 10 clients; select at most all of them",
        ),
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


def test_the_documentation_says_what_presets_set() -> None:
    text = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
    for name in PRESETS.entries:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |")).split("|")[2]
        said = {
            key: float(value)
            for keys, value in re.findall(r"((?:`\w+`(?: and )?)+) ([0-9.e-]+)", row)
            for key in re.findall(r"\w+", keys.replace(" and ", " "))
        }
        assert said == pytest.approx(PRESETS.build(name), rel=1e-3)


def test_the_documented_profile_is_one_of_an_experiment() -> None:
    text = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
    example = text.split("```toml\n")[2].split("```")[0]
    profile = build(tomllib.loads(example)).profile
    assert (profile.preset, profile.power, len(profile.outages), profile.down) == ("phones-4g", "4:2:2:1", 2, 0.75e6)


def test_the_documented_example_is_an_experiment() -> None:
    text = (Path(__file__).parents[2] / "docs/experiments.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    assert build(tomllib.loads(example)).federation == Federation(
        rounds=200, cohort=10, epochs=2, optimizer="sgd:lr=0.05"
    )
