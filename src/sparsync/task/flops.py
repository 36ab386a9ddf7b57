"""What a forward pass computes, in floating-point operations; products with weights count, the rest is small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsync.sparsity import prunable_names
from sparsync.sparsity.view import owner_of
from sparsync.task.state import evaluating


def total_flops(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Operations of one example's forward pass, whatever layers it passes; a multiply-add counts 2.

    Parameters
    ----------
    module : nn.Module
        The model, or a part of one that takes inputs; it is run once, in evaluation mode.
    shape : tuple of int
        Of one input.
    """
    # Fused kernels of recurrent and attention layers cannot be counted: gradients and plain kernels go without them.
    fused, *_ = torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        with evaluating(module), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            module(_example(module, shape))
    finally:
        torch.backends.mkldnn.set_flags(fused)  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def forward_flops(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """F_l, operations of one example's forward pass in every prunable layer, by its weight; a multiply-add counts 2.

    Parameters
    ----------
    module : nn.Module
        The model; it is run once, in evaluation mode.
    shape : tuple of int
        Of one input.
    """
    flops: dict[str, int] = {}

    def hook(name: str, weight: Tensor) -> Any:
        def count(_: nn.Module, __: object, output: Tensor) -> None:
            flops[name] = flops.get(name, 0) + 2 * weight.numel() * output.numel() // weight.shape[0]

        return owner_of(module, name).register_forward_hook(count)

    hooks = [hook(name, module.get_parameter(name)) for name in prunable_names(module)]
    try:
        with evaluating(module):
            module(_example(module, shape))
    finally:
        for handle in hooks:
            handle.remove()
    return flops


def _example(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    return next(parameter for parameter in module.parameters() if parameter.requires_grad).new_zeros(1, *shape)
