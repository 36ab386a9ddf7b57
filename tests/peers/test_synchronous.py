from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.peers import Synchronous
from sparsync.strategies import STRATEGIES
from sparsync.wire import Star
from sparsync.workers import Fleet
from tolerance import Nudge, assert_alike, distance, exactly

MakeFleet = Callable[..., Fleet]
Drive = Callable[..., list[int]]
MakeRun = Callable[..., SimpleNamespace]
Train = Callable[[SimpleNamespace, int], list[Tensor]]

PARAMETERS, GRADIENTS = Synchronous(), Synchronous(average="gradients")
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd:lr=0.1": (torch.optim.SGD, {"lr": 0.1}),
    "sgd:lr=0.05,momentum=0.9,weight_decay=0.01": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    ),
    "nesterov:lr=0.05": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam:lr=0.01": (torch.optim.Adam, {"lr": 0.01}),
    "adamw:lr=0.01": (torch.optim.AdamW, {"lr": 0.01}),
}
LINEAR = ("sgd:lr=0.1", "sgd:lr=0.05,momentum=0.9,weight_decay=0.01", "nesterov:lr=0.05")


def test_identity_by_hand_on_two_workers(make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(2, 3)
    move = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, -1.0]])
    assert drive(fleet, PARAMETERS.start(fleet), [move, move]) == [1, 2]
    assert fleet.params.tolist() == [[4, 4, 2], [4, 4, 2]]


def test_gradients_by_hand_on_two_workers(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(2, 3)
    state: Any = GRADIENTS.start(fleet)
    fleet.grads.copy_(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, -1.0]]))
    state.gradients(fleet)
    assert fleet.grads.tolist() == [[2, 2, 1], [2, 2, 1]]
    assert fleet.params.eq(0).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradient_averaging_is_one_step_on_the_joint_batch(optimizer: str, make_run: MakeRun, train: Train) -> None:
    """What DDP does: equal batches, so the mean of the gradients is the gradient of the mean loss."""
    made = make_run(GRADIENTS, 3, dtype=torch.float64, optimizer=optimizer)
    kind, options = OPTIMIZERS[optimizer]
    seen = train(made, 12)

    def alone(nudge: Nudge) -> list[Tensor]:
        module, own = nudge(made.task.module(0, torch.float64)), []
        stepper = kind(module.parameters(), **options)
        for step in range(12):
            indices = np.concatenate([worker.batches[step] for worker in made.training.workers])
            x, y = made.task.dataset.train.batch(indices, torch.float64)
            stepper.zero_grad()
            made.task.loss(module(x), y).backward()
            stepper.step()
            own.append(nn.utils.parameters_to_vector(module.parameters()).detach())
        return own

    assert all(torch.equal(params, params[:1].expand_as(params)) for params in seen)  # equal models stay equal
    assert_alike([params[0] for params in seen], alone)
    assert made.fleet.syncs == 12


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_averaging_parameters_or_gradients(optimizer: str, make_run: MakeRun, train: Train) -> None:
    """Trap 3 of FDA: the same for SGD, and for momentum from equal states; not for Adam."""

    def trained(strategy: Synchronous, nudge: Nudge = exactly) -> list[Tensor]:
        return train(make_run(strategy, 3, dtype=torch.float64, optimizer=optimizer, nudge=nudge), 12)

    if optimizer in LINEAR:
        assert_alike(trained(GRADIENTS), lambda nudge: trained(PARAMETERS, nudge))
    else:
        assert distance(trained(GRADIENTS), trained(PARAMETERS)) > 1e-4


def test_one_worker_trains_as_if_alone(make_run: MakeRun, train: Train) -> None:
    for strategy in (PARAMETERS, GRADIENTS):
        one = make_run(strategy, 1)
        free = make_run(strategy, 1)
        free.training.train(5)
        assert torch.equal(train(one, 5)[-1], free.fleet.params)
        assert one.fleet.ledger.total == 0


@pytest.mark.parametrize(("topology", "wire"), [(None, 2 * 2 * 40), (Star(), 2 * 3 * (20 + 40))], ids=["ring", "star"])
def test_bytes_in_both_views(topology: Any, wire: int, make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(3, 10, topology=topology)
    drive(fleet, PARAMETERS.start(fleet), [torch.ones(3, 10)] * 5)
    assert fleet.ledger.moved == {"model": 5 * wire}
    assert fleet.ledger.paper == {"model": 5 * 8 * 3 * 10}  # R = T: the last averaging opens no sixth round
    fleet = make_fleet(3, 10, topology=topology)
    state: Any = GRADIENTS.start(fleet)
    for _ in range(5):
        fleet.ledger.step_begins()
        state.gradients(fleet)
        state.exchange(fleet)
    assert fleet.ledger.moved == {"gradient": 5 * wire}
    assert fleet.ledger.paper == {"gradient": 5 * 8 * 3 * 10}


def test_gradient_averaging_averages_buffers_by_policy(make_run: MakeRun, train: Train) -> None:
    def model(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.Linear(8, classes))

    for policy, equal in (("average", True), ("local", False)):
        made = make_run(GRADIENTS, 3, model=model, buffers=policy)
        train(made, 2)
        assert torch.equal(made.fleet.arena.buffers[0], made.fleet.arena.buffers[1]) is equal
        assert made.fleet.ledger.moved.get("model", 0) == (2 * 2 * 2 * 16 * 4 if equal else 0)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("synchronous:average=models", "average: Input should be 'parameters' or 'gradients', got 'models'"),
        ("synchronous:period=1", "strategy 'synchronous' has no parameter 'period': its parameters are average"),
        ("sinchronous", "unknown strategy 'sinchronous': did you mean 'synchronous'? choose one of"),
    ],
)
def test_bad_inputs(spec: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        STRATEGIES.build(spec)
    assert says in str(caught.value)
