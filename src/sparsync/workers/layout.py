"""Models as rows of a matrix.

A `Layout` says where each tensor of a model lies in a flat vector of d numbers; an `Arena` is the matrix (k, d) of k
such vectors, and of their gradients; a `Seat` is the one module of this process, in which the workers take turns:
its parameters become views into the row of whoever sits in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsync.errors import UsageError


@dataclass(frozen=True)
class Slot:
    """One tensor of a model: every name it is known by (more than one if shared), its shape and place."""

    names: tuple[str, ...]
    shape: torch.Size
    start: int
    stop: int


class Layout:
    """Where tensors lie in a flat vector, in the order of the module that they come from.

    Attributes
    ----------
    slots : tuple of Slot
        One per tensor; a tensor with several names has one slot.
    numel : int
        Length of the vector, d.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        named: dict[int, tuple[list[str], Tensor]] = {}
        for name, tensor in tensors:
            named.setdefault(id(tensor), ([], tensor))[0].append(name)
        slots, start = [], 0
        for names, tensor in named.values():
            slots.append(Slot(tuple(names), tensor.shape, start, start + tensor.numel()))
            start += tensor.numel()
        self.slots = tuple(slots)
        self.numel = start

    @classmethod
    def of_parameters(cls, module: nn.Module) -> Layout:
        """Layout of what a module trains; frozen parameters have no place, so they are never sent.

        Raises
        ------
        UsageError
            If nothing is trained, or a parameter is complex, sparse, on the meta device or not yet initialised.
        """
        trained = []
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                check_parameter(name, parameter)
                trained.append((name, parameter))
        if not trained:
            raise UsageError("the model has no trainable parameters; set requires_grad=True on what is to be trained")
        return cls(trained)

    @classmethod
    def of_floating_buffers(cls, module: nn.Module) -> Layout:
        """Layout of a module's floating-point buffers (BatchNorm's running statistics)."""
        named = module.named_buffers(remove_duplicate=False)
        return cls((name, buffer) for name, buffer in named if buffer.is_floating_point())

    @classmethod
    def of_other_buffers(cls, module: nn.Module) -> dict[torch.dtype, Layout]:
        """Layouts of a module's other buffers (BatchNorm's counters, masks), one per dtype."""
        named = [pair for pair in module.named_buffers(remove_duplicate=False) if not pair[1].is_floating_point()]
        dtypes = dict.fromkeys(buffer.dtype for _, buffer in named)
        return {dtype: cls((name, buffer) for name, buffer in named if buffer.dtype == dtype) for dtype in dtypes}

    def views(self, row: Tensor) -> list[Tensor]:
        """Views of a vector (d,), one per slot, in the tensors' shapes."""
        return [row[slot.start : slot.stop].view(slot.shape) for slot in self.slots]

    def flatten(self, tensors: Mapping[str, Tensor], out: Tensor) -> Tensor:
        """Copy named tensors into a vector (d,)."""
        for slot, view in zip(self.slots, self.views(out), strict=True):
            view.copy_(tensors[slot.names[0]])
        return out


def check_parameter(name: str, parameter: Tensor) -> None:
    """Refuse what cannot be averaged as real numbers.

    Raises
    ------
    UsageError
        Naming the parameter and what to do.
    """
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise UsageError(f"parameter {name!r} has no shape yet; run the lazy model once before handing it over")
    if parameter.is_meta:
        raise UsageError(f"parameter {name!r} is on the meta device; give it storage first, e.g. model.to_empty(...)")
    if parameter.layout is not torch.strided:
        raise UsageError(f"parameter {name!r} is sparse ({parameter.layout}); only dense parameters can be averaged")
    if parameter.is_complex():
        raise UsageError(f"parameter {name!r} is complex; hold its real and imaginary parts as two real parameters")


class Arena:
    """k models of d parameters as rows.

    Attributes
    ----------
    params, grads : Tensor, (k, d)
        Parameters and their gradients.
    buffers : Tensor, (k, b)
        Floating-point buffers (BatchNorm's running statistics).
    others : list of Tensor, (k, c)
        Buffers of other dtypes (BatchNorm's number of batches seen, masks), one matrix per dtype; always each
        worker's own.
    """

    def __init__(
        self, module: nn.Module, k: int, device: torch.device, dtype: torch.dtype, *, gradients: bool = True
    ) -> None:
        self.layout = Layout.of_parameters(module)
        self.buffer_layout = Layout.of_floating_buffers(module)
        other_layouts = Layout.of_other_buffers(module)
        self.other_layouts = list(other_layouts.values())
        self.params = torch.empty(k, self.layout.numel, device=device, dtype=dtype)
        self.grads = torch.zeros(k, self.layout.numel if gradients else 0, device=device, dtype=dtype)
        self.buffers = torch.empty(k, self.buffer_layout.numel, device=device, dtype=dtype)
        self.others = [
            torch.empty(k, layout.numel, device=device, dtype=other) for other, layout in other_layouts.items()
        ]
        self.load(module)

    @torch.no_grad()
    def load(self, module: nn.Module) -> None:
        """Every row takes a module's parameters and buffers."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
        self.params.copy_(self.layout.flatten(parameters, self.params[0]).clone())
        self.buffers.copy_(self.buffer_layout.flatten(buffers, self.buffers[0]).clone())
        for layout, rows in zip(self.other_layouts, self.others, strict=True):
            rows.copy_(layout.flatten(buffers, rows[0]).clone())

    def parameters(self, i: int) -> list[nn.Parameter]:
        """Row i as parameters with gradients, views into the arena, one per slot."""
        parameters = [nn.Parameter(view) for view in self.layout.views(self.params[i])]
        for parameter, grad in zip(parameters, self.layout.views(self.grads[i]), strict=True):
            parameter.grad = grad
        return parameters

    def row(self, i: int) -> nn.Parameter:
        """Row i as one flat parameter with its gradient: what an optimiser updates."""
        row = nn.Parameter(self.params[i])
        row.grad = self.grads[i]
        return row

    def row_buffers(self, i: int) -> list[Tensor]:
        """Row i's buffers as views into the arena, one per slot: floating-point ones first."""
        return [*self.buffer_layout.views(self.buffers[i]), *self.other_views(i)]

    def other_views(self, i: int) -> list[Tensor]:
        """Row i's buffers of other dtypes as views, one per slot."""
        pairs = zip(self.other_layouts, self.others, strict=True)
        return [view for layout, rows in pairs for view in layout.views(rows[i])]


class Seat:
    """A module in which workers take turns.

    Binding writes a worker's tensors into the registries of the submodules: nothing is copied and no storage is
    rebound, so one module serves any number of workers.
    """

    def __init__(self, module: nn.Module, arena: Arena) -> None:
        self.module = module
        self._parameters = [self._places(module, slot) for slot in arena.layout.slots]
        layouts = (arena.buffer_layout, *arena.other_layouts)
        self._buffers = [self._places(module, slot) for layout in layouts for slot in layout.slots]

    @staticmethod
    def _places(module: nn.Module, slot: Slot) -> list[tuple[nn.Module, str]]:
        split = (name.rpartition(".") for name in slot.names)
        return [(module.get_submodule(path), leaf) for path, _, leaf in split]

    def bind(self, parameters: list[nn.Parameter], buffers: list[Tensor]) -> nn.Module:
        """Let a worker's tensors be the module's, and return the module."""
        for places, parameter in zip(self._parameters, parameters, strict=True):
            for owner, leaf in places:
                if type(owner).__setattr__ is nn.Module.__setattr__:
                    owner._parameters[leaf] = parameter
                else:  # modules that keep references of their own to their parameters, such as nn.LSTM
                    setattr(owner, leaf, parameter)
        for places, buffer in zip(self._buffers, buffers, strict=True):
            for owner, leaf in places:
                owner._buffers[leaf] = buffer
        return self.module
