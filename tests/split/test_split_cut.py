from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.split.cut import Cut, cuts, split_at
from sparsync.task import build_model
from sparsync.workers.layout import Arena, BoundModule
from tolerance import distance, rounding

DIGITS, PICTURE, CIFAR = (1, 8, 8), (1, 16, 16), (3, 32, 32)


class Block(nn.Module):
    """A residual block as in torchvision, with one ReLU for all, in place; and control flow that cannot be traced."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        x += identity
        return self.relu(x)


class Moody(nn.Module):
    """A stage whose control flow depends on its input and on its mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.sum() > 0:
            return self.conv(x)
        return x


class ResNet(nn.Module):
    """torchvision's ResNet in small, with a forward of its own."""

    def __init__(self, **changes: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 5)  # registered first, called last
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.unused = nn.Linear(3, 3)
        for name, module in changes.items():
            setattr(self, name, module)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        if scale is not None:  # an optional argument keeps its default
            x = x * scale
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Net(nn.Module):
    """Two linear layers, and a forward that the tests choose."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.plain = torch.ones(4)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def group(module: nn.Module) -> nn.Module:
    """The module with GroupNorm below and BatchNorm above its cut before layer2."""
    split_at(module, "layer2", bottom_norm="group")
    return module


def check_same(model: nn.Module, cut: Cut, x: Tensor) -> None:
    """The halves are the model: its numbers bit for bit, its tensors, its names; no tensor in both."""
    for training in (True, False):
        model.train(training)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        torch.manual_seed(0)
        whole = model(x)
        after = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.load_state_dict(buffers, strict=False)
        model.train(not training)
        cut.bottom.train(training)
        cut.top.train(training)
        torch.manual_seed(0)
        assert torch.equal(cut.top(cut.bottom(x)), whole)
        assert all(torch.equal(buffer, after[name]) for name, buffer in model.named_buffers())
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    names = [set(dict(half.named_parameters()) | dict(half.named_buffers())) for half in (cut.bottom, cut.top)]
    assert names[0].isdisjoint(names[1])
    for half in (cut.bottom, cut.top):
        for name, tensor in (*half.named_parameters(), *half.named_buffers()):
            assert tensor is state[name]


@pytest.mark.parametrize(
    ("spec", "shape", "before"),
    [
        ("mlp:depth=2", DIGITS, ("relu1", "fc2", "fc")),
        ("lenet5", PICTURE, ("pool1", "conv2", "flatten", "fc1", "fc")),
        ("resnet10", PICTURE, ("norm1", "layer1", "layer2", "layer4", "pool", "fc")),
        ("resnet10", PICTURE, ("layer1.0", "layer2.0.conv1")),  # nested; the first call of a block
        ("vgg16-star", PICTURE, ("pool2", "fc2", "drop2")),
    ],
)
def test_own_models(spec: str, shape: tuple[int, ...], before: tuple[str, ...]) -> None:
    for name in before:
        model = build_model(spec, shape, 5)
        cut = split_at(model, name, bottom_norm="group")
        check_same(model, cut, torch.randn(3, *shape))
        numbers = [sum(p.numel() for p in module.parameters()) for module in (cut.bottom, cut.top, model)]
        assert numbers[0] + numbers[1] == numbers[2]


@pytest.mark.parametrize("before", ["bn1", "maxpool", "layer1", "layer1.1", "layer2", "layer2.1", "avgpool", "fc"])
def test_a_forward_of_its_own(before: str) -> None:
    model = ResNet()
    cut = split_at(model, before, bottom_norm="group")
    check_same(model, cut, torch.randn(3, *DIGITS))
    assert "unused.weight" not in dict(cut.bottom.named_parameters()) | dict(cut.top.named_parameters())


def test_control_flow_inside_a_stage_is_its_own_affair() -> None:
    for before in ("layer1", "layer2"):
        model = ResNet(layer1=Moody(8), bn1=nn.Identity())
        check_same(model, split_at(model, before), torch.randn(3, *DIGITS))


def test_what_can_be_cut() -> None:
    assert cuts(build_model("mlp", DIGITS, 10)) == ["relu1", "fc"]  # nothing to train before fc1
    assert cuts(build_model("resnet10", DIGITS, 10))[:4] == ["norm1", "relu", "layer1", "layer2"]
    model = ResNet()
    assert cuts(model) == ["fc", "bn1", "relu", "maxpool", "layer1", "layer2", "avgpool"]
    assert isinstance(model.bn1, nn.BatchNorm2d)  # asking changes nothing
    assert cuts(nn.Sequential(model)) == []
    assert cuts(nn.Linear(2, 2)) == []


def test_resnet18_of_the_paper() -> None:
    model = build_model("resnet18", CIFAR, 10)
    cut = split_at(model, "layer2", bottom_norm="group")
    counts = [sum(p.numel() for p in module.parameters()) for module in (cut.bottom, cut.top, model)]
    assert counts == [149_824, 11_024_138, 11_173_962]
    below = [type(m) for m in cut.bottom.modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)]
    above = [type(m) for m in cut.top.modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)]
    assert below == [nn.GroupNorm] * 5
    assert above == [nn.BatchNorm2d] * 15
    assert all(m.num_groups == 32 for m in cut.bottom.modules() if isinstance(m, nn.GroupNorm))
    assert cut.bottom(torch.zeros(1, *CIFAR)).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("build", [lambda: build_model("resnet10:width=8", DIGITS, 5), ResNet])
@pytest.mark.parametrize("sizes", [(4, 1, 7), (5,)])
def test_clients_gradients_sum_to_that_of_the_whole(build: Callable[[], nn.Module], sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = group(build()).double()
    cut = split_at(model, "layer2")
    x, y = torch.randn(sum(sizes), *DIGITS, dtype=torch.float64), torch.randint(5, (sum(sizes),))
    used = {name: p for name, p in model.named_parameters() if "unused" not in name}
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(used.values()))
    longest = max(parameter.numel() for parameter in used.values())
    most = rounding(longest, max(float(gradient.abs().max()) for gradient in expected))
    sent = [cut.bottom(part) for part in x.split(sizes)]
    received = torch.cat([activation.detach() for activation in sent]).requires_grad_()
    F.cross_entropy(cut.top(received), y).backward()
    assert received.grad is not None
    for activation, gradient in zip(sent, received.grad.split(sizes), strict=True):
        activation.backward(gradient)  # .grad adds up: the sum over clients
    for (name, parameter), gradient in zip(used.items(), expected, strict=True):
        assert parameter.grad is not None, name
        assert distance(parameter.grad, gradient) <= most, name


def test_replaced_parameters_are_seen_by_all() -> None:
    model = group(ResNet())
    cut = split_at(model, "layer2")
    x = torch.randn(3, *DIGITS)
    for half in (cut.bottom, cut.top):  # whoever sits in a half sits in the model
        before = model(x)
        arena = Arena(half, 2, torch.device("cpu"), torch.float32)
        arena.params.mul_(0.5)
        BoundModule(half, arena).bind(arena.parameters(1), arena.row_buffers(1))
        assert not torch.equal(model(x), before)
        check_same(model, cut, x)
    arena = Arena(model, 1, torch.device("cpu"), torch.float32)
    arena.params.add_(0.1)
    BoundModule(model, arena).bind(arena.parameters(0), arena.row_buffers(0))
    check_same(model, cut, x)


def test_modes_and_copies() -> None:
    model = group(ResNet())
    cut = split_at(model, "layer2")
    cut.top.eval()
    assert model.layer1.training
    assert not any(module.training for module in model.layer2.modules())
    x = torch.randn(3, *DIGITS)
    twin = copy.deepcopy(cut.bottom)
    assert torch.equal(twin(x), cut.bottom(x))
    assert list(dict(twin.named_parameters())) == list(dict(cut.bottom.named_parameters()))
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in model.parameters())


def test_parameters_of_the_container_itself() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.middle(net.first(x * net.scale) + net.shift))

    model = Net(forward)
    cut = split_at(model, "middle")
    assert set(dict(cut.bottom.named_parameters())) == {"scale", "first.weight", "first.bias"}
    assert "shift" not in cut.bottom.state_dict()  # as in the model
    x = torch.randn(3, 4)
    check_same(model, cut, x)
    model._parameters["scale"] = nn.Parameter(torch.full((4,), 3.0))
    cut.bottom._buffers["shift"] = torch.full((4,), 5.0)
    check_same(model, cut, x)


def test_a_weight_used_outside_its_layer() -> None:
    def late(net: Net, x: Tensor) -> Tensor:
        weight = net.last.weight  # read before the cut, used after it
        return F.linear(net.middle(net.first(x)), weight)

    model = Net(late)
    cut = split_at(model, "middle")
    assert set(dict(cut.bottom.named_parameters())) == {"first.weight", "first.bias"}
    check_same(model, cut, torch.randn(3, 4))
    model.last._parameters["weight"] = nn.Parameter(torch.eye(4))
    check_same(model, cut, torch.randn(3, 4))


def test_a_layer_without_state_may_serve_both_halves() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    check_same(model, split_at(model, "2"), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (256, 32), (48, 24), (16, 8), (8, 4), (100, 25), (7, 1), (1, 1)]
)
def test_group_norms(channels: int, groups: int) -> None:
    norm = nn.BatchNorm2d(channels, eps=1e-3).double().eval()
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(nn.Conv2d(1, channels, 3), norm, nn.Flatten(), nn.LazyLinear(2))
    model.double()(torch.zeros(1, *DIGITS, dtype=torch.float64))
    split_at(model, "3", bottom_norm="group")
    fresh = model[1]
    assert isinstance(fresh, nn.GroupNorm)
    assert (fresh.num_groups, fresh.num_channels, fresh.eps) == (groups, channels, 1e-3)
    assert torch.equal(fresh.weight, torch.ones(channels, dtype=torch.float64))
    assert torch.equal(fresh.bias, torch.zeros(channels, dtype=torch.float64))
    assert not fresh.training


def test_group_norms_are_those_of_our_models() -> None:
    cut = split_at(build_model("resnet10", DIGITS, 5), "layer4", bottom_norm="group")
    ours = split_at(build_model("resnet10:norm=group", DIGITS, 5), "layer4")
    assert str(list(cut.bottom.modules())[1:]) == str(list(ours.bottom.modules())[1:])


def test_a_batch_norm_with_two_names_is_replaced_under_both() -> None:
    model = ResNet()
    model.norms = nn.ModuleList([model.bn1])
    split_at(model, "layer1", bottom_norm="group")
    assert isinstance(model.bn1, nn.GroupNorm)
    assert model.norms[0] is model.bn1
    norm = nn.BatchNorm1d(4, affine=False)
    split_at(nn.Sequential(model := nn.Sequential(nn.Linear(4, 4), norm), nn.Linear(4, 2)), "1", bottom_norm="group")
    assert isinstance(model[1], nn.GroupNorm)
    assert not list(model[1].parameters())


def test_any_pair_of_modules() -> None:
    bottom, top = nn.Linear(4, 3), nn.Linear(3, 2)
    cut = Cut(bottom, top)
    assert (cut.bottom, cut.top) == (bottom, top)
    tied = nn.Linear(3, 2)
    tied.bias = bottom.bias
    for one, other, message in [
        (bottom, tied, "both halves hold 'bias'"),
        (nn.Flatten(), top, "the bottom would have no parameter to train"),
        (bottom, nn.Softmax(-1), "the top would have no parameter to train"),
        (nn.Sequential(bottom, nn.BatchNorm1d(3)), top, "the bottom has a BatchNorm1d, '1'"),
    ]:
        with pytest.raises(UsageError, match=message):
            Cut(one, other)


def frozen() -> nn.Module:
    model = build_model("mlp", DIGITS, 10)
    model.get_submodule("fc1").requires_grad_(False)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)


def hooked() -> nn.Module:
    model = ResNet()
    model.register_forward_hook(lambda *_: None)
    return model


def net(forward: Callable[[Net, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Net(forward)


def no_grad(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = net.first(x)
    return net.last(net.middle(x))


def chooses(net: Net, x: Tensor) -> Tensor:
    return net.last(net.middle(net.first(x))) if x.sum() > 0 else x


def skips(net: Net, x: Tensor) -> Tensor:
    y = net.first(x)
    return net.last(net.middle(y)) + y * x


@pytest.mark.parametrize(
    ("build", "before", "message"),
    [
        (ResNet, "layer9", "cut before 'layer9': the ResNet has no such module. Cuts that work: fc, bn1, relu, "),
        (ResNet, "", "no such module"),
        (ResNet, "unused", "the ResNet never calls it"),
        (ResNet, "conv1", "the bottom would have no parameter to train"),
        (ResNet, "layer1.0.conv2", r"2 values cross it \(what maxpool returns, what layer1.0.relu returns\), expected"),
        (ResNet, "layer2.0.bn2", "expected 1; cut between blocks or whole stages, .* Cuts that work"),
        (lambda: build_model("resnet10", DIGITS, 5), "layer3.0.norm2", "2 values cross it"),
        (lambda: build_model("mlp", DIGITS, 10), "fc1", "Cuts that work: relu1, fc$"),
        (lambda: ResNet(fc=nn.Identity()), "avgpool", "the top would have no parameter to train"),
        (frozen, "fc", "the bottom would have no parameter to train.* perhaps among the modules inside them"),
        (tied, "1", "both halves hold '2.weight'"),
        (shared_norm, "2", "both halves hold '1.weight'"),
        (hooked, "layer2", r"the forward around it \(ResNet\) has hooks"),
        (net(lambda net, x: net.last(net.middle(net.first.bias))), "middle", "0 values cross it"),
        (net(skips), "middle", r"2 values cross it \(the input, what first returns\)"),
        (net(lambda net, x: net.last(net.first(x) * net.scale) * net.scale), "last", "both halves hold 'scale'"),
        (net(chooses), "middle", r"the forward around it \(Net\) cannot be followed: symbolically traced variables"),
        (net(lambda net, x: net.last(net.middle(x * len(x)))), "last", "cannot be followed: .*len"),
        (net(lambda net, x: net.last(x if net.training else net.first(x))), "last", "reads self.training"),
        (net(lambda net, x: net.last(F.dropout(net.first(x), 0.5, net.training))), "last", "reads self.training"),
        (net(no_grad), "last", "cannot be followed: it enters no_grad or autocast; move that into a module"),
        (net(lambda net, x: net.last(net.first(x) * net.plain)), "last", "a tensor that is neither parameter nor"),
        (net(lambda net, x: net.last(net.first(x) + torch.rand(4))), "last", "a tensor that is neither parameter nor"),
        (lambda: nn.Sequential(Moody(1), nn.Linear(8, 2)), "0.conv", r"\(Sequential > Moody\) cannot be followed"),
    ],
)
def test_refusals(build: Callable[[], nn.Module], before: str, message: str) -> None:
    model = build()
    kept = {name: (type(module), module.training) for name, module in model.named_modules()}
    with pytest.raises(UsageError, match=message) as caught:
        split_at(model, before, bottom_norm="group")
    assert "\n" not in str(caught.value)
    assert before not in cuts(model)
    assert {name: (type(module), module.training) for name, module in model.named_modules()} == kept


def test_refused_norms() -> None:
    with pytest.raises(UsageError, match=r"the bottom has a BatchNorm2d, 'bn1', .* split_at.*bottom_norm=\"group\""):
        split_at(ResNet(), "layer2")
    with pytest.raises(UsageError, match="bottom_norm='batch'; expected \"group\""):
        split_at(ResNet(), "layer2", bottom_norm="batch")  # type: ignore[arg-type]
    lazy = nn.Sequential(nn.Linear(4, 4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    with pytest.raises(UsageError, match="run the model once"):
        split_at(lazy, "2", bottom_norm="group")
