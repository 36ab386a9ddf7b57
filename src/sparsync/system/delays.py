"""How long clients take to answer, beside what they compute and send: who straggles, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sparsync.errors import UsageError
from sparsync.randomness import SHARED, generator
from sparsync.spec import Natural, Registry

Floats = npt.NDArray[np.float64]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, le=3)]


@dataclass(frozen=True)
class ParticipationDelays:
    """Every client's delay per participation.

    Attributes
    ----------
    typical : array of float64, (K,)
        Median, in seconds.
    jitter : float
        Standard deviation of the logarithm from one participation to the next; 0: always the median.
    seed : int
        Seed of the run.
    """

    typical: Floats
    jitter: float
    seed: int

    def draw(self, step: int) -> Floats:
        """Delays of all clients at a step, (K,), a pure function of (seed, step)."""
        if self.jitter == 0:
            return self.typical
        rng = generator(self.seed, "delays", SHARED, 1, step)
        drawn: Floats = self.typical * np.exp(self.jitter * rng.standard_normal(len(self.typical)))
        return drawn


DELAYS: Registry[ParticipationDelays] = Registry("delays", ParticipationDelays)
"""Functions (clients, seed, *, options) -> Delays; call them through ``DELAYS.build``."""


@DELAYS.register("none")
def none(clients: int, seed: int) -> ParticipationDelays:
    """Nobody is late."""
    return ParticipationDelays(np.zeros(clients), 0.0, seed)


@DELAYS.register("constant")
def constant(clients: int, seed: int, *, seconds: Seconds = 0.1, jitter: Spread = 0.0) -> ParticipationDelays:
    """All clients alike."""
    return ParticipationDelays(np.full(clients, seconds), jitter, seed)


@DELAYS.register("stragglers")
def stragglers(
    clients: int,
    seed: int,
    *,
    count: Natural = 1,
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0,
    seconds: Seconds = 0.1,
    spread: Spread = 0.0,
    jitter: Spread = 0.0,
) -> ParticipationDelays:
    """Log-normal around ``seconds``, and ``count`` clients, drawn at random, at exactly ``factor`` times that."""
    if count > clients:
        raise UsageError(f"delays 'stragglers': count={count} of {clients} clients; ask for at most all of them")
    rng = generator(seed, "delays", SHARED, 0)
    typical = seconds * np.exp(spread * rng.standard_normal(clients))
    typical[rng.permutation(clients)[:count]] = factor * seconds
    return ParticipationDelays(typical, jitter, seed)


def listed(seconds: npt.ArrayLike, *, jitter: float = 0.0, seed: int = 0) -> ParticipationDelays:
    """Return delays that are known client by client, (K,).

    Raises
    ------
    UsageError
        If one is negative or not finite.
    """
    typical = np.asarray(seconds, np.float64)
    if (wrong := np.flatnonzero(~(np.isfinite(typical) & (typical >= 0)))).size:
        raise UsageError(
            f"delays: client {wrong[0]} has {typical[wrong[0]]:g} seconds; expected a number of at least 0"
        )
    return ParticipationDelays(typical, jitter, seed)
