"""What a forward pass computes, in floating-point operations; layers with weights count, the rest is small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsync.sparsity import prunable_names
from sparsync.sparsity.view import owner_of


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
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            module.eval()(next(module.parameters()).new_zeros(1, *shape))
    finally:
        for handle in hooks:
            handle.remove()
        for part, training in modes:
            part.training = training
    return flops
