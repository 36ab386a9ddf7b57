"""HADFL: heterogeneity-aware decentralised federated learning.

Cao, Lian, Liu, Zhu, Ji: HADFL: Heterogeneity-aware Decentralized Federated Learning Framework, DAC 2021,
arXiv:2111.08274. No code of the authors is public; of what the paper leaves open (smoothing, spread of the selection,
mixing weight, when a cycle ends) the values here are our choice.

Devices of unequal speed train without pause, each as many steps as it can, up to the end of a cycle. Then a few of
them, drawn with a preference for fairly fresh models, average theirs round a ring; one sends the result to the others,
who blend it in without stopping. A coordinator plans, and carries no models but the first one and backups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sparsync.errors import SparsyncError
from sparsync.hetero import CyclePlanner
from sparsync.spec import Count, Natural, config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Fleet, Model

Ints = npt.NDArray[np.int64]

_REPORT_BYTES = 24  # device, version, time
_PLAN_BYTES = 32  # hyperperiod, units, cycles
_NEXT_BYTES = 8  # cycle
_SYNC_BYTES = 16  # cycle, attempt, broadcaster; and 4 per member of the ring

_PER_DEVICE = ("there", "trained", "merged")


@STRATEGIES.register("hadfl")
@config
class HADFL:
    """Devices train as much as their speed allows; a few of them, drawn anew in every cycle, average round a ring.

    Attributes
    ----------
    members : int, optional
        Devices that average, N_p. Default: half of those there, rounded up, at least 2.
    period : int
        Hyperperiods per cycle, T_sync. A hyperperiod is the time that the slowest device takes for one unit of work.
    unit : int, optional
        Local steps in a unit of work, U. Default: those of one local epoch of the device with fewest samples.
    max_units : int, optional
        Most units of a device per hyperperiod; it then waits for the cycle's end. Default: no cap.
    rule : {"coarse", "fine"}
        How the devices' times are made whole: see `sparsync.hetero.make_plan`.
    warmup : int, optional
        Local steps at first, by which devices measure their speed. Default: one unit. 0: speeds are known.
    warmup_rate : float
        Factor on the learning rate meanwhile.
    smoothing : float
        Weight of the latest version in the forecast of the next.
    mixing : float
        Weight of the ring's mean where it is blended in, lambda.
    select : {"probability", "slowest"}
        Who averages. ``slowest`` is the authors' worst case: always those with the oldest models.
    weights : {"uniform", "samples"}
        Weight of a device in the mean.
    backup_every : int
        Cycles between two backups at the coordinator.
    """

    members: Count | None = None
    period: Count = 1
    unit: Count | None = None
    max_units: Count | None = None
    rule: Literal["coarse", "fine"] = "coarse"
    warmup: Natural | None = None
    warmup_rate: float = Field(default=0.1, ge=0, le=1)
    smoothing: float = Field(default=0.5, gt=0, lt=1)
    mixing: float = Field(default=0.5, ge=0, le=1)
    select: Literal["probability", "slowest"] = "probability"
    weights: Literal["uniform", "samples"] = "uniform"
    backup_every: Count = 10

    def planner(self, devices: int, unit: int, seed: int) -> CyclePlanner:
        """Return who plans for so many devices, with so many local steps in a unit of work."""
        return CyclePlanner(
            devices,
            unit,
            seed=seed,
            members=self.members,
            period=self.period,
            rule=self.rule,
            max_units=self.max_units,
            smoothing=self.smoothing,
            select=self.select,
        )

    def warmup_steps(self, unit: int) -> int:
        """Local steps of warming up, if a unit of work has so many."""
        return unit if self.warmup is None else self.warmup

    def start(self, fleet: Fleet) -> HADFLState:
        """Begin a run.

        Raises
        ------
        UsageError
            If devices are not linked to one another, more are to average than there are, or steps take no time.
        """
        fleet.need_ring("hadfl")
        fleet.clock.system.need_time("hadfl")
        state = HADFLState(self, fleet)
        if not state.warmup:
            state.negotiate(fleet)
        return state


class HADFLState:
    """The devices as they are on the virtual clock, and the means under way: what changes during a run."""

    follows_clock = True

    def __init__(self, config: HADFL, fleet: Fleet) -> None:
        self.config = config
        self.planner = config.planner(fleet.workers, config.unit or fleet.epoch_steps, fleet.seed)
        self.warmup = config.warmup_steps(self.planner.unit)  # that are to come
        self.there = np.ones(fleet.workers, bool)  # (K,), as the next two: the available set
        self.trained = np.zeros(fleet.workers, np.int64)  # local steps in this cycle
        self.merged = np.zeros(fleet.workers, np.int64)  # the cycle of the last mean that each took in
        self.due = 0.0  # t_j: when the current cycle ends
        self.last, self.last_version = 0, 0  # cycle of the last ring (0: none yet), and mean of its versions, v_bar
        self.means: dict[int, Model] = {}  # w_bar by cycle: the last one, and those under way
        self.arrivals: list[tuple[float, int, int]] = []  # when, at whom, of which cycle
        self.merges: list[tuple[int, float]] = []  # who blended a mean in, and when: since the last ring
        # What `local_steps` has said; no longer needed after the exchange that follows.
        self.steps = np.zeros(fleet.workers, np.int64)
        self.merging: list[tuple[float, int, int]] = []

    # What devices do

    def local_steps(self, fleet: Fleet) -> list[int]:
        """Up to what happens next: means that arrive, or the end of the cycle."""
        clock = fleet.clock
        self.merging = self._next_arrivals()
        until = clock.times.copy()
        if self.warmup:
            fleet.rate = self.config.warmup_rate
            until += self.warmup * clock.system.step_seconds
        elif self.merging:
            for when, device, _ in self.merging:
                until[device] = when
        else:
            until[:] = self.due
        self.steps = clock.fit(until)
        if self.config.max_units is not None and not self.warmup:
            self.steps = np.minimum(self.steps, np.maximum(0, self.planner.planned - self.trained))
        return self.steps.tolist()

    def _next_arrivals(self) -> list[tuple[float, int, int]]:
        """The next mean that each device meets before the cycle ends."""
        first: dict[int, tuple[float, int, int]] = {}
        for message in sorted(self.arrivals):
            first.setdefault(message[1], message)
        return [message for message in first.values() if message[0] < self.due]

    # What they say to each other

    def exchange(self, fleet: Fleet) -> None:
        self.planner.versions += self.steps
        self.trained += self.steps
        if self.warmup:
            self.negotiate(fleet)
        elif self.merging:
            self._merge(fleet)
        else:
            self._synchronise(fleet)

    def negotiate(self, fleet: Fleet) -> None:
        """Devices report how long a unit takes them, and learn the plan."""
        self.warmup, fleet.rate = 0, 1.0
        self.due = fleet.clock.now
        self.planner.enter(np.arange(fleet.workers))
        stayed, back = self._roll_call(fleet)
        fleet.clock.wait(self.due, stayed)
        fleet.ledger.book_messages("control", stayed, up=_REPORT_BYTES)
        self._welcome(fleet, back, self.due)
        self._begin_cycle(fleet)

    def _merge(self, fleet: Fleet) -> None:
        """Devices blend in what has arrived, between two of their steps."""
        for when, device, cycle in self.merging:
            self.arrivals.remove((when, device, cycle))
            if cycle > self.merged[device]:  # an older mean than the last one is dropped
                fleet.blend(device, self.means[cycle], self.config.mixing)
                self.merged[device] = cycle
                self.merges.append((device, float(fleet.clock.times[device])))

    def _synchronise(self, fleet: Fleet) -> None:
        """The cycle ends: some devices average, one of them tells the others, and all go on."""
        self.planner.cycle += 1
        stayed, back = self._roll_call(fleet)
        at_cap = stayed[fleet.clock.fit(self.due)[stayed] > 0]
        fleet.clock.wait(self.due, at_cap)
        averaged = self._average(fleet, stayed) if len(stayed) else self.due
        self._welcome(fleet, back, averaged)
        needed = {self.last, *(cycle for _, _, cycle in self.arrivals)}
        self.means = {cycle: mean for cycle, mean in self.means.items() if cycle in needed}
        self._begin_cycle(fleet)

    def _average(self, fleet: Fleet, there: Ints) -> float:
        """Some devices average, and one of them sends the others the mean. Return when it is known."""
        planner, ledger = self.planner, fleet.ledger
        cycle, chosen = planner.cycle, planner.select_members(there)
        planner.observe(there)
        ring, others = chosen.ring, chosen.others
        ledger.book_messages("control", there, up=_REPORT_BYTES)
        ledger.book_messages("control", ring, down=_SYNC_BYTES + 4 * len(ring))
        ledger.book_messages("control", others, down=_NEXT_BYTES)

        met = float(fleet.clock.times[ring].max())
        self.means[cycle] = fleet.ring(ring.tolist(), weighted=self.config.weights == "samples")  # w_bar
        self.merged[ring] = self.last = cycle
        self.last_version = planner.mean_version(ring)
        averaged = float(fleet.clock.times[chosen.broadcaster])
        for device in others.tolist():
            self.arrivals.append((fleet.send(chosen.broadcaster, device), device, cycle))
        if cycle % self.config.backup_every == 0:
            ledger.book_messages("model", ring[:1], up=fleet.model_bytes)
        fleet.record(
            kind="cycle",
            cycle=cycle,
            hyperperiod=planner.plan.hyperperiod,
            units=list(planner.plan.units),
            available=there.tolist(),
            ring=ring.tolist(),
            broadcaster=chosen.broadcaster,
            versions=planner.versions[there].tolist(),
            predicted=chosen.predicted.tolist(),
            expected=chosen.expected.tolist(),
            met=met,
            averaged=averaged,
            merges=[list(merge) for merge in self.merges],
        )
        self.merges = []
        return averaged

    def _begin_cycle(self, fleet: Fleet) -> None:
        planner, there = self.planner, np.flatnonzero(self.there)
        if planner.negotiate(fleet.clock.system.step_seconds[there], there):
            fleet.ledger.book_messages("control", there, down=_PLAN_BYTES)
        lasts, passed = planner.cycle_seconds, float(fleet.clock.times[there].min())
        self.due += lasts
        if self.due <= passed:  # all were in a ring that took longer
            self.due = passed + lasts
        self.trained[:] = 0

    # Who is there

    def _roll_call(self, fleet: Fleet) -> tuple[Ints, Ints]:
        """Who has been there up to the cycle's end, and who is back by then. It ends later if nobody is there."""
        system, times = fleet.clock.system, fleet.clock.times.tolist()
        if system.outages is None:
            return np.arange(fleet.workers), np.arange(0)
        while (away := system.away(self.due)).all():
            since, self.due = self.due, min(own.at(self.due) or self.due for own in system.outages)
            if math.isinf(self.due):
                raise SparsyncError(f"hadfl: all devices are away for good after {since:g} virtual seconds")
        leaves = [t if own.at(t) is not None else own.next(t) for own, t in zip(system.outages, times, strict=True)]
        stayed = self.there & ~away & (np.array(leaves) > self.due)
        self.there = ~away
        return np.flatnonzero(stayed), np.flatnonzero(self.there & ~stayed)

    def _welcome(self, fleet: Fleet, back: Ints, averaged: float) -> None:
        """Devices register again: they receive the last mean as soon as there is one, and its version."""
        if not len(back):
            return
        clock, ledger = fleet.clock, fleet.ledger
        clock.spend("away", np.maximum(0.0, self.due - clock.times[back]), back)
        ledger.book_messages("control", back, up=_REPORT_BYTES)
        if self.last:
            clock.wait(averaged, back)
            ledger.book_messages("model", back, down=fleet.model_bytes)
            clock.scatter(fleet.model_bytes, back)
            for device in back.tolist():
                fleet.blend(device, self.means[self.last], 1.0)
            self.merged[back] = self.last
        self.planner.enter(back, self.last_version if self.last else None)

    # What counts

    def model(self, fleet: Fleet) -> Model | None:
        """Return the last ring's mean, which is the model that is evaluated."""
        return self.means.get(self.last)

    def state_dict(self) -> dict[str, Any]:
        return {
            "warmup": self.warmup,
            "coordinator": self.planner.state_dict(),
            **{name: getattr(self, name).tolist() for name in _PER_DEVICE},
            "due": self.due,
            "last": [self.last, self.last_version],
            "means": [[cycle, mean.params, mean.buffers] for cycle, mean in self.means.items()],
            "arrivals": [list(message) for message in self.arrivals],
            "merges": [list(merge) for merge in self.merges],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.warmup = state["warmup"]
        self.planner.load_state_dict(state["coordinator"])
        for name in _PER_DEVICE:
            setattr(self, name, np.array(state[name]))
        self.due = state["due"]
        self.last, self.last_version = state["last"]
        self.means = {cycle: Model(params, buffers) for cycle, params, buffers in state["means"]}
        self.arrivals = [(when, device, cycle) for when, device, cycle in state["arrivals"]]
        self.merges = [(device, when) for device, when in state["merges"]]
