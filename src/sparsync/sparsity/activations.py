"""Activation pruning: what a layer keeps of its input for the backward pass is as sparse as its weight.

SparsyFed (arXiv:2504.05153), and SWAT's layers inside ZeroFL. The forward pass is the ordinary operator on the dense
input; of the copy saved for backward only the largest magnitudes stay. The gradients of input and bias do not depend
on that copy, so they are unchanged; the weight's gradient is computed from the sparse copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from sparsync.errors import UsageError
from sparsync.shares import Share, exact
from sparsync.sparsity.masks import count_nonzero, kth_largest, magnitude_bits
from sparsync.sparsity.view import LAYERS, owner_of, place_of, prunable_names

Threshold = Literal["per_batch", "cached_per_round"]

LEAST = 1e-7
"""Least density of activations, so that of an empty layer's input at least one entry survives (SparsyFed's code)."""


class ActivationPruning:
    """Prune saved activations of a module's layers while it trains; a context manager that removes itself.

    At every forward pass in training mode, with d_l the fraction of non-zeros of the layer's weight, the largest
    ceil(max(d_l, 1e-7) numel(x)) magnitudes of the input x are kept: one threshold over the whole batch, all ties kept.
    Where d_l = 1, in evaluation mode and without gradients nothing is computed and the layer is as it was.

    Layers keep their class, attributes, hooks and parameters: only the method that calls the operator is replaced. A
    copy of the module prunes on its own, and is not reached by `new_round` and `remove`.

    Parameters
    ----------
    module : nn.Module
        Any. Convolutions and linear layers are pruned, whatever their options and their inputs' dimensions.
    names : iterable of str, optional
        Names of the weights whose layers are pruned. Default: all prunable ones.
    threshold : {"per_batch", "cached_per_round"}
        Whether the threshold of a convolution is chosen for every batch, or for the first batch of a round that is
        pruned and then kept, as in SparsyFed's code. Linear layers choose it for every batch in both.
    density : float or Fraction, optional
        Density of all layers' activations, instead of their weights' own: ZeroFL's. Above 0, at most 1.

    Raises
    ------
    UsageError
        If a weight does not exist or is not one of a convolution or linear layer, the layer has a forward of its own
        or is pruned already, or the density or the threshold is none of the above; at a forward pass, under autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Iterable[str] | None = None,
        *,
        threshold: Threshold = "per_batch",
        density: Share | None = None,
    ) -> None:
        if threshold not in ("per_batch", "cached_per_round"):
            raise UsageError(f"activation pruning: threshold={threshold!r}; expected 'per_batch' or 'cached_per_round'")
        if density is not None and not 0 < density <= 1:
            raise UsageError(f"activation pruning: density={density!r}; expected above 0 and at most 1")
        self._layers: dict[str, _Layer] = {}
        for name in prunable_names(module) if names is None else names:
            layer = owner_of(module, name)
            method = _operator(name, layer)
            cached = threshold == "cached_per_round" and method == "_conv_forward"
            self._layers[name] = _Layer(layer, method, cached, density)
        for pruned in self._layers.values():
            pruned.install()

    def new_round(self) -> None:
        """Forget thresholds and densities: a client's round begins."""
        for layer in self._layers.values():
            layer.limit, layer.saved, layer.seen = None, 0, 0

    @property
    def densities(self) -> dict[str, float]:
        """Non-zero fraction of each layer's saved activations since the round began, by name of the weight.

        A batch that was not pruned counts as dense; a layer that has not been trained is left out.
        """
        return {name: float(layer.saved) / layer.seen for name, layer in self._layers.items() if layer.seen}

    def remove(self) -> None:
        """Make the layers what they were."""
        for layer in self._layers.values():
            layer.remove()

    def __enter__(self) -> ActivationPruning:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _operator(name: str, layer: nn.Module) -> str:
    """Name of the method that calls a layer's operator."""
    kind = next((kind for kind in LAYERS if isinstance(layer, kind)), None)
    if kind is None or place_of(name)[1] != "weight":
        raise UsageError(f"activation pruning: {name!r} is no weight of a convolution or linear layer; leave it out")
    method = "forward" if kind is nn.Linear else "_conv_forward"
    if method in layer.__dict__:
        raise UsageError(f"activation pruning: the layer of {name!r} is pruned already; remove() that first")
    if any(getattr(type(layer), one) is not getattr(kind, one) for one in {"forward", method}):
        raise UsageError(
            f"activation pruning: {name!r} is of a {type(layer).__name__} with its own forward; leave it out"
        )
    return method


class _Layer:
    """One layer, its two possible operators, and what was seen of its activations."""

    def __init__(self, layer: nn.Module, method: str, cached: bool, density: Share | None) -> None:
        self.layer = layer
        self.method = method
        self.cached = cached
        self.density = None if density is None else exact(density)
        self.limit: float | None = None  # what saved magnitudes must exceed, once chosen for the round
        self.saved: int | Tensor = 0
        self.seen = 0

    def install(self) -> None:
        self.layer.__dict__[self.method] = getattr(self, self.method)

    def remove(self) -> None:
        if self.layer.__dict__.get(self.method) == getattr(self, self.method):
            del self.layer.__dict__[self.method]

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        with self._saving(x, weight):
            return functional.linear(x, weight, bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with self._saving(x, weight):
            made: Tensor = type(self.layer)._conv_forward(self.layer, x, weight, bias)  # type: ignore[attr-defined]
            return made

    def _saving(self, x: Tensor, weight: Tensor) -> AbstractContextManager[object]:
        """Within this, operators that save anything but the weight save it sparse."""
        if not (self.layer.training and torch.is_grad_enabled() and weight.requires_grad):
            return nullcontext()
        if torch.is_autocast_enabled(x.device.type):  # it casts within the operator: a weight would pass for an input
            raise UsageError("activation pruning under autocast is not supported; train in one precision")
        limit = self._limit(x, weight)
        if limit is None:
            self.saved, self.seen = self.saved + x.numel(), self.seen + x.numel()
            return nullcontext()

        def pack(saved: Tensor) -> Tensor:  # x itself, or x padded
            if saved.data_ptr() == weight.data_ptr():
                return saved
            sparse = functional.hardshrink(saved.detach(), limit)
            self.saved, self.seen = self.saved + count_nonzero(sparse), self.seen + sparse.numel()
            return sparse

        return saved_tensors_hooks(pack, lambda saved: saved)

    def _limit(self, x: Tensor, weight: Tensor) -> float | None:
        """The number just below the threshold tau, so that |x| > it means |x| >= tau; None: keep everything."""
        if self.limit is not None:
            return self.limit
        density = self.density or Fraction(int(count_nonzero(weight)), weight.numel())
        if density == 1 or x.numel() == 0:
            return None
        magnitudes = magnitude_bits(x)
        tau = kth_largest(magnitudes, math.ceil(max(density, exact(LEAST)) * x.numel()))
        below = torch.tensor(max(tau - 1, 0), dtype=magnitudes.dtype).view(x.dtype)  # of floats, by their bits
        if self.cached:
            self.limit = float(below)
        return float(below)
