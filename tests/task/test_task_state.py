"""What a model may hold, and what its forward pass may do to it: all else is refused by name, before it is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.task import Dataset, Task
from sparsync.workers import Arena, Learner

CPU = torch.device("cpu")


class Net(nn.Module):
    """A linear model whose forward pass does something first."""

    def __init__(self, does: Callable[[Net, Tensor], Any] = lambda net, x: None, **buffers: Tensor | None) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.does = does
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        made = self.does(self, x)
        return made if isinstance(made, Tensor) else self.fc(x)


class Extra(Net):
    def get_extra_state(self) -> str:
        return "more"


def with_parameter(value: Tensor, **options: Any) -> nn.Module:
    net = Net()
    net.w = nn.Parameter(value, **options)
    return net


def tied(net: Net) -> nn.Module:
    net.other = nn.Module()
    net.other.register_buffer("b", net.b)
    return net


def stashed() -> nn.Module:
    net = Net(lambda net, x: x @ net.own[0].T)
    net.own = [net.fc.weight]
    return net


def stale() -> nn.Module:
    net = Net(lambda net, x: x @ net.kept.T + net.fc.bias)
    net.kept = net.fc.weight.data
    return net


def stale_view() -> nn.Module:
    net = Net(lambda net, x: x @ net.kept["views"][0] + net.fc.bias)
    net.kept = {"views": (net.fc.weight.detach().T,)}
    return net


def stale_count() -> nn.Module:
    net = Net(lambda net, x: net.kept[0].add_(1) * 0 + net.fc(x), c=torch.zeros(()))
    net.kept = [net.c]
    return net


def stale_read() -> nn.Module:
    net = Net(lambda net, x: net.c.add_(1) * 0 + net.fc(x) + net.kept[0], c=torch.zeros(()))
    net.kept = [net.c]
    return net


def first_forward(net: Net, x: Tensor) -> Tensor:
    if not hasattr(net, "kept"):
        net.kept = net.fc.weight.data
    return x @ net.kept.T + net.fc.bias


def assign(name: str, make: Callable[[Tensor], Any]) -> Callable[[Net, Tensor], None]:
    def does(net: Net, x: Tensor) -> None:
        if net.training:
            setattr(net, name, make(getattr(net, name)))

    return does


def moved(net: Net, x: Tensor) -> None:
    if net.training:
        net.fc.weight.data = net.fc.weight.data.clamp(-1, 1)


def frozen_moved(net: Net, x: Tensor) -> None:
    if net.training:
        net.w.data.mul_(0.5)


def second_head(net: Net, x: Tensor) -> Tensor | None:
    return torch.stack([net.fc(x)] * 2) if net.training else None


def detached(net: Net, x: Tensor) -> Tensor | None:
    return net.fc(x).detach() if net.training else None


def frozen_and_changed() -> nn.Module:
    net = Net(frozen_moved)
    net.w = nn.Parameter(torch.ones(2), requires_grad=False)
    return net


def replaced(net: Net, x: Tensor) -> None:
    net.fc.weight = nn.Parameter(net.fc.weight * 1)


def wanting(net: Net, x: Tensor) -> None:
    if net.training:
        raise KeyError("y")


def training_only(net: Net, x: Tensor) -> None:
    if not net.training:
        raise KeyError("statistics")


def late(net: Net, x: Tensor) -> None:
    if net.training:
        net.register_buffer("late", x.mean())


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "complex parameter": (lambda: with_parameter(torch.ones(2, dtype=torch.cfloat)), "'w' is complex"),
    "frozen complex parameter": (
        lambda: with_parameter(torch.ones(2, dtype=torch.cfloat), requires_grad=False),
        "'w' is complex",
    ),
    "complex buffer": (lambda: Net(b=torch.ones(2, dtype=torch.cdouble)), "'b' is complex"),
    "half parameter": (lambda: with_parameter(torch.ones(2, dtype=torch.half)), "'w' is torch.float16"),
    "double parameter": (lambda: with_parameter(torch.ones(2).double()), "'w' is torch.float64"),
    "infinite buffer": (lambda: Net(b=torch.tensor([0.0, -torch.inf])), "'b' holds numbers that are not finite"),
    "extra state": (Extra, "'_extra_state'"),
    "TorchScript": (lambda: torch.jit.trace(nn.Linear(6, 3), torch.ones(1, 6)), "TorchScript"),
    "traced part": (lambda: nn.Sequential(torch.jit.trace(nn.Linear(6, 3), torch.ones(1, 6))), "'0'"),
    "other shape": (lambda: Net(assign("b", lambda b: b[:1]), b=torch.ones(2)), "'b'"),
    "other type": (lambda: Net(assign("b", lambda b: b.double()), b=torch.ones(2)), "'b'"),
    "None later": (lambda: Net(assign("b", lambda b: None), b=torch.ones(2)), "'b'"),
    "None at first": (lambda: Net(assign("b", lambda b: torch.ones(2)), b=None), "'b' is None"),
    "new buffer": (lambda: Net(late), "'late'"),
    "other parameter": (lambda: Net(replaced), "'fc.weight'"),
    "other memory": (lambda: Net(moved), "'fc.weight'"),
    "frozen, but changed": (frozen_and_changed, "'w', a frozen parameter"),
    "one of two names": (lambda: tied(Net(assign("b", lambda b: b + 1), b=torch.ones(2))), "one of its names"),
    "a reference of its own": (stashed, "'fc.weight' by a reference"),
    "memory of a parameter": (stale, "to parameter 'fc.weight'"),
    "view of a parameter": (stale_view, "to parameter 'fc.weight'"),
    "memory kept by the first pass": (lambda: Net(first_forward), "to parameter 'fc.weight'"),
    "memory of a buffer, written": (stale_count, "to buffer 'c'"),
    "memory of a buffer, read": (stale_read, "to buffer 'c'"),
    "more outputs in training": (lambda: Net(second_head), "in training mode gives outputs of shape (2, 2, 3)"),
    "labels wanted in training": (lambda: Net(wanting), "y"),
    "statistics wanted in evaluation": (lambda: Net(training_only), "in evaluation mode ('statistics')"),
    "no gradient": (lambda: Net(detached), "cannot be trained"),
    "labels for outputs": (lambda: Net(lambda net, x: net.fc(x).long()), "torch.int64"),
}


@pytest.mark.parametrize(("model", "says"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_refused_by_name(blobs: Dataset, model: Callable[[], nn.Module], says: str) -> None:
    task = Task(blobs, model)

    def bound() -> None:
        module = task.module(0)
        Learner(task, module, Arena(module, 1, CPU, torch.float32))

    with pytest.raises(UsageError, match=re.escape(says)):
        bound()


def test_what_is_tried_leaves_no_trace(blobs: Dataset) -> None:
    def busy(net: Net, x: Tensor) -> None:
        net.level = net.level * 0.5 + x.mean()
        net.count += 1
        net.seen[0] = 9
        net.fc.weight.data.clamp_(-0.1, 0.1)

    buffers = {"level": torch.tensor(3.0), "count": torch.tensor(4), "seen": torch.zeros(2, dtype=torch.bool)}
    task = Task(blobs, lambda: Net(busy, **buffers, never=None, table=torch.arange(3)))
    module = task.module(0)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    behaviour = task.behaviour(module)
    task.evaluate(module, 0, 10)
    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(now[name] is tensor and torch.equal(tensor, values[name]) for name, tensor in tensors.items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert behaviour.changed == {"level", "count", "seen"}
    assert not behaviour.stochastic
    assert behaviour.lonely is None


def test_types_are_kept(blobs: Dataset) -> None:
    """Only what is float32 takes the experiment's type."""
    types = [torch.float32, torch.float64, torch.half, torch.int64, torch.bool, torch.uint8]
    model = lambda: Net(**{f"b{i}": torch.ones(1, dtype=dtype) for i, dtype in enumerate(types)})  # noqa: E731
    for dtype in (torch.float32, torch.float64):
        module = Task(blobs, model).module(0, dtype)
        assert [buffer.dtype for buffer in module.buffers()] == [dtype, *types[1:]]
        assert module.fc.weight.dtype is dtype


class Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze()


@pytest.mark.parametrize(
    ("layer", "lonely"),
    [(nn.BatchNorm1d(6), True), (nn.LayerNorm(6), False), (Squeezed(), True), (nn.Dropout(), False)],
    ids=["batch", "layer", "squeezed", "dropout"],
)
def test_whether_it_learns_from_a_single_sample_is_tried(blobs: Dataset, layer: nn.Module, lonely: bool) -> None:
    task = Task(blobs, lambda: nn.Sequential(layer, nn.Linear(6, 3)))
    behaviour = task.behaviour(task.module(0))
    assert (behaviour.lonely is not None) == lonely
    for samples, batch_size in (([5, 1], 4), ([5, 5], 1)):
        if lonely:
            with pytest.raises(UsageError, match="single sample"):
                behaviour.check_batches("worker", samples, batch_size)
        else:
            behaviour.check_batches("worker", samples, batch_size)
    behaviour.check_batches("worker", [2, 3], 2)


def test_aliases_are_found_before_types_are_converted(blobs: Dataset) -> None:
    with pytest.raises(UsageError, match="to buffer 'c'"):
        Task(blobs, stale_count).module(0, torch.float64)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x[:, None])[0][:, 0]


def constant() -> nn.Module:
    net = Net(lambda net, x: net.fc(x) * net.kept, c=torch.ones(3))
    net.kept = net.c
    return net


def diagnosed(net: Net, x: Tensor) -> None:
    net.last = net.fc.weight.detach()


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "recurrent": Recurrent,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 3)),
    "parametrised spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
    "parametrised weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
    "transformer": lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)),
    "what never changes": constant,
    "renewed by each pass": lambda: Net(diagnosed),
}


@pytest.mark.parametrize("model", ACCEPTED.values(), ids=ACCEPTED)
def test_references_that_follow_are_accepted(blobs: Dataset, model: Callable[[], nn.Module]) -> None:
    task = Task(blobs, model)
    task.behaviour(task.module(0))
