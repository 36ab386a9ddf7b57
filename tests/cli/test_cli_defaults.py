"""One set of defaults: a flag at its documented default changes nothing, and the demo's settings are its file's."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from sparsync import comparison
from sparsync.__main__ import main
from sparsync.cli import app
from sparsync.experiment import DEFAULT_STRATEGIES, Experiment, build
from sparsync.settings import read

ROOT = Path(__file__).parents[2]


def _documented() -> list[tuple[str, str]]:
    """Flags of ``compare`` with the default that their help gives, where it is one that can be typed."""
    group: Any = typer.main.get_command(app)
    found = []
    for flag in group.commands["compare"].params:
        default = re.search(r"Default: ([a-z0-9.:=]+)\.$", getattr(flag, "help", None) or "")
        if default and default[1] not in ("yes", "all"):
            found.append((flag.opts[0], default[1]))
    return found


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Return the experiment that ``sparsync compare ARGUMENTS`` would run."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Experiment:
        asked: list[Experiment] = []

        def note(experiment: Experiment, *_: object) -> None:
            asked.append(experiment)
            sys.exit(0)

        monkeypatch.setattr(comparison, "compare", note)
        monkeypatch.setattr(sys, "argv", ["sparsync", "compare", *arguments])
        with pytest.raises(SystemExit):
            main()
        return asked[0]

    return run


def test_the_flags_document_their_defaults():
    assert {"--rounds", "--participation", "--epochs", "--client-optimizer", "--workers", "--topology"} <= {
        flag for flag, _ in _documented()
    }


def test_a_flag_at_its_default_changes_nothing(made):
    plain = made()
    assert plain == Experiment()
    for flag, default in _documented():
        assert made(flag, default).fingerprint == plain.fingerprint, flag
        chosen = made("--strategy", "fedavg", flag, default)
        assert chosen == made("--strategy", "fedavg"), flag


def test_strategies_and_data_of_ones_own_change_no_other_default(made):
    plain = Experiment().model_dump(exclude={"strategies", "data", "model"})
    own = made("--strategy", "fedavg", "--data", "npz", "--model", "logistic")
    assert own.model_dump(exclude={"strategies", "data", "model"}) == plain


@pytest.mark.parametrize("workers", ["1", "2"])
def test_few_workers_meet_no_refusal_of_a_family_that_is_not_compared(made, workers):
    assert made("--workers", workers, "--strategy", "local-sgd:period=2", "--cohort", "5").federation.cohort == 5


@pytest.mark.parametrize("given", ["²", "9" * 5000, "0x10"])
def test_processes_that_are_no_number_are_one_line(monkeypatch, capsys, given):
    monkeypatch.setattr(sys, "argv", ["sparsync", "compare", "--processes", given])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "processes" in said
    assert len(said.splitlines()) == 1


def test_the_demo_is_a_file_with_a_target():
    demo = build(read(ROOT / "examples/demo.toml"))
    assert demo.strategies == DEFAULT_STRATEGIES
    assert demo.target is not None
    assert "compare examples/demo.toml" in (ROOT / "Makefile").read_text()


def test_every_key_has_a_flag_or_is_reached_by_set(made):
    """The flag, `--set` and the file say the same."""
    flag = made("--steps", "7", "--client-optimizer", "sgd:lr=0.5", "--no-stop-at-target", "--seconds", "2.5")
    other = made(
        *("--set", "steps=7", "--set", "federation.optimizer=sgd:lr=0.5", "--set", "stop_at_target=false"),
        *("--set", "seconds=2.5"),
    )
    assert flag == other
    assert (other.steps, other.federation.optimizer, other.stop_at_target) == (7, "sgd:lr=0.5", False)
    reached = made("--set", "split.epochs=5", "--set", "profile.power=[2, 1]", "--set", "workers=2")
    assert (reached.split.epochs, reached.profile.power, reached.workers) == (5, [2, 1], 2)
    assert made("--set", 'strategies=["fedavg"]').strategies == {"fedavg": "fedavg"}


def test_set_overrides_a_file_and_what_it_says_instead(made, tmp_path):
    file = tmp_path / "said.toml"
    file.write_text('workers = 4\nstrategies = ["fedavg"]\n[federation]\nparticipation = 0.5\nsteps = 3\n')
    found = made(str(file), "--set", "federation.cohort=3", "--epochs", "2")
    assert (found.federation.cohort, found.federation.participation) == (3, None)
    assert (found.federation.epochs, found.federation.steps) == (2, None)
    assert made(str(file)).federation.participation == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "expected KEY=VALUE"),
        ("stepps=3", "unknown key 'stepps': did you mean 'steps'?"),
        ("federation.round=3", "unknown [federation] key 'round': did you mean 'rounds'?"),
        ("fed.rounds=3", "unknown table 'fed': choose one of federation, split, profile"),
        ("federation=3", "unknown key 'federation'"),
        ("split.epochs=many", "split.epochs"),
        ("steps=" + "9" * 5000, "steps"),
        ("=3", "unknown key ''"),
        ("steps=1\nworkers = 2", "steps"),
        ("strategies=" + "[" * 5000, "strategies"),
        ("stepps" * 1000 + "=3", "..."),
        ("profile.outages.worker=3", "unknown table 'profile.outages'"),
    ],
)
def test_a_mistake_in_set_is_one_line(monkeypatch, capsys, text, message):
    monkeypatch.setattr(sys, "argv", ["sparsync", "compare", "--strategy", "psl", "--set", text])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err.splitlines()
    assert message in shown[-1]
    assert len([line for line in shown if line.startswith("sparsync: ")]) == 1


def test_a_flag_and_set_for_one_key_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sparsync", "compare", "--steps", "3", "--set", "steps=4"])
    with pytest.raises(SystemExit):
        main()
    assert "--set steps: its flag is given, too" in capsys.readouterr().err
