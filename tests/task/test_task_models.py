from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsync.errors import UsageError
from sparsync.task import MODELS, build_model

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "expected"),
    [
        ("logistic", DIGITS, 10, 650),
        ("mlp", DIGITS, 10, 64 * 64 + 64 + 650),
        ("mlp:hidden=8,depth=3", DIGITS, 10, 64 * 8 + 8 + 2 * (8 * 8 + 8) + 90),
        ("lenet5", MNIST, 10, 61_706),  # FDA
        ("lenet5:variant=relu", MNIST, 10, 61_706),  # FedDIP
        ("vgg16-star", MNIST, 10, 2_592_202),  # FDA
        ("alexnet-cifar", CIFAR, 10, 23_272_266),  # FedDIP
        ("resnet18", CIFAR, 10, 11_173_962),  # SparsyFed, PSL
        ("resnet18:norm=group", CIFAR, 10, 11_173_962),
        ("resnet18", CIFAR, 100, 11_220_132),  # SparsyFed, FedDIP
        ("resnet8", CIFAR, 10, 78_042),
        ("resnet8:width=8,norm=group", DIGITS, 10, 19_810),
    ],
)
def test_parameter_counts(spec: str, shape: tuple[int, ...], classes: int, expected: int) -> None:
    assert sum(p.numel() for p in build_model(spec, shape, classes).parameters()) == expected


def test_published_parts() -> None:
    lenet = build_model("lenet5", MNIST, 10)
    assert sum(m.weight.numel() for m in lenet.modules() if isinstance(m, nn.Conv2d | nn.Linear)) == 61_470  # FedDIP
    resnet = build_model("resnet18:norm=group", CIFAR, 10)
    assert isinstance(resnet, nn.Sequential)
    bottom = resnet[: list(dict(resnet.named_children())).index("layer2")]
    assert sum(p.numel() for p in bottom.parameters()) == 149_824  # PSL
    assert bottom(torch.zeros(1, *CIFAR)).shape == (1, 64, 32, 32)
    assert all(m.num_groups == 32 for m in resnet.modules() if isinstance(m, nn.GroupNorm))
    weights = {n: p.numel() for n, p in build_model("resnet18", CIFAR, 100).named_parameters() if p.dim() > 1}
    assert sum(weights.values()) == 11_210_432  # SparsyFed
    assert sum(size for name, size in weights.items() if "shortcut" not in name) == 11_038_400  # FedDIP


@pytest.mark.parametrize("name", sorted(set(MODELS.entries) - {"alexnet-cifar", "resnet18"}))
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 15, 17)])
def test_models_fit_odd_shapes_and_cut_anywhere(name: str, shape: tuple[int, ...]) -> None:
    model = build_model(name, shape, 7).eval()
    x = torch.zeros(2, *shape)
    whole = model(x)
    assert whole.shape == (2, 7)
    assert isinstance(model, nn.Sequential)
    for cut in range(1, len(model)):
        assert torch.equal(model[cut:](model[:cut](x)), whole)


@pytest.mark.parametrize(("name", "least"), [("lenet5", 12), ("vgg16-star", 8), ("alexnet-cifar", 15), ("resnet8", 8)])
def test_least_shapes(name: str, least: int) -> None:
    assert build_model(name, (1, least, least), 2)(torch.zeros(2, 1, least, least)).shape == (2, 2)
    for shape in ((1, least - 1, least), (1, least, least - 1), (least * least,)):
        with pytest.raises(UsageError, match=f"model '{name}' needs pictures .* of at least {least}x{least}, but the"):
            build_model(name, shape, 2)


def test_glorot_for_fda_and_torch_for_feddip() -> None:
    def biases(spec: str) -> float:
        return max(
            float(p.detach().abs().max()) for n, p in build_model(spec, MNIST, 10).named_parameters() if "bias" in n
        )

    assert biases("lenet5") == biases("lenet5:variant=relu,init=glorot") == biases("vgg16-star") == 0
    assert biases("lenet5:variant=relu") > 0
    assert biases("lenet5:init=torch") > 0
    fc1 = build_model("lenet5", MNIST, 10).get_parameter("fc1.weight").detach()
    bound = (6 / (400 + 120)) ** 0.5
    assert 0.99 * bound < float(fc1.abs().max()) <= bound


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "models_of_mine.py").write_text(
        "from torch import nn\n"
        "number = 3\n"
        "def sized(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(shape[-1], classes))\n"
        "def fixed(): return nn.Linear(4, 2)\n"
        "def optional(width=5): return nn.Linear(width, 2)\n"
        "def text(): return 'no module'\n"
        "def demanding(shape): return nn.Linear(4, 2)\n"
        "def keywords(*, shape, classes): return nn.Linear(4, 2)\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(4, 2)\n"
    )
    (tmp_path / "broken_models_of_mine.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "models_of_mine"


@pytest.mark.parametrize(("function", "width"), [("sized", 6), ("fixed", 4), ("optional", 5), ("Net", 4)])
def test_ones_own_model(module: str, function: str, width: int) -> None:
    assert build_model(f"{module}:{function}", (6,), 2)(torch.zeros(1, width)).shape == (1, 2)


def test_a_function_itself() -> None:
    assert isinstance(build_model(lambda: nn.Linear(1, 2), (1,), 2), nn.Linear)
    assert build_model(lambda shape, classes: nn.Linear(shape[0], classes), (3,), 2).in_features == 3


BAD = [
    ("lenet6", "unknown model 'lenet6': did you mean 'lenet5'?"),
    ("lenet:variant=relu", "unknown model 'lenet'"),
    ("lenet5:variant=gelu", "model 'lenet5': variant: Input should be 'tanh' or 'relu', got 'gelu'"),
    ("resnet18:norm=layer", "model 'resnet18': norm: Input should be 'batch' or 'group'"),
    ("resnet8:width=3", "model 'resnet8': width: Input should be a multiple of 2, got '3'"),
    ("mlp:depth=0", "model 'mlp': depth: Input should be greater than or equal to 1, got '0'"),
    ("vgg16-star:dropout=1", "model 'vgg16-star': dropout=1; expected at least 0 and less than 1"),
    (
        "nowhere_at_all:build",
        "cannot import 'nowhere_at_all' (No module named 'nowhere_at_all'); choose one of alexnet",
    ),
    ("torch.nowhere:build", "cannot import 'torch.nowhere'"),
    ("..relative:build", "cannot import '..relative'"),
    ("broken_models_of_mine:build", "(No module named 'surely_not_installed')"),
    ("models_of_mine.sized", "model 'models_of_mine.sized': expected package.module:function"),
    ("models_of_mine:missing", "module 'models_of_mine' has no function 'missing'"),
    ("models_of_mine:number", "module 'models_of_mine' has no function 'number'"),
    ("models_of_mine:text", "model 'models_of_mine:text': it returned a str; expected a torch.nn.Module"),
    ("models_of_mine:demanding", "it requires (shape); expected a function of (shape, classes) or of nothing"),
    ("models_of_mine:keywords", "it requires (shape, classes); expected a function of (shape, classes)"),
]


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(("spec", "message"), BAD)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        build_model(spec, MNIST, 10)


@pytest.mark.parametrize("spec", ["mlp:init=truncated", "lenet5:init=truncated", "resnet8:init=truncated"])
def test_truncated_weights_have_the_variance_of_their_fan_in_and_biases_are_zero(spec: str) -> None:
    torch.manual_seed(3)
    layers = [
        layer for layer in build_model(spec, (1, 16, 16), 10).modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    for layer in layers:
        fan_in = layer.weight[0].numel()
        assert layer.weight.abs().max() <= 2 / (0.87962566 * fan_in**0.5) * (1 + 1e-6)
        assert layer.bias is None or not layer.bias.any()
    widest = max(layers, key=lambda layer: layer.weight.numel()).weight.detach()
    assert float(widest.std()) * widest[0].numel() ** 0.5 == pytest.approx(1, abs=0.05)
