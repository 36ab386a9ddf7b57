"""Server optimisers: steps by hand from given means, FedAvg as a limit, and state in a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.federated import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Upload
from sparsync.strategies import STRATEGIES

MEANS = [(1.0, -2.0), (0.5, -0.5), (3.0, 0.25)]  # what the clients' mean is in three rounds, for two parameters
ALL = ["fedavgm", "fedadam", "fedyogi", "fedadagrad"]


@pytest.fixture
def stepped(pulls):
    """Global models after each round in which the clients' mean is what `MEANS` says."""

    def run(strategy):
        state = pulls(strategy, [[(0, 0)], [(0, 0)]]).state
        models = []
        for round_, mean in enumerate(MEANS):
            state.downlink(round_)
            apart = torch.tensor([0.5, -0.25])
            uploads = [state.up.encode(torch.tensor(mean) + apart), state.up.encode(torch.tensor(mean) - apart)]
            state.aggregate(round_, iter([Upload(client, upload) for client, upload in enumerate(uploads)]))
            models.append(state.model().tolist())
        return models

    return run


def by_hand(step):
    """Models after each round, from w = 0, by a rule for one number: (w, g, t, memory) -> w."""
    models, weights, memories = [], [0.0, 0.0], [{}, {}]
    for t, mean in enumerate(MEANS, 1):
        weights = [step(w, w - m, t, memory) for w, m, memory in zip(weights, mean, memories, strict=True)]
        models.append(weights)
    return models


def test_fedavgm_by_hand(stepped):
    def step(w, g, t, memory):
        memory["v"] = 0.9 * memory.get("v", 0.0) + g
        return w - 0.5 * memory["v"]

    assert stepped(FedAvgM(lr=0.5, momentum=0.9)) == [pytest.approx(row, abs=1e-6) for row in by_hand(step)]


def test_fedavgm_in_literal_numbers(stepped):
    """lr 1, momentum 1/2: 1; then g = 0.5, v = -1 / 2 + 0.5 = 0, so it stays; then g = -2, v = -2."""
    models = stepped(FedAvgM(lr=1, momentum=0.5))
    assert [row[0] for row in models] == pytest.approx([1, 1, 3])


def test_fedadam_by_hand_as_torch_has_it(stepped):
    """Moments corrected for their start at 0, tau outside the root."""

    def step(w, g, t, memory):
        memory["m"] = 0.8 * memory.get("m", 0.0) + 0.2 * g
        memory["v"] = 0.95 * memory.get("v", 0.0) + 0.05 * g**2
        m, v = memory["m"] / (1 - 0.8**t), memory["v"] / (1 - 0.95**t)
        return w - 0.1 * m / (math.sqrt(v) + 0.01)

    strategy = FedAdam(lr=0.1, beta1=0.8, beta2=0.95, tau=0.01)
    assert stepped(strategy) == [pytest.approx(row, abs=1e-6) for row in by_hand(step)]


def test_fedadams_first_step_is_its_rate_in_every_coordinate(stepped):
    assert stepped(FedAdam(lr=0.1, tau=1e-6))[0] == pytest.approx([0.1, -0.1], abs=1e-6)


def test_fedadagrad_by_hand(stepped):
    def step(w, g, t, memory):
        memory["v"] = memory.get("v", 0.0) + g**2
        return w - 0.1 * g / (math.sqrt(memory["v"]) + 0.01)

    assert stepped(FedAdagrad(lr=0.1, tau=0.01)) == [pytest.approx(row, abs=1e-6) for row in by_hand(step)]


def test_fedyogi_by_hand_as_the_paper_has_it(stepped):
    """Delta = mean - w; v starts at tau^2; no correction of the moments."""

    def step(w, g, t, memory):
        delta = -g
        memory["m"] = 0.8 * memory.get("m", 0.0) + 0.2 * delta
        v = memory.get("v", 0.01**2)
        memory["v"] = v - 0.05 * delta**2 * math.copysign(1, v - delta**2)
        return w + 0.1 * memory["m"] / (math.sqrt(memory["v"]) + 0.01)

    strategy = FedYogi(lr=0.1, beta1=0.8, beta2=0.95, tau=0.01)
    assert stepped(strategy) == [pytest.approx(row, abs=1e-6) for row in by_hand(step)]


def test_rate_one_without_momentum_is_fedavg(federation):
    plain, momentum = federation(FedAvg(), cohort=3), federation(FedAvgM(lr=1, momentum=0), cohort=3)
    assert torch.allclose(plain.run(3), momentum.run(3), atol=1e-6)


def normed(shape, classes):
    return nn.Sequential(nn.Linear(*shape, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))


@pytest.mark.parametrize("name", ALL)
def test_buffers_are_averaged_not_stepped(federation, name):
    plain, adaptive = (federation(spec, model=normed) for spec in ("fedavg", name))
    d = plain.runtime.vector.d
    one, other = plain.run(1), adaptive.run(1)
    assert torch.equal(one[d:], other[d:])
    assert (name == "fedavgm") == torch.allclose(one[:d], other[:d], atol=1e-6)  # whose first step is FedAvg's


@pytest.mark.parametrize("name", ALL)
def test_the_optimisers_state_survives_a_checkpoint(federation, tmp_path, name):
    whole = federation(name).run(5)
    first = federation(name)
    first.run(3)
    save_tree(first.loop.state_dict(), tmp_path / "state")
    second = federation(name)
    second.loop.load_state_dict(load_tree(tmp_path / "state"))
    assert torch.equal(second.run(2), whole)
    forgetful = federation(name)
    forgetful.loop.load_state_dict(load_tree(tmp_path / "state"))
    forgetful.state.optimizer.state.clear()
    assert not torch.equal(forgetful.run(2), whole)  # so there was something to survive


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fedavgm:lr=0", "strategy 'fedavgm': lr: Input should be greater than 0"),
        ("fedavgm:momentum=1", "momentum: Input should be less than 1"),
        ("fedadam:tau=0", "strategy 'fedadam': tau: Input should be greater than 0"),
        ("fedyogi:beta2=1", "beta2: Input should be less than 1"),
        ("fedadagrad:lr=inf", "lr: Input should be a finite number"),
        ("fedadagrad:beta1=0.9", "its parameters are uplink, downlink, lr, tau"),
    ],
)
def test_mistakes(spec, says):
    with pytest.raises(ValueError) as caught:
        STRATEGIES.build(spec)
    assert says in str(caught.value)
