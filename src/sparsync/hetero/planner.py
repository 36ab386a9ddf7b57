"""Who plans: HADFL's strategy generator and runtime supervisor. Cao et al., arXiv:2111.08274.

It learns how fast devices are and how far they have trained, and says how much each is to train, who averages next and
who passes the result on. It never sees a model, and does not know where devices are: simulated, or real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparsync.errors import UsageError
from sparsync.hetero.plan import Floats, HyperperiodPlan, make_plan
from sparsync.hetero.selection import (
    default_members,
    draw_members,
    inclusion_probabilities,
    selection_log_probabilities,
)
from sparsync.hetero.versions import Forecast
from sparsync.randomness import SHARED, generator

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RingSelection:
    """Who averages at the end of a cycle.

    Attributes
    ----------
    ring : array of int64, (N_p,)
        Devices, in the ring's order.
    broadcaster : int
        Which of them passes the mean on.
    others : array of int64, (n - N_p,)
        Who else is there, and receives it.
    predicted : array of float64, (n,)
        The versions that were expected of those who are there, in their order.
    expected : array of float64, (n,)
        How likely each of them was to be in the ring.
    """

    ring: Ints
    broadcaster: int
    others: Ints
    predicted: Floats
    expected: Floats


class CyclePlanner:
    """What is known of all devices, and what they are to do.

    Parameters
    ----------
    devices : int
        K, those included that are not there.
    unit : int
        U, local steps in a unit of work.
    seed : int
        Seed of the run, for who is drawn.
    members : int, optional
        N_p, devices that average. Default: half of those there, rounded up, at least 2.
    period : int
        T_sync, hyperperiods per cycle.
    rule, max_units
        As of `make_plan`.
    smoothing : float
        As of `Forecast`.
    select : {"probability", "slowest"}
        Who averages; ``slowest``, the authors' worst case: always those with the oldest models.

    Attributes
    ----------
    versions : array of int64, (K,)
        v_k: local steps of each device, as far as it has reported; no averaging alters them.
    plan : HyperperiodPlan
        Of the current cycle. A device that is not there has one unit.
    cycle : int
        Complete ones.

    Raises
    ------
    UsageError
        If more devices are to average than there are.
    """

    def __init__(
        self,
        devices: int,
        unit: int,
        *,
        seed: int = 0,
        members: int | None = None,
        period: int = 1,
        rule: Literal["coarse", "fine"] = "coarse",
        max_units: int | None = None,
        smoothing: float = 0.5,
        select: Literal["probability", "slowest"] = "probability",
    ) -> None:
        if members is not None and members > devices:
            raise UsageError(f"hadfl: members={members} of {devices} workers; ask for at most all of them")
        self.unit, self.seed, self.members, self.period = unit, seed, members, period
        self.rule, self.max_units, self.select = rule, max_units, select
        self.forecast = Forecast(devices, smoothing=smoothing)
        self.versions = np.zeros(devices, np.int64)
        self.plan = HyperperiodPlan(0.0, (1,) * devices)
        self.cycle = 0

    @property
    def planned(self) -> Ints:
        """H_k: local steps of each device per cycle, (K,)."""
        return self.period * self.unit * np.array(self.plan.units, np.int64)

    @property
    def cycle_seconds(self) -> float:
        """How long a cycle lasts."""
        return self.period * self.plan.hyperperiod

    def enter(self, devices: Ints, version: int | None = None) -> None:
        """Devices begin: at the version that they have reported, or anew at another one."""
        if version is not None:
            self.versions[devices] = version
        self.forecast.forget(devices)
        self.forecast.observe(self.versions[devices], devices)

    def negotiate(self, step_seconds: npt.ArrayLike, there: Ints) -> bool:
        """Plan a cycle by how long a local step takes. Return whether it is another plan than before.

        Parameters
        ----------
        step_seconds : array of float, (n,)
            As measured by those who are there.
        there : array of int64, (n,)
            Who is.
        """
        made = make_plan(self.unit * np.asarray(step_seconds, np.float64), rule=self.rule, max_units=self.max_units)
        units = np.ones(len(self.versions), np.int64)
        units[there] = made.units
        before, self.plan = self.plan, HyperperiodPlan(made.hyperperiod, tuple(units.tolist()))
        return self.plan != before

    def select_members(self, there: Ints) -> RingSelection:
        """Predict how far those who are there have trained, and draw who averages."""
        predicted = self.forecast.predict(who=there, planned=self.planned[there])
        rng = generator(self.seed, "hadfl", SHARED, self.cycle)
        drawn, expected = self._draw(predicted, rng)
        ring = there[rng.permutation(drawn)]
        return RingSelection(ring, int(rng.choice(ring)), np.setdiff1d(there, ring), predicted, expected)

    def observe(self, there: Ints) -> None:
        """Note how far those who are there have trained at the end of this cycle, by which later ones are predicted."""
        self.forecast.observe(self.versions[there], there)

    def _draw(self, predicted: Floats, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """Which of the devices there average (N_p,), and how likely each was to be among them (n,)."""
        count = min(len(predicted), self.members or default_members(len(predicted)))
        if self.select == "slowest":
            drawn = np.argsort(predicted, kind="stable")[:count]
            return drawn, np.isin(np.arange(len(predicted)), drawn).astype(np.float64)
        log_p = selection_log_probabilities(predicted)
        return draw_members(log_p, count, rng), inclusion_probabilities(log_p, count)

    def mean_version(self, ring: Ints) -> int:
        """v_bar, at which a device begins anew that receives the ring's mean."""
        return round(float(self.versions[ring].mean()))

    def state_dict(self) -> dict[str, Any]:
        """What changes during a run: plain numbers, exact."""
        return {
            "forecast": self.forecast.state_dict(),
            "versions": self.versions.tolist(),
            "plan": [self.plan.hyperperiod, list(self.plan.units)],
            "cycle": self.cycle,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.forecast.load_state_dict(state["forecast"])
        self.versions = np.array(state["versions"], np.int64)
        hyperperiod, units = state["plan"]
        self.plan = HyperperiodPlan(hyperperiod, tuple(units))
        self.cycle = state["cycle"]
