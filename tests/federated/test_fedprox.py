"""FedProx: the pull by hand, and FedAvg as its limit."""

from __future__ import annotations

import pytest
import torch

from sparsync.federated import FedAvg, FedProx
from sparsync.strategies import STRATEGIES


def test_without_pull_it_is_fedavg_bit_for_bit(federation):
    options = {"epochs": 2, "cohort": 3, "optimizer": "sgd:lr=0.2,momentum=0.9"}
    assert torch.equal(federation(FedProx(mu=0), **options).run(4), federation(FedAvg(), **options).run(4))


def test_two_steps_by_hand(pulls):
    """Towards 4 at rate 1/2 with mu = 1: 0, then 2 by -4, and there the pulls of -2 and +2 balance."""
    assert pulls(FedProx(mu=1), [[(4, 0)]], steps=1).run(1).tolist() == [2, 0]
    assert pulls(FedProx(mu=1), [[(4, 0)]], steps=2).run(1).tolist() == [2, 0]
    assert pulls(FedProx(mu=0.5), [[(4, 0)]], steps=2).run(1).tolist() == [2.5, 0]  # 2 - (-2 + 1) / 2
    assert pulls(FedAvg(), [[(4, 0)]], steps=2).run(1).tolist() == [3, 0]


def test_the_anchor_is_the_model_received(pulls):
    """The second round starts at 2.5 and is pulled back there: 2.5 + 0.75, then 3.25 - (-0.75 + 0.375) / 2."""
    assert pulls(FedProx(mu=0.5), [[(4, 0)]], steps=2).run(2).tolist() == [3.4375, 0]


def test_the_anchor_is_what_arrived_through_a_lossy_download(pulls):
    """bf16 rounds 2.00390625 to 2: a client that starts there, with mu huge, is not pulled to anywhere else."""
    made = pulls(FedProx(mu=1.9, downlink="bf16"), [[(2, 0)]], steps=5)
    made.state.weights = torch.tensor([2.00390625, 0.0])
    assert made.run(1).tolist() == [2, 0]


def test_a_strong_pull_keeps_clients_near(federation):
    far = federation(FedAvg(), epochs=5)
    near = federation(FedProx(mu=5), epochs=5)  # lr mu = 1/2
    start = far.server.initial
    assert float((near.run(1) - start).norm()) < 0.5 * float((far.run(1) - start).norm())


@pytest.mark.parametrize("mu", ["-1", "nan", "inf"])
def test_mu_out_of_range(mu):
    with pytest.raises(ValueError, match="strategy 'fedprox': mu: Input should be"):
        STRATEGIES.build(f"fedprox:mu={mu}")
