"""Optimisers of torch.optim by spec. Each worker has its own, on its own row, so state is never shared."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from sparsync.spec import Registry

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")

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


def check_optimizer(spec: str) -> None:
    """Refuse a spec that no optimiser can be built from. Torch's own are not built: that loads its compiler.

    Raises
    ------
    UsageError
        If so.
    """
    if OPTIMIZERS.check(spec).factory.__module__ != __name__:
        OPTIMIZERS.build(spec, [nn.Parameter(torch.zeros(1))])
