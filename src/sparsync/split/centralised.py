"""Centralised training on pooled batches: what split learning is measured against. Nothing is sent."""

from __future__ import annotations

import numpy as np

from sparsync.spec import config
from sparsync.split.crossing import Row
from sparsync.split.schedule import Ints, Schedule, widen
from sparsync.split.site import Site
from sparsync.split.travel import Stateless
from sparsync.split.ugs import ugs
from sparsync.strategies import STRATEGIES


@STRATEGIES.register("centralised")
@config
class Centralised:
    """Train the whole model in one place on uniformly drawn batches: the reference of split learning."""

    def rows(self, clients: int) -> tuple[int, int]:
        """One model."""
        return 1, 1

    def split(self, site: Site) -> CentralisedState:
        """Begin a run."""
        return CentralisedState(site)


class CentralisedState(Stateless):
    """SGD on batches whose samples come from all clients, as if they were in one place."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def schedule(self, left: Ints, rng: np.random.Generator) -> Schedule:
        """Uniform draws without replacement from the pooled samples."""
        active = np.flatnonzero(left)
        drawn = ugs(left[active], min(self.site.settings.batch_size, int(left.sum())), rng)
        return self.site.compose(widen(drawn, active, len(left)))

    def step(self, row: Row) -> float:
        """One step on the batch."""
        return self.site.train(row)
