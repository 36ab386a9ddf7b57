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
