"""Power re-parametrisation: layers compute with theta = sign(omega)|omega|^beta, and omega is what is trained.

Powerpropagation (arXiv:2110.00296), as used by SparsyFed (arXiv:2504.05153). Gradients are scaled by
beta |omega|^(beta - 1), so that small weights stay small, and with beta > 1 zeros stay exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from sparsync.errors import UsageError
from sparsync.sparsity.view import owner_of, place_of, prunable_names

TRUNCATED = 0.87962566
"""Standard deviation of a standard normal truncated to [-2, 2]."""


def power(omega: Tensor, beta: float | Tensor) -> Tensor:
    """Effective weights theta = sign(omega)|omega|^beta, element by element; differentiable once, in omega.

    Within 3 units in the last place of the exact value; ``torch.pow`` rounds beta to float32 first and is further off.

    Parameters
    ----------
    omega : Tensor
        Any shape, e.g. rows (k, M).
    beta : float or Tensor
        At least 1; a tensor broadcasts to omega, e.g. one per layer by `ParamView.expand`. The number 1 returns omega
        itself, without any operation.
    """
    theta: Tensor = omega if _is_one(beta) else _Power.apply(omega, beta)  # type: ignore[no-untyped-call]
    return theta


def power_gradient(omega: Tensor, beta: float | Tensor) -> Tensor:
    """Derivative of theta in omega, beta|omega|^(beta - 1): exactly 0 at 0 for beta > 1, and 1 for beta = 1."""
    return power_slope(omega.detach(), beta).mul_(beta)


def inverse_power(theta: Tensor, beta: float | Tensor) -> Tensor:
    """Raw weights omega = sign(theta)|theta|^(1/beta): what existing weights become when re-parametrised.

    The number 1 returns theta itself.
    """
    return theta if _is_one(beta) else theta.abs().pow(1 / beta).copysign(theta)


def _is_one(beta: float | Tensor) -> bool:
    return not isinstance(beta, Tensor) and beta == 1


def power_slope(omega: Tensor, beta: float | Tensor) -> Tensor:
    """|omega|^(beta - 1): theta is omega times it, and the derivative beta times it."""
    magnitude = omega.abs()
    if isinstance(beta, Tensor):
        return magnitude.pow(beta - 1)
    mantissa, exponent = math.frexp(beta - 1)
    if mantissa == 0.5 and -2 <= exponent <= 1:  # beta - 1 = 1, 1/2, 1/4, 1/8: 5 times as fast as pow
        for _ in range(1 - exponent):
            _sqrt_(magnitude)
        return magnitude
    return magnitude.pow_(beta - 1)


def _sqrt_(x: Tensor) -> None:
    """Square roots in place. On the CPU by numpy: torch's are seven times as slow where most of x is 0."""
    if x.device.type == "cpu" and x.is_contiguous():
        np.sqrt(x.numpy(), out=x.numpy())
    else:
        x.sqrt_()


class _Power(torch.autograd.Function):
    """Autograd's own derivative of |omega|^(beta - 1) is infinite at 0."""

    @staticmethod
    def forward(ctx: Any, omega: Tensor, beta: float | Tensor) -> Tensor:
        slope = power_slope(omega, beta)
        ctx.save_for_backward(slope)
        ctx.beta = beta
        return omega * slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return (gradient * slope).mul_(ctx.beta), None


class PowerParametrization(nn.Module):
    """The parametrization of one weight, for ``torch.nn.utils.parametrize``.

    Parameters
    ----------
    beta : float
        At least 1.

    Raises
    ------
    UsageError
        If beta is less.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta >= 1):
            raise UsageError(f"power: beta={beta!r}; expected a number of at least 1")
        self.beta = beta

    def forward(self, omega: Tensor) -> Tensor:
        return power(omega, self.beta)

    def right_inverse(self, theta: Tensor) -> Tensor:
        return inverse_power(theta, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}"


def reparametrize(
    module: nn.Module, beta: float | Mapping[str, float], names: Iterable[str] | None = None
) -> nn.Module:
    """Let a module train omega instead of weights, in place; what it computes stays the same, to rounding.

    Weights are replaced by omega = sign(w)|w|^(1/beta), so trained ones can be continued from. Do this before the
    module is handed to a fleet: afterwards its tensors are views that must stay.

    Parameters
    ----------
    module : nn.Module
        Whose weights are re-parametrised.
    beta : float or mapping
        One for all, or one for each name.
    names : iterable of str, optional
        Of the weights that share one beta. Default: all that are prunable.

    Raises
    ------
    UsageError
        If there is no such parameter, it is shared between modules, or beta is less than 1.
    """
    holders = [id(parameter) for part in module.modules() for parameter in part._parameters.values()]
    if not isinstance(beta, Mapping):
        beta = dict.fromkeys(prunable_names(module) if names is None else names, beta)
    for name, own in beta.items():
        owner, (_, leaf) = owner_of(module, name), place_of(name)
        if holders.count(id(module.get_parameter(name))) > 1:
            raise UsageError(f"power: parameter {name!r} is shared between modules; leave it out of names")
        if parametrize.is_parametrized(owner, leaf):
            raise UsageError(f"power: parameter {name!r} is re-parametrised already; do it once, on plain layers")
        parametrize.register_parametrization(owner, leaf, PowerParametrization(own))
    return module


def export(module: nn.Module) -> nn.Module:
    """Make a re-parametrised module plain again, in place: its weights become theta, its outputs keep every bit."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            chains = dict(part.parametrizations.items())  # type: ignore[operator, union-attr]
            for leaf, chain in chains.items():
                if any(isinstance(link, PowerParametrization) for link in chain):
                    parametrize.remove_parametrizations(part, leaf)
    return module


@torch.no_grad()
def spectral_beta(weight: Tensor, generator: torch.Generator) -> float:
    """SparsyFed's hyper-parameter-free beta of one layer: 1 + mean|W| / (spectral norm of |W|), from its omega.

    By one step of power iteration, the added term rounded to 8 decimals; 1 for a layer of zeros. As its code; the
    random start comes from `generator`, a CPU one.
    """
    magnitudes = weight.double().abs().flatten(1)
    added = float(magnitudes.mean() / _spectral_norm(magnitudes, generator))
    return 1.0 if math.isnan(added) else 1 + round(added, 8)


@torch.no_grad()
def spectral_network_beta(weights: Iterable[Tensor], generator: torch.Generator) -> float:
    """One such beta for a network: the mean over layers of (mean over non-zeros of |W|) / (spectral norm of |W|).

    Plus 1, rounded to 4 decimals; a layer of zeros adds 0. As its code, which uses it for evaluation and logging.
    """
    added = []
    for weight in weights:
        magnitudes = weight.double().abs().flatten(1)
        mean = magnitudes.sum() / magnitudes.count_nonzero()
        added.append(float(torch.nan_to_num(mean / _spectral_norm(magnitudes, generator))))
    return 1 + round(sum(added) / len(added), 4)


def _spectral_norm(matrix: Tensor, generator: torch.Generator) -> Tensor:
    start = torch.randn(matrix.shape[0], generator=generator, dtype=matrix.dtype).to(matrix.device)
    norm: Tensor = torch.linalg.vector_norm(matrix @ nn.functional.normalize(matrix.T @ start, dim=0))
    return norm


def truncated_normal_(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a weight (out, in, ...) from a normal of variance 1/fan_in, truncated at twice its scale, in place.

    The scale is 1/sqrt(fan_in)/0.87962566, so that the variance after truncation is 1/fan_in. SparsyFed's authors'
    initialisation of every layer in every compared method; for omega take the `inverse_power` of it.
    """
    scale = 1 / math.sqrt(weight[0].numel()) / TRUNCATED
    nn.init.trunc_normal_(weight, 0.0, scale, -2 * scale, 2 * scale, generator=generator)
    return weight
