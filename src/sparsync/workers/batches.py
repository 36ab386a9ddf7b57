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


def batches_per_pass(samples: int, batch_size: int, drop_last: bool, joined: bool = False) -> int:
    """How many batches a pass over some samples has: at least one, if need be a small one.

    If they are `joined`, a last batch of one sample is part of the batch before it.
    """
    whole, rest = divmod(samples, batch_size)
    return max(1, whole + (rest > joined and not drop_last))


class LocalPasses:
    """One client's mini-batches of one round: a sequence of known length, a pure function of (seed, client, round).

    Parameters
    ----------
    indices : array of int64, (n,)
        The client's samples, n at least 1.
    batch_size : int
        Samples per batch; the last one of a pass holds the rest.
    epochs, steps : int, optional
        Give one: how many shuffled passes over the samples, or how many batches of as many passes as that takes.
    drop_last : bool
        Leave out the smaller last batch of a pass (never the only one). Default: keep it.
    joined : bool
        Join a last batch of one sample to the batch before it, for models that cannot be trained on one. Default: no.
    seed, client, round_ : int
        Where the randomness comes from.
    """

    def __init__(
        self,
        indices: Indices,
        batch_size: int,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        drop_last: bool = False,
        joined: bool = False,
        seed: int,
        client: int,
        round_: int,
    ) -> None:
        if (epochs is None) == (steps is None):
            raise ValueError("give either epochs or steps")
        self.indices = indices
        self.batch_size = min(batch_size, len(indices))
        self.per_pass = batches_per_pass(len(indices), batch_size, drop_last, joined)
        self._ends_joined = joined and not drop_last
        self._length = epochs * self.per_pass if epochs is not None else int(steps or 0)
        self._stream = seed, "passes", client, round_
        self._cached_at = -1
        self._cached = indices

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, step: int) -> Indices:
        """Sample indices of the batch at `step`, counted from 0: (batch_size,), but for the last one of a pass."""
        epoch, at = divmod(step, self.per_pass)
        if self._cached_at != epoch:
            self._cached_at, self._cached = epoch, generator(*self._stream, epoch).permutation(self.indices)
        whole = self._ends_joined and at == self.per_pass - 1
        return self._cached[at * self.batch_size : None if whole else (at + 1) * self.batch_size]
