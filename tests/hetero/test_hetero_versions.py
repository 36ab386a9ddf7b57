"""Predicted versions, for HADFL: docs/methods/hadfl.md 4.4 and property 3."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.hetero import Forecast, selection_probabilities
from tolerance import rounding


def brown(series, a, horizon=1.0):
    """The recurrence as in the textbooks, for one device."""
    s1 = s2 = series[0]
    for v in series[1:]:
        s1 = a * v + (1 - a) * s1
        s2 = a * s1 + (1 - a) * s2
    return 2 * s1 - s2 + horizon * a / (1 - a) * (s1 - s2)


def fed(series, **options) -> Forecast:
    forecast = Forecast(1, **options)
    for v in series:
        forecast.observe([v])
    return forecast


def test_the_example_by_hand():
    """S1: 4, 6, 9, 12.5, 16.25; S2: 4, 5, 7, 9.75, 13; so 19.5 + 3.25, where 24 follows."""
    forecast = fed([4, 8, 12, 16, 20])
    assert (forecast.s1[0], forecast.s2[0]) == (16.25, 13.0)
    assert forecast.predict().tolist() == [22.75]
    assert forecast.predict(2).tolist() == [26.0]
    assert forecast.predict(0).tolist() == [19.5]


@given(
    series=st.lists(st.floats(0, 1e6), min_size=2, max_size=20),
    a=st.floats(0.05, 0.95),
    horizon=st.floats(0, 5),
)
def test_the_recurrence(series, a, horizon):
    assert fed(series, smoothing=a).predict(horizon)[0] == pytest.approx(brown(series, a, horizon), abs=1e-6)


@given(constant=st.floats(0, 1e6), observations=st.integers(2, 9), a=st.floats(0.05, 0.95))
def test_a_constant_series_forecasts_the_constant(constant, observations, a):
    forecast = fed([constant] * observations, smoothing=a)
    assert forecast.predict()[0] == pytest.approx(constant, rel=rounding(8 * observations / (1 - a)))
    assert forecast.predict(7)[0] == pytest.approx(constant, rel=rounding(64 * observations / (1 - a)))


@given(start=st.floats(0, 1e4), slope=st.floats(0, 1e4), observations=st.integers(1, 12), a=st.floats(0.1, 0.9))
def test_a_linear_series_is_exact_with_the_matched_start(start, slope, observations, a):
    forecast = Forecast(1, smoothing=a)
    for j in range(observations):
        forecast.observe([start + slope * j], planned=[slope])
    for horizon in (1, 3):
        expected = start + slope * (observations - 1 + horizon)
        assert forecast.predict(horizon)[0] == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_otherwise_the_lag_dies_out():
    forecast, errors = Forecast(1), []
    for j in range(60):
        forecast.observe([100 + 4 * j])
        errors.append(abs(forecast.predict(planned=[0])[0] - (100 + 4 * (j + 1))))
    assert errors[1] > 1
    assert all(later < earlier for earlier, later in pairwise(errors[1:31]))
    assert errors[-1] < 1e-9


def test_the_plan_stands_in_until_there_are_two_observations():
    forecast = Forecast(2)
    forecast.observe([10, 20])
    assert forecast.predict(planned=[4, 1]).tolist() == [14, 21]
    assert forecast.predict(3, planned=[4, 1]).tolist() == [22, 23]
    with pytest.raises(UsageError, match=r"^forecast: device 0 has been observed only once; say what is planned"):
        forecast.predict()
    forecast.observe([14], [0])
    assert forecast.predict(planned=[99, 1]).tolist() == [brown([10, 14], 0.5), 21]  # the first has a trend now
    assert forecast.predict(who=[0]).tolist() == [brown([10, 14], 0.5)]
    with pytest.raises(UsageError, match="device 1 has been observed only once"):
        forecast.predict()


def test_devices_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    series = rng.uniform(0, 10, (5, 8)).cumsum(axis=1)  # (devices, cycles)
    seen = rng.random((5, 8)) < 0.7
    seen[:, :2] = True
    forecast = Forecast(5)
    for j in range(8):
        who = rng.permutation(np.flatnonzero(seen[:, j]))
        forecast.observe(series[who, j], who)
    expected = [brown(row[mask], 0.5) for row, mask in zip(series, seen, strict=True)]
    assert forecast.predict() == pytest.approx(expected)
    assert forecast.predict(who=[3, 1]) == pytest.approx([expected[3], expected[1]])


def test_the_common_lag_leaves_selection_as_it_is():
    """Forecasts of c + E_k j are c + E_k times one factor."""
    units = np.array([4, 2, 2, 1])
    forecast = Forecast(4)
    for j in range(1, 4):
        forecast.observe(5 + units * j)
    factors = (forecast.predict() - 5) / units
    assert factors == pytest.approx([factors[0]] * 4)
    assert factors[0] < 3.9  # it lags
    assert selection_probabilities(forecast.predict()) == pytest.approx(selection_probabilities(units))


def test_who_returns_begins_anew():
    forecast = Forecast(2)
    for j in range(5):
        forecast.observe([4 * j, 2 * j])
    kept = forecast.predict()[0]
    forecast.forget([1])
    with pytest.raises(UsageError, match="device 1 has not been observed yet; observe its version first"):
        forecast.predict(planned=[4, 2])
    forecast.observe([30.5], [1])
    assert forecast.predict(planned=[4, 2]).tolist() == [kept, 32.5]


def test_the_state_continues_with_the_same_bits():
    rng = np.random.default_rng(1)
    through, before = Forecast(3, smoothing=0.3), Forecast(3, smoothing=0.3)
    series = rng.uniform(0, 10, (6, 3)).cumsum(axis=0)
    before.observe(series[0])
    before.observe(series[1, :2], [0, 1])
    state = json.loads(json.dumps(before.state_dict()))
    after = Forecast(3, smoothing=0.3)
    after.load_state_dict(state)
    before.observe(series[5])  # what was saved does not follow
    through.observe(series[0])
    through.observe(series[1, :2], [0, 1])
    for forecast in (through, after):
        forecast.observe(series[2, 1:], [1, 2])
    assert after.predict().tobytes() == through.predict().tobytes()
    assert after.state_dict() == through.state_dict()


def observed() -> Forecast:
    forecast = Forecast(3)
    forecast.observe([1, 2, 3])
    return forecast


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Forecast(0), "forecast: devices=0; expected at least 1"),
        (lambda: Forecast(2, smoothing=0), "forecast: smoothing=0; expected a number above 0 and below 1"),
        (lambda: Forecast(2, smoothing=1), "forecast: smoothing=1;"),
        (lambda: Forecast(2, smoothing=math.nan), "forecast: smoothing=nan"),
        (lambda: Forecast(3).observe([1, 2]), r"forecast: versions has shape \(2,\); expected \(3,\)"),
        (lambda: Forecast(3).observe([1, 2], [0]), r"forecast: versions has shape \(2,\); expected \(1,\)"),
        (lambda: Forecast(3).observe([1, math.nan, 2]), r"forecast: versions\[1\] is nan; expected a finite number$"),
        (lambda: Forecast(3).observe([1, 2, 3], planned=[1]), r"forecast: planned has shape \(1,\); expected \(3,\)"),
        (lambda: Forecast(3).observe([1, 2], [0, 3]), "forecast: who has device 3; expected 0 to 2"),
        (lambda: Forecast(3).observe([1, 2], [-1, 0]), "forecast: who has device -1"),
        (lambda: Forecast(3).observe([1, 2], [1, 1]), "forecast: who has device 1 more than once; name each once"),
        (lambda: Forecast(3).observe([1, 2], [True, False]), r"forecast: who is bool \(2,\); expected integers"),
        (lambda: Forecast(3).forget([]), r"forecast: who is float64 \(0,\)"),
        (lambda: Forecast(3).predict(), "forecast: device 0 has not been observed yet"),
        (lambda: observed().predict(-1, planned=[1, 1, 1]), "forecast: horizon=-1; expected a number of cycles"),
        (lambda: observed().predict(math.inf, planned=[1, 1, 1]), "forecast: horizon=inf"),
        (lambda: observed().predict(planned=[1, 1]), r"forecast: planned has shape \(2,\); expected \(3,\)"),
        (
            lambda: Forecast(2).load_state_dict(observed().state_dict()),
            r"forecast: s1 has shape \(3,\); expected \(2,\)",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_a_mistake_changes_nothing():
    forecast = observed()
    before = forecast.state_dict()
    with pytest.raises(UsageError):
        forecast.observe([4, 5, 6], planned=[1, math.inf, 1])
    assert forecast.state_dict() == before
