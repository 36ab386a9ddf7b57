"""The values of docs/methods/feddip.md 2.2 and 2.4 (properties 2 and 3), and FedDST's cosine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.sparsity import Constant, CosineDrop, Cubic, Staircase
from tolerance import rounding

ROUNDS = st.integers(1, 300)


@pytest.mark.parametrize(
    ("t", "sparsity"), [(0, 0.5), (100, 0.6084), (250, 0.73125), (500, 0.85), (750, 0.89375), (900, 0.8996)]
)
def test_cubic(t, sparsity):
    assert Cubic(0.5, 0.9, 1000)(t) == pytest.approx(sparsity, abs=rounding(8))


@given(initial=st.floats(0, 1), final=st.floats(0, 1), rounds=ROUNDS)
def test_cubic_goes_one_way_and_ends(initial, final, rounds):
    schedule = Cubic(initial, final, rounds)
    values = [schedule(t) for t in range(rounds + 2)]
    assert values[0] == pytest.approx(initial)
    assert values[rounds] == values[rounds + 1] == final
    assert values[rounds - 1] == pytest.approx(final + (initial - final) / rounds**3)
    assert values == sorted(values, reverse=initial > final)
    assert initial != final or set(values) == {final}


@pytest.mark.parametrize(
    ("t", "expected"),
    [(0, 0), (49, 0), (50, 5e-4), (99, 5e-4), (100, 5.26316e-4), (149, 5.26316e-4), (999, 9.73684e-4)],
)
def test_staircase_of_the_authors_code(t, expected):
    assert Staircase(0, 5e-4, 1e-3, 20, 1000)(t) == pytest.approx(expected, abs=5e-10)


@given(steps=st.integers(1, 30), rounds=ROUNDS)
def test_staircase_has_its_steps(steps, rounds):
    if rounds < steps:
        with pytest.raises(UsageError, match="expected at least as many as"):
            Staircase(0, 5e-4, 1e-3, steps, rounds)
        return
    schedule = Staircase(0, 5e-4, 1e-3, steps, rounds)
    values = [schedule(t) for t in range(rounds)]
    assert len(set(values)) == steps
    assert values == sorted(values)
    assert values[: rounds // steps] == [0] * (rounds // steps)
    assert max(values) < 1e-3
    first = [values.index(value) for value in sorted(set(values))]
    assert first == [rounds // steps * i for i in range(steps)]  # the last step takes the rest


def test_staircase_in_the_form_attributed_to_the_paper():
    high, steps, rounds = 1e-3, 20, 200
    schedule = Staircase(0, high / steps, high, steps, rounds)
    assert [schedule(10 * i) for i in range(steps)] == pytest.approx([high * i / steps for i in range(steps)])


def test_cosine_drop():
    schedule = CosineDrop(0.5, 100)
    assert [schedule(t) for t in (0, 25, 50, 100, 101)] == pytest.approx([0.5, 0.426777, 0.25, 0, 0], abs=5e-7)
    assert schedule(100) == 0


def test_constant():
    assert Constant(0.95)(0) == Constant(0.95)(10**6) == 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Cubic(0.5, 0.9, 0), "Cubic: rounds=0; expected at least 1"),
        (lambda: Cubic(0.5, 1.9, 10), "Cubic: final=1.9; expected a sparsity from 0 to 1"),
        (lambda: Cubic(-0.5, 0.9, 10), "Cubic: initial=-0.5"),
        (lambda: Staircase(0, 0, 1, 0, 10), "Staircase: steps=0"),
        (lambda: Staircase(0, 0, 1, 20, 19), "Staircase: rounds=19; expected at least as many as steps=20"),
        (lambda: CosineDrop(0.5, 0), "CosineDrop: end=0"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()
