"""The processes of a fleet on one machine: sums through shared memory, which costs a wake-up instead of a socket's way.

Only a simulation runs like this; where workers are machines, `Ranks` sends their bytes for real.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import torch
from torch import Tensor

from sparsync.wire import Chain, Dense, Topology

_SLOT = 1 << 22  # bytes that a process hands over at a time; longer vectors go in pieces


class SharedMemory:
    """A `Group` of processes that were spawned on this machine.

    Every process writes its vector into a slot of its own, waits for the others, and adds all slots in the order of
    ranks, so that all have the same bits. Slots alternate: while one process still reads a vector, a faster one may
    already write its next, but not the one after that.

    Parameters
    ----------
    path : Path
        A file that all processes map; best in memory, such as under ``/dev/shm``.
    rank, size : int
        Which process this is, of how many.
    arrivals : sequence of Semaphore, (size,)
        One per process, 0 at first: counts the others' arrivals that it has not yet seen.
    """

    def __init__(self, path: Path, rank: int, size: int, arrivals: Sequence[Semaphore]) -> None:
        self.rank, self.size = rank, size
        self._arrivals = arrivals
        whole = torch.from_file(str(path), shared=True, size=self.bytes(size), dtype=torch.uint8)
        self._slots = whole.view(2, size, _SLOT)
        self._turn = 0

    @staticmethod
    def bytes(size: int) -> int:
        """Length of the file for `size` processes."""
        return 2 * size * _SLOT

    def mean(self, total: Tensor, divisor: float, topology: Topology, codec: Dense | Chain) -> Tensor:
        """Sum of one vector (p,) per process over `divisor`: the same bits in all of them."""
        for piece, slots in self._exchange(total):
            torch.sum(slots, 0, out=piece)
        mean = total.div_(divisor)
        return codec.round(mean) if topology.name == "star" else mean

    def broadcast(self, x: Tensor) -> Tensor:
        """Overwrite `x` with rank 0's, in place, and return it."""
        for piece, slots in self._exchange(x):
            piece.copy_(slots[0])
        return x

    def minimum(self, value: int) -> int:
        """Smallest of one number per process."""
        number = torch.tensor([value], dtype=torch.int64)
        for piece, slots in self._exchange(number):
            piece.copy_(slots.min())
        return int(number)

    def barrier(self) -> None:
        """Wait for all processes."""
        for rank, arrivals in enumerate(self._arrivals):
            if rank != self.rank:
                arrivals.release()
        for _ in range(self.size - 1):
            self._arrivals[self.rank].acquire()

    def _exchange(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of a vector, each with all processes' versions of it, (size, n)."""
        flat = x.view(-1)
        step = _SLOT // x.itemsize
        for start in range(0, flat.numel(), step):
            piece = flat[start : start + step]
            slots = self._slots[self._turn].view(x.dtype)[:, : piece.numel()]
            self._turn = 1 - self._turn
            slots[self.rank].copy_(piece)
            self.barrier()
            yield piece, slots
