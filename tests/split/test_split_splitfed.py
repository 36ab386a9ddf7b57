"""SplitFed: a bottom for every client, averaged after each epoch; a top for each (version 1) or one for all (2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.split import SplitFed
from sparsync.system import Profile
from tolerance import Nudge, assert_alike, distance

MOMENTUM = {"lr": 0.1, "momentum": 0.9}
THREE = {"batch_size": 12, "dtype": torch.float64, "optimizer": "sgd:lr=0.1,momentum=0.9"}  # local batches of four


def mean(models: list[nn.Module], weights: list[float]) -> None:
    """All models become their weighted mean, BatchNorm's statistics included."""
    shares = np.array(weights) / sum(weights)
    for tensors in zip(*(model.state_dict().values() for model in models), strict=True):
        if tensors[0].is_floating_point():
            average = sum(share * tensor for share, tensor in zip(shares.tolist(), tensors, strict=True))
            for tensor in tensors:
                tensor.copy_(average)


def batches(made: SimpleNamespace) -> list[list[tuple[int, Tensor, Tensor]]]:
    """For every step the batch of each client that took part, in float64."""
    train = made.task.dataset.train
    return [[(client, *train.batch(own, torch.float64)) for client, own in step] for step in made.used]


def epochs_of(made: SimpleNamespace) -> list[int]:
    return [line["epoch"] for line in made.lines if line["kind"] == "step"]


# 1. Limits


@pytest.mark.parametrize("spec", ["splitfed", "splitfed:version=2"])
def test_one_client_is_plain_sgd(make_split, by_hand, spec):
    made = make_split(spec, sizes=(50,), optimizer="sgd:lr=0.3,momentum=0.9")
    reached = made.run()
    for name, expected in by_hand(made, torch.optim.SGD, lr=0.3, momentum=0.9, fused=True).items():
        assert torch.equal(reached[name], expected), name


@pytest.mark.parametrize("sizes", [(12, 12, 12), (12, 6, 18)], ids=["equal data", "weighted"])
def test_version_1_is_federated_averaging_of_whole_models(make_split, sizes):
    """Nothing that is cut is seen: clients train a whole model each, and after an epoch the models are averaged."""
    made = make_split("splitfed", sizes=sizes, **THREE)
    reached = made.run()
    epochs = epochs_of(made)
    assert epochs == [1] * 3 + [2] * 3 if len(set(sizes)) == 1 else max(epochs) == 2

    def federated(nudge: Nudge) -> dict[str, Tensor]:
        models = [nudge(copy.deepcopy(made.first)) for _ in sizes]
        steppers = [torch.optim.SGD(model.parameters(), **MOMENTUM) for model in models]
        for i, step in enumerate(batches(made)):
            for client, inputs, labels in step:
                steppers[client].zero_grad()
                F.cross_entropy(models[client](inputs), labels).backward()
                steppers[client].step()
            if epochs[i] != (epochs[i + 1] if i + 1 < len(epochs) else None):
                mean(models, list(sizes))
        return models[0].state_dict()

    assert_alike(reached, federated)
    assert distance(reached, made.first.state_dict()) > 0.01


def test_version_2s_one_top_meets_clients_one_after_another(make_split, monkeypatch):
    """Each client's gradients come from the top as it found it; its bottom steps when the server is through."""
    made = make_split("splitfed:version=2", sizes=(12, 12, 12), **THREE)
    orders: list[list[int]] = []
    top = made.trainer.top

    def met(cut_tensors: Any, client: int) -> float:
        if made.trainer.step == len(orders):
            orders.append([])
        orders[-1].append(client)
        loss: float = top(cut_tensors, client)
        return loss

    monkeypatch.setattr(made.trainer, "top", met)
    reached = made.run()
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({tuple(order) for order in orders}) > 2

    def one_after_another(nudge: Nudge) -> dict[str, Tensor]:
        losses.clear()
        first = nudge(copy.deepcopy(made.first))
        bottoms, server = [copy.deepcopy(first[:3]) for _ in range(3)], first[3:]
        bottom_steppers = [torch.optim.SGD(bottom.parameters(), **MOMENTUM) for bottom in bottoms]
        top_stepper = torch.optim.SGD(server.parameters(), **MOMENTUM)
        for i, step in enumerate(batches(made)):
            by_client = {client: (inputs, labels) for client, inputs, labels in step}
            for client in orders[i]:
                inputs, labels = by_client[client]
                bottom_steppers[client].zero_grad()
                top_stepper.zero_grad()
                loss = F.cross_entropy(server(bottoms[client](inputs)), labels)
                loss.backward()
                top_stepper.step()
                bottom_steppers[client].step()
                losses.append(loss.item())
            if i in (2, 5):
                mean(bottoms, [1, 1, 1])
        expected = nn.Sequential(*bottoms[0], *server)
        return dict(zip(made.first.state_dict(), expected.state_dict().values(), strict=True))

    losses: list[float] = []
    assert_alike(reached, one_after_another)
    evaluations = [line["train_loss"] for line in made.lines if line["kind"] == "evaluation"]
    assert evaluations == pytest.approx([np.mean(losses[:9]), np.mean(losses[9:])])


def test_the_order_is_drawn_by_seed_and_step_alone(make_split):
    def orders(seed: int) -> list[list[int]]:
        seen: list[list[int]] = []
        made = make_split("splitfed:version=2", seed=seed, sizes=(9, 9, 9), model="mlp:hidden=4")
        top: Callable[..., float] = made.trainer.top
        made.trainer.top = lambda cut_tensors, client: (
            seen.append([made.trainer.step, client]) or top(cut_tensors, client)
        )
        torch.manual_seed(seed + 100)
        made.run()
        return seen

    assert orders(0) == orders(0) != orders(1)


# 2. What is equal, and when


@pytest.mark.parametrize("version", [1, 2])
def test_halves_are_equal_after_an_epoch_and_only_then(make_split, version):
    made = make_split(f"splitfed:version={version}", sizes=(12, 6, 20, 2, 10))
    trainer, seen = made.trainer, []

    def equal(rows: Tensor) -> bool:
        return torch.equal(rows, rows[:1].expand_as(rows))

    def look() -> None:
        seen.append(
            (trainer.epoch, trainer.left.any(), equal(trainer.bottoms.arena.params), equal(trainer.tops.arena.params))
        )

    made.run(look)
    assert (trainer.bottoms.rows, trainer.tops.rows) == (5, 5 if version == 1 else 1)
    for _, within, bottoms, tops in seen:
        assert bottoms == (not within)
        assert tops == (version == 2 or not within)
    assert equal(trainer.tops.arena.buffers)
    assert sum(not within for _, within, *_ in seen) == 2


@pytest.mark.parametrize("optimizer", ["sgd:lr=0.1,momentum=0.9", "nesterov:lr=0.1", "adam"])
def test_a_client_without_samples_in_a_step_stands_still(make_split, optimizer):
    made = make_split("splitfed", model="mlp:hidden=8", optimizer=optimizer)
    made.step(2, 2, 2, 0, 2)
    before = [half.arena.params.clone() for half in (made.trainer.bottoms, made.trainer.tops)]
    made.step(2, 0, 2, 1, 0)  # client 3 for the first time
    for half, then in zip((made.trainer.bottoms, made.trainer.tops), before, strict=True):
        moved = (half.arena.params != then).any(1)
        assert moved.tolist() == [True, False, True, True, False]


# 3. What is sent


def test_models_travel_once_per_epoch_and_gradients_of_bottoms_never(make_split):
    made = make_split("splitfed", model="mlp:hidden=8", sizes=(3, 2), batch_size=4)
    made.run()
    ledger, bottom = made.trainer.ledger, 29 + 4 * 56
    assert ledger.sent["model"].tolist() == [2 * bottom] * 2  # two epochs
    assert ledger.received["model"].tolist() == [3 * bottom] * 2  # and the first one
    assert ledger.paper["model"] == (1 + 2 * 2) * 2 * 224
    # client 0: batches of 2 and 1 samples, of 8 numbers each; client 1: one of 2
    assert ledger.sent["activation"].tolist() == [2 * (29 * 2 + 3 * 32), 2 * (29 + 2 * 32)]
    assert ledger.received["gradient"].tolist() == ledger.sent["activation"].tolist()
    assert "gradient" not in {kind for kind, own in ledger.sent.items() if own.any()}


def test_labels_that_stay_cost_each_client_its_own_messages_alone(make_split):
    profile = Profile(step_seconds=0, bandwidth=1000, latency=0.25)
    options = {"model": "mlp:hidden=8", "sizes": (9, 9), "batch_size": 6, "profile": profile}
    there, here = (make_split(spec, **options) for spec in ("splitfed", "splitfed:labels=clients"))
    for made in (there, here):
        made.step(4, 2)
    outputs = 29 + 12 * np.array([4, 2])  # bytes of each client's message down, and of that up again
    labels = 8 + np.array([4, 2])
    assert here.trainer.times.up - there.trainer.times.up == pytest.approx(2 * (0.25 + outputs / 1000) - labels / 1000)
    assert np.array_equal(here.trainer.ledger.sent["gradient"], outputs)
    assert torch.equal(here.trainer.tops.arena.params, there.trainer.tops.arena.params)


# 4. Bad inputs


@pytest.mark.parametrize("version", [0, 3])
def test_there_are_two_versions(version):
    with pytest.raises(UsageError, match=r"^SplitFed: version: Input should be (less|greater) than or equal to [12]"):
        SplitFed(version=version)
