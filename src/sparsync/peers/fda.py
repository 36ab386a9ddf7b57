"""Federated Dynamic Averaging (FDA).

Theologitis, Frangias, Anestis, Samoladas, Deligiannakis: Communication-Efficient Distributed Deep Learning via
Federated Dynamic Averaging, EDBT 2025, arXiv:2405.20988 (algorithm and monitors as in its first version and in
``miketheologitis/FedL-Sync-FDA`` @ b69536f).

Workers train on their own and, after every step, average a few numbers that bound the variance of their models from
above. Only when that bound exceeds a threshold do they average the models. Whatever the monitor lets pass, the
variance stays at most the threshold: the round invariant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sparsync.errors import DivergedError, UsageError
from sparsync.hetero import make_plan
from sparsync.peers.monitors import MONITORS, Monitor, MonitorSpec, distance_to
from sparsync.spec import Count, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import ErrorFeedback, parse_chain
from sparsync.workers import Fleet

_MAX_ROUND = 4  # times the wished cadence: the longest round while the threshold adapts
_MAX_CHANGE = 2.0  # factor by which an adapting threshold may change per round


@STRATEGIES.register("fda")
@config
class FDA:
    """Average the models only when their variance exceeds a threshold (Federated Dynamic Averaging).

    Give exactly one of `threshold`, `per_parameter` and `cadence`.

    Attributes
    ----------
    threshold : float, optional
        Variance left alone: a squared distance, summed over all d parameters. 0: no difference; inf: any.
    per_parameter : float, optional
        The threshold over d. The authors fit 4.91e-5 (federated), 3.89e-5 (balanced), 2.74e-5 (HPC) to four models;
        it does not carry over to fine-tuning.
    cadence : float, optional
        Wished mean local steps per averaging, tau; the threshold is found, and then follows the training. The first
        tau steps end with an average, and the exact variance there becomes the threshold. After every later round of
        t steps that ended at variance V it becomes (tau / t) V, but changes at most by a factor of 2; a round never
        exceeds 4 tau steps. One more float32 per worker and average. Not the invariant of a fixed threshold.
    monitor : {"linear", "sketch", "naive", "exact"}, or another that is registered
        What workers send for the estimate: 2, 1 + depth x width, 1, or 1 + d numbers. Default: linear.
    depth, width : int
        The sketch: rows (odd) and buckets. Default: 5 x 250.
    epsilon : float, optional
        The sketch's safety. Default: 1/sqrt(width).
    layout : {"block", "count"}
        The sketch's hash: by blocks (fast), or per coordinate (as published).
    check_every : int
        Local steps between two checks. Default: 1.
    weights : {"uniform", "samples"}
        Weight of a worker in state and model alike.
    pace : {"equal", "speed"}
        Local steps between two checks: `check_every` of each worker, or of the slowest one while the others take as
        many more as they are faster (our own composition, with HADFL's hyperperiod). Default: equal.
    codec : str, optional
        Codec chain of the model exchange, such as ``q8``: workers send their drift through it and get the mean drift
        back. On a star only. Default: models, as the fleet sends them.
    """

    threshold: float | None = None
    per_parameter: float | None = None
    cadence: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    monitor: MonitorSpec = "linear"
    depth: int = Field(default=5, ge=1, le=99)
    width: int = Field(default=250, ge=2, le=1 << 20)
    epsilon: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    layout: Literal["block", "count"] = "block"
    check_every: Count = 1
    weights: Literal["uniform", "samples"] = "uniform"
    pace: Literal["equal", "speed"] = "equal"
    codec: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> FDA:
        given = [name for name in ("threshold", "per_parameter", "cadence") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"got {' and '.join(given)}" if given else "got none of them"
            raise ValueError(f"give exactly one of threshold, per_parameter and cadence, {said}")
        for name in ("threshold", "per_parameter"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # also refuses NaN
                raise ValueError(
                    f"{name}={value}: a variance is at least 0; give a number >= 0, or inf for no averaging"
                )
        if self.codec is not None:
            chain = parse_chain(self.codec)
            if isinstance(chain, ErrorFeedback) or chain.stochastic:
                raise ValueError(
                    f"codec={self.codec}: workers and server must come to the same bits without a memory; "
                    "leave out ef and stochastic"
                )
        if self.depth % 2 == 0:
            raise ValueError(f"depth={self.depth}: give an odd number, whose median is one of the rows")
        return self

    def start(self, fleet: Fleet) -> FDAState:
        """Begin a run."""
        if self.codec is not None and fleet.topology.name != "star":
            raise UsageError(f"fda: codec={self.codec} needs a server; a ring moves bare numbers, use topology='star'")
        if self.codec is not None and fleet.params.dtype != torch.float32:
            raise UsageError(f"fda: codec={self.codec} carries float32, not {fleet.params.dtype}; use dtype='float32'")
        threshold = self.threshold if self.per_parameter is None else self.per_parameter * fleet.d
        units = None
        if self.pace == "speed":
            fleet.clock.system.need_time("fda: pace=speed")
            units = make_plan(fleet.clock.system.step_seconds).units
        fleet.open_round("model")
        return FDAState(
            self, MONITORS.build(MONITORS.inner(self.monitor), fleet, self), fleet.params[0].clone(), threshold, units
        )


@dataclass
class FDAState:
    """What changes during a run."""

    config: FDA
    monitor: Monitor
    anchor: Tensor  # (d,), w0: the last common model, held by value
    threshold: float | None  # Theta; None while it is still to be measured
    units: tuple[int, ...] | None = None  # (K,): steps of each worker while the slowest takes one; None: all alike
    round_steps: int = 0  # local steps (of the slowest) since the models were last equal
    steps: int = 0  # of which the last exchange has not heard

    def local_steps(self, fleet: Fleet) -> int | list[int]:
        if self.threshold is None and self.config.cadence is not None:
            self.steps = round(self.config.cadence)
        elif self.config.cadence is not None:
            self.steps = min(self.config.check_every, self._longest(self.config.cadence) - self.round_steps)
        else:
            self.steps = self.config.check_every
        return self.steps if self.units is None else [self.steps * unit for unit in self.units]

    @staticmethod
    def _longest(cadence: float) -> int:
        return int(_MAX_ROUND * cadence)

    def exchange(self, fleet: Fleet) -> None:
        """Average the rows of ``fleet.params`` (k, d), in place, once they have drifted too far apart.

        Raises
        ------
        DivergedError
            If the estimate is not finite: NaN > threshold is False, so no averaging would ever follow.
        """
        self.round_steps += self.steps
        if fleet.workers == 1:  # nobody to differ from, though a bound on the variance may say otherwise
            return
        if self.threshold is None:
            self._average(fleet, estimate=None)
            return
        estimate = self.monitor.variance(fleet, self.anchor, weighted=self._weighted)  # H(S)
        if not math.isfinite(estimate):
            raise DivergedError(
                f"FDA: the variance estimate is {estimate}; lower the learning rate or clip the gradients"
            )
        overdue = self.config.cadence is not None and self.round_steps >= self._longest(self.config.cadence)
        if fleet.decide(estimate > self.threshold or overdue):  # strict, as in the paper
            self._average(fleet, estimate)
        else:
            fleet.record(estimate=estimate, threshold=self.threshold, sync=False, variance=None)

    def _average(self, fleet: Fleet, estimate: float | None) -> None:
        mean = self._mean(fleet)  # w_bar, (d,)
        adapts = self.config.cadence is not None
        variance = None
        if adapts or fleet.readouts:
            variance = distance_to(mean, fleet, weighted=self._weighted, book=adapts, paper=4 if adapts else 0)
        fleet.record(estimate=estimate, threshold=self.threshold, sync=True, variance=variance)
        before, self.anchor = self.anchor, fleet.adopt(mean, weighted=self._weighted)
        self.monitor.synced(self.anchor, before)
        if self.config.cadence is not None and variance:  # equal models say nothing about a threshold
            self._adapt(variance, self.config.cadence / self.round_steps)
        self.round_steps = 0

    def _mean(self, fleet: Fleet) -> Tensor:
        if self.config.codec is None:
            return fleet.mean(fleet.params, "model", weighted=self._weighted)
        drift = fleet.params - self.anchor
        return self.anchor + fleet.mean(drift, "model", weighted=self._weighted, chain=parse_chain(self.config.codec))

    def _adapt(self, variance: float, ratio: float) -> None:
        """Theta <- (tau* / tau) V, as FDA-Opt's controller, within a factor of 2 of what it was."""
        if self.threshold is None:
            self.threshold = variance
        else:
            low, high = self.threshold / _MAX_CHANGE, self.threshold * _MAX_CHANGE
            self.threshold = min(max(ratio * variance, low), high)

    @property
    def _weighted(self) -> bool:
        return self.config.weights == "samples"

    def state_dict(self) -> dict[str, Any]:
        return {
            "anchor": self.anchor,
            "threshold": self.threshold,
            "round_steps": self.round_steps,
            "steps": self.steps,
            "monitor": self.monitor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.anchor = state["anchor"].to(self.anchor)
        self.threshold = state["threshold"]
        self.round_steps = state["round_steps"]
        self.steps = state["steps"]
        self.monitor.load_state_dict(state["monitor"])
