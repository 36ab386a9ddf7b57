"""One step of split learning: who takes part with how many samples, and what is at the cut meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparsync.errors import SparsyncError
from sparsync.split.schedule import Ints


class NoClientAnswered(SparsyncError):
    """None of the clients of a row has answered; others are left."""


@dataclass(frozen=True)
class BatchComposition:
    """Who contributes how many samples to one global batch.

    Attributes
    ----------
    clients, sizes : array of int64, (n,)
        Increasing; at least 1 each.
    """

    clients: Ints
    sizes: Ints

    @property
    def total(self) -> int:
        """B_t, samples in the batch."""
        return int(self.sizes.sum())

    def only(self, chosen: Any) -> BatchComposition:
        """Return the row without those clients that an index or a mask does not choose."""
        return BatchComposition(self.clients[chosen], self.sizes[chosen])


@dataclass
class CutTensors:
    """What is at the cut during one step.

    Attributes
    ----------
    row : BatchComposition
        Whose samples.
    outputs : list of Tensor
        Activations where they were computed, with their graph: one for all clients, or one each.
    arrived : Tensor, (B_t, ...)
        The same on the server, by increasing client.
    labels : Tensor, (B_t,)
        Of the samples.
    at : slice
        Where the row's clients are among those of the step.
    """

    row: BatchComposition
    outputs: list[Tensor]
    arrived: Tensor
    labels: Tensor
    at: slice = field(default_factory=lambda: slice(None))

    def of(self, i: int) -> CutTensors:
        """Return what is the i-th client's; gradients reach the whole."""
        start = int(self.row.sizes[:i].sum())
        own = slice(start, start + int(self.row.sizes[i]))
        return CutTensors(self.row.only([i]), self.outputs, self.arrived[own], self.labels[own], slice(i, i + 1))
