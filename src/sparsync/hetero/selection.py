"""Which devices average: drawn at random, by how fresh their models are. For HADFL: Cao et al., arXiv:2111.08274.

Fairly fresh models are preferred, not always the freshest, so that the data of slow devices stay in play, and rarely
the stalest. The paper selects by probability; a Gaussian of the predicted versions, centred at their third quartile,
is how we understand it. Its width, the population standard deviation (a fixed one degenerates as versions grow), the
drawing and the default number of members are our choice.

Probabilities are kept as logarithms: far outliers among thousands of devices would underflow to 0, and fewer devices
than asked for could then be drawn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsync.errors import UsageError
from sparsync.hetero.plan import Floats, per_device

EXACT_UP_TO = 16
"""Most devices whose inclusion probabilities are exact: all sets of them are gone through."""

_ALIKE = 1e-12  # relative spread of versions that is nothing but rounding


def default_members(devices: int) -> int:
    """How many of K devices average, N_p: half of them, rounded up, at least 2 if there are 2."""
    if devices < 1:
        raise UsageError(f"selection: devices={devices!r}; expected at least 1")
    return min(devices, max(2, -(-devices // 2)))


def selection_log_probabilities(versions: npt.ArrayLike) -> Floats:
    """Logarithms of the probabilities that a device is drawn first: Gaussian in its predicted version.

    log p_k = -(v_k - mu)^2 / (2 sigma^2) + constant, mu the third quartile (numpy's default, "linear") and sigma the
    population standard deviation of all v_k. Invariant under shift and scale; equal versions are equally likely.

    Parameters
    ----------
    versions : array of float, shape (K,)
        v_k: of every device that may be drawn. Those that differ by no more than rounding errors count as equal.

    Returns
    -------
    array of float, shape (K,)
        Finite; their exponentials sum to 1.

    Raises
    ------
    UsageError
        If they are not a vector of finite numbers.
    """
    v = per_device("selection: versions", versions)
    v /= np.abs(v).max() or 1.0
    if np.ptp(v) <= _ALIKE:
        return np.full(len(v), -np.log(len(v)))
    x = v - np.quantile(v, 0.75)
    log_f = -(x**2) / (2 * x.var())
    log_p: Floats = log_f - _log_sum(log_f)
    return log_p


def selection_probabilities(versions: npt.ArrayLike) -> Floats:
    """Exponentials of `selection_log_probabilities`: to be shown, since far outliers may underflow to 0."""
    p: Floats = np.exp(selection_log_probabilities(versions))
    return p


def draw_members(log_p: npt.ArrayLike, members: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw distinct devices one after another, probabilities renormalised over the rest after each.

    All at once: the devices by decreasing log p_k + G_k, with independent Gumbel variables G_k, are in the order of
    successive draws (Yellott 1977), whatever the probabilities.

    Parameters
    ----------
    log_p : array of float, shape (K,)
        Finite; a common constant makes no difference.
    members : int
        N_p, 1 to K.
    rng : numpy Generator
        Where the order comes from.

    Returns
    -------
    array of int64, shape (N_p,)
        Devices, in the order drawn.

    Raises
    ------
    UsageError
        If a number is not finite, or more members than devices are asked for.
    """
    logs = _check(log_p, members)
    return np.argsort(-(logs + rng.gumbel(size=len(logs))), kind="stable")[:members]


def inclusion_probabilities(log_p: npt.ArrayLike, members: int) -> Floats:
    """Probabilities of being among the members that `draw_members` draws.

    Up to `EXACT_UP_TO` devices they are exact. Beyond, they are Rosén's (1972) asymptotic ones, pi_k = 1 - exp(-t p_k)
    with t such that they sum to N_p: an approximation that improves with K. With 16 devices it is off by less than
    0.01 where at most half of them are drawn, by up to 0.05 where nearly all are.

    Parameters
    ----------
    log_p : array of float, shape (K,)
        Finite; a common constant makes no difference.
    members : int
        N_p, 1 to K.

    Returns
    -------
    array of float, shape (K,)
        They sum to N_p.

    Raises
    ------
    UsageError
        If a number is not finite, or more members than devices are asked for.
    """
    logs = _check(log_p, members)
    if members == len(logs):
        return np.ones(members)
    return _exact(logs, members) if len(logs) <= EXACT_UP_TO else _asymptotic(logs, members)


def _exact(logs: Floats, members: int) -> Floats:
    """Sum over what may have been drawn before each draw: P(k is drawn next) = p_k / sum of p over those left."""
    bits = 1 << np.arange(len(logs))
    sets = np.arange(1 << len(logs))  # of devices, as bits
    sizes = ((sets[:, None] & bits) != 0).sum(axis=1)
    reached = (sets == 0).astype(np.float64)  # P(the first draws are this set)
    included = np.zeros(len(logs))
    for size in range(members):
        drawn = sets[sizes == size]
        left = np.where(drawn[:, None] & bits, -np.inf, logs)  # (sets, K)
        following = np.exp(left - _log_sum(left, axis=1)) * reached[drawn, None]
        included += following.sum(axis=0)
        np.add.at(reached, drawn[:, None] | bits, following)  # those drawn already add 0 to their own set
    return included


def _asymptotic(logs: Floats, members: int) -> Floats:
    """Each device arrives after an exponential time of rate p_k; t is when N_p are expected to have arrived."""

    def arrived(log_t: float) -> Floats:
        arrivals: Floats = -np.expm1(-np.exp(np.minimum(logs + log_t, 50)))  # beyond 50 all is 1
        return arrivals

    from scipy.optimize import brentq  # here, since it takes long to load

    surely = np.log(np.log(members + 1)) - np.sort(logs)[-members - 1]  # N_p + 1 have arrived with N_p / (N_p + 1) each
    log_t = brentq(lambda at: arrived(at).sum() - members, np.log(members) - _log_sum(logs) - 1, surely + 1)
    return arrived(log_t)


def _check(log_p: npt.ArrayLike, members: int) -> Floats:
    logs = per_device("selection: log_p", log_p)
    if not isinstance(members, int | np.integer) or not 1 <= members <= len(logs):
        raise UsageError(f"selection: members={members!r}; expected an integer from 1 to {len(logs)}, the devices")
    return logs


def _log_sum(x: Floats, axis: int | None = None) -> Floats:
    """Logarithm of the sum of exponentials; an axis stays, of length 1."""
    from scipy.special import logsumexp  # here, since it takes long to load

    total: Floats = logsumexp(x, axis=axis, keepdims=axis is not None)
    return total
