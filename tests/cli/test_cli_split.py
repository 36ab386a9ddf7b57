"""Split strategies on the command line, with a table [split] in a file: what works, and one line for a mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sparsync.__main__ import main


@pytest.fixture
def compare(monkeypatch, capsys, tmp_path):
    """Run ``sparsync compare`` in this process on a file: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(top: str, split: str = "") -> tuple[int, str, str]:
        text = f"workers = 4\nprocesses = 1\n{top}\n[split]\n{split}\n"
        Path("experiment.toml").write_text(text)
        monkeypatch.setattr(sys, "argv", ["sparsync", "compare", "experiment.toml", "--no-report", "--out", "run"])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


PSL = "strategies = ['psl']"


@pytest.mark.parametrize(
    ("top", "split", "message"),
    [
        (PSL, "cut = 'layer9'", "cut before 'layer9': the Sequential has no such module. Cuts that work: relu1, fc"),
        (f"{PSL}\nmodel = 'mlp:depth=3'", "cut = 'fc4'", "Cuts that work: relu1, fc2, relu2, fc3, relu3, fc"),
        (f"{PSL}\nmodel = 'logistic'", "", "the Sequential has no second layer with weights before which"),
        (f"{PSL}\nmodel = 'resnet8:width=4'", "cut = 'layer1'", "the bottom has a BatchNorm2d, 'norm1', which"),
        (PSL, "bottom_norm = 'layer'", "split.bottom_norm: Input should be 'group', got 'layer'"),
        (PSL, "batch_size = 5000", "batch_size=5000; expected an integer from 1 to 1438, all the clients' samples"),
        (PSL, "batch_size = 0", "split.batch_size: Input should be greater than or equal to 1"),
        (PSL, "epochs = 0", "split.epochs: Input should be greater than or equal to 1"),
        (PSL, "epoch = 3", "unknown [split] key 'epoch': did you mean 'epochs'?"),
        (PSL, "optimizer = 'adm'", "split: unknown optimizer 'adm': did you mean 'adam'?"),
        (PSL, "schedule = 'cosine'", "steps: Field required"),
        (PSL, "delays = 'constant:seconds=-1'", "seconds: Input should be greater than or equal to 0"),
        (PSL, "delays = 'stragglers:count=5'", "count=5 of 4 clients; ask for at most all of them"),
        (PSL, "delays = 'straglers'", "unknown delays 'straglers': did you mean 'stragglers'?"),
        (PSL, "deadline = -1", "split.deadline: Input should be greater than 0"),
        ("strategies = ['psl:sampler=lsd']", "", "sampler: unknown sampler 'lsd': did you mean 'lds'?"),
        ("strategies = ['psl:sampler=lds,strength=-1']", "", "strength: Input should be greater than or equal to 0"),
        ("strategies = ['psl:sampler=lds,sample_size=2000']", "", "lds: sample_size=2000; expected an integer"),
        ("strategies = ['psl:delays=guessed']", "", "delays: Input should be 'known' or 'measured', got 'guessed'"),
        ("strategies = ['psl:labels=both']", "", "labels: Input should be 'server' or 'clients', got 'both'"),
        ("strategies = ['psl:uplink=zip']", "", "chain 'zip': unknown codec 'zip'"),
        ("strategies = ['psl:downlink=ef(topk(0.1))']", "", "error feedback has no meaning for activations"),
        ("strategies = ['splitfed:version=3']", "", "version: Input should be less than or equal to 2, got '3'"),
        ("strategies = ['splitfed:sampler=ugs']", "", "strategy 'splitfed' has no parameter 'sampler'"),
        ("strategies = ['centralized']", "", "unknown strategy 'centralized': did you mean 'centralised'?"),
    ],
    ids=lambda value: value[-50:],
)  # fmt: skip
def test_a_mistake_is_one_clear_line_and_a_non_zero_exit(compare, top, split, message):
    status, _, said = compare(top, split)
    assert status != 0
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert "Traceback" not in said


def test_samplers_side_by_side(compare):
    strategies = "['psl', 'lds=psl:sampler=lds,strength=1', 'psl:sampler=fls,uplink=q8', 'splitfed', 'centralised']"
    top = f"strategies = {strategies}\npartition = 'dirichlet:alpha=0.3'\nmodel = 'mlp:hidden=16'"
    split = "batch_size = 60\nepochs = 2\noptimizer = 'sgd:lr=0.3'\ndelays = 'stragglers:seconds=0.1'"
    status, shown, said = compare(top, split)
    assert status == 0, said
    summary = json.loads(Path("run/summary.json").read_text())
    ugs, lds, fls, fed, central = summary["results"]
    assert "lds" in shown
    assert all(one["epochs"] == 2 and one["error"] is None and one["accuracy"] > 0.3 for one in summary["results"])
    assert ugs["steps"] == lds["steps"] == central["steps"] == 2 * 24
    assert fls["steps"] == fed["steps"] > ugs["steps"]  # the tail
    assert lds["seconds"] < ugs["seconds"]  # its straggler is in fewer batches
    assert fls["bytes"]["activation"] < ugs["bytes"]["activation"] / 3
    assert fls["paper_bytes"]["label"] == ugs["paper_bytes"]["label"] == 2 * 8 * 1438
    assert ugs["paper_bytes"]["activation"] == 2 * 4 * 16 * 1438
    assert central["bytes"] == {"total": 0}
    assert "model" in fed["bytes"]


def test_a_batch_norm_below_the_cut_can_be_replaced(compare):
    top = f"{PSL}\ndata = 'pictures:few'\nmodel = 'resnet8:width=4'"
    Path("pictures.py").write_text(
        "import numpy as np\nfrom sparsync import from_arrays\n\ndef few(_):\n"
        "    x = np.random.default_rng(0).normal(size=(24, 1, 8, 8)).astype('f4')\n"
        "    return from_arrays(x, np.arange(24) % 3, x, np.arange(24) % 3)\n"
    )
    status, _, said = compare(top, "cut = 'layer2'\nbottom_norm = 'group'\nbatch_size = 8\nepochs = 2\ndeadline = 1")
    assert status == 0, said
    (one,) = json.loads(Path("run/summary.json").read_text())["results"]
    assert one["steps"] == 6
