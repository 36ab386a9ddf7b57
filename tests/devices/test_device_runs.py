"""HADFL on real machines where nothing fails: who sends what, and that it is what the simulation does."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from failing import Plot
from safetensors.numpy import load_file

from sparsync.comparison import compare
from sparsync.engines.devices.messages import LAST_STEP, ModelChunk
from sparsync.experiment import build
from sparsync.hetero import RingPlan
from sparsync.settings import read
from sparsync.wire import HEADER_BYTES, Dense

TAG_BYTES = 16
HADFL = "unit=4,max_units=1,members={members},backup_every={backup_every}"


def train(run, *options):
    run.coordinate(*options)
    run.devices()
    assert not any(run.end().values()), run.said()
    assert not run.lost()
    run.check()


def test_the_ring_weights_by_samples(field):
    run = field(
        HADFL.format(members=3, backup_every=1) + ",weights=samples",
        workers=3,
        more='partition = "dirichlet:alpha=0.5"',
    )
    train(run)
    assert len(run.adopted()) > 3
    counts = np.sum(json.loads((run.out / "partition.json").read_text())["counts"], axis=1)
    assert len(set(counts)) == 3


@pytest.mark.parametrize("members", [2, 3])
def test_bytes_are_those_of_the_ring_and_of_broadcasts(field, members):
    """At the devices' sockets; the coordinator books them, and beside them only the first models and one backup."""
    run = field(HADFL.format(members=members, backup_every=1000), workers=3, steps=24)
    train(run)
    numel = len(next(iter(next(iter(run.rings().values())).values())))
    model = len(ModelChunk((1, 0, LAST_STEP), torch.zeros(numel)).pack(Dense("float32")))
    assert model == HEADER_BYTES + TAG_BYTES + 4 * numel
    sent, received = np.zeros(3, np.int64), np.zeros(3, np.int64)
    plan = RingPlan(members, numel)
    around = plan.floats_sent * 4 + plan.steps * (HEADER_BYTES + TAG_BYTES)
    rings = run.history("cycle")
    for line in rings:
        ring, others = np.array(line["ring"]), sorted(set(range(3)) - set(line["ring"]))
        sent[ring] += around
        received[ring] += np.roll(around, 1)
        sent[line["broadcaster"]] += len(others) * model
        received[others] += model
    ended = [run.log(number, "ended")[0] for number in range(3)]
    assert [line["sent"] for line in ended] == sent.tolist()
    last = [0 if number in rings[-1]["ring"] else model for number in range(3)]  # it may be told to end before that
    assert all(
        want - may <= line["received"] <= want for line, want, may in zip(ended, received.tolist(), last, strict=True)
    )
    (result,) = json.loads((run.out / "summary.json").read_text())["results"]
    assert result["bytes"]["model"] == sent.sum() + 3 * model + model


def test_it_is_what_the_simulation_does(field, tmp_path):
    """Steps are capped, and cycles long enough for everybody to take all: the same rings, and the same mean."""
    run = field(HADFL.format(members=4, backup_every=1), steps=16, more="[profile]\nbandwidth = inf\nlatency = 0.0")
    run.slower = 300.0
    train(run)
    said = {**read(run.file), "processes": 1}
    simulated = tmp_path / "simulated"
    compare(build(said, ""), simulated)
    lines = [json.loads(line) for line in (simulated / "history.jsonl").read_text().splitlines()]
    cycles = [line for line in lines if line["kind"] == "cycle"]
    assert len(cycles) == len(run.history("cycle")) == 3
    for one, other in zip(run.history("cycle"), cycles, strict=True):
        for key in ("step", "cycle", "ring", "broadcaster", "available", "versions", "units", "expected", "predicted"):
            assert one[key] == other[key], key
    mine, theirs = (load_file(next((folder / "models").iterdir())) for folder in (run.out, simulated))
    for name, values in theirs.items():
        assert np.abs(mine[name] - values).max() <= 1e-6
    final = run.adopted()[3, 0]
    assert len(set(final.values())) == 1
    assert {line["accuracy"] for line in run.history("evaluation")[-1:]} == {
        line["accuracy"] for line in lines if line["kind"] == "evaluation" and line["step"] == 16
    }


def test_versions_are_the_steps_that_were_trained(field):
    """They never fall, and neither averaging nor merging alters them."""
    run = field(HADFL.format(members=2, backup_every=2))
    train(run)
    for number in range(run.workers):
        seen = [line["versions"][line["available"].index(number)] for line in run.history("cycle")]
        assert all(later >= earlier for earlier, later in pairwise(seen))
        assert run.log(number, "ended")[0]["version"] >= seen[-1]


def test_devices_on_this_machine_outlive_their_coordinator(field):
    """Started by it, and not again by the one that takes over; nobody is left in the end. The folder has a space."""
    run = field("unit=4,backup_every=1", workers=2, steps=10**6)
    run.out = run.folder / "a run"
    run.coordinate("--here", "--slowdown", 4, plot=Plot("planned", cycle=3))
    run.wait(lambda: run.ended("coordinator"), "the coordinator's end")
    before = run.others()
    assert len(before) == 2
    run.resume()
    run.wait(lambda: run.history("cycle")[-1]["cycle"] > 5, "cycles")
    assert run.others() == before
    run.enough()
    assert run.end() == {"coordinator": 0}, run.said()
    run.wait(lambda: not run.others(), "the devices' end")
    assert not run.lost()
