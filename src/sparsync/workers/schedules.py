"""Learning-rate schedules by spec: pure functions of a worker's own step, times the optimiser's rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from sparsync.spec import Count, Natural, Registry

Schedule = Callable[[int], float]
"""Step, counted from 0, to the factor on the learning rate of that step."""

SCHEDULES: Registry[Schedule] = Registry("schedule")

Factor = Annotated[float, Field(ge=0, le=1)]


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


@SCHEDULES.register("constant")
def constant(*, warmup: Natural = 0) -> Schedule:
    """Full rate, after a linear warm-up of `warmup` steps."""
    return lambda step: _warm(step, warmup)


@SCHEDULES.register("cosine")
def cosine(*, steps: Count, final: Factor = 0.0, warmup: Natural = 0) -> Schedule:
    """Half a cosine from the full rate at step 0 to `final` at `steps`."""

    def factor(step: int) -> float:
        done = min(1.0, step / steps)
        return _warm(step, warmup) * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))

    return factor


@SCHEDULES.register("step")
def step_decay(*, every: Count, factor: Factor = 0.1, warmup: Natural = 0) -> Schedule:
    """Times `factor` after every `every` steps."""
    return lambda step: _warm(step, warmup) * factor ** (step // every)


@SCHEDULES.register("exponential")
def exponential(*, factor: Factor = 0.998, warmup: Natural = 0) -> Schedule:
    """Times `factor` after every step."""
    return lambda step: _warm(step, warmup) * factor**step


@SCHEDULES.register("geometric")
def geometric(*, final: Annotated[float, Field(gt=0, le=1)] = 0.02, steps: Count) -> Schedule:
    """From the full rate down to `final` after `steps`, by one factor in each; lower still after that."""
    return lambda step: float(final ** ((step + 1) / steps))
