"""Randomness in its place: one generator per (seed, purpose, worker), never the global ones.

Streams are derived by NumPy's ``SeedSequence``, so neighbouring seeds or workers share nothing, and the same triple
gives the same numbers in every process: that is how workers agree on a hash or a direction without talking.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

SHARED = -1
"""The worker number of streams that all workers share (hashes, directions, the initial model)."""


def _sequence(seed: int, purpose: str, worker: int, *index: int) -> np.random.SeedSequence:
    digest = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    return np.random.SeedSequence([seed, digest, worker + 1, *index])


def generator(seed: int, purpose: str, worker: int = SHARED, *index: int) -> np.random.Generator:
    """NumPy generator of one purpose.

    Parameters
    ----------
    seed : int
        Seed of the run, at least 0.
    purpose : str
        What the numbers are for, e.g. ``"partition"``; purposes never share a stream.
    worker : int
        Worker that draws, or `SHARED`.
    *index : int
        Further coordinates, e.g. the epoch: a stream that is a pure function of its index needs no saved state.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, worker, *index)))


def torch_seed(seed: int, purpose: str, worker: int = SHARED, *index: int) -> int:
    """Return a 63-bit seed for a ``torch.Generator``, derived as in :func:`generator`."""
    return int(_sequence(seed, purpose, worker, *index).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(seed: int, purpose: str, worker: int = SHARED, *index: int) -> torch.Generator:
    """Return a CPU ``torch.Generator`` of one purpose, derived as in :func:`generator`."""
    return torch.Generator().manual_seed(torch_seed(seed, purpose, worker, *index))
