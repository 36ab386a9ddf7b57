"""A strategy of the user's own, in a module that --import names: average at every prime step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsync import STRATEGIES
from sparsync.spec import config
from sparsync.workers import Fleet


@STRATEGIES.register("primes")
@config
class Primes:
    """Average the models at every prime step."""

    def start(self, fleet: Fleet) -> PrimesState:
        fleet.open_round("model")
        return PrimesState()


class PrimesState:
    def __init__(self) -> None:
        self.step = 0

    def local_steps(self, fleet: Fleet) -> int:
        return 1

    def exchange(self, fleet: Fleet) -> None:
        self.step += 1
        if self.step > 1 and all(self.step % n for n in range(2, self.step)):
            fleet.average_models()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
