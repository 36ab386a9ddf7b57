"""attach: a strategy in a training loop of the user's own, under torchrun and alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsync
from processes import GIVEN_UP
from sparsync import FDA, LocalSGD, UsageError

LOOP = Path(__file__).with_name("loop.py")
# Net: first 72 (its weight is shared), shared bias 8, norm 16, unused 27, last 18
TRAINED = 72 + 8 + 16 + 27 + 18


def run(torchrun, case: str, folder: Path) -> list[dict]:
    done = torchrun(2, LOOP, case, folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    "case", ["fda", pytest.param("sketch", marks=pytest.mark.slow), "local", "gradients", "resume"]
)
def test_workers_end_with_one_model(torchrun, tmp_path, case):
    first, second = run(torchrun, case, tmp_path)
    assert first["d"] == TRAINED
    assert first["syncs"] >= 2
    assert first["model"] == second["model"]
    assert first["buffers"] == second["buffers"]
    assert first["booked"] == second["booked"] > 0
    assert first["frozen_kept"]
    assert second["frozen_kept"], "frozen parameters are never sent"
    if case == "resume":
        assert first["resumed_steps"] == 25


def test_a_rank_that_leaves_early_is_named(torchrun, tmp_path):
    waiting, left = run(torchrun, "early", tmp_path)
    assert "error" not in left
    assert waiting["error"].startswith("rank 1 left the loop after 7 optimiser steps, this rank waits at 8")
    assert "equally many batches" in waiting["error"]


def test_the_example_runs():
    """By torchrun itself, and so with processes that import everything."""
    example = Path(__file__).parents[2] / "examples/attach.py"
    assert len(example.read_text().splitlines()) <= 60
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(example)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIVEN_UP)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    data = torch.Generator().manual_seed(1)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(3, 4, generator=data)).square().sum().backward()
        optimizer.step()


def test_alone_it_changes_nothing():
    """Without a process group there is nobody to average with: the loop's own result, bit for bit."""
    plain, attached = net(), net()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9))
    optimizer = torch.optim.SGD(attached.parameters(), lr=0.1, momentum=0.9)
    with sparsync.attach(attached, optimizer, LocalSGD(period=2)) as sync:
        train(attached, optimizer)
    assert sync.syncs == 3
    assert sync.ledger.total == 0
    assert torch.equal(plain.weight, attached.weight)
    train(attached, optimizer)
    assert sync.steps == 6, "after the block the hook is gone"


REFUSED = [
    (lambda m: m.register_parameter("z", nn.Parameter(torch.zeros(2, dtype=torch.complex64))), "'z' is complex"),
    (lambda m: m.register_parameter("z", nn.Parameter(torch.zeros(2, 2).to_sparse())), "'z' is sparse"),
    (lambda m: m.register_parameter("z", nn.Parameter(torch.zeros(2, device="meta"))), "'z' is on the meta device"),
    (lambda m: setattr(m, "z", nn.LazyLinear(3)), "'z.weight' has no shape yet"),
    (lambda m: m.requires_grad_(False), "no trainable parameters"),
]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_averaged_is_refused(spoil, message):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    spoil(model)
    with pytest.raises(UsageError, match=message):
        sparsync.attach(model, optimizer, FDA(threshold=1.0))


def test_an_unknown_spec_is_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="unknown strategy"):
        sparsync.attach(model, optimizer, "fdaa")


def test_state_before_the_block_is_refused():
    model = net()
    sync = sparsync.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), LocalSGD(period=2))
    with pytest.raises(UsageError, match="nothing to save before"):
        sync.state_dict()


class _Wrapper:
    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def step(self) -> None:
        self.inner.step()


class _Heir(torch.optim.Optimizer):
    """As some trainers hand out: an Optimizer by type, whose own step runs no hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def step(self, closure: Any = None) -> None:
        self.inner.step()


@pytest.mark.parametrize("wrapper", [_Wrapper, _Heir])
def test_what_runs_no_step_hooks_is_refused_by_its_type(wrapper: Any) -> None:
    model = torch.nn.Linear(2, 2)
    wrapped = wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UsageError, match=wrapper.__name__):
        sparsync.attach(model, wrapped, "local-sgd:period=2")
