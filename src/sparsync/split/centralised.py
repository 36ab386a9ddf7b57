"""Centralised training on pooled batches: what split learning is measured against. Nothing is sent."""

from __future__ import annotations

import numpy as np

from sparsync.spec import config
from sparsync.split.batch import BatchComposition
from sparsync.split.cut_codecs import StatelessStrategy
from sparsync.split.schedule import Ints, Schedule, widen
from sparsync.split.trainer import SplitTrainer
from sparsync.split.ugs import ugs
from sparsync.strategies import STRATEGIES


@STRATEGIES.register("centralised")
@config
class Centralised:
    """Train the whole model in one place on uniformly drawn batches: the reference of split learning."""

    def rows(self, clients: int) -> tuple[int, int]:
        """One model."""
        return 1, 1

    def split(self, trainer: SplitTrainer) -> CentralisedState:
        """Begin a run."""
        return CentralisedState(trainer)


class CentralisedState(StatelessStrategy):
    """SGD on batches whose samples come from all clients, as if they were in one place."""

    def __init__(self, trainer: SplitTrainer) -> None:
        self.trainer = trainer

    def schedule(self, left: Ints, rng: np.random.Generator) -> Schedule:
        """Uniform draws without replacement from the pooled samples."""
        active = np.flatnonzero(left)
        drawn = ugs(left[active], min(self.trainer.settings.batch_size, int(left.sum())), rng)
        return self.trainer.compose(widen(drawn, active, len(left)))

    def step(self, row: BatchComposition) -> float:
        """One step on the batch."""
        return self.trainer.train(row)
