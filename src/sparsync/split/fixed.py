"""FLS and FPLS, the baselines: every client contributes a fixed share to each global batch until it has run dry.

Whoever runs dry drops out, so global batches shrink, and an epoch of unequal clients ends in tiny batches of few
labels. As in ``mohkoh19/gpsl``, the code of arXiv:2407.15738. Nothing is drawn: rng is there for the samplers' common
contract.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array

from sparsync.split.schedule import Floats, Ints, Schedule, check


def fls(counts: npt.ArrayLike, batch_size: int, rng: np.random.Generator) -> Schedule:  # noqa: ARG001
    """Fixed local sampling: equal shares, b = max(1, round(B / K)).

    With K > B everyone contributes one sample, so global batches begin with K.

    Parameters
    ----------
    counts : array of int, shape (K,)
        Samples of each client, D_k, at least 1.
    batch_size : int
        B, 1 to the sum of counts.
    rng : numpy Generator
        Not used.

    Returns
    -------
    Schedule, (T, K)
        T = max_k ceil(D_k / b).
    """
    held = check(counts, batch_size)
    return _until_dry(held, np.full(len(held), batch_size / len(held)))


def fpls(counts: npt.ArrayLike, batch_size: int, rng: np.random.Generator) -> Schedule:  # noqa: ARG001
    """Fixed proportional local sampling: b_k = max(1, round(B D_k / D)), which need not sum to B.

    Parameters
    ----------
    counts, batch_size, rng
        As in `fls`.

    Returns
    -------
    Schedule, (T, K)
        T = max_k ceil(D_k / b_k).
    """
    held = check(counts, batch_size)
    return _until_dry(held, batch_size * held / held.sum())


def _until_dry(held: Ints, shares: Floats) -> Schedule:
    each = np.maximum(1, np.rint(shares).astype(np.int64))  # b_k; rint: half to even
    steps = -(-held // each)  # in which a client takes part: the first ceil(D_k / b_k)
    ends = np.cumsum(steps)
    rows = np.arange(ends[-1]) - np.repeat(ends - steps, steps)  # column by column: 0, 1, ..., steps_k - 1
    sizes = np.repeat(each, steps)
    sizes[ends - 1] -= each * steps - held  # the last is what remains
    return csc_array((sizes, rows, np.append(0, ends)), shape=(steps.max(), len(held))).tocsr()
