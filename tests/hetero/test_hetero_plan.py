"""The hyperperiod and the work of each device of HADFL: docs/methods/hadfl.md 4.1, 6, properties 1 and 11."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.hetero import HyperperiodPlan, ideal_throughput, make_plan

times = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=12)
RULES = ["coarse", "fine"]
HETEROGENEITIES = [[4, 2, 2, 1], [3, 3, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("power", HETEROGENEITIES)
def test_work_is_in_proportion_to_power(power, rule):
    seconds = 0.37 / np.array(power)
    plan = make_plan(seconds, rule=rule)
    assert plan.units == tuple(power)
    assert plan.hyperperiod == pytest.approx(0.37)
    assert plan.units * seconds == pytest.approx([plan.hyperperiod] * 4)  # nobody is idle


@pytest.mark.parametrize("power", HETEROGENEITIES)
def test_two_per_cent_of_jitter_do_not_change_the_coarse_plan(power):
    rng = np.random.default_rng(0)
    for jitter in 1 + 0.02 * rng.uniform(-1, 1, (1000, 4)):
        assert make_plan(jitter / power).units == tuple(power)


@pytest.mark.parametrize("rule", RULES)
@given(seconds=times)
def test_no_plan_exceeds_its_bound(rule, seconds):
    plan = make_plan(seconds, rule=rule)
    slowest = max(seconds)
    bound = slowest if rule == "coarse" else 2 * slowest
    assert 0 < plan.hyperperiod <= bound
    assert all(type(unit) is int and unit >= 1 for unit in plan.units)


@pytest.mark.parametrize("rule", RULES)
@given(seconds=times)
def test_planned_work_is_within_rounding_of_what_a_device_can_do(rule, seconds):
    """Coarse: at worst 1 or 2 units at a ratio of 1.5, which is a third. Fine: 1/8 by the ticks, 1/5 by the units."""
    plan = make_plan(seconds, rule=rule)
    share = np.array([float(unit) for unit in plan.units]) * np.array(seconds) / plan.hyperperiod
    low, high = (2 / 3, 4 / 3) if rule == "coarse" else (0.9 * 0.8, 1.125 * 1.2)
    assert low - 1e-9 <= share.min()
    assert share.max() <= high + 1e-9


def test_the_fine_rule_plans_what_the_coarse_one_cannot():
    assert make_plan([2, 3]) == HyperperiodPlan(3.0, (2, 1))  # 3 / 2 is rounded to even, 2
    assert make_plan([2, 3], rule="fine") == HyperperiodPlan(6.0, (3, 2))
    assert make_plan([2, 2.4], rule="fine") == HyperperiodPlan(
        4.8, (2, 2)
    )  # ticks of 0.5: 4 and 5, which meet only at 10 s
    assert make_plan([1, 1.12], rule="fine") == HyperperiodPlan(1.0, (1, 1))  # both 4 ticks
    assert make_plan([1, 1.15], rule="fine") == HyperperiodPlan(2.3, (2, 2))  # 4 and 5 ticks


def test_the_multiple_of_measured_times_does_not_explode():
    seconds = [10.13, 20.09, 20.31, 40.07]
    assert math.lcm(1013, 2009, 2031, 4007) / 100 == pytest.approx(1.7e11, rel=0.05)
    assert make_plan(seconds) == HyperperiodPlan(40.07, (4, 2, 2, 1))
    assert make_plan(seconds, rule="fine") == HyperperiodPlan(4 * 10.13, (4, 2, 2, 1))


def test_a_cap_bounds_the_fast_and_leaves_the_hyperperiod():
    assert make_plan([1, 2, 7]) == HyperperiodPlan(7.0, (7, 4, 1))  # 3.5 is rounded to even
    assert make_plan([1, 2, 7], max_units=3) == HyperperiodPlan(7.0, (3, 3, 1))
    assert make_plan([1, 2, 7], max_units=7) == make_plan([1, 2, 7])


@pytest.mark.parametrize(
    ("seconds", "options", "message"),
    [
        ([1, -2.5], {}, r"^plan: seconds\[1\] is -2.5; expected a finite number above 0$"),
        ([0, 1], {}, r"plan: seconds\[0\] is 0;"),
        ([1, math.nan], {}, r"plan: seconds\[1\] is nan"),
        ([1, math.inf], {}, r"plan: seconds\[1\] is inf"),
        ([], {}, r"plan: seconds has shape \(0,\); expected \(K,\), one number per device"),
        ([[1, 2]], {}, r"plan: seconds has shape \(1, 2\)"),
        (3.0, {}, r"plan: seconds has shape \(\)"),
        ([1e-200, 1e200], {}, "plan: seconds from 1e-200 to 1e[+]200 lie beyond floating point"),
        ([1e308], {}, "plan: seconds from 1e[+]308 to 1e[+]308 lie beyond"),
        ([1, 2], {"rule": "lcm"}, "plan: rule='lcm'; expected 'coarse' or 'fine'"),
        ([1, 2], {"max_units": 0}, "plan: max_units=0; expected an integer of at least 1, or None"),
        ([1, 2], {"max_units": 1.5}, "plan: max_units=1.5"),
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_mistakes(rule, seconds, options, message):
    with pytest.raises(UsageError, match=message):
        make_plan(seconds, **{"rule": rule, **options})


@pytest.mark.parametrize("rule", RULES)
def test_the_least_times_there_are(rule):
    assert make_plan([5e-324, 1e-323], rule=rule) == HyperperiodPlan(1e-323, (2, 1))


def test_throughput_without_communication():
    assert ideal_throughput([4, 2, 2, 1]) == 2.25
    assert ideal_throughput([3, 3, 1, 1]) == 2.0
    assert ideal_throughput([5, 5]) == 1.0
    assert ideal_throughput([0.4, 0.2, 0.2, 0.1]) == pytest.approx(2.25)


@pytest.mark.parametrize("power", [[1, 0], [1, -1], [math.inf, 1], []])
def test_throughput_of_no_power(power):
    with pytest.raises(UsageError, match="ideal_throughput: power"):
        ideal_throughput(power)


def test_what_is_given_is_left_alone():
    seconds = np.array([1.0, 2.0])
    make_plan(seconds)
    ideal_throughput(seconds)
    assert seconds.tolist() == [1.0, 2.0]
