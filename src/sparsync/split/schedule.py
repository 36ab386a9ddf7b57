"""What all samplers share: the schedule, the check of what they are given, and how far a batch is from the whole.

A sampler is a function (counts, batch_size, rng) -> `Schedule`: of K clients that hold D_1, ..., D_K samples, D in all,
it says who contributes how many to each global batch of one epoch. After *Parallel Split Learning with Global
Sampling*, arXiv:2407.15738.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from sparsync.errors import UsageError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Schedule: TypeAlias = csr_array
"""One epoch, (T, K), int64: row t says how many samples each client contributes to global batch t.

Every row sums to at least 1, column k to D_k. The format is canonical: within a row clients increase, and each is
listed once and with at least one sample, so ``schedule[[t]].indices`` are the active clients of step t.
"""


def check(counts: npt.ArrayLike, batch_size: int) -> Ints:
    """Return the clients' numbers of samples as an int64 array, (K,), if a schedule exists for them.

    Parameters
    ----------
    counts : array of int, shape (K,)
        Samples of each client, D_k, at least 1. (With an empty client those of ``mohkoh19/gpsl`` never end.)
    batch_size : int
        Samples of a global batch, B, 1 to D.

    Raises
    ------
    UsageError
        If either is not as said.
    """
    given = np.asarray(counts)
    if given.ndim != 1 or not given.size:
        raise UsageError(f"counts has shape {given.shape}; expected (K,), one number of samples for each of K clients")
    if given.dtype.kind not in "iu":
        raise UsageError(f"counts is of type {given.dtype}; expected integers: numbers of samples")
    if (empty := np.flatnonzero(given < 1)).size:
        raise UsageError(
            f"client {empty[0]} has {given[empty[0]]} samples; expected at least 1: give it some, or leave it out"
        )
    total = int(given.sum())
    if not isinstance(batch_size, int | np.integer) or not 1 <= batch_size <= total:
        raise UsageError(f"batch_size={batch_size!r}; expected an integer from 1 to {total}, all the clients' samples")
    return given.astype(np.int64)


def balanced(total: int, batch_size: int) -> Ints:
    """Sizes of T = ceil(total / batch_size) global batches, differing by at most 1: ``numpy.array_split``'s blocks."""
    steps = -(-total // batch_size)
    sizes = np.full(steps, total // steps, dtype=np.int64)
    sizes[: total % steps] += 1
    return sizes


def from_owners(owners: npt.NDArray[np.integer[Any]], sizes: Ints, clients: int) -> Schedule:
    """Cut a sequence of samples, known by their owners, into consecutive global batches.

    Parameters
    ----------
    owners : array of int, shape (D,)
        The client, from 0 to K - 1, that each sample is taken from.
    sizes : array of int, shape (T,)
        Of the batches; they sum to D.
    clients : int
        K.

    Returns
    -------
    Schedule, (T, K)
        Row t is the histogram of block t.

    Raises
    ------
    UsageError
        If the sizes do not sum to D or one is below 1, or there is an owner who is no client.
    """
    ends = np.cumsum(sizes)
    if not len(ends) or np.min(sizes) < 1 or ends[-1] != len(owners):
        raise UsageError(f"from_owners: sizes must be at least 1 and sum to {len(owners)}, the number of owners")
    if not 0 <= owners.min() <= owners.max() < clients:
        raise UsageError(f"from_owners: owners {owners.min()} to {owners.max()}; expected 0 to {clients - 1}")
    # Every sample is an entry of 1 in its batch's row. They are sorted and summed in place, hence the copy by astype.
    ones = np.ones(len(owners), dtype=np.int64)
    schedule = csr_array((ones, owners.astype(np.int64), np.append(0, ends)), shape=(len(sizes), clients))
    schedule.sum_duplicates()
    return schedule


def joined(schedule: Schedule, *, apart: bool = False) -> Schedule:
    """Return a schedule in which no batch has a single sample, for models that cannot be trained on one.

    It joins the batch before it; of several in a row, two and two join. A lone batch of one sample stays.

    Parameters
    ----------
    schedule : Schedule, (T, K)
        Its batches are moved to earlier rows; rows that are left empty are left out.
    apart : bool
        Whether every client's contribution to a row is a batch of its own. Default: all clients' together are one.
    """
    columns = schedule.tocsc()
    rows = columns.indices.astype(np.int64)
    if apart:
        for start, stop in itertools.pairwise(columns.indptr):
            own = rows[start:stop]
            own[:] = own[_together(columns.data[start:stop])]
    else:
        rows = _together(schedule.sum(axis=1))[rows]
    clients = np.repeat(np.arange(schedule.shape[1]), np.diff(columns.indptr))
    steps, rows = np.unique(rows, return_inverse=True)
    return csr_array((columns.data, (rows, clients)), shape=(len(steps), schedule.shape[1]))


def _together(sizes: Ints) -> Ints:
    """Of each batch in a row, the place of the first that it is joined with."""
    firsts = np.arange(len(sizes))
    total = 2
    for i, size in enumerate(sizes.tolist()):
        firsts[i], total = (i, size) if total > 1 else (firsts[i - 1], total + size)
    if total == 1:
        firsts[-1] = firsts[max(len(sizes) - 2, 0)]
    return firsts


def deviations(labels_per_step: npt.ArrayLike, q: npt.ArrayLike) -> Floats:
    """How far each global batch's label law is from the whole: Delta_t = sum_c |n_c / B_t - q_c|, from 0 to below 2.

    Parameters
    ----------
    labels_per_step : array of int, shape (T, M)
        n_c: samples of each class in each batch. A row's sum is its B_t: batches need not be of equal size.
    q : array of float, shape (M,)
        Label law of the whole training set: fractions, that sum to 1.

    Returns
    -------
    array of float, shape (T,)

    Raises
    ------
    UsageError
        If the shapes do not match, a batch is empty, or q does not sum to 1.
    """
    table, law = np.asarray(labels_per_step), np.asarray(q, dtype=np.float64)
    if table.ndim != 2 or law.shape != table.shape[1:]:
        raise UsageError(f"deviations: shapes {table.shape} and {law.shape}; expected (T, M) and (M,), M classes")
    if not math.isclose(law.sum(), 1, rel_tol=1e-6):
        raise UsageError(f"deviations: q sums to {law.sum():g}; expected fractions that sum to 1")
    sizes = table.sum(axis=1, keepdims=True)  # (T, 1)
    if (empty := np.flatnonzero(sizes < 1)).size:
        raise UsageError(f"deviations: step {empty[0]} has no samples; expected at least 1 in every global batch")
    distances: Floats = np.abs(table / sizes - law).sum(axis=1)
    return distances


def expected_deviation(q: npt.ArrayLike, batch_size: int, total: int) -> float:
    """Mean of `deviations` if batches are drawn uniformly without replacement from all data, whoever holds them.

    Each class's count is hypergeometric, and is taken as normal here: CIFAR-10 with B = 128 gives 0.2113, exactly it
    is 0.2114.

    Parameters
    ----------
    q : array of float, shape (M,)
        Label law of the whole training set.
    batch_size, total : int
        B and D, B at most D.
    """
    law = np.asarray(q, dtype=np.float64)
    finite = (total - batch_size) / max(total - 1, 1)  # the finite-population correction
    return float(np.sqrt(2 / math.pi * law * (1 - law) / batch_size * finite).sum())


def serfling(eps: float, batch_size: int, total: int) -> float:
    """Bound on P(|n_c / B - q_c| >= eps), one class, B samples drawn uniformly without replacement from D.

    Serfling's inequality (1974), two-sided: 2 exp(-2 B eps^2 / (1 - (B - 1)/D)). For all M classes at once, multiply by
    M; for `deviations` >= eps, take M times the bound at eps / M.

    Parameters
    ----------
    eps : float
        At least 0.
    batch_size, total : int
        B and D, B at most D.
    """
    return min(1.0, 2 * math.exp(-2 * batch_size * eps**2 / (1 - (batch_size - 1) / total)))


def widen(schedule: Schedule, active: Ints, clients: int) -> Schedule:
    """Return a schedule of some clients, (T, n), as one of all K, (T, K); the others have nothing left.

    Parameters
    ----------
    schedule : Schedule, (T, n)
        Of the active clients.
    active : array of int64, (n,)
        Who they are, increasing.
    clients : int
        K.
    """
    return csr_array((schedule.data, active[schedule.indices], schedule.indptr), shape=(schedule.shape[0], clients))
