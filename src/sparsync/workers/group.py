"""The processes that host a fleet between them, as seen from one of them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sparsync.wire import Dense, Topology


class Group(Protocol):
    """What a fleet needs of its processes. Implemented by `Alone` and over ``torch.distributed``."""

    rank: int
    size: int

    def mean(self, total: Tensor, divisor: float, topology: Topology, codec: Dense) -> Tensor:
        """Sum of one vector (p,) per process over `divisor`: the same bits in all of them.

        `total` may be overwritten. `codec` is how a message to or from a server travels; a ring moves bare numbers.
        """

    def broadcast(self, x: Tensor) -> Tensor:
        """Overwrite `x` with rank 0's, in place, and return it."""

    def minimum(self, value: int) -> int:
        """Smallest of one number per process."""

    def barrier(self) -> None:
        """Wait for all processes."""


class Alone:
    """One process that hosts the whole fleet."""

    rank = 0
    size = 1

    def mean(self, total: Tensor, divisor: float, topology: Topology, codec: Dense) -> Tensor:
        """Return ``total / divisor``, rounded as a server's answer would be."""
        mean = total.div_(divisor)
        return codec.round(mean) if topology.name == "star" else mean

    def broadcast(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def minimum(self, value: int) -> int:
        """Return `value`."""
        return value

    def barrier(self) -> None:
        """Wait for nobody."""


def share(items: int, size: int, rank: int) -> range:
    """Which of `items` rank `rank` of `size` takes: consecutive, near-equal shares."""
    return range(items * rank // size, items * (rank + 1) // size)
