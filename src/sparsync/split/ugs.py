"""Uniform global sampling (UGS, named GPSL from v3 on), arXiv:2407.15738: as if drawn from the pooled data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsync.split.schedule import Schedule, balanced, check, from_owners


def ugs(counts: npt.ArrayLike, batch_size: int, rng: np.random.Generator) -> Schedule:
    """Shuffle all samples, known by their owners only, and cut them into nearly equal global batches.

    Each row is multivariate hypergeometric on what the clients have left. If each client then takes its own samples
    without replacement, a global batch is a uniform sample of the pooled data, whatever the partition and K.

    Parameters
    ----------
    counts : array of int, shape (K,)
        Samples of each client, D_k, at least 1; nothing else is known of them.
    batch_size : int
        B, 1 to the sum D of counts.
    rng : numpy Generator
        Where the order comes from; a new schedule is drawn for every epoch.

    Returns
    -------
    Schedule, (T, K)
        T = ceil(D / B) rows of floor(D / T) or ceil(D / T) samples, as in ``mohkoh19/gpsl``.
    """
    held = check(counts, batch_size)
    owners = np.repeat(np.arange(len(held), dtype=np.int32), held)
    rng.shuffle(owners)
    return from_owners(owners, balanced(len(owners), batch_size), len(held))
