"""LDS, its pseudo-code as oracle, its limits, and a straggler's cost: docs/methods/psl.md 5.4, properties 10 to 12."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.split.lds import lds, lds_epoch, lds_prior, map_em, matched_concentration
from sparsync.split.schedule import deviations
from sparsync.split.ugs import ugs
from sparsync.task.partitions import counts as class_counts
from sparsync.task.partitions import partition
from tolerance import rounding

FEW = rounding(64)  # sums and products of a few numbers up to 1, some iterations of them
SMALL = np.array([[9, 0, 0], [3, 2, 0], [0, 1, 3], [0, 0, 2]])  # 4 clients, 3 classes
SLOW_LAST = [1.0, 1.0, 2.0, 5.0]


def rng(seed=0):
    return np.random.default_rng(seed)


# The prior.


def test_the_dirichlet_varies_as_samples_without_replacement():
    assert matched_concentration(50_000, 1000) == pytest.approx(1019.388, abs=5e-4)
    counts, size = np.array([50, 30, 20]), 40
    alpha = lds_prior(counts, sample_size=size)
    shares, alpha_0 = counts / 100, alpha.sum()
    assert alpha_0 == pytest.approx(40 * 99 / 60 - 1)
    assert alpha / alpha_0 == pytest.approx(shares)
    dirichlet = shares * (1 - shares) / (alpha_0 + 1)
    hypergeometric = shares * (1 - shares) / size * (100 - size) / 99
    assert dirichlet == pytest.approx(hypergeometric, rel=FEW)


def test_the_prior_by_hand():
    # S = 2 of 4 samples: Z = 2 * 3 / 2 - 1 = 2. Delays 1 and 3: sigma = -1, 1.
    assert lds_prior([1, 3]) == pytest.approx([0.5, 1.5])
    assert lds_prior([1, 3], concentration=2.0) == pytest.approx([1, 3])
    assert lds_prior([1, 3], offset=1.0) == pytest.approx([1.5, 2.5])
    assert lds_prior([1, 3], floor=1 + 1e-6) == pytest.approx([1 + 1e-6, 1.5], rel=FEW)
    tilted = lds_prior([1, 3], strength=0.5, delays=[1, 3])
    assert tilted == pytest.approx([0.5 * math.exp(-0.5), 1.5 * math.exp(0.5)])
    assert lds_prior([1, 3], strength=0.5, delays=[1, 3], offset=1.0) == pytest.approx(tilted + 1)
    assert lds_prior([1] * 5000).sum() == pytest.approx(matched_concentration(5000, 1000))
    assert lds_epoch([1, 3], 2, rng(), histograms=[[1], [3]]).alpha_0 == pytest.approx(2)


def test_a_single_outlier_among_16():
    ratio = lds_prior([100] * 16, strength=0.5, delays=[1] * 15 + [10]) / lds_prior([100] * 16)
    assert ratio[-1] == pytest.approx(math.exp(0.5 * math.sqrt(15)))  # docs/methods/psl.md, trap 9
    assert (ratio[:-1] < 1).all()


@pytest.mark.parametrize("delays", [None, [0.1] * 3, [0.0] * 3, [1e308] * 3])
def test_no_or_equal_delays_do_not_tilt(delays):
    assert np.array_equal(lds_prior([5, 3, 2], strength=1.0, delays=delays), lds_prior([5, 3, 2]))


def test_huge_delays_do_not_overflow():
    huge = lds_prior([5, 3, 2], strength=1.0, delays=[1e308, 2e307, 1e307])
    assert huge == pytest.approx(lds_prior([5, 3, 2], strength=1.0, delays=[10, 2, 1]))


# EM.


def fit(labels, beta, alpha, start=None, active=None, **options):
    beta = np.asarray(beta, dtype=float)
    everyone = np.ones(len(beta), dtype=bool)
    start = everyone / len(beta) if start is None else start
    return map_em(labels, beta, alpha, active=everyone if active is None else active, start=start, **options)


def test_disjoint_classes():
    """Every label has one possible owner: pi_k = (S_k + alpha_k - 1) / (S + alpha_0 - K)."""
    beta = [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert fit([3, 4, 2, 1], beta, [2, 3, 1.5]) == pytest.approx(np.array([8, 4, 1.5]) / 13.5, abs=FEW)
    assert fit([3, 4, 2, 1], beta, [2, 3, 1.5], estimate="mle") == pytest.approx([0.7, 0.2, 0.1], abs=FEW)


@pytest.mark.parametrize("law", [[0.2, 0.3, 0.5], [1.0]])
def test_equal_clients_or_one_class(law):
    """Labels say nothing: the prior's mode is left, pi_k = (alpha_k - 1) / (alpha_0 - K)."""
    labels = rng().multinomial(40, law)
    alpha = np.array([2.0, 21.0, 31.0, 1.0])
    pi = fit(labels, [law] * 4, alpha)  # contracts by 40 / (40 + 51) per iteration: within tol of the limit
    assert pi == pytest.approx(np.array([1, 20, 30, 0]) / 51, abs=1e-5)
    start = np.array([0.1, 0.2, 0.3, 0.4])
    assert fit(labels, [law] * 4, alpha, start, estimate="mle") == pytest.approx(start, abs=FEW)


def test_as_many_classes_as_clients():
    """If pi beta = s / S has a solution in the simplex, MLE finds it."""
    beta = np.array([[0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    expected = np.array([0.2, 0.5, 0.3])
    assert fit(1000 * expected @ beta, beta, np.ones(3), tol=1e-12, estimate="mle") == pytest.approx(expected, abs=1e-9)


def test_two_clients_one_of_which_holds_both_classes():
    """3 log(1 - x/2) + log(x/2) + log(1 - x) + log x, x = pi_1: the derivative is 0 at x = 1/2."""
    assert fit([3, 1], [[1, 0], [0.5, 0.5]], [2, 2], [0.9, 0.1], tol=1e-12) == pytest.approx([0.5, 0.5], abs=1e-9)
    assert fit([7, 3], [[1, 0], [0.5, 0.5]], [1, 1], tol=1e-12) == pytest.approx([0.4, 0.6], abs=1e-9)  # x = 2 s_1 / S
    assert fit([3, 7], [[1, 0], [0.5, 0.5]], [1, 1], tol=1e-12) == pytest.approx([0, 1], abs=1e-9)  # at the border


@st.composite
def problems(draw):
    clients, classes = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    seed, least = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 1.0]))
    source = rng(seed)
    table = source.integers(0, 5, (clients, classes))
    table[:, 0] += 1
    alpha = least + source.exponential(draw(st.sampled_from([0.1, 1.0, 10.0])), clients)
    active = source.random(clients) < 0.8
    active[0] = True
    return source.integers(0, 30, classes), table / table.sum(axis=1, keepdims=True), alpha, active, source


@given(problems())
def test_em_never_decreases_and_stays_in_the_simplex(problem):
    labels, beta, alpha, active, source = problem
    present = (beta[active] > 0).any(axis=0) & (labels > 0)

    def objective(pi):
        prior = (alpha[active] - 1) * np.log(pi[active])
        return (labels[present] * np.log((pi @ beta)[present])).sum() + prior[alpha[active] > 1].sum()

    pi = source.dirichlet(np.ones(len(alpha))) * active
    pi /= pi.sum()
    for _ in range(20):
        new = fit(labels, beta, alpha, pi, active, max_iter=1, tol=0.0)
        assert (new >= 0).all()
        assert not new[~active].any()
        assert new.sum() == pytest.approx(1) or not new.any()
        if alpha.min() >= 1:
            before, after = objective(pi), objective(new)
            assert after >= before - 1e-9 * (1 + abs(before))
        if not new.any():
            break
        pi = new


def test_guards():
    same = [[1.0], [1.0]]
    # alpha below 1: clipped, not negative
    assert fit([1], same, [0.2, 3.0]).tolist() == [0, 1]
    # 0 is lifted at the start, and with alpha above 1 is left again
    assert fit([10], same, [11, 11], [0.0, 1.0]) == pytest.approx([0.5, 0.5], abs=1e-5)
    # a class without active holders is dropped
    assert fit([5, 5], np.eye(2), [2, 2], active=[True, False]).tolist() == [1, 0]
    assert fit([5, 5], np.eye(2), [2, 2], active=[True, False], estimate="mle").tolist() == [1, 0]
    # nothing is left of anyone
    assert fit([0], same, [0.5, 0.5]).tolist() == [0, 0]
    assert fit([0], same, [2, 2], estimate="mle").tolist() == [0, 0]


# The schedule.


def pseudo_code(counts, batch_size, source, histograms, exact_limit=False, **options):
    """Draw one schedule as docs/methods/psl.md 5.4 reads, row by row or one by one."""
    histograms, held = np.asarray(histograms), np.asarray(counts)
    alpha = lds_prior(held, **options)
    labels = source.multivariate_hypergeometric(histograms.sum(axis=0), min(1000, held.sum() // 2))

    def fitted(start):
        return map_em(labels, histograms / held[:, None], alpha, active=rem > 0, start=start)

    rem, rows = held.copy(), []
    pi = fitted(held / held.sum())
    while rem.any():
        row, need = np.zeros_like(held), min(batch_size, rem.sum())
        while need:
            weights = pi * rem / held if exact_limit else pi
            x = np.minimum(source.multinomial(1 if exact_limit else need, weights / weights.sum()), rem)
            emptied = ((rem > 0) & (rem == x)).any()
            rem, row, need = rem - x, row + x, need - x.sum()
            if emptied and rem.any():
                pi = fitted(pi)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("exact_limit", [False, True])
def test_drawing_ahead_is_the_pseudo_code(exact_limit):
    """Means of all entries and of all products of two entries, over many epochs.

    Client 0 is drained first, and then client 1 alone explains class 0: pi changes much in the middle of a batch.
    """
    n, histograms, counts = 1200, np.array([[6, 0], [6, 0], [0, 8]]), np.array([6, 6, 8])
    options = {"strength": 0.7, "delays": [3.0, 1.0, 1.5], "offset": 1.0, "concentration": 0.2}
    source = rng(1)
    ours = [lds(counts, 6, source, histograms=histograms, exact_limit=exact_limit, **options) for _ in range(n)]
    theirs = [pseudo_code(counts, 6, source, histograms, exact_limit, **options) for _ in range(n)]

    def moments(epochs):
        flat = [np.ravel(epoch) for epoch in epochs]
        return np.stack([np.concatenate([x, np.outer(x, x).ravel()]) for x in flat])

    first, second = moments([epoch.toarray() for epoch in ours]), moments(theirs)
    error = np.sqrt((first.var(axis=0) + second.var(axis=0)) / n) + 1e-9
    assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) < 4.5 * error).all()


@given(
    seed=st.integers(0, 2**32),
    clients=st.integers(1, 8),
    share=st.floats(0, 1),
    strength=st.sampled_from([0.0, 0.5, 3.0]),
    concentration=st.sampled_from([0.01, 1.0, 100.0]),
    flags=st.tuples(st.booleans(), st.booleans(), st.sampled_from(["map", "mle"])),
)
def test_everybody_is_exhausted(seed, clients, share, strength, concentration, flags):
    source = rng(seed)
    histograms = source.integers(0, 20, (clients, 3)) * (source.random((clients, 3)) < 0.6)
    histograms[:, 0] += 1 + (clients == 1)
    counts = histograms.sum(axis=1)
    batch_size = 1 + int(share * (counts.sum() - 1))
    schedule = lds(
        counts,
        batch_size,
        source,
        histograms=histograms,
        delays=source.exponential(1, clients),
        strength=strength,
        concentration=concentration,
        reinit=flags[0],
        exact_limit=flags[1],
        estimate=flags[2],
    )
    assert schedule.dtype == np.int64
    assert schedule.has_canonical_format
    assert schedule.data.min() > 0
    assert schedule.sum(axis=0).tolist() == counts.tolist()
    full, rest = divmod(int(counts.sum()), batch_size)
    assert schedule.sum(axis=1).tolist() == [batch_size] * full + [rest] * (rest > 0)


def test_the_schedule_depends_on_the_generator_only():
    counts = SMALL.sum(axis=1)
    one, same, other = (lds(counts, 3, rng(seed), histograms=SMALL).toarray() for seed in (5, 5, 6))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_who_weighs_nothing_comes_last():
    """A fast client's alpha falls far below 1, and its share to 0: it is drained when the others are done."""
    counts, histograms = np.array([100, 100, 100]), np.full((3, 2), 50)
    epoch = lds_epoch(counts, 10, rng(), histograms=histograms, delays=[10, 10, 1], strength=5.0)
    assert epoch.alpha[2] < 1
    assert epoch.pi[2] == 0
    assert epoch.schedule[:20, [2]].sum() == 0
    assert epoch.schedule[20:, [2]].sum() == 100
    floored = lds_epoch(counts, 10, rng(), histograms=histograms, delays=[10, 10, 1], strength=5.0, floor=1 + 1e-6)
    assert floored.pi[2] > 0


@pytest.mark.parametrize("exact_limit", [False, True])
def test_if_all_weigh_nothing_what_is_left_decides(exact_limit, monkeypatch):
    # S = 1: Z = 0, so alpha = 0, and one label does not outweigh it.
    options = {"sample_size": 1, "exact_limit": exact_limit}
    drawn = [lds_epoch([12, 8], 5, rng(seed), histograms=[[12], [8]], **options) for seed in range(300)]
    assert all(epoch.pi == pytest.approx([0.6, 0.4]) for epoch in drawn)
    assert np.mean([epoch.schedule.toarray()[0] for epoch in drawn], axis=0) == pytest.approx([3, 2], abs=0.25)

    fits = watch(monkeypatch)
    lds(SMALL.sum(axis=1), 4, rng(), histograms=SMALL, **options)
    assert len(fits) > 2
    for (_, active, pi), (start, _, _) in itertools.pairwise(fits):
        assert not pi.any()
        shares = SMALL.sum(axis=1) * active
        assert np.allclose(start, shares / shares.sum()) or not exact_limit  # times rem_k / D_k: what is left


@pytest.mark.parametrize("reinit", [False, True])
def test_reinit_begins_from_the_shares(reinit, monkeypatch):
    fits, counts = watch(monkeypatch), SMALL.sum(axis=1)
    lds(counts, 4, rng(), histograms=SMALL, delays=SLOW_LAST, strength=0.5, reinit=reinit)
    assert len(fits) > 2
    for (_, _, pi), (start, _, _) in itertools.pairwise(fits):
        assert start == pytest.approx(counts / 20 if reinit else pi, rel=FEW)


def watch(monkeypatch):
    """List start, active clients and result of the calls of map_em to come."""
    calls = []

    def watched(*arguments, start, active, **options):
        pi = map_em(*arguments, start=start, active=active, **options)
        calls.append((start, active, pi.copy()))
        return pi

    monkeypatch.setattr(sys.modules["sparsync.split.lds"], "map_em", watched)  # sparsync.split.lds is the function
    return calls


# Limits.


def test_a_large_concentration_gives_the_shares():
    counts = SMALL.sum(axis=1)
    assert lds_epoch(counts, 4, rng(), histograms=SMALL, concentration=1e12).pi == pytest.approx(counts / 20, abs=1e-9)
    mode = lds_epoch(counts, 4, rng(), histograms=np.diag(counts), offset=1.0, concentration=1e4).pi
    assert mode == pytest.approx(counts / 20, abs=1e-3)


def test_the_exact_limit_has_the_law_of_ugs():
    """Every row against the multivariate hypergeometric law, by chi-square: K = 3, D = (4, 3, 2), B = 3."""
    counts, n, source = (4, 3, 2), 1500, rng(2)
    rows = {row: i for i, row in enumerate(r for r in itertools.product(range(4), range(4), range(3)) if sum(r) == 3)}
    law = np.array([math.prod(map(math.comb, counts, row)) for row in rows]) / 84
    assert law.sum() == pytest.approx(1)

    def chi_squares(**options):
        found = np.zeros((3, len(rows)))
        for _ in range(n):
            schedule = lds(counts, 3, source, histograms=np.diag(counts), concentration=1e12, **options)
            found[np.arange(3), [rows[tuple(row)] for row in schedule.toarray().tolist()]] += 1
        return ((found - n * law) ** 2 / (n * law)).sum(axis=1)

    threshold = 26.12  # 8 degrees of freedom, one in a thousand
    assert (chi_squares(exact_limit=True) < threshold).all()
    assert (chi_squares(exact_limit=True, sample_size=1) < threshold).all()  # everyone's alpha is 0
    assert chi_squares()[0] > threshold  # the default draws rows with replacement


@pytest.mark.slow
def test_moments_of_the_exact_limit():
    counts, batch, epochs, source = np.array([300, 200, 100]), 120, 1500, rng(3)
    options = {"histograms": counts[:, None], "concentration": 1e12}
    rows = np.concatenate([lds(counts, batch, source, exact_limit=True, **options).toarray() for _ in range(epochs)])
    shares = counts / 600
    multinomial = batch * shares * (1 - shares)
    assert rows.mean(axis=0) == pytest.approx(batch * shares)  # exact, since columns are
    assert rows.var(axis=0) / (multinomial * (600 - batch) / 599) == pytest.approx(np.ones(3), abs=0.05)
    first = np.stack([lds(counts, batch, source, **options).toarray()[0] for _ in range(epochs)])
    assert (first.var(axis=0) / multinomial).mean() == pytest.approx(1, abs=0.07)


def test_a_straggler_takes_part_in_fewer_steps_down_to_the_least():
    source = rng(4)
    histograms = source.integers(20, 60, (6, 4))
    counts = histograms.sum(axis=1)
    delays = [1.0, 1.2, 0.9, 1.1, 1.0, 10.0]
    least = math.ceil(counts[-1] / 16)
    steps = []
    for strength in (0.0, 0.25, 0.5, 1.0, 2.0, 8.0):
        options = {"histograms": histograms, "delays": delays, "strength": strength}
        found = [(lds(counts, 16, source, **options)[:, [-1]] > 0).sum() for _ in range(20)]
        steps.append(np.mean(found))
    assert all(later <= earlier for earlier, later in itertools.pairwise(steps))
    assert steps[-1] == least
    assert steps[0] > 4 * least


def test_time_falls_and_deviation_rises_with_strength():
    """CIFAR-10's sizes, 16 clients, severe, one straggler ten times slower; a step takes its slowest client's delay."""
    labels = np.repeat(np.arange(10), 5000)
    parts = partition("extended-dirichlet:classes=2,alpha=3", labels, 16, 1)
    histograms = class_counts(parts, labels, 10)
    counts, source = histograms.sum(axis=1), rng(5)
    delays = source.uniform(0.8, 1.2, 16)
    delays[source.integers(16)] = 10

    def measure(schedule):
        rows = schedule.toarray()
        seconds = np.where(rows > 0, delays, 0).max(axis=1).sum()
        found = np.zeros((len(rows), 10))
        for part, column in zip(parts, rows.T, strict=True):
            np.add.at(found, (np.repeat(np.arange(len(rows)), column), labels[source.permutation(part)]), 1)
        return seconds, deviations(found, np.full(10, 0.1)).mean()

    uniform, spread = measure(ugs(counts, 128, source))
    options = {"histograms": histograms, "delays": delays}
    times, deviation = np.transpose(
        [measure(lds(counts, 128, source, strength=strength, **options)) for strength in (0.0, 0.25, 0.5, 1.0)]
    )
    assert times[0] == pytest.approx(uniform, rel=0.1)
    assert (np.diff(times) < -0.05 * uniform).all()
    assert times[2] < 0.5 * uniform
    assert spread == pytest.approx(0.211, abs=0.01)
    assert spread < deviation[0]
    assert (np.diff(deviation) > 0).all()
    assert deviation[-1] < 3 * spread


# Mistakes.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"counts": [9, 5, 0, 2]}, "client 2 has 0 samples"),
        ({"batch_size": 0}, "batch_size=0; expected an integer from 1 to 20"),
        ({"histograms": SMALL[:3]}, r"histograms has shape \(3, 3\); expected \(4, M\)"),
        ({"histograms": SMALL.sum(axis=1)}, r"histograms has shape \(4,\); expected \(4, M\)"),
        ({"histograms": SMALL / 2}, "histograms is of type float64; expected integers"),
        ({"histograms": SMALL + np.eye(4, 3, -2, dtype=int)}, "client 2 has 4 samples, but .* 5 in all; count its"),
        ({"histograms": [[10, -1, 0], *SMALL[1:]]}, "client 0 has 9 samples, but its histogram has -1 to 10"),
        ({"histograms": [[2**63 - 1, 2**63 - 1, 11], *SMALL[1:]]}, "client 0 has 9 samples, but"),  # wraps around to 9
        ({"delays": [1, 2, 3]}, r"delays has shape \(3,\); expected \(4,\)"),
        ({"delays": [1, 2, -3, 4]}, "client 2 has a delay of -3.0; expected finite seconds of at least 0"),
        ({"delays": [1, math.nan, 3, 4]}, "client 1 has a delay of nan"),
        ({"delays": [1, 2, 3, math.inf]}, "client 3 has a delay of inf"),
        ({"sample_size": 20}, "sample_size=20; expected an integer from 1 to below 20"),
        ({"sample_size": 0}, "sample_size=0; expected"),
        ({"sample_size": 2.5}, "sample_size=2.5; expected"),
        ({"concentration": 0}, "concentration=0; expected a number above 0"),
        ({"concentration": math.nan}, "concentration=nan"),
        ({"strength": -0.1}, "strength=-0.1; expected a number of at least 0"),
        ({"strength": math.inf}, "strength=inf"),
        ({"strength": 1e4, "delays": [1, 2, 3, 4]}, "strength=10000.0 and .* beyond floating point; lower them"),
        ({"strength": 1e4, "delays": [1, 2, 3, 4], "sample_size": 1}, "strength=10000.0 and"),  # 0 * inf
        ({"offset": -1}, "offset=-1; expected"),
        ({"floor": math.nan}, "floor=nan; expected"),
        ({"estimate": "mean"}, "estimate='mean'; expected 'map' or 'mle'"),
    ],
)
def test_mistakes(given, message):
    arguments = {"counts": SMALL.sum(axis=1), "batch_size": 4, "histograms": SMALL, **given}
    with pytest.raises(UsageError, match=message):
        lds(arguments.pop("counts"), arguments.pop("batch_size"), rng(), **arguments)


def test_one_sample_in_all_is_too_few():
    with pytest.raises(UsageError, match="sample_size=1; expected an integer from 1 to below 1, all clients' samples"):
        lds([1], 1, rng(), histograms=[[1]])
