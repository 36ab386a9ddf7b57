"""The contract of split strategies: who contributes what to a step, and what a step is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sparsync.split.batch import BatchComposition
from sparsync.split.schedule import Ints, Schedule
from sparsync.split.trainer import SplitTrainer


class SplitState(Protocol):
    """A strategy in a run. What it changes is all in its `state_dict`."""

    def schedule(self, left: Ints, rng: np.random.Generator) -> Schedule:
        """Compose the global batches of an epoch, or of what is left of it after a client has been late.

        Parameters
        ----------
        left : array of int64, (K,)
            Samples that each client still has; at least one client has some.
        rng : Generator
            Fresh each time.

        Returns
        -------
        Schedule
            (T, K); column k sums to ``left[k]``.
        """

    def step(self, row: BatchComposition) -> float:
        """Train on one global batch, or on what arrives of it in time, and return its mean loss."""

    def epoch_over(self) -> None:
        """All samples have been used once."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run, beside the trainer's own: tensors, numbers, strings."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


@runtime_checkable
class SplitStrategy(Protocol):
    """What the user chooses: frozen, and able to run many times."""

    def rows(self, clients: int) -> tuple[int, int]:
        """How many different bottoms and tops there are: 1 of what is equal everywhere."""

    def split(self, trainer: SplitTrainer) -> SplitState:
        """Begin a run."""
