"""Local SGD: average the models on a schedule fixed beforehand (Stich, arXiv:1805.09767).

Here with any local optimiser, a warm-up of every-step averaging ("post-local SGD", Lin et al., arXiv:1808.07217) and a
period that may grow. With ``match`` it is FDA's fixed-period control: the period that an FDA run realised, so that the
difference between both shows what *adaptive* timing is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from sparsync.errors import UsageError
from sparsync.peers.contract import Cadence
from sparsync.spec import Count, Natural, config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Fleet


@STRATEGIES.register("local-sgd")
@config
class LocalSGD:
    """Average the models after a fixed number of local steps.

    Attributes
    ----------
    period : int, optional
        Local steps between two averagings. 1: Synchronous.
    match : str, optional
        Instead of a period: the label (or strategy name, if only one has it) of an earlier run of the same comparison
        whose mean steps per averaging, rounded, become the period.
    warmup : int
        First steps, during which the models are averaged after each. Default: 0.
    growth : float
        Factor on the period after every averaging that ends one. Default: 1, a constant period.
    max_period : int, optional
        Where growth ends. Default: nowhere.
    """

    period: Count | None = None
    match: str | None = None
    warmup: Natural = 0
    growth: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    max_period: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> LocalSGD:
        if (self.period is None) == (self.match is None):
            raise ValueError("give either period (local steps between two averagings) or match (an earlier strategy)")
        if self.max_period is not None and self.period is not None and self.max_period < self.period:
            raise ValueError(f"max_period={self.max_period} is below period={self.period}; give at least that")
        return self

    def matched(self, earlier: Cadence) -> LocalSGD:
        """Return the same strategy at the period that an earlier run realised."""
        period = min(earlier.period, self.max_period or earlier.period)
        return LocalSGD(period=period, warmup=self.warmup, growth=self.growth, max_period=self.max_period)

    def start(self, fleet: Fleet) -> LocalSGDState:
        """Begin a run."""
        if self.period is None:
            raise UsageError(f"local-sgd: match={self.match} has no earlier run to follow here; give a period")
        fleet.open_round("model")
        return LocalSGDState(self, float(self.period), self.warmup)


@dataclass
class LocalSGDState:
    """What changes during a run."""

    config: LocalSGD
    period: float  # not rounded, so that slow growth adds up
    warmup_left: int  # steps

    def local_steps(self, fleet: Fleet) -> int:
        return 1 if self.warmup_left else int(self.period)

    def exchange(self, fleet: Fleet) -> None:
        fleet.average_models()
        if self.warmup_left:
            self.warmup_left -= 1
        else:
            self.period = min(self.period * self.config.growth, self.config.max_period or float("inf"), 2.0**53)

    def state_dict(self) -> dict[str, Any]:
        return {"period": self.period, "warmup_left": self.warmup_left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.period = state["period"]
        self.warmup_left = state["warmup_left"]
