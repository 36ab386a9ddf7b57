"""Models: named stages in a row, for inputs of any fitting shape.

Every model is an ``nn.Sequential`` of named children in the order of execution, so it can be cut before any of them:
``model[:4]`` and ``model[4:]`` share the parameters of the whole. Initial weights come from torch's global generator,
as everywhere in ``torch.nn``; `Task.module` seeds it for that moment and puts it back.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.sparsity import truncated_normal_
from sparsync.spec import Count, Registry, foreign, imported

Shape = tuple[int, ...]
Norm = Literal["batch", "group"]
Init = Literal["glorot", "torch", "truncated"]
ResNetInit = Literal["he", "truncated"]
Even = Annotated[int, Field(ge=2, le=1024, multiple_of=2)]
Depth = Annotated[int, Field(ge=1, le=1000)]

_MOST_PARAMETERS = 1 << 31

MODELS: Registry[nn.Module] = Registry("model", nn.Module)
"""Functions (shape of one input, classes, *, options) -> module; call them through `build_model`."""


def build_model(spec: str | Callable[..., nn.Module], shape: Shape, classes: int) -> nn.Module:
    """Build a registered model, or one of the user's own.

    Parameters
    ----------
    spec : str or callable
        A registered name with parameters, ``"mlp:hidden=128"``; ``"package.module:function:key=value"``, anything
        importable; or the function itself. A function is called with (shape, classes) if it requires more than what
        it is given by name, else with no more than that.
    shape : tuple of int
        Shape of one input.
    classes : int
        Number of outputs.

    Raises
    ------
    UsageError
        If the name, a parameter, the module or the function does not exist, the shape does not fit the model, or what
        the function returns is no ``nn.Module``.
    """
    if not isinstance(spec, str):
        return _call(spec, getattr(spec, "__name__", repr(spec)), shape, classes)
    function = imported(spec, MODELS)
    if function is None:
        return MODELS.build(spec, shape, classes)
    return _call(function, spec, shape, classes)


def _call(function: Callable[..., object], name: str, shape: Shape, classes: int) -> nn.Module:
    """Call a user's function with (shape, classes), or with nothing where it requires nothing."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise UsageError(f"model {name!r}: expected a function of (shape, classes) or of nothing") from None
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) not in (0, 2) or any(parameter.kind is parameter.KEYWORD_ONLY for parameter in required):
        names = ", ".join(parameter.name for parameter in required)
        raise UsageError(
            f"model {name!r}: it requires ({names}); expected a function of (shape, classes) or of nothing"
        )
    with foreign(f"model {name!r}: it cannot be built", "mend the function"):
        made = function(shape, classes) if required else function()
    if not isinstance(made, nn.Module):
        raise UsageError(f"model {name!r}: it returned a {type(made).__name__}; expected a torch.nn.Module")
    return made


@MODELS.register("logistic")
def logistic(shape: Shape, classes: int) -> nn.Module:
    """Multinomial logistic regression: one linear layer on the flattened input."""
    return _row(flatten=nn.Flatten(), fc=nn.Linear(math.prod(shape), classes))


@MODELS.register("mlp")
def mlp(
    shape: Shape,
    classes: int,
    *,
    hidden: Count = 64,
    depth: Depth = 1,
    init: Init = "torch",
) -> nn.Module:
    """Multilayer perceptron with ``depth`` hidden layers of ``hidden`` ReLU units, on the flattened input."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    width = math.prod(shape)
    if (total := hidden * (width + classes + (depth - 1) * hidden)) > _MOST_PARAMETERS:
        raise UsageError(f"model 'mlp': hidden={hidden}, depth={depth} make {total:.2g} weights; choose fewer")
    for i in range(1, depth + 1):
        layers |= {f"fc{i}": nn.Linear(width, hidden), f"relu{i}": nn.ReLU()}
        width = hidden
    return _initialised(_row(**layers, fc=nn.Linear(width, classes)), init)


@MODELS.register("lenet5")
def lenet5(
    shape: Shape, classes: int, *, variant: Literal["tanh", "relu"] = "tanh", init: Init | None = None
) -> nn.Module:
    """LeNet-5 (61,706 parameters on MNIST): tanh and average pooling, or ReLU and max pooling.

    Parameters
    ----------
    shape, classes
        Pictures of at least 12x12; number of outputs.
    variant : {"tanh", "relu"}
        FDA's, or FedDIP's.
    init : {"glorot", "torch", "truncated"}, optional
        Glorot uniform weights and zero biases, as Keras and so FDA's authors; torch's own; or truncated normals of
        variance 1/fan-in and zero biases, as SparsyFed's authors. Default: Glorot for tanh, torch's for ReLU.
    """
    channels, height, width = _picture("lenet5", shape, least=12)
    squash, pool = (nn.Tanh, nn.AvgPool2d) if variant == "tanh" else (nn.ReLU, nn.MaxPool2d)
    features = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    model = _row(
        conv1=nn.Conv2d(channels, 6, 5, padding=2),
        act1=squash(),
        pool1=pool(2),
        conv2=nn.Conv2d(6, 16, 5),
        act2=squash(),
        pool2=pool(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(features, 120),
        act3=squash(),
        fc2=nn.Linear(120, 84),
        act4=squash(),
        fc=nn.Linear(84, classes),
    )
    return _initialised(model, init or ("glorot" if variant == "tanh" else "torch"))


@MODELS.register("vgg16-star")
def vgg16_star(shape: Shape, classes: int, *, dropout: float = 0.5, init: Init = "glorot") -> nn.Module:
    """FDA's VGG16* (2,592,202 parameters on MNIST): three blocks of two 3x3 convolutions, two layers of 512.

    Parameters
    ----------
    shape, classes
        Pictures of at least 8x8; number of outputs.
    dropout : float
        Probability after each layer of 512.
    init : {"glorot", "torch", "truncated"}
        As in lenet5.
    """
    channels, height, width = _picture("vgg16-star", shape, least=8)
    layers: dict[str, nn.Module] = {}
    for i, out in enumerate((64, 128, 256)):
        for name, into in ((2 * i + 1, channels), (2 * i + 2, out)):
            layers |= {f"conv{name}": nn.Conv2d(into, out, 3, padding=1), f"relu{name}": nn.ReLU()}
        layers[f"pool{i + 1}"] = nn.MaxPool2d(2)
        channels = out
    model = _row(
        **layers,
        flatten=nn.Flatten(),
        fc1=nn.Linear(256 * (height // 8) * (width // 8), 512),
        relu7=nn.ReLU(),
        drop1=_dropout("vgg16-star", dropout),
        fc2=nn.Linear(512, 512),
        relu8=nn.ReLU(),
        drop2=_dropout("vgg16-star", dropout),
        fc=nn.Linear(512, classes),
    )
    return _initialised(model, init)


@MODELS.register("alexnet-cifar")
def alexnet_cifar(shape: Shape, classes: int, *, dropout: float = 0.5) -> nn.Module:
    """FedDIP's AlexNet for small pictures (23,272,266 parameters on CIFAR-10): five convolutions, two layers of 4096.

    The first convolution has stride 2 and three poolings halve the rest: 32 -> 16 -> 8 -> 4 -> 2, so 1024 features.
    """
    channels, height, width = _picture("alexnet-cifar", shape, least=15)
    features = 256 * ((height + 1) // 2 // 8) * ((width + 1) // 2 // 8)
    return _row(
        conv1=nn.Conv2d(channels, 64, 3, stride=2, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(64, 192, 3, padding=1),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(192, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 256, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(256, 256, 3, padding=1),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        drop1=_dropout("alexnet-cifar", dropout),
        fc1=nn.Linear(features, 4096),
        relu6=nn.ReLU(),
        drop2=_dropout("alexnet-cifar", dropout),
        fc2=nn.Linear(4096, 4096),
        relu7=nn.ReLU(),
        fc=nn.Linear(4096, classes),
    )


@MODELS.register("resnet18")
def resnet18(shape: Shape, classes: int, *, norm: Norm = "batch", init: ResNetInit = "he") -> nn.Module:
    """ResNet-18 with a small-picture stem (11,173,962 parameters on CIFAR-10): BatchNorm, or GroupNorm of 32 groups."""
    return _resnet("resnet18", shape, classes, widths=(64, 128, 256, 512), blocks=2, norm=norm, init=init)


@MODELS.register("resnet8")
def resnet8(
    shape: Shape, classes: int, *, width: Even = 16, norm: Norm = "batch", init: ResNetInit = "he"
) -> nn.Module:
    """ResNet small enough for a CPU: a stem and three stages of one block, of ``width``, twice and four times that."""
    return _resnet("resnet8", shape, classes, widths=(width, 2 * width, 4 * width), blocks=1, norm=norm, init=init)


@MODELS.register("resnet10")
def resnet10(
    shape: Shape, classes: int, *, width: Even = 16, stride: int = 1, norm: Norm = "batch", init: ResNetInit = "he"
) -> nn.Module:
    """ResNet-18 with one block per stage, ``width`` to eight times that wide; ``stride`` 2 quarters its cost."""
    if stride not in (1, 2):
        raise UsageError(f"model 'resnet10': stride={stride}; expected 1 or 2")
    widths = tuple(width * factor for factor in (1, 2, 4, 8))
    return _resnet("resnet10", shape, classes, widths=widths, blocks=1, norm=norm, init=init, stride=stride)


class ResidualBlock(nn.Module):
    """Basic residual block: two 3x3 convolutions, and a 1x1 convolution as shortcut where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = norm(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _resnet(
    name: str,
    shape: Shape,
    classes: int,
    *,
    widths: Shape,
    blocks: int,
    norm: Norm,
    init: ResNetInit,
    stride: int = 1,
) -> nn.Module:
    """He et al., arXiv:1512.03385, with a stem of 3x3 and no pooling; by default convolutions in He's fan-out."""
    channels, _, _ = _picture(name, shape, least=8)
    normalise = nn.BatchNorm2d if norm == "batch" else _group_norm
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, widths[0], 3, stride=stride, padding=1, bias=False),
        "norm1": normalise(widths[0]),
        "relu": nn.ReLU(),
    }
    into = widths[0]
    for i, out in enumerate(widths, start=1):
        stage = [
            ResidualBlock(into if j == 0 else out, out, 2 if i > 1 and j == 0 else 1, normalise) for j in range(blocks)
        ]
        layers[f"layer{i}"] = nn.Sequential(*stage)
        into = out
    model = _row(**layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(into, classes))
    if init == "truncated":
        return _initialised(model, init)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _group_norm(channels: int) -> nn.Module:
    """32 groups, or fewer where a group would have less than two of an even number of channels."""
    return nn.GroupNorm(math.gcd(32, channels // 2), channels)


def _row(**layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def _dropout(model: str, probability: float) -> nn.Module:
    if not 0 <= probability < 1:
        raise UsageError(f"model {model!r}: dropout={probability:g}; expected at least 0 and less than 1")
    return nn.Dropout(probability)


def _picture(model: str, shape: Shape, least: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise UsageError(
            f"model {model!r} needs pictures (channels, height, width) of at least {least}x{least}, but the inputs "
            f"have shape {shape}; choose another model or larger pictures"
        )
    return shape[0], shape[1], shape[2]


def _initialised(model: nn.Module, init: Init) -> nn.Module:
    if init == "torch":
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if init == "glorot":
                nn.init.xavier_uniform_(module.weight)
            else:
                truncated_normal_(module.weight, torch.default_generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
