"""Schedules: numbers that depend on the round t, counted from 0, and on nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from sparsync.errors import UsageError
from sparsync.shares import exact


def _at_least_one(schedule: object, name: str) -> None:
    value = getattr(schedule, name)
    if value < 1:
        raise UsageError(f"{type(schedule).__name__}: {name}={value!r}; expected at least 1")


_COSINES = {Fraction(1, 3): Fraction(1, 2), Fraction(2, 3): Fraction(-1, 2)}
"""Cosines of shares of half a turn that are fractions: a half is one, and math.cos(math.pi / 3) lies above it."""


@dataclass(frozen=True)
class Constant:
    """The same in every round."""

    value: float

    def __call__(self, t: int) -> float:
        return self.value


@dataclass(frozen=True)
class Cubic:
    """From `initial` at round 0 to `final` at round `rounds`, fast first: s_p + (s_0 - s_p)(1 - t/T)^3.

    The last round, T - 1, misses `final` by (initial - final)/T^3. FedDIP's sparsity, and PruneFL's in
    ``EricLoong/feddip``; after Zhu and Gupta, arXiv:1710.01878.

    Attributes
    ----------
    initial, final : float
        s_0 and s_p, from 0 to 1.
    rounds : int
        T, at least 1; `final` ever after.
    """

    initial: float
    final: float
    rounds: int

    def __post_init__(self) -> None:
        _at_least_one(self, "rounds")
        for name in ("initial", "final"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"Cubic: {name}={value!r}; expected a sparsity from 0 to 1")

    def __call__(self, t: int) -> float:
        left = max(Fraction(0), 1 - Fraction(t, self.rounds))
        return float(exact(self.final) + (exact(self.initial) - exact(self.final)) * left**3)


@dataclass(frozen=True)
class Staircase:
    """`first` for floor(rounds/steps) rounds, then upwards from `low` in equal steps: FedDIP's lambda.

    Step i, counted from 0, is `first` for i = 0, else low + (high - low)(i - 1)/(steps - 1): `high` is never reached.
    The last step takes the remaining rounds. ``EricLoong/feddip`` has ``Staircase(0, 5e-4, 1e-3, 20, rounds)``; the
    form attributed to its paper ``Staircase(0, high / 20, high, 20, rounds)``.

    Attributes
    ----------
    first, low, high : float
        See above.
    steps : int
        Q, at least 1.
    rounds : int
        T, at least `steps`: that code has only its last step otherwise.
    """

    first: float
    low: float
    high: float
    steps: int
    rounds: int

    def __post_init__(self) -> None:
        _at_least_one(self, "steps")
        if self.rounds < self.steps:
            raise UsageError(f"Staircase: rounds={self.rounds!r}; expected at least as many as steps={self.steps!r}")

    def __call__(self, t: int) -> float:
        step = min(t // (self.rounds // self.steps), self.steps - 1)
        return self.first if step == 0 else self.low + (self.high - self.low) / (self.steps - 1) * (step - 1)


@dataclass(frozen=True)
class CosineDrop:
    """Half a cosine from `initial` at round 0 to 0 at round `end` and after: the share that FedDST drops and regrows.

    Attributes
    ----------
    initial : float
        a, the share at round 0.
    end : int
        t_end, at least 1.
    """

    initial: float
    end: int

    def __post_init__(self) -> None:
        _at_least_one(self, "end")

    def __call__(self, t: int) -> float:
        if t >= self.end:
            return 0.0
        passed = Fraction(t, self.end)
        cosine = _COSINES.get(passed) or Fraction(math.cos(math.pi * t / self.end))
        return float(exact(self.initial) / 2 * (1 + cosine))
