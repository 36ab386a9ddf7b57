"""One half of a model, as rows: one row that stands for all while they are equal, or one for each client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsync.workers import OPTIMIZERS, Arena
from sparsync.workers.layout import BoundModule
from sparsync.workers.optimizers import restore_state


class ModelPart:
    """Bottom or top: its rows, the bound module in which they take turns, and their optimiser.

    Parameters
    ----------
    module : nn.Module
        The half; what it holds is the first value of all rows.
    rows : int
        How many different ones there are.
    optimizer : str
        Spec of the optimiser; every row keeps a state of its own.
    device, dtype
        Of the rows.
    """

    def __init__(self, module: nn.Module, rows: int, optimizer: str, device: torch.device, dtype: torch.dtype) -> None:
        self.arena = Arena(module, rows, device, dtype)
        self.bound = BoundModule(module, self.arena)
        self.rows = rows
        self.grads = self.arena.grads
        self._held = [(self.arena.parameters(i), self.arena.row_buffers(i)) for i in range(rows)]
        self._flat = [self.arena.row(i) for i in range(rows)]
        self.optimizer: Optimizer = OPTIMIZERS.build(optimizer, self._flat)
        self._rate: float = self.optimizer.param_groups[0]["lr"]

    @property
    def numel(self) -> int:
        """Parameters of the half."""
        return self.arena.layout.numel

    def of(self, row: int) -> int:
        """Which row a client's half is."""
        return row if self.rows > 1 else 0

    def bind(self, row: int) -> nn.Module:
        """Seat a client's half, and return the module."""
        return self.bound.bind(*self._held[self.of(row)])

    def step(self, factor: float, rows: Iterable[int] | None = None) -> None:
        """One optimiser step of some rows, or of all, with their gradients; the backward passes are over."""
        self.bound.settle()
        stepping = set(range(self.rows) if rows is None else map(self.of, rows))
        begun = {i for i in stepping if self.optimizer.state.get(self._flat[i])}
        self.optimizer.param_groups[0]["lr"] = self._rate * factor
        for together in filter(None, (begun, stepping - begun)):  # SGD takes no first momenta among later ones
            for i, flat in enumerate(self._flat):  # the optimiser passes over rows without a gradient
                flat.grad = self.grads[i] if i in together else None
            self.optimizer.step()

    @torch.no_grad()
    def average(self, weights: Tensor) -> None:
        """All rows become their mean, weighted (rows,), buffers included."""
        share = weights.to(self.arena.params.device, torch.float64) / weights.sum()
        for rows in (self.arena.params, self.arena.buffers):
            rows.copy_((share @ rows.double()).to(rows.dtype).expand_as(rows))

    def vectors(self, row: int) -> list[Tensor]:
        """Parameters (d,) and floating-point buffers (b,) of a client's half, as views."""
        return [self.arena.params[self.of(row)], self.arena.buffers[self.of(row)]]

    def momentum(self, row: int) -> dict[str, Tensor]:
        """State of a row's optimiser, by name; empty before its first step."""
        return {name: torch.as_tensor(value) for name, value in self.optimizer.state[self._flat[self.of(row)]].items()}

    def restore(self, row: int, params: Tensor, buffers: Tensor, momentum: Mapping[str, Tensor]) -> None:
        """A row becomes (d,) parameters and (b,) buffers, and its optimiser's state what `momentum` gave."""
        i = self.of(row)
        self.arena.params[i].copy_(params)
        self.arena.buffers[i].copy_(buffers)
        restore_state(self.optimizer, self._flat[i], momentum)

    def state_dict(self) -> dict[str, Any]:
        """Return rows and optimiser states, for a checkpoint."""
        arena = self.arena
        return {
            "params": arena.params,
            "buffers": arena.buffers,
            "others": list(arena.others),
            "optimizers": [dict(self.optimizer.state[flat]) for flat in self._flat],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        arena = self.arena
        arena.params.copy_(state["params"])
        arena.buffers.copy_(state["buffers"])
        for rows, kept in zip(arena.others, state["others"], strict=True):
            rows.copy_(kept)
        for flat, momentum in zip(self._flat, state["optimizers"], strict=True):
            restore_state(self.optimizer, flat, momentum)
