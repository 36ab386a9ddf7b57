"""Which samples a worker sees, step by step, as a pure function of (seed, worker, step).

Nothing has to be saved for an exact resume, and every strategy of a comparison meets the same batches in the same
order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from sparsync.randomness import generator

Indices = npt.NDArray[np.int64]
Order = Literal["epochs", "draws"]

_BLOCK = 64  # steps whose draws share one generator


class Batches:
    """One worker's mini-batches.

    Parameters
    ----------
    indices : array of int64, (n,)
        The worker's samples, n at least 1.
    batch_size : int
        Samples per batch; a worker with fewer takes all of them at every step.
    order : {"epochs", "draws"}
        ``epochs``: shuffled passes over the samples, each reshuffled; a batch may straddle two passes, so all are of
        full size. ``draws``: every batch is drawn anew, without replacement within it (as FDA's authors do).
    seed, worker : int
        Where the randomness comes from.
    """

    def __init__(self, indices: Indices, batch_size: int, order: Order, seed: int, worker: int) -> None:
        self.indices = indices
        self.batch_size = min(batch_size, len(indices))
        self.order = order
        self.seed, self.worker = seed, worker
        self._cached_at = -1
        self._cached = indices

    def __getitem__(self, step: int) -> Indices:
        """Sample indices of the batch at `step`, counted from 0: (batch_size,)."""
        if self.order == "draws":
            block, at = divmod(step, _BLOCK)
            drawn: Indices = self._block(block)[at]
            return drawn
        start, size, n = step * self.batch_size, self.batch_size, len(self.indices)
        epoch, at = divmod(start, n)
        batch = self._epoch(epoch)[at : at + size]
        if len(batch) < size:  # batch_size <= n, so one further pass is enough
            batch = np.concatenate((batch, self._epoch(epoch + 1)[: size - len(batch)]))
        return batch

    def _epoch(self, epoch: int) -> Indices:
        if self._cached_at != epoch:
            self._cached_at = epoch
            self._cached = generator(self.seed, "batches", self.worker, epoch).permutation(self.indices)
        return self._cached

    def _block(self, block: int) -> Indices:
        if self._cached_at != block:
            rng = generator(self.seed, "batches", self.worker, block)
            n, size = len(self.indices), self.batch_size
            drawn: Indices = np.stack([rng.choice(n, size, replace=False, shuffle=False) for _ in range(_BLOCK)])
            self._cached_at, self._cached = block, self.indices[drawn]
        return self._cached
