"""Names: what is listed, what is registered from outside, and parameters of functions of the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import sparsync
from sparsync import registries
from sparsync.errors import UsageError
from sparsync.experiment import Experiment
from sparsync.spec import Registry
from sparsync.task import build_model, load_dataset

HERE = Path(__file__).parent
OWN = "own_names"


@pytest.fixture
def outside(monkeypatch):
    """What is registered meanwhile is forgotten afterwards."""
    monkeypatch.syspath_prepend(HERE)
    for registry in vars(registries).values():
        if isinstance(registry, Registry):
            monkeypatch.setattr(registry, "entries", dict(registry.entries))
    yield
    sys.modules.pop(OWN, None)


def test_the_version_is_that_of_the_package(cli):
    assert cli("--version") == (0, f"sparsync {sparsync.__version__}\n", "")
    assert sparsync.__version__[0].isdigit()


@pytest.mark.parametrize(
    "command", [(), ("compare",), ("resume",), ("coordinate",), ("device",), ("report",), ("list",)]
)
def test_help_has_a_short_form_everywhere(cli, command):
    status, shown, _ = cli(*command, "-h")
    assert status == 0
    assert "--help" in shown


def test_every_kind_is_listed(cli):
    shown = cli("list")[1]
    for start in (
        "  topk: fraction (required)  ",
        "  q4: block=none, stochastic=False",
        "  linear  ",
        "  lds  ",
        "  torus  ",
    ):
        assert any(line.startswith(start) for line in shown.splitlines()), start
    for start in ("  stragglers: count=1, factor=10", "  phones-4g  Phones", "codecs", "profile presets"):
        assert any(line.startswith(start) for line in shown.splitlines()), start


def test_one_name_is_shown_in_full_with_what_its_bases_say(cli):
    status, shown, _ = cli("list", "gossip")
    assert status == 0
    assert "degree=3\n      Neighbours of each worker in a random regular graph." in shown
    assert "Samples that share" not in shown
    assert cli("list", "constant")[1].count("constant") >= 2  # a schedule, and delays
    status, _, said = cli("list", "gosip")
    assert status == 2
    assert "did you mean 'gossip'?" in said


@pytest.mark.usefixtures("outside")
def test_names_from_outside_are_listed(cli):
    assert "  largest: percent=10  Keep so many per cent." in cli("list", "--import", OWN)[1]
    assert "How many of a hundred numbers travel." in cli("list", "--import", OWN, "largest")[1]
    assert "cannot import 'nowhere_here'" in cli("list", "--import", "nowhere_here")[2]


@pytest.mark.usefixtures("outside")
def test_names_from_outside_are_used_like_any_other(cli):
    Path("own.toml").write_text(
        f"imports = ['{OWN}']\ndata = '{OWN}:blobs:n=60'\nmodel = '{OWN}:net:hidden=5,bias=false'\nworkers = 4\n"
        "processes = 1\nsteps = 4\neval_every = 2\n"
        "strategies = ['fda:threshold=3,monitor=always(value=5)', 'rare=fda:threshold=3,monitor=always', "
        "'gossip:graph=wheel', 'fedavg:uplink=largest(20)+q8', 'psl:sampler=whole(3)']\n"
        "[federation]\nrounds = 2\n[split]\nbatch_size = 8\nepochs = 1\ndelays = 'even:seconds=2'\n"
        "cut = '2'\n[profile]\npreset = 'moon'\n"
    )
    status, _, said = cli("compare", "own.toml", "--no-report", "--out", "run")
    assert status == 0, said
    often, rare, gossip, fedavg, psl = json.loads(Path("run/summary.json").read_text())["results"]
    assert (often["syncs"], rare["syncs"]) == (4, 0)
    assert gossip["error"] is None
    assert fedavg["bytes"]["mask"] > 0
    assert psl["steps"] == 3  # of 15 samples each, 6 at a time
    assert psl["seconds"] > 3 * 2
    assert often["seconds"] > 4 * 1.3


@pytest.mark.usefixtures("outside")
def test_an_optimiser_that_is_none_is_refused(cli):
    arguments = ("--import", OWN, "--optimizer", "no-optimizer", "--strategy", "synchronous", "--processes", 1)
    status, _, said = cli("compare", *arguments)
    assert status == 2
    assert "optimizer 'no-optimizer': it returned a NoneType" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.usefixtures("outside")
def test_ones_own_functions_take_parameters_by_name():
    assert build_model(f"{OWN}:net:hidden=7", (2,), 2)[1].out_features == 7
    assert build_model(f"{OWN}:Net:hidden=7", (2,), 2)[0].out_features == 7
    assert len(load_dataset(f"{OWN}:blobs:n=12").train) == 12


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": f"{OWN}:net:hiden=7"}, "has no parameter 'hiden': its parameters are shape, classes, hidden, bias"),
        ({"model": f"{OWN}:net:hidden=many"}, "hidden: Input should be a valid integer"),
        ({"model": f"{OWN}:net:bias=perhaps"}, "bias: Input should be a valid boolean"),
        ({"model": f"{OWN}:net:hidden"}, "expected name:key=value"),
        ({"data": f"{OWN}:blobs:root=here"}, "has no parameter 'root': its parameters are n"),
        ({"data": f"{OWN}:blobs:n=1.5"}, "n: Input should be a valid integer"),
        ({"strategies": ["fda:threshold=1,monitor=linear(3)"]}, "monitor 'linear' has no parameter '3'"),
        ({"strategies": ["gossip:graph=torus(x=1)"]}, "graph 'torus' has no parameter 'x'"),
        ({"strategies": ["psl:sampler=ugs(x=1)"]}, "sampler 'ugs' has no parameter 'x'"),
    ],
)
def test_wrong_parameters_are_one_line(settings, says):
    with pytest.raises(UsageError) as caught:
        Experiment(**settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
