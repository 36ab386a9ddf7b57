"""The devices and links of one run: a profile, worked out for its workers."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sparsync.errors import UsageError
from sparsync.randomness import generator
from sparsync.system.profile import Profile, powers
from sparsync.system.timeline import Activity

Floats = npt.NDArray[np.float64]
_MOST_EDGES = 1 << 20
_ROUNDING = 1e-12  # of the time: work that is done but for so little does not wait for the device's return


@dataclass(frozen=True)
class System:
    """Devices and links, worker by worker.

    Attributes
    ----------
    step_seconds : array of float64, (K,)
        Time of one local step.
    up, down : array of float64, (K,)
        What each link carries, in bytes per second.
    latency : float
        Time before the first byte of a message arrives.
    shared : float
        What all messages to or from a server carry together, in bytes per second.
    outages : sequence of Outages, (K,), or None
        When each device is away; None: nobody ever is.
    """

    step_seconds: Floats
    up: Floats
    down: Floats
    latency: float = 0.0
    shared: float = math.inf
    outages: Sequence[Outages] | None = None

    @classmethod
    def of(cls, profile: Profile, workers: int, seed: int = 0) -> System:
        """Work out a profile.

        Raises
        ------
        UsageError
            If it describes another number of devices.
        """
        profile.check(workers)
        power = _power(profile, workers, seed)
        return cls(
            profile.step_seconds / power,
            _rates(profile.bandwidth if profile.up is None else profile.up, workers),
            _rates(profile.bandwidth if profile.down is None else profile.down, workers),
            profile.latency,
            math.inf if profile.shared is None else profile.shared,
            _outages(profile, workers, seed),
        )

    @property
    def workers(self) -> int:
        """K."""
        return len(self.step_seconds)

    @property
    def speeds(self) -> Floats:
        """Local steps per second relative to the slowest device, (K,); all 1 if a step takes no time."""
        slowest = self.step_seconds.max()
        return slowest / self.step_seconds if slowest else np.ones(self.workers)

    def need_time(self, strategy: str) -> None:
        """Refuse a profile on which steps take no time, for a strategy that goes by who is faster.

        Raises
        ------
        UsageError
            If it is one.
        """
        if not self.step_seconds.min() > 0:
            raise UsageError(
                f"{strategy}: on this profile a local step takes no time, so nobody is faster; set step_seconds"
            )

    def away(self, moment: float) -> npt.NDArray[np.bool_]:
        """Who is away then, (K,)."""
        if self.outages is None:
            return np.zeros(self.workers, bool)
        return np.array([own.at(moment) is not None for own in self.outages])


class Outages:
    """When one device is away: intervals known beforehand, and others drawn as time goes on.

    Parameters
    ----------
    known : sequence of (float, float)
        From when to when, in virtual seconds.
    drawn : RandomOutages, optional
        What else.
    """

    def __init__(self, known: Sequence[tuple[float, float]] = (), drawn: RandomOutages | None = None) -> None:
        self.known, self.drawn = sorted(known), drawn

    def at(self, moment: float) -> float | None:
        """When it is back, if it is away at a moment; inf: never."""
        end = moment
        while math.isfinite(end) and (later := self._end(end)) is not None:  # one outage may begin within another
            end = later
        return end if end > moment else None

    def next(self, moment: float) -> float:
        """When it goes next; inf: it stays."""
        ahead = [start for start, _ in self.known if start > moment]
        if self.drawn is not None:
            ahead.append(self.drawn.next(moment))
        return min(ahead, default=math.inf)

    def work(self, moment: float, seconds: float) -> Iterator[tuple[Activity, float]]:
        """So much work from a moment on, which rests while the device is away: what it does, and until when, in turn.

        The last is inf if the device never returns.
        """
        while seconds > 0:
            if (back := self.at(moment)) is not None:
                yield "away", back
                moment = back
            if math.isinf(moment):
                return
            gone, end = self.next(moment), moment + seconds
            if end <= gone or math.isclose(end, gone, rel_tol=_ROUNDING):
                yield "compute", end
                return
            yield "compute", gone
            seconds, moment = seconds - (gone - moment), gone

    def _end(self, moment: float) -> float | None:
        ends = [end for start, end in self.known if start <= moment < end]
        if self.drawn is not None and (end := self.drawn.end(moment)) is not None:
            ends.append(end)
        return max(ends, default=None)


@dataclass
class RandomOutages:
    """A seeded process of a device that is up and down for exponential times."""

    rng: np.random.Generator
    mean_up: float
    mean_down: float
    edges: list[float] = field(default_factory=list)  # gone, back, gone, ...

    def end(self, moment: float) -> float | None:
        """When it is back, if it is away."""
        i = self._passed(moment)
        return self.edges[i] if i % 2 else None

    def next(self, moment: float) -> float:
        """When it goes next."""
        i = self._passed(moment)
        return self.edges[i + i % 2]

    def _passed(self, moment: float) -> int:
        """How many of the edges lie before, of which two more are known."""
        while not self.edges or self.edges[-2] <= moment:
            gone = (self.edges[-1] if self.edges else 0.0) + self.rng.exponential(self.mean_up)
            self.edges += [gone, gone + self.rng.exponential(self.mean_down)]
            if len(self.edges) > _MOST_EDGES:
                raise UsageError(
                    f"profile: with mean_up={self.mean_up:g} and mean_down={self.mean_down:g} a device has been away "
                    f"{_MOST_EDGES // 2} times before second {moment:g}; give longer times, or shorter steps"
                )
        return bisect.bisect_right(self.edges, moment)


def _power(profile: Profile, workers: int, seed: int) -> Floats:
    if profile.power is None:
        drawn = generator(seed, "power").standard_normal(workers)
        power: Floats = np.exp(profile.spread * drawn)
        return power
    said = powers(profile.power, workers) if isinstance(profile.power, str) else profile.power
    return np.asarray(said, np.float64)


def _rates(said: float | list[float], workers: int) -> Floats:
    return np.broadcast_to(np.asarray(said, np.float64), workers).copy()


def _outages(profile: Profile, workers: int, seed: int) -> list[Outages] | None:
    if not profile.outages and profile.mean_up is None:
        return None
    planned: dict[int, list[tuple[float, float]]] = {}
    for outage in profile.outages:
        planned.setdefault(outage.worker, []).append((outage.at, outage.until))
    made = []
    for worker in range(workers):
        drawn = None
        if profile.mean_up is not None and profile.mean_down is not None:
            drawn = RandomOutages(generator(seed, "outages", worker), profile.mean_up, profile.mean_down)
        made.append(Outages(planned.get(worker, ()), drawn))
    return made
