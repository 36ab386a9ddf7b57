"""Synchronous training: workers agree after every local step.

Averaging parameters is what FDA's authors call Synchronous (arXiv:2405.20988): local optimiser step, then the mean of
the models, optimiser state left local. Averaging gradients is what data-parallel training (DDP) does. The two are the
same for stateless SGD and for momentum from equal states, and differ for Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Fleet


@STRATEGIES.register("synchronous")
@config
class Synchronous:
    """Average after every step: the models, or the gradients before it (as DDP does).

    Attributes
    ----------
    average : {"parameters", "gradients"}
        What is averaged. Default: parameters.
    """

    average: Literal["parameters", "gradients"] = "parameters"

    def start(self, fleet: Fleet) -> SynchronousState | DataParallelState:
        """Begin a run."""
        if self.average == "gradients":
            return DataParallelState()
        fleet.open_round("model")
        return SynchronousState()


class SynchronousState:
    """Parameter averaging: nothing changes but the models."""

    def local_steps(self, fleet: Fleet) -> int:
        return 1

    def exchange(self, fleet: Fleet) -> None:
        fleet.average_models()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class DataParallelState(SynchronousState):
    """Gradient averaging: equal models stay equal, since all take the same step."""

    def gradients(self, fleet: Fleet) -> None:
        fleet.grads.copy_(fleet.mean(fleet.grads, "gradient", paper=2 * 4 * fleet.d))
        fleet.syncs += 1

    def exchange(self, fleet: Fleet) -> None:
        fleet.average_buffers()
