from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsync.errors import DivergedError
from sparsync.peers import FDA, LocalSGD, Synchronous
from sparsync.system import Profile
from sparsync.workers import SCHEDULES
from tolerance import Nudge, assert_alike

MakeTraining = Callable[..., SimpleNamespace]


def with_dropout(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 8), nn.Dropout(0.5), nn.Linear(8, classes))


def with_batchnorm(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.Linear(8, classes))


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd:lr=0.1": (torch.optim.SGD, {"lr": 0.1}),
    "sgd:lr=0.05,momentum=0.9,weight_decay=0.01": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    ),
    "nesterov:lr=0.05,momentum=0.8,weight_decay=0.01": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam:lr=0.01,beta1=0.8,beta2=0.99,eps=1e-7,weight_decay=0.1": (
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1},
    ),
    "adamw:lr=0.01": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.01}),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine:steps=12,final=0.1,warmup=3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_optim_on_a_module_of_its_own(
    optimizer: str, schedule: str, dtype: torch.dtype, make_training: MakeTraining
) -> None:
    made = make_training(optimizer=optimizer, schedule=schedule, dtype=dtype)
    made.training.train(12)
    kind, options = OPTIMIZERS[optimizer]
    factor = SCHEDULES.build(schedule)

    def alone(nudge: Nudge) -> list[Tensor]:
        rows = []
        for worker in made.training.workers:
            module = nudge(made.task.module(0, dtype))
            stepper = kind(module.parameters(), **options)
            for step in range(12):
                stepper.param_groups[0]["lr"] = options["lr"] * factor(step)
                x, y = made.task.dataset.train.batch(worker.batches[step], dtype)
                stepper.zero_grad()
                made.task.loss(module(x), y).backward()
                stepper.step()
            rows.append(nn.utils.parameters_to_vector(module.parameters()).detach())
        return rows

    assert_alike(list(made.fleet.params), alone)
    assert all(worker.steps == 12 for worker in made.training.workers)


def test_steps_per_worker(make_training: MakeTraining) -> None:
    """One number for each: the same as each training alone for that long, and the clock waits for nobody."""
    steps = [0, 2, 5]
    made = make_training(profile=Profile(step_seconds=2.0))
    made.training.train(steps)
    for number, count in enumerate(steps):

        def each(nudge: Nudge, number: int = number, count: int = count) -> Tensor:
            other = make_training(nudge=nudge)
            other.training.train(count)
            return other.fleet.params[number]

        # a batch that lies elsewhere in memory may take another path through a matrix product
        assert_alike(made.fleet.params[number], each)
    assert [worker.steps for worker in made.training.workers] == steps
    assert made.fleet.clock.times.tolist() == [0, 4, 10]
    assert made.training.losses()[1] == sum(steps)


def test_in_one_go_or_step_by_step(make_training: MakeTraining) -> None:
    runs = []
    for cuts in ([6], [1] * 6, [2, 4]):
        made = make_training(model=with_dropout, optimizer="adam")
        for cut in cuts:
            made.training.train(cut)
        runs.append(made.fleet.params.clone())
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_before_step_sees_all_gradients_and_no_step(make_training: MakeTraining) -> None:
    made = make_training()
    start, seen = made.fleet.params.clone(), []

    def look() -> None:
        assert all(worker.steps == len(seen) for worker in made.training.workers)
        assert (made.fleet.grads.count_nonzero(dim=1) > 0).all()
        seen.append(made.fleet.params.clone())

    made.training.train(2, look)
    assert len(seen) == 2
    assert torch.equal(seen[0], start)
    assert not torch.equal(seen[1], start)
    with pytest.raises(ValueError, match="workers that exchange gradients must take the same number of steps"):
        made.training.train([1, 2, 3], look)


def test_dropout_is_a_function_of_seed_worker_and_step(make_training: MakeTraining) -> None:
    runs = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        made = make_training(model=with_dropout, seed=seed)
        torch.rand(global_seed)
        made.training.train(4)
        runs.append(made.fleet.params.clone())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_dropout_masks_differ_by_worker_and_step(make_training: MakeTraining) -> None:
    made = make_training(model=with_dropout)
    masks = []
    dropout = made.training.learner.bound.module[1]
    dropout.register_forward_hook(lambda module, given, output: masks.append(tuple(output.eq(0).flatten().tolist())))
    made.training.train(6)
    assert len(masks) == len(set(masks)) == 3 * 6


@pytest.mark.parametrize("model", [with_dropout, with_batchnorm])
def test_global_generators_are_left_alone(model: Any, make_training: MakeTraining) -> None:
    made = make_training(model=model)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
    made.training.train(3)
    made.training.train([1, 2, 3])
    made.training.train(1, lambda: None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == str(before[1])  # noqa: NPY002


def test_global_generator_is_put_back_when_training_raises(make_training: MakeTraining) -> None:
    made = make_training(model=with_dropout)
    torch.manual_seed(7)
    before = torch.get_rng_state()

    def fail() -> None:
        raise DivergedError("the mean is not finite")

    with pytest.raises(DivergedError):
        made.training.train(1, fail)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("strategy", [Synchronous(), Synchronous(average="gradients"), LocalSGD(period=5)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_worker_and_step(
    strategy: Any, bad: float, make_training: MakeTraining
) -> None:
    made = make_training()
    state = strategy.start(made.fleet)
    loss, calls = made.task.loss, 0

    def spoiled(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        worker = next(w for w in made.training.workers if module_holds(made.training.learner.bound.module, w))
        spoil = worker.number == 1 and worker.steps == 2
        return loss(outputs, labels) * (bad if spoil else 1.0)

    object.__setattr__(made.task, "loss", spoiled)
    gradients = getattr(state, "gradients", None)
    before_step = None if gradients is None else (lambda: gradients(made.fleet))

    def run() -> None:
        for _ in range(5):
            made.training.train(state.local_steps(made.fleet), before_step)
            state.exchange(made.fleet)

    with pytest.raises(DivergedError) as caught:
        run()
    assert str(caught.value) == (
        "worker 1: the loss is not finite at step 3; lower the learning rate or clip gradients"
    )
    assert calls >= 8  # the others went on until they were told


def module_holds(module: nn.Module, worker: Any) -> bool:
    return next(module.parameters()) is worker.parameters[0]


@pytest.mark.parametrize("monitor", ["linear", "naive", "sketch", "exact"])
def test_fda_hears_of_it_at_the_next_check(monitor: Any, make_training: MakeTraining) -> None:
    made = make_training(optimizer="sgd:lr=1e30")
    state = FDA(threshold=math.inf, monitor=monitor).start(made.fleet)

    def run() -> None:
        for _ in range(10):
            made.training.train(1)
            state.exchange(made.fleet)

    with pytest.raises(DivergedError) as caught:
        run()
    assert re.search("worker [012]: the loss is not finite at step|variance estimate is|not finite", str(caught.value))


def test_the_first_of_several_failures_is_named(make_training: MakeTraining) -> None:
    made = make_training()
    for worker, step in ((2, 9), (1, 4), (0, 4), (2, 5)):
        made.fleet.fail(worker, step)
    assert made.fleet.params.isnan().all()
    with pytest.raises(DivergedError, match="worker 0: the loss is not finite at step 4; lower the learning rate"):
        made.fleet.average_models()


def test_losses_are_summed_and_counted(make_training: MakeTraining) -> None:
    made = make_training(optimizer="sgd:lr=0")
    x, y = made.task.dataset.train.batch(np.arange(90))
    made.training.train(6)  # one pass of 30 points in batches of 5, at a rate of zero
    total, count = made.training.losses()
    with torch.no_grad():
        assert total / count == pytest.approx(made.task.loss(made.training.learner.bound.module(x), y).item(), rel=1e-6)
    assert count == 18
    assert made.training.losses() == (0.0, 0)


def test_running_statistics_equal_those_of_a_module_alone(make_training: MakeTraining) -> None:
    made = make_training(model=with_batchnorm)
    made.training.train(4)
    module = made.task.module(0)
    alone = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(4):
        x, y = made.task.dataset.train.batch(made.training.workers[1].batches[step])
        alone.zero_grad()
        made.task.loss(module(x), y).backward()
        alone.step()
    assert torch.allclose(made.fleet.arena.buffers[1], torch.cat([module[1].running_mean, module[1].running_var]))
    assert made.fleet.arena.others[0].tolist() == [[4]] * 3


@pytest.mark.parametrize("optimizer", ["sgd", "sgd:momentum=0.9", "adam"])
def test_state_goes_round(optimizer: str, make_training: MakeTraining) -> None:
    first = make_training(optimizer=optimizer, schedule="cosine:steps=9", model=with_batchnorm)
    first.training.train([1, 3, 4])
    saved = copy.deepcopy((first.fleet.state_dict(), first.training.state_dict()))
    second = make_training(optimizer=optimizer, schedule="cosine:steps=9", model=with_batchnorm)
    second.fleet.load_state_dict(saved[0])
    second.training.load_state_dict(saved[1])
    for made in (first, second):
        made.training.train(4)
    assert torch.equal(first.fleet.params, second.fleet.params)
    assert torch.equal(first.fleet.arena.buffers, second.fleet.arena.buffers)
    assert str(first.training.state_dict()) == str(second.training.state_dict())
