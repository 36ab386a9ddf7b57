"""Who averages in HADFL: docs/methods/hadfl.md 4.5, property 4. Seeds are fixed: what passes once passes always."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsync.errors import UsageError
from sparsync.hetero import (
    default_members,
    draw_members,
    inclusion_probabilities,
    selection_log_probabilities,
    selection_probabilities,
)
from sparsync.hetero import selection as module
from tolerance import rounding

DRAWS = 20_000
OUTLIER = np.append(np.arange(2000) % 2, -1e6)  # 44 standard deviations away
versions = st.lists(st.integers(0, 10_000), min_size=1, max_size=12)


def by_enumeration(p, members):
    """Inclusion by going through all orders of successive draws."""
    included = np.zeros(len(p))
    for order in permutations(range(len(p)), members):
        probability, left = 1.0, 1.0
        for k in order:
            probability *= p[k] / left
            left -= p[k]
        included[list(order)] += probability
    return included


def test_the_example():
    log_p = selection_log_probabilities([4, 2, 2, 1])
    mu, sigma = 2.5, math.sqrt(19) / 4
    f = [math.exp(-((x - mu) ** 2) / (2 * sigma**2)) for x in (4, 2, 2, 1)]
    assert sigma == pytest.approx(1.090, abs=5e-4)
    assert np.exp(log_p) == pytest.approx(np.array(f) / sum(f))
    assert selection_probabilities([4, 2, 2, 1]) == pytest.approx([0.1505, 0.3495, 0.3495, 0.1505], abs=5e-5)
    assert inclusion_probabilities(log_p, 2) == pytest.approx([0.339, 0.661, 0.661, 0.339], abs=5e-4)


def test_inclusion_of_the_example_by_monte_carlo():
    log_p = selection_log_probabilities([4, 2, 2, 1])
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_members(log_p, 2, rng) for _ in range(DRAWS)])
    assert np.all(drawn[:, 0] != drawn[:, 1])
    expected = inclusion_probabilities(log_p, 2)
    errors = np.bincount(drawn.ravel(), minlength=4) / DRAWS - expected
    assert np.all(np.abs(errors) < 3 * np.sqrt(expected * (1 - expected) / DRAWS))


def test_draws_are_successive():
    """All 24 orders of 4 devices, by P(i) P(j) / (1 - P(i)) ...: 23 degrees of freedom."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(1)
    found = Counter(tuple(draw_members(np.log(p), 4, rng).tolist()) for _ in range(DRAWS))
    chi2 = 0.0
    for order in permutations(range(4)):
        left, probability = 1.0, 1.0
        for k in order:
            probability *= p[k] / left
            left -= p[k]
        chi2 += (found[order] - DRAWS * probability) ** 2 / (DRAWS * probability)
    assert sum(found.values()) == DRAWS
    assert chi2 < stats.chi2.ppf(0.999, 23)


@given(v=versions, c=st.floats(1e-2, 1e2), b=st.floats(-1e4, 1e4))
def test_shift_and_scale_change_nothing(v, c, b):
    v = np.array(v)
    p = selection_probabilities(v)
    assert p.sum() == pytest.approx(1)
    assert selection_probabilities(c * v + b) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("value", [0, 7, 0.1, -1 / 3, 1e300])
@pytest.mark.parametrize("devices", [1, 2, 3, 10, 1000])
def test_equal_versions_are_equally_likely(value, devices):
    """Although the standard deviation of 0.1, 0.1, 0.1 is not 0 in floating point."""
    assert selection_probabilities([value] * devices) == pytest.approx(
        [1 / devices] * devices, rel=rounding(devices + 9)
    )


def test_versions_that_differ_by_rounding_are_equal():
    assert selection_probabilities([0.1 + 0.2, 0.3, 0.3, 0.3]) == pytest.approx([1 / 4] * 4)
    assert selection_probabilities([0.3001, 0.3, 0.3, 0.3])[0] < 0.15


def test_the_width_grows_with_the_versions():
    p = selection_probabilities([40, 20, 20, 10])
    assert p == pytest.approx([0.1505, 0.3495, 0.3495, 0.1505], abs=5e-5)  # a width of 1 gives 0, 1/2, 1/2, 0


@given(v=versions, seed=st.integers(0, 99), data=st.data())
def test_as_many_distinct_devices_as_asked_for(v, seed, data):
    members = data.draw(st.integers(1, len(v)))
    log_p = selection_log_probabilities(v)
    drawn = draw_members(log_p, members, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn.tolist())) == members
    assert set(drawn.tolist()) <= set(range(len(v)))
    assert np.array_equal(drawn, draw_members(log_p, members, np.random.default_rng(seed)))


def test_outliers_can_be_drawn_although_their_probability_underflows():
    assert selection_probabilities(OUTLIER)[-1] == 0
    log_p = selection_log_probabilities(OUTLIER)
    assert np.isfinite(log_p).all()
    rng = np.random.default_rng(0)
    for members in (2000, 2001):
        assert len(set(draw_members(log_p, members, rng).tolist())) == members
    order = draw_members(log_p, 2001, rng)
    assert order[-1] == 2000  # last of all
    assert inclusion_probabilities(log_p, 2000)[-1] == pytest.approx(0, abs=rounding(2001))
    assert inclusion_probabilities(log_p, 2001)[-1] == 1


@given(
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
    constant=st.floats(-2000, 2000),
    data=st.data(),
)
def test_inclusion_is_exact_for_few_devices(weights, constant, data):
    members = data.draw(st.integers(1, len(weights)))
    p = np.array(weights) / sum(weights)
    found = inclusion_probabilities(np.log(p) + constant, members)
    assert found == pytest.approx(by_enumeration(p, members), abs=1e-9)
    assert found.sum() == pytest.approx(members)


def test_inclusion_where_probabilities_underflow():
    assert inclusion_probabilities([0, -5000, -10_000, 0], 3) == pytest.approx([1, 1, 0, 1])
    assert inclusion_probabilities([0, -5000, -5000, 0], 3) == pytest.approx([1, 0.5, 0.5, 1])


@pytest.mark.parametrize(("members", "error"), [(1, 0.01), (2, 0.01), (8, 0.01), (15, 0.05)])
def test_inclusion_of_many_devices_is_near(monkeypatch, members, error):
    """The approximation beside what is exact at the last size that is."""
    rng = np.random.default_rng(2)
    cases = [rng.exponential(size=16), rng.integers(1, 5, 16), rng.normal(size=16), [4, 2, 2, 1] * 4, [1] * 16]
    for v in cases:
        log_p = selection_log_probabilities(v)
        exact = inclusion_probabilities(log_p, members)
        with monkeypatch.context() as patch:
            patch.setattr(module, "EXACT_UP_TO", 0)
            near = inclusion_probabilities(log_p, members)
            assert near == pytest.approx(inclusion_probabilities(log_p + 3000, members), abs=1e-9)
        assert near.sum() == pytest.approx(members)
        assert near == pytest.approx(exact, abs=error)


def test_inclusion_of_many_devices_by_monte_carlo():
    log_p = selection_log_probabilities(np.random.default_rng(3).exponential(size=200))
    rng, draws = np.random.default_rng(4), 4000
    counts = sum(np.bincount(draw_members(log_p, 50, rng), minlength=200) for _ in range(draws))
    expected = inclusion_probabilities(log_p, 50)
    assert expected.sum() == pytest.approx(50)
    assert np.abs(counts / draws - expected).max() < 4 * math.sqrt(0.25 / draws)


@pytest.mark.parametrize(("devices", "members"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (8, 4), (101, 51)])
def test_default_members(devices, members):
    assert default_members(devices) == members


@pytest.mark.parametrize(
    "function", [lambda *given: draw_members(*given, np.random.default_rng(0)), inclusion_probabilities]
)
@pytest.mark.parametrize(
    ("log_p", "members", "message"),
    [
        ([0, 0, 0], 4, "^selection: members=4; expected an integer from 1 to 3, the devices$"),
        ([0, 0, 0], 0, "selection: members=0"),
        ([0, 0, 0], 1.5, "selection: members=1.5"),
        ([0, math.nan], 1, r"selection: log_p\[1\] is nan; expected a finite number"),
        ([0, -math.inf], 1, r"selection: log_p\[1\] is -inf"),
        ([], 1, r"selection: log_p has shape \(0,\)"),
    ],
)
def test_mistakes(function, log_p, members, message):
    with pytest.raises(UsageError, match=message):
        function(log_p, members)


@pytest.mark.parametrize(
    ("v", "message"),
    [
        ([], r"selection: versions has shape \(0,\)"),
        ([[1, 2]], r"selection: versions has shape \(1, 2\)"),
        ([1, math.inf], r"selection: versions\[1\] is inf; expected a finite number$"),
    ],
)
def test_mistaken_versions(v, message):
    with pytest.raises(UsageError, match=message):
        selection_probabilities(v)


def test_no_devices():
    with pytest.raises(UsageError, match="selection: devices=0; expected at least 1"):
        default_members(0)
