"""Which parameters may be pruned, and where they lie in the flat vector of a model.

A `PruningRule` says what is prunable, `prunable_names` finds it in a module, and a `ParamView` takes it out of a
vector (d,) as one shorter vector (M,), on which all of pruning happens, and puts it back.
Sparsity is always a share of M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsync.errors import UsageError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class PruningRule:
    """What is prunable. Without options: the weight of every convolution and linear layer, and nothing else.

    Attributes
    ----------
    first, last : bool
        Whether the first and the last layer are, in order of registration among the layers that `shortcuts` leaves.
    shortcuts : bool
        Whether 1x1 convolutions inside a child named ``shortcut`` or ``downsample`` are.
    biases : bool
        Whether biases of these layers are, too.
    norms : bool
        Whether scales and shifts of normalisation layers are, too.
    """

    first: bool = True
    last: bool = True
    shortcuts: bool = True
    biases: bool = False
    norms: bool = False


RULES = {
    "all": PruningRule(),
    "sparsyfed": PruningRule(),
    "feddip": PruningRule(shortcuts=False),
    "weights_no_ends": PruningRule(first=False, last=False),
}
"""Rules by name: every weight (SparsyFed's), those of ``EricLoong/feddip``, those of PruneTrain's port in it."""


def prunable_names(module: nn.Module, rule: str | PruningRule = "all") -> tuple[str, ...]:
    """Names of a module's prunable parameters, in order of registration.

    Frozen parameters are never among them; a shared one is there once. A weight under a parametrization is named by
    what is trained in its place, ``...parametrizations.weight.original``.

    Parameters
    ----------
    module : nn.Module
        Any; subclasses of the layers count as the layers.
    rule : str or PruningRule
        A name from `RULES`, or a rule of one's own. Default: ``"all"``.

    Raises
    ------
    UsageError
        If the rule has no such name, or leaves nothing to prune.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise UsageError(f"prunable rule {rule!r} is unknown; expected one of {', '.join(RULES)}, or a Rule")
        rule = RULES[rule]
    layers = [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS) and _trains_weight(layer) and (rule.shortcuts or not _is_shortcut(name, layer))
    ]
    layers = layers[0 if rule.first else 1 : None if rule.last else -1]
    leaves = ("weight", "bias") if rule.biases else ("weight",)
    owners = dict(module.named_modules(remove_duplicate=False))
    found: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        path, leaf = place_of(name)
        owner = owners.get(path)
        if parameter.requires_grad and (
            (owner in layers and leaf in leaves) or (rule.norms and isinstance(owner, _NORMS))
        ):
            found.setdefault(id(parameter), name)
    if not found:
        raise UsageError(
            f"the {type(module).__name__} has nothing to prune under {rule}; expected at least one trainable weight of "
            "a convolution or linear layer that the rule leaves"
        )
    return tuple(found.values())


def place_of(name: str) -> tuple[str, str]:
    """Split a parameter's name into the path of its layer and what the layer calls it, parametrised or not."""
    path, _, leaf = name.removesuffix(".original").replace("parametrizations.", "").rpartition(".")
    return path, leaf


def owner_of(module: nn.Module, name: str) -> nn.Module:
    """Return the layer that computes with a parameter, parametrised or not.

    Raises
    ------
    UsageError
        If the module has no such parameter.
    """
    owners: dict[str, nn.Module] = dict(module.named_modules(remove_duplicate=False))
    path, _ = place_of(name)
    if path not in owners or name not in dict(module.named_parameters(remove_duplicate=False)):
        raise UsageError(f"the {type(module).__name__} has no parameter {name!r}; take names from prunable_names")
    return owners[path]


def _trains_weight(layer: nn.Module) -> bool:
    own = layer.named_parameters()
    return any(parameter.requires_grad and place_of(name) == ("", "weight") for name, parameter in own)


def _is_shortcut(name: str, layer: nn.Module) -> bool:
    """Whether a layer is a 1x1 convolution on a residual block's other path."""
    kernel: tuple[int, ...] = getattr(layer, "kernel_size", (0,))
    return math.prod(kernel) == 1 and not {"shortcut", "downsample"}.isdisjoint(name.split("."))


class NamedSlice(Protocol):
    """Where one tensor of a model lies in its flat vector; `sparsync.workers.layout.Slot` is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it is known by."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def start(self) -> int:
        """Index of its first number."""

    @property
    def stop(self) -> int:
        """Index after its last."""


class ParamView:
    """The prunable entries of a flat vector (d,) as one vector (M,), in the order of the flat vector.

    Parameters
    ----------
    slots : sequence of NamedSlice
        All of the vector, in its order, e.g. ``Layout.of_parameters(module).slots``.
    names : sequence of str
        Of the prunable parameters, e.g. from `prunable_names`.

    Attributes
    ----------
    names, shapes, sizes : tuple, (L,)
        Of the prunable parameters.
    spans, others : tuple of (start, stop)
        Where the prunable parameters lie in the flat vector, and the rest of it between them.
    numel, total : int
        M, prunable entries; d, all of them.

    Raises
    ------
    UsageError
        If a name has no slot.
    """

    def __init__(self, slots: Sequence[NamedSlice], names: Sequence[str]) -> None:
        known = {name: slot for slot in slots for name in slot.names}
        for name in names:
            if name not in known:
                raise UsageError(f"prunable parameter {name!r} is not trained; expected one of {', '.join(known)}")
        if not names:
            raise UsageError("ParamView: no names; expected at least one prunable parameter")
        chosen = {id(known[name]): name for name in reversed(names)}  # of two names of one parameter, the first
        ordered = [slot for slot in slots if id(slot) in chosen]
        self.names = tuple(chosen[id(slot)] for slot in ordered)
        self.shapes = tuple(tuple(slot.shape) for slot in ordered)
        self.spans = tuple((slot.start, slot.stop) for slot in ordered)
        self.sizes = tuple(stop - start for start, stop in self.spans)
        self.numel = sum(self.sizes)
        self.total = max(slot.stop for slot in slots)
        edges = [0, *(edge for span in self.spans for edge in span), self.total]
        self.others = tuple((a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)

    def gather(self, x: Tensor) -> Tensor:
        """Prunable entries of vectors (..., d), copied: (..., M)."""
        return self._gather(x, self.spans)

    def gather_rest(self, x: Tensor) -> Tensor:
        """All but the prunable entries of vectors (..., d), copied: (..., d - M)."""
        return self._gather(x, self.others)

    def scatter_(self, x: Tensor, values: Tensor) -> Tensor:
        """Write prunable entries (..., M) into vectors (..., d), in place, and return these."""
        return self._scatter_(x, values, self.spans)

    def scatter_rest_(self, x: Tensor, values: Tensor) -> Tensor:
        """Write the other entries (..., d - M) into vectors (..., d), in place, and return these."""
        return self._scatter_(x, values, self.others)

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Views of prunable entries (..., M), one per parameter, flat."""
        return tuple(flat.split_with_sizes(self.sizes, -1))

    def expand(self, values: Tensor) -> Tensor:
        """One number per parameter (L,) as one per entry (M,)."""
        return values.repeat_interleave(torch.tensor(self.sizes, device=values.device))

    def layer_density(self, mask: Tensor) -> dict[str, float]:
        """Fraction of non-zeros of each parameter, of a mask or of values (M,)."""
        kept = torch.stack([part.count_nonzero() for part in self.split(mask)]).tolist()
        return {name: count / size for name, count, size in zip(self.names, kept, self.sizes, strict=True)}

    def empty_layers(self, mask: Tensor) -> list[str]:
        """Names of the parameters of which a mask, or values (M,), leave nothing."""
        return [name for name, density in self.layer_density(mask).items() if density == 0]

    def _gather(self, x: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        self._check(x)
        return torch.cat([x[..., :0], *(x[..., start:stop] for start, stop in spans)], -1)

    def _scatter_(self, x: Tensor, values: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        self._check(x)
        parts = values.split_with_sizes([stop - start for start, stop in spans], -1)
        for (start, stop), part in zip(spans, parts, strict=True):
            x[..., start:stop] = part
        return x

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.total:
            raise UsageError(f"ParamView: a vector of {x.shape[-1]} numbers; expected all {self.total} of the model")
