"""Models as rows of a matrix.

A `Layout` says where each tensor of a model lies in a flat vector of d numbers; an `Arena` is the matrix (k, d) of k
such vectors, and of their gradients; a `BoundModule` is the one module of this process, in which workers take turns:
its parameters become views into the row of the worker whose turn it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.task.state import check_fits, check_tensor, set_parameter


@dataclass(frozen=True)
class TensorSlot:
    """One tensor of a model: every name it is known by (more than one if shared), its shape and place."""

    names: tuple[str, ...]
    shape: torch.Size
    start: int
    stop: int


class Layout:
    """Where tensors lie in a flat vector, in the order of the module that they come from.

    Attributes
    ----------
    slots : tuple of TensorSlot
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
            slots.append(TensorSlot(tuple(names), tensor.shape, start, start + tensor.numel()))
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
                check_tensor("parameter", name, parameter)
                trained.append((name, parameter))
        if not trained:
            raise UsageError("the model has no trainable parameters; set requires_grad=True on what is to be trained")
        return cls(trained)

    @classmethod
    def of_averaged_buffers(cls, module: nn.Module) -> Layout:
        """Layout of the buffers that are averaged as models are (BatchNorm's running statistics).

        They are of the trained parameters' type, and in ``state_dict()``.
        """
        return cls(pair for kind, pairs in _buffer_kinds(module).items() if _averaged(module, *kind) for pair in pairs)

    @classmethod
    def of_other_buffers(cls, module: nn.Module) -> dict[tuple[torch.dtype, bool], Layout]:
        """Layouts of all other buffers (BatchNorm's counters, masks), by type and whether ``state_dict()`` has them."""
        kinds = _buffer_kinds(module).items()
        return {kind: cls(pairs) for kind, pairs in kinds if not _averaged(module, *kind)}

    def views(self, row: Tensor) -> list[Tensor]:
        """Views of a vector (d,), one per slot, in the tensors' shapes."""
        return [row[slot.start : slot.stop].view(slot.shape) for slot in self.slots]

    def flatten(self, tensors: Mapping[str, Tensor], out: Tensor) -> Tensor:
        """Copy named tensors into a vector (d,)."""
        for slot, view in zip(self.slots, self.views(out), strict=True):
            view.copy_(tensors[slot.names[0]])
        return out


def _buffer_kinds(module: nn.Module) -> dict[tuple[torch.dtype, bool], list[tuple[str, Tensor]]]:
    """A module's buffers with all their names, by type and whether ``state_dict()`` has them under one of these."""
    parts = [
        (f"{path}.{leaf}".lstrip("."), buffer, leaf not in part._non_persistent_buffers_set)
        for path, part in module.named_modules(remove_duplicate=False)
        for leaf, buffer in part._buffers.items()
        if buffer is not None
    ]
    saved = {id(buffer) for _, buffer, persistent in parts if persistent}
    kinds: dict[tuple[torch.dtype, bool], list[tuple[str, Tensor]]] = {}
    for name, buffer, _ in parts:
        kinds.setdefault((buffer.dtype, id(buffer) in saved), []).append((name, buffer))
    return kinds


def _averaged(module: nn.Module, dtype: torch.dtype, saved: bool) -> bool:
    return saved and any(parameter.requires_grad and parameter.dtype is dtype for parameter in module.parameters())


class Arena:
    """k models of d parameters as rows.

    Attributes
    ----------
    params, grads : Tensor, (k, d)
        Parameters and their gradients.
    buffers : Tensor, (k, b)
        Buffers that are averaged (BatchNorm's running statistics): of the parameters' type, in saved models.
    others : list of Tensor, (k, c)
        All other buffers (BatchNorm's number of batches seen, masks), each in its own type; always each worker's own.
    other_layouts : list of Layout
        Of these.
    saved : list of bool
        Whether these are in a saved model.
    """

    def __init__(
        self, module: nn.Module, k: int, device: torch.device, dtype: torch.dtype, *, gradients: bool = True
    ) -> None:
        self.layout = Layout.of_parameters(module)
        self.buffer_layout = Layout.of_averaged_buffers(module)
        kinds = Layout.of_other_buffers(module)
        self.other_layouts = list(kinds.values())
        self.saved = [saved for _, saved in kinds]
        self.params = torch.empty(k, self.layout.numel, device=device, dtype=dtype)
        self.grads = torch.zeros(k, self.layout.numel if gradients else 0, device=device, dtype=dtype)
        self.buffers = torch.empty(k, self.buffer_layout.numel, device=device, dtype=dtype)
        self.others = [torch.empty(k, layout.numel, device=device, dtype=other) for (other, _), layout in kinds.items()]
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
        """Row i's buffers as views into the arena, one per slot: those that are averaged first."""
        return self.buffer_views(self.buffers[i], [rows[i] for rows in self.others])

    def buffer_views(self, buffers: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
        """Views of rows (b,) and (c,), one per slot; autograd takes a change of one for no change of the others."""
        pairs = zip((self.buffer_layout, *self.other_layouts), (buffers, *others), strict=True)
        return [view.data for layout, row in pairs for view in layout.views(row)]


class BoundModule:
    """A module in which workers take turns.

    Binding writes a worker's tensors into the registries of the submodules: nothing is copied and no storage is
    rebound, so one module serves any number of workers.
    """

    def __init__(self, module: nn.Module, arena: Arena) -> None:
        self.module = module
        self._parameters = [self._places(module, slot) for slot in arena.layout.slots]
        slots = [slot for layout in (arena.buffer_layout, *arena.other_layouts) for slot in layout.slots]
        self._names = [slot.names[0] for slot in slots]
        self._buffers = [self._places(module, slot) for slot in slots]
        self._bound: list[Tensor] = []
        self._assigned: list[tuple[Tensor, Tensor]] = []  # views, and what is to be kept in them

    @staticmethod
    def _places(module: nn.Module, slot: TensorSlot) -> list[tuple[nn.Module, str]]:
        split = (name.rpartition(".") for name in slot.names)
        return [(module.get_submodule(path), leaf) for path, _, leaf in split]

    def bind(self, parameters: list[nn.Parameter], buffers: list[Tensor]) -> nn.Module:
        """Let a worker's tensors be the module's, and return the module."""
        for places, parameter in zip(self._parameters, parameters, strict=True):
            for owner, leaf in places:
                set_parameter(owner, leaf, parameter)
        if buffers is not self._bound:  # else what forward has assigned is there for its next call
            self._collect()
            self._bound = buffers
            for places, buffer in zip(self._buffers, buffers, strict=True):
                for owner, leaf in places:
                    owner._buffers[leaf] = buffer
        return self.module

    @torch.no_grad()
    def settle(self) -> None:
        """Keep in the rows what forward passes have assigned to buffers; the backward passes need what was there.

        Raises
        ------
        UsageError
            If that does not fit.
        """
        self._collect()
        for view, value in self._assigned:
            view.copy_(value)
        self._assigned.clear()

    def _collect(self) -> None:
        """Take what forward has put in the place of the bound views, and put these back."""
        for name, places, view in zip(self._names, self._buffers, self._bound, strict=False):
            for owner, leaf in places:
                held = owner._buffers.get(leaf)
                if held is not view:
                    self._assigned.append((view, check_fits(name, view, held)))
                    owner._buffers[leaf] = view
