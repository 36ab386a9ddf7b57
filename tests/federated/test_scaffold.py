"""SCAFFOLD: two clients by hand, its sum rule, and FedAvg in its first round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsync.federated import FedAvg, Scaffold, Upload
from sparsync.federated.context import TooFewUploads
from sparsync.strategies import STRATEGIES

TWO = [[(4, 0)], [(-2, 0)]]  # minima of two clients; that of their mean is at 1


def controls(made, clients):
    nothing = {"control": torch.zeros(made.runtime.vector.d)}
    return torch.stack([made.runtime.memories.get(client, nothing)["control"] for client in range(clients)])


def test_two_rounds_by_hand(pulls):
    """Rate 1/2, two steps: to 3 and -1.5 in round 1, with c_i = (x - y_i) / (2 / 2); see the arithmetic below."""
    made = pulls(Scaffold(), TWO, steps=2)
    assert made.run(1).tolist() == [0.75, 0]
    assert controls(made, 2)[:, 0].tolist() == [-3, 1.5]
    assert made.state.control.tolist() == [-0.75, 0]
    # Client 0 now adds c - c_0 = 2.25 to its gradients: 0.75 to 1.25 to 1.5; client 1 adds -2.25: to 0.5 to 0.375.
    assert made.run(1).tolist() == [0.9375, 0]
    assert controls(made, 2)[:, 0].tolist() == [-3, 2.625]  # c_i - c + (x - y_i) / 1
    assert made.state.control.tolist() == [-0.1875, 0]


def test_unlike_fedavg_it_ends_where_the_mean_is_smallest(pulls):
    """Minima at 4 and -2, but client 0 takes twice the steps of client 1 (two batches): FedAvg is drawn to it."""
    points, work = [[(4, 0), (4, 0)], [(-2, 0)]], {"batch_size": 1, "epochs": 1, "weights": "uniform"}
    scaffold, plain = pulls(Scaffold(), points, **work).run(60), pulls(FedAvg(), points, **work).run(60)
    assert scaffold[0].item() == pytest.approx(1, abs=1e-4)
    assert plain[0].item() > 1.5


def test_its_first_round_is_fedavgs(federation):
    options = {"epochs": 3, "cohort": 4}
    assert torch.equal(federation(Scaffold(), **options).run(1), federation(FedAvg(), **options).run(1))
    assert not torch.equal(federation(Scaffold(), **options).run(2), federation(FedAvg(), **options).run(2))


@pytest.mark.parametrize("weights", ["uniform", "samples"])
@pytest.mark.parametrize("cohort", [6, 2])
def test_c_is_always_the_mean_of_all_clients_variates(federation, weights, cohort):
    sizes = [5, 10, 20, 30, 45, 70]
    made = federation(Scaffold(), sizes=sizes, weights=weights, cohort=cohort)
    shares = torch.tensor(sizes) / 180 if weights == "samples" else torch.full((6,), 1 / 6)
    for _ in range(4):
        made.run(1)
        mean = shares @ controls(made, 6)
        assert float(mean.norm()) > 1e-3
        assert torch.allclose(made.state.control, mean, atol=1e-5)


def test_the_servers_rate(pulls):
    assert pulls(Scaffold(lr=2), TWO, steps=2).run(1).tolist() == [1.5, 0]


def test_buffers_are_averaged_and_have_no_variate(federation):
    def normed(shape, classes):
        return nn.Sequential(nn.Linear(*shape, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))

    scaffold, plain = (federation(strategy, model=normed) for strategy in (Scaffold(lr=0.5), FedAvg()))
    d = plain.runtime.vector.d
    assert torch.equal(scaffold.run(1)[d:], plain.run(1)[d:])
    assert scaffold.state.control.shape == (d,)


def test_twice_the_bytes_of_fedavg(federation):
    scaffold, plain = federation(Scaffold()), federation(FedAvg())
    scaffold.run(1)
    plain.run(1)
    d = plain.runtime.vector.d
    assert plain.loop.ledger.paper == {"model": 6 * 2 * 4 * d}
    assert scaffold.loop.ledger.paper == {"model": 6 * 2 * 4 * d, "state": 6 * 2 * 4 * d}


def test_a_refused_upload_leaves_the_clients_variate_as_it_was(federation):
    made = federation(Scaffold())
    update = made.clients.respond

    def corrupted(client, payload):
        upload = update(client, payload)
        return replace(upload, payload=upload.payload[:-1]) if (client.number, client.round) == (3, 1) else upload

    made.clients.respond = corrupted
    made.run(1)
    before = controls(made, 6)[3]
    made.run(1)
    assert [(line["client"], line["round"]) for line in made.lines if line["kind"] == "rejection"] == [(3, 2)]
    assert torch.equal(controls(made, 6)[3], before)
    assert torch.allclose(made.state.control, controls(made, 6).mean(0), atol=1e-5)


def test_a_rate_of_zero_teaches_no_variate(federation):
    made = federation(Scaffold(), schedule="cosine:steps=1", rounds=3)  # the rate is 0 from the second round on
    made.run(1)
    before, model = controls(made, 6), made.state.model().clone()
    assert torch.allclose(made.run(1), model, atol=1e-6)
    assert torch.equal(controls(made, 6), before)


def test_a_failed_aggregation_changes_nothing(federation):
    made = federation(Scaffold())
    weights, control = made.state.weights.clone(), made.state.control.clone()
    with pytest.raises(TooFewUploads, match="0 valid uploads, 1 needed"):
        made.state.aggregate(0, iter([Upload(0, b"nonsense")]))
    assert torch.equal(made.state.weights, weights)
    assert torch.equal(made.state.control, control)


@pytest.mark.parametrize("optimizer", ["adam", "sgd:lr=0.1,momentum=0.9", "nesterov"])
def test_other_optimisers_are_refused(federation, optimizer):
    with pytest.raises(ValueError, match="scaffold: its control variates assume plain SGD on the clients, not"):
        federation("scaffold", optimizer=optimizer)


def test_mistakes():
    with pytest.raises(ValueError, match="strategy 'scaffold': lr: Input should be greater than 0"):
        STRATEGIES.build("scaffold:lr=0")
