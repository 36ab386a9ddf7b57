"""Optimisers of torch.optim by spec. Each worker has its own, on its own row, so state is never shared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsync.errors import UsageError
from sparsync.spec import Registry, Spec, parse


def restore_state(optimizer: Optimizer, row: nn.Parameter, state: Mapping[str, Any]) -> None:
    """Give an optimiser the state that it once had for a row, in tensors of its own, where the row is."""
    optimizer.state[row] = {
        name: value.to(row.device, copy=True) if isinstance(value, Tensor) else value for name, value in state.items()
    }


class Optimizers(Registry[Optimizer]):
    """Functions (rows, *, options) -> optimiser, whose rules are element-wise."""

    def build(self, spec: str | Spec, *context: Any) -> Optimizer:
        """Build what a spec asks for.

        Raises
        ------
        UsageError
            As of `Registry.build`, or if what is built cannot take steps with a learning rate.
        """
        made = super().build(spec, *context)
        what = f"optimizer {parse(str(spec)).name!r}: it made a {type(made).__name__}"
        if any("lr" not in group for group in made.param_groups) or len(made.param_groups) != 1:
            raise UsageError(f"{what} without one learning rate, lr, for all parameters; expected one")
        if any(parameter.default is parameter.empty for parameter in inspect.signature(made.step).parameters.values()):
            raise UsageError(f"{what}, whose step needs a closure; expected one that steps by the gradients alone")
        return made


OPTIMIZERS = Optimizers("optimizer", Optimizer)

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@OPTIMIZERS.register("sgd")
def sgd(rows: list[nn.Parameter], *, lr: Rate = 0.1, momentum: Fraction = 0.0, weight_decay: Rate = 0.0) -> Optimizer:
    """SGD, with heavy-ball momentum if wished."""
    return torch.optim.SGD(rows, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


@OPTIMIZERS.register("nesterov")
def nesterov(
    rows: list[nn.Parameter],
    *,
    lr: Rate = 0.1,
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    weight_decay: Rate = 0.0,
) -> Optimizer:
    """SGD with Nesterov momentum."""
    return torch.optim.SGD(rows, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True, fused=True)


@OPTIMIZERS.register("adam")
def adam(
    rows: list[nn.Parameter],
    *,
    lr: Rate = 1e-3,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    eps: Positive = 1e-8,
    weight_decay: Rate = 0.0,
) -> Optimizer:
    """Adam; weight decay, if any, is coupled (an L2 term in the gradient)."""
    return torch.optim.Adam(rows, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True)


@OPTIMIZERS.register("adamw")
def adamw(
    rows: list[nn.Parameter],
    *,
    lr: Rate = 1e-3,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    eps: Positive = 1e-8,
    weight_decay: Rate = 1e-2,
) -> Optimizer:
    """AdamW: Adam with decoupled weight decay."""
    return torch.optim.AdamW(rows, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True)
