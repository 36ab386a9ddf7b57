"""SplitFed: split learning in parallel, with averaged halves (Thapa et al., arXiv:2004.12088, versions 1 and 2).

Every client trains its own bottom on local batches, against a top of its own on the server (version 1) or one top that
serves the clients of a step in random order (version 2). After every epoch the bottoms are averaged, and in version 1
the tops as well.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sparsync.randomness import SHARED, generator
from sparsync.spec import config
from sparsync.split.batch import BatchComposition, NoClientAnswered
from sparsync.split.cut_codecs import CutCodecs, StatelessStrategy
from sparsync.split.fixed import fls
from sparsync.split.schedule import Ints, Schedule, widen
from sparsync.split.trainer import SplitTrainer
from sparsync.strategies import STRATEGIES


@STRATEGIES.register("splitfed")
@config
class SplitFed(CutCodecs):
    """Every client trains a bottom of its own; halves are averaged after each epoch (Thapa et al.).

    Attributes
    ----------
    version : {1, 2}
        1: the server holds a top for every client, and averages them too. 2: one top, which takes the clients of a step
        one after another, in random order. Default: 1.
    uplink, downlink, labels
        As in `CutCodecs`: how what crosses the cut travels.
    """

    version: int = Field(default=1, ge=1, le=2)

    def rows(self, clients: int) -> tuple[int, int]:
        """A bottom per client, and in version 1 a top."""
        return clients, clients if self.version == 1 else 1

    def split(self, trainer: SplitTrainer) -> SplitFedState:
        """Begin a run."""
        self.set_up(trainer, apart=True)
        return SplitFedState(self, trainer)


class SplitFedState(StatelessStrategy):
    """SplitFed in a run: all that changes is the trainer's."""

    def __init__(self, config: SplitFed, trainer: SplitTrainer) -> None:
        self.config = config
        self.trainer = trainer
        local = fls(trainer.samples, trainer.settings.batch_size, np.random.default_rng(0))  # nothing is drawn
        trainer.behaviour.check_batches("client", trainer.samples.tolist(), int(local.max()))

    def schedule(self, left: Ints, rng: np.random.Generator) -> Schedule:
        """Local batches of one size, until each client runs dry."""
        active = np.flatnonzero(left)
        batch_size = min(self.trainer.settings.batch_size, int(left.sum()))
        drawn = widen(fls(left[active], batch_size, rng), active, len(left))
        return self.trainer.announce(self.trainer.compose(drawn))

    def step(self, row: BatchComposition) -> float:
        """Every client of the row takes a step on its own batch; return the mean loss of the samples."""
        trainer, loss = self.trainer, 0.0
        row = trainer.ask(row)
        cut_tensors = trainer.forward(row)  # activations and labels up
        order = np.arange(len(row.clients))
        if self.config.version == 2:
            order = generator(trainer.seed, "splitfed", SHARED, trainer.step).permutation(order)
        there = 0
        for i in order.tolist():
            own = cut_tensors.of(i)
            try:
                loss += trainer.top(own, int(row.clients[i])) * own.row.total / row.total
            except NoClientAnswered:  # its labels are its own, and it has gone
                continue
            there += own.row.total
            if self.config.version == 2:
                trainer.update(bottoms=[])  # the one top learns from each client before it meets the next
        if not there:
            raise NoClientAnswered("none of the clients has answered")
        trainer.backward(cut_tensors)  # the activations' gradients down
        trainer.update(bottoms=row.clients, tops=row.clients if self.config.version == 1 else [])
        return loss * (row.total / there)

    def epoch_over(self) -> None:
        """Average the bottoms; the tops too, where every client has one."""
        self.trainer.average_bottoms()
        if self.config.version == 1:
            self.trainer.average_tops()
