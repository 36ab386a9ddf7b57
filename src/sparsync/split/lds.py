"""Latent Dirichlet sampling (LDS), arXiv:2407.15738 v1 and v2: uniform global sampling, tilted against stragglers.

Owners of samples are drawn from pi, a compromise that EM finds between the label law of the pooled data, which the
mixture of the clients' label laws is to meet, and a Dirichlet prior made of the clients' sizes and delays. A slow
client weighs MORE: all its samples are due in every epoch, so the sooner they are gone, the fewer batches wait for it.

Prior and EM follow ``mohkoh19/gpsl``. How its authors turn pi into a schedule is not public: that is a reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparsync.errors import UsageError
from sparsync.split.schedule import Floats, Ints, Schedule, check, from_owners

_LEAST = 1e-12  # EM never leaves 0, so nobody who has data begins there
_AT_ONCE = 1 << 20  # draws: bounds the memory


@dataclass(frozen=True)
class LDSEpoch:
    """What was drawn for one epoch.

    Attributes
    ----------
    schedule : Schedule, (T, K)
        T = ceil(D / B) global batches of B samples; the last holds what remains.
    alpha : array of float, shape (K,)
        The prior.
    pi : array of float, shape (K,)
        The clients' shares of the batches until the first of them runs dry.
    """

    schedule: Schedule
    alpha: Floats
    pi: Floats

    @property
    def alpha_0(self) -> float:
        """The prior's concentration in all: cZ without stragglers, more with them."""
        return float(self.alpha.sum())


def lds(
    counts: npt.ArrayLike, batch_size: int, rng: np.random.Generator, *, histograms: npt.ArrayLike, **options: Any
) -> Schedule:
    """Return the schedule alone of `lds_epoch`, with the same options."""
    return lds_epoch(counts, batch_size, rng, histograms=histograms, **options).schedule


def lds_epoch(
    counts: npt.ArrayLike,
    batch_size: int,
    rng: np.random.Generator,
    *,
    histograms: npt.ArrayLike,
    delays: npt.ArrayLike | None = None,
    concentration: float = 1.0,
    sample_size: int | None = None,
    strength: float = 0.0,
    offset: float = 0.0,
    floor: float = 0.0,
    reinit: bool = False,
    estimate: Literal["map", "mle"] = "map",
    exact_limit: bool = False,
    tol: float = 1e-5,
    max_iter: int = 1000,
) -> LDSEpoch:
    """Draw the schedule of one epoch.

    Parameters
    ----------
    counts : array of int, shape (K,)
        Samples of each client, D_k, at least 1; D in all.
    batch_size : int
        B, 1 to D.
    rng : numpy Generator
        Where the observed labels and all owners come from; a new schedule is drawn for every epoch.
    histograms : array of int, shape (K, M)
        Samples of each class that each client holds.
    delays, concentration, sample_size, strength, offset, floor
        As in `lds_prior`; sample_size is also the number of labels that EM observes.
    reinit : bool
        When a client has run dry, fit pi from the shares D_k / D, not from the last pi. Default: False.
    estimate, tol, max_iter
        As in `map_em`.
    exact_limit : bool
        Draw owners one by one with weights pi_k rem_k / D_k, of rem_k samples that client k has left. Without
        stragglers and with a large concentration rows then follow the law of `ugs`; by default they only come near
        it, since pi is fixed until a client runs dry. Default: False.

    Raises
    ------
    UsageError
        If the histograms are not those of the counts, or another value is out of range.
    """
    held = check(counts, batch_size)
    table = _check_histograms(histograms, held)
    alpha = lds_prior(
        held,
        concentration=concentration,
        sample_size=sample_size,
        strength=strength,
        delays=delays,
        offset=offset,
        floor=floor,
    )
    beta = table / held[:, None]
    shares = held / held.sum()
    labels = rng.multivariate_hypergeometric(table.sum(axis=0), _sample_size(held, sample_size))

    def fit(left: Ints, start: Floats) -> Floats:
        begin = shares if reinit else start
        pi = map_em(labels, beta, alpha, active=left > 0, start=begin, tol=tol, max_iter=max_iter, estimate=estimate)
        if not pi.any():  # nobody explains enough labels: as uniform sampling
            pi = shares * (left > 0) if exact_limit else left.astype(np.float64)
        pi /= pi.sum()
        return pi

    pi = fit(held, shares)
    owners = _draw(held, batch_size, rng, pi, fit, exact_limit)
    sizes = np.diff(np.arange(0, len(owners) + batch_size, batch_size).clip(max=len(owners)))
    return LDSEpoch(from_owners(owners, sizes, len(held)), alpha, pi)


def lds_prior(
    counts: npt.ArrayLike,
    *,
    concentration: float = 1.0,
    sample_size: int | None = None,
    strength: float = 0.0,
    delays: npt.ArrayLike | None = None,
    offset: float = 0.0,
    floor: float = 0.0,
) -> Floats:
    """Parameters of the Dirichlet prior of pi: alpha_k = offset + D_k / D * c Z * exp(strength * sigma_k).

    sigma_k is the delay, standardised over the clients; Z is `matched_concentration`.

    Parameters
    ----------
    counts : array of int, shape (K,)
        Samples of each client, D_k, at least 1; D in all.
    concentration : float
        c, above 0. 1: without stragglers pi varies as in samples of S; larger: it keeps closer to D_k / D. Default: 1.
    sample_size : int
        S, 1 to D - 1. Default: the smaller of 1000 and D // 2.
    strength : float
        At least 0, which is uniform sampling's prior. 0.5 is strong: one straggler among 16 has a sigma of 3.87, and
        its weight is multiplied by 7. It also raises the concentration in all. Default: 0.
    delays : array of float, shape (K,)
        Seconds per participation, d_k. None if not known yet, which is as strength 0. Default: None.
    offset : float
        At least 0. The maximum of the posterior follows the prior's mode, not its mean, which under-draws small
        clients; 1 moves the mode where that code's mean is. Default: 0, that code's form.
    floor : float
        Least alpha_k. 1 + 1e-6 keeps what EM maximises strictly concave. Default: 0, that code's form.

    Returns
    -------
    array of float, shape (K,)

    Raises
    ------
    UsageError
        If a value is out of range.
    """
    held = check(counts, 1)
    if not 0 < concentration < math.inf:
        raise UsageError(f"lds: concentration={concentration!r}; expected a number above 0 (1 is uniform sampling's)")
    for name, value in (("strength", strength), ("offset", offset), ("floor", floor)):
        if not 0 <= value < math.inf:
            raise UsageError(f"lds: {name}={value!r}; expected a number of at least 0 (0 turns it off)")
    total = int(held.sum())
    z = matched_concentration(total, _sample_size(held, sample_size))
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        alpha: Floats = held / total * concentration * z * np.exp(strength * _standardised(delays, len(held))) + offset
    if not math.isfinite(alpha.sum()):
        raise UsageError(
            f"lds: strength={strength!r} and concentration={concentration!r} give weights beyond floating point; "
            "lower them (a strength of 0.5 is strong already)"
        )
    return np.maximum(alpha, floor)


def matched_concentration(total: int, sample_size: int) -> float:
    """Z = S (D - 1) / (D - S) - 1: a Dirichlet of mean r and sum Z varies like shares in S of D samples.

    Drawn without replacement, these have variance r (1 - r) / S * (D - S) / (D - 1). D = 50,000 and S = 1000 give
    1019.388.
    """
    return sample_size * (total - 1) / (total - sample_size) - 1


def map_em(
    labels: npt.ArrayLike,
    beta: npt.ArrayLike,
    alpha: npt.ArrayLike,
    *,
    active: npt.ArrayLike,
    start: npt.ArrayLike,
    tol: float = 1e-5,
    max_iter: int = 1000,
    estimate: Literal["map", "mle"] = "map",
) -> Floats:
    """Fit the clients' shares pi: maximise sum_c s_c log(pi beta)_c + sum_k (alpha_k - 1) log pi_k by EM.

    Concave if no alpha_k is below 1, and then no iteration lowers it. Below 1, a client that explains too few labels
    falls to 0 for good.

    Parameters
    ----------
    labels : array of int, shape (M,)
        s_c: how many labels of each class are observed. Classes that no active client holds are left out.
    beta : array of float, shape (K, M)
        Label law of each client.
    alpha : array of float, shape (K,)
        Of the Dirichlet prior.
    active : array of bool, shape (K,)
        Clients that have data left; all others get 0.
    start : array of float, shape (K,)
        Where to begin; made to sum to 1 over the active clients, each lifted above 0.
    tol, max_iter : float, int
        Stop once no share moves by tol, or after so many iterations. Default: 1e-5, 1000.
    estimate : {"map", "mle"}
        "mle" ignores the prior. Default: "map".

    Returns
    -------
    array of float, shape (K,)
        Sums to 1; 0 for everyone if every active client falls to 0.

    Raises
    ------
    UsageError
        If there is no such estimate.
    """
    if estimate not in ("map", "mle"):
        raise UsageError(f"lds: estimate={estimate!r}; expected 'map' or 'mle'")
    who = np.asarray(active, dtype=bool)
    s, b = np.asarray(labels), np.asarray(beta, dtype=np.float64)[who]
    pseudo = np.asarray(alpha, dtype=np.float64)[who] - 1 if estimate == "map" else 0.0
    pi = np.maximum(np.asarray(start, dtype=np.float64)[who], _LEAST)
    pi /= pi.sum()
    for _ in range(max_iter):
        mixture = pi @ b  # (M,)
        mixture[mixture == 0] = np.inf  # a class that nobody holds explains nothing
        explained = pi * (b @ (s / mixture))  # E: n_k, the labels expected to be client k's
        new = np.maximum(0.0, explained + pseudo)  # M
        new /= new.sum() or 1.0
        pi, moved = new, np.abs(new - pi).max(initial=0.0)
        if moved < tol or not pi.any():
            break
    shares = np.zeros(len(who))
    shares[who] = pi
    return shares


def _draw(
    held: Ints,
    batch_size: int,
    rng: np.random.Generator,
    pi: Floats,
    fit: Callable[[Ints, Floats], Floats],
    exact_limit: bool,
) -> npt.NDArray[np.int32]:
    """Draw the owners of all samples, (D,), batch after batch.

    The reconstruction draws one batch from pi, replaces what a client no longer has, and fits pi anew when one has run
    dry. Until then pi is fixed, so many batches are drawn at once here, and those after that event are discarded.
    """
    total, clients = int(held.sum()), len(held)
    owners, done, left = np.empty(total, dtype=np.int32), 0, held.copy()
    while done < total:
        weights = pi * left / held if exact_limit else pi
        law = weights / weights.sum()
        ahead = min(1 / np.max(law / np.maximum(left, 1)), _AT_ONCE)  # about when the first client runs dry
        stop = min(math.ceil((done + ahead) / batch_size) * batch_size, total)
        drawn = rng.choice(clients, stop - done, p=law)
        if exact_limit:
            drawn = _without_repeats(drawn, left, rng)
        nth = _occurrence(drawn, clients)
        last = np.flatnonzero(nth == left[drawn])  # draws that take a client's last sample
        if last.size:  # fit after that sample, or after its batch
            end = last[0] + 1 if exact_limit else ((done + last[0]) // batch_size + 1) * batch_size - done
            drawn, nth = drawn[:end], nth[:end]
        drawn = drawn[nth <= left[drawn]]  # the rest of the batch will come from the next pi
        owners[done : done + len(drawn)] = drawn
        done += len(drawn)
        left -= np.bincount(drawn, minlength=clients)
        if last.size and done < total:
            pi = fit(left, pi)
    return owners


def _without_repeats(drawn: Ints, left: Ints, rng: np.random.Generator) -> Ints:
    """Let each owner drawn offer any of the samples left to it, and ignore samples that were offered before.

    What remains was drawn without replacement: an owner's weight falls with every sample, as exact_limit wants it.
    """
    samples = (np.cumsum(left) - left)[drawn] + rng.integers(left[drawn])
    kept: Ints = drawn[np.sort(np.unique(samples, return_index=True)[1])]
    return kept


def _occurrence(drawn: Ints, clients: int) -> Ints:
    """1 where an owner is drawn for the first time, 2 for the second, and so on."""
    often = np.bincount(drawn, minlength=clients)
    nth = np.empty_like(drawn)
    nth[np.argsort(drawn, kind="stable")] = np.arange(1, len(drawn) + 1) - np.repeat(np.cumsum(often) - often, often)
    return nth


def _sample_size(held: Ints, sample_size: int | None) -> int:
    total = int(held.sum())
    size = max(1, min(1000, total // 2)) if sample_size is None else sample_size
    if not isinstance(size, int | np.integer) or not 1 <= size < total:
        raise UsageError(
            f"lds: sample_size={size!r}; expected an integer from 1 to below {total}, all clients' samples"
        )
    return int(size)


def _standardised(delays: npt.ArrayLike | None, clients: int) -> Floats:
    """Return sigma_k, (K,): 0 for all if the delays are equal or not known."""
    if delays is None:
        return np.zeros(clients)
    d = np.asarray(delays, dtype=np.float64)
    if d.shape != (clients,):
        raise UsageError(f"lds: delays has shape {d.shape}; expected ({clients},), seconds for each client")
    if (wrong := np.flatnonzero(~((d >= 0) & (d < math.inf)))).size:
        raise UsageError(f"lds: client {wrong[0]} has a delay of {d[wrong[0]]}; expected finite seconds of at least 0")
    if np.ptp(d) == 0:  # std may round to slightly more than 0
        return np.zeros(clients)
    d = d / d.max()  # its square must not overflow
    sigma: Floats = (d - d.mean()) / d.std()
    return sigma


def _check_histograms(histograms: npt.ArrayLike, held: Ints) -> Ints:
    given = np.asarray(histograms)
    if given.ndim != 2 or len(given) != len(held) or given.shape[1] < 1:
        raise UsageError(
            f"lds: histograms has shape {given.shape}; expected ({len(held)}, M), each client's samples of M classes"
        )
    if given.dtype.kind not in "iu":
        raise UsageError(f"lds: histograms is of type {given.dtype}; expected integers: numbers of samples")
    possible = ((given >= 0) & (given <= held[:, None])).all(axis=1)  # first: a sum may wrap around
    if (wrong := np.flatnonzero(~possible | (given.sum(axis=1) != held))).size:
        k = wrong[0]
        raise UsageError(
            f"lds: client {k} has {held[k]} samples, but its histogram has {given[k].min()} to {given[k].max()} per "
            f"class and {given[k].sum()} in all; count its labels again"
        )
    return given.astype(np.int64)
