"""The processes that host a fleet between them, as seen from one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sparsync.wire import Chain, Dense, Ring, Topology


class Group(Protocol):
    """What a fleet needs of its processes. Implemented by `SingleProcess` and over ``torch.distributed``."""

    rank: int
    size: int

    def mean(self, total: Tensor, divisor: float, topology: Topology, codec: Dense | Chain) -> Tensor:
        """Sum of one vector (p,) per process over `divisor`: the same bits in all of them.

        `total` may be overwritten. `codec` is how a message to or from a server travels; a ring moves bare numbers.
        """

    def broadcast(self, x: Tensor) -> Tensor:
        """Overwrite `x` with rank 0's, in place, and return it."""

    def minimum(self, value: int) -> int:
        """Smallest of one number per process."""

    def barrier(self) -> None:
        """Wait for all processes."""


class SingleProcess:
    """One process that hosts the whole fleet."""

    rank = 0
    size = 1

    def mean(self, total: Tensor, divisor: float, topology: Topology, codec: Dense | Chain) -> Tensor:
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


class SeparateProcess(SingleProcess):
    """One of many processes that host a worker each, and do not act as one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def share(items: int, size: int, rank: int) -> range:
    """Which of `items` rank `rank` of `size` takes: consecutive, near-equal shares."""
    return range(items * rank // size, items * (rank + 1) // size)


def total(group: Group, x: Tensor) -> Tensor:
    """Sum of one float64 vector (p,) per process: the same bits in all of them. `x` may be overwritten."""
    return x if group.size == 1 else group.mean(x, 1.0, Ring(), Dense("float64"))


def gather(group: Group, mine: Mapping[int, Any]) -> dict[int, Any]:
    """Entries of all processes by number, each from the one process that has it: plain values, as JSON has them."""
    if group.size == 1:
        return dict(mine)
    text = np.frombuffer(json.dumps([[number, value] for number, value in mine.items()]).encode(), np.uint8)
    longest = -group.minimum(-len(text))
    sheets = torch.zeros(group.size, longest, dtype=torch.float64)
    sheets[group.rank, : len(text)] = torch.from_numpy(text.astype(np.float64))
    entries: dict[int, Any] = {}
    for sheet in total(group, sheets.view(-1)).view(group.size, longest):
        text = sheet.numpy().astype(np.uint8)
        entries.update((number, value) for number, value in json.loads(text.tobytes().rstrip(b"\0")))
    return entries
