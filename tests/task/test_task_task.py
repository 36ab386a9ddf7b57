from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsync.errors import UsageError
from sparsync.task import Dataset, Task, from_arrays, load_dataset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_the_seed_makes_the_model(digits: Dataset) -> None:
    task = Task(digits, "resnet8")
    assert torch.equal(flat(task.module(0)), flat(task.module(0)))
    assert not torch.equal(flat(task.module(0)), flat(task.module(1)))
    double = task.module(0, torch.float64)
    assert torch.equal(flat(double), flat(task.module(0)).double())
    assert all(part.training for part in double.modules())


def test_global_generator_is_left_alone(digits: Dataset) -> None:
    task = Task(digits, "vgg16-star")
    before = torch.get_rng_state()
    module = task.module(3)
    assert task.behaviour(module).stochastic
    task.evaluate(module, 0, 4)
    with pytest.raises(UsageError):
        Task(digits, lambda: nn.Linear(1, 1)).module(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_is_mean_cross_entropy(digits: Dataset) -> None:
    outputs, labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert float(Task(digits, "logistic").loss(outputs, labels)) == pytest.approx(np.log(2))


def test_evaluate_equals_one_big_batch_and_ranges_add(digits: Dataset) -> None:
    task = Task(digits, "resnet8")
    module = task.module(0)
    n = len(digits.test)
    correct, loss = task.evaluate(module, 0, n, batch_size=50)
    module.eval()
    inputs, labels = digits.test.batch(np.arange(n))
    outputs = module(inputs).detach()
    module.train()
    right = labels[outputs.argmax(1) == labels]
    assert correct.tolist() == [int((right == label).sum()) for label in range(digits.classes)]
    assert loss == pytest.approx(float(F.cross_entropy(outputs, labels, reduction="sum")), rel=1e-5)
    parts = [task.evaluate(module, a, b) for a, b in ((0, 100), (100, 100), (100, n))]
    assert torch.equal(torch.stack([c for c, _ in parts]).sum(0), correct)
    assert sum(x for _, x in parts) == pytest.approx(loss, rel=1e-5)
    assert int(parts[1][0].sum()) == 0
    assert parts[1][1] == 0.0


def test_evaluate_leaves_modes_buffers_and_gradients(digits: Dataset) -> None:
    task = Task(digits, "resnet8")
    module = task.module(0)
    frozen = module.get_submodule("norm1").eval()  # a mode of its own
    buffers = [buffer.clone() for buffer in module.buffers()]
    task.evaluate(module, 0, 10)
    assert module.training
    assert not frozen.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, module.buffers(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 360)])
def test_evaluate_refuses_bad_ranges(digits: Dataset, start: int, stop: int) -> None:
    task = Task(digits, "logistic")
    with pytest.raises(UsageError, match=f"evaluate: examples {start} to {stop} .*; expected a range within 0 to 359"):
        task.evaluate(task.module(0), start, stop)


@pytest.mark.parametrize(("model", "expected"), [("vgg16-star", True), ("resnet8", False), ("logistic", False)])
def test_stochastic(digits: Dataset, model: str, expected: bool) -> None:
    task = Task(digits, model)
    module = task.module(0)
    frozen = module.get_submodule("fc").eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    assert task.behaviour(module).stochastic == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert not frozen.training


def row(*layers: nn.Module) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        return nn.Sequential(nn.Flatten(), *layers)

    return made


class Pair(nn.Linear):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        return x, x


BAD: list[tuple[str | Callable[..., nn.Module], str]] = [
    ("lenet5", "model 'lenet5' needs pictures (channels, height, width) of at least 12x12, but the inputs have shape"),
    (
        row(nn.Linear(64, 9)),
        "model 'made' gives outputs of shape (2, 9) for 2 examples, dataset 'digits' has 10 classes",
    ),
    (row(nn.Linear(64, 10), nn.Flatten(0)), "model 'made' gives outputs of shape (20,)"),
    (row(Pair(64, 10)), "model 'made' gives outputs of type tuple"),
    (row(nn.Linear(63, 10)), "model 'made' does not take inputs of shape (1, 8, 8) as dataset 'digits' has them (mat1"),
    (row(), "model 'made' has no parameter to train"),
    ("lenet", "unknown model 'lenet'"),
]


@pytest.mark.parametrize(("model", "message"), BAD)
def test_bad_models(digits: Dataset, model: str | Callable[..., nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Task(digits, model).module(0)


def test_one_training_example_is_enough() -> None:
    x, y = np.zeros((1, 1, 8, 8), dtype=np.uint8), np.array([1])
    task = Task(from_arrays(x, y, x, y, classes=2), "resnet8")
    assert not task.behaviour(task.module(0)).stochastic


def test_lazy_modules_are_seeded_too(digits: Dataset) -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    assert torch.equal(flat(Task(digits, lazy).module(0)), flat(Task(digits, lazy).module(0)))
