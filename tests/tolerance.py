"""How far apart two computations of the same numbers may be: what the arithmetic says, not what one machine shows.

Processors and libraries add in different orders, so the last bits of a sum differ, and a training may amplify that.
Where the roundings can be counted, `rounding` bounds them. Where they cannot, the yardstick is the reference itself:
`assert_alike` runs it again from parameters that are one unit in the last place off, and allows a multiple of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Tensors = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Nudge = Callable[[nn.Module], nn.Module]
"""Moves the parameters of a module by as little as can be, or not at all, in place; returns the module."""
Module = TypeVar("Module", bound=nn.Module)

ROUNDINGS = 32
"""Times the yardstick: a training rounds anew in every step, where the yardstick was moved once, at the beginning."""


def rounding(roundings: float, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> float:
    """Bound on the difference of two results, each rounded so often in a row, of terms that sum up to `scale` at most.

    Each is off by half an epsilon per rounding (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2).
    """
    return roundings * torch.finfo(dtype).eps * scale


def exactly(module: Module) -> Module:
    """Move nothing."""
    return module


def nudge(seed: int) -> Nudge:
    """Move every parameter by one unit in the last place, up or down by lot."""

    def move(module: Module) -> Module:
        lots = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                up = torch.rand(parameter.shape, generator=lots) < 0.5
                parameter.copy_(torch.nextafter(parameter, torch.where(up, torch.inf, -torch.inf).to(parameter)))
        return module

    return move


def distance(one: Tensors, other: Tensors) -> float:
    """Largest difference of two numbers at the same place."""
    ours, theirs = _named(one), _named(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def assert_alike(found: Tensors, reference: Callable[[Nudge], Tensors]) -> None:
    """What was found is what the reference gives, up to rounding; the reference gets who nudges its parameters."""
    expected = reference(exactly)
    values = [value for value in _named(expected).values() if value.is_floating_point()]
    scale = max(float(value.abs().max()) for value in values)
    eps = max(torch.finfo(value.dtype).eps for value in values)
    moved = max(distance(reference(nudge(seed)), expected) for seed in (1, 2))
    allowed = ROUNDINGS * max(moved, eps * scale)
    assert allowed < 1e-2 * scale, f"one unit in the last place grows to {moved:.1e}: such a run shows nothing"
    assert distance(found, expected) <= allowed


def _named(tensors: Tensors) -> Mapping[str, Tensor]:
    if isinstance(tensors, Mapping):
        return tensors
    return {str(place): tensor for place, tensor in enumerate([tensors] if isinstance(tensors, Tensor) else tensors)}
