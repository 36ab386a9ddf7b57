"""What all split strategies of an experiment have in common: where the model is cut, how long and how it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sparsync.spec import Count, config
from sparsync.system import DELAYS
from sparsync.workers import OPTIMIZERS, SCHEDULES


@config
class SplitSettings:
    """How a server and its clients share one model.

    Attributes
    ----------
    cut : str, optional
        Name of the first module that the server holds, such as ``layer2``. Default: clients hold the first layer with
        weights and what follows it up to the next one.
    bottom_norm : {"group"}, optional
        ``group``: GroupNorm instead of BatchNorm in the clients' half. Default: such a model is refused.
    batch_size : int
        Samples of a global batch, over all clients.
    epochs : int
        Passes over all clients' samples, at most.
    optimizer : str
        Spec of the server's optimiser, and of each client's.
    schedule : str
        Spec of the learning rate's factor, by global step.
    eval_every : int
        Epochs between two evaluations.
    delays : str
        Spec of how long clients take to answer, on top of their computation and their links.
    deadline : float, optional
        Seconds after which the server goes on without a client that has been asked for samples. Default: it waits.
    """

    cut: str | None = None
    bottom_norm: Literal["group"] | None = None
    batch_size: Count = 128
    epochs: Count = 10
    optimizer: str = "sgd:lr=0.1"
    schedule: str = "constant"
    eval_every: Count = 1
    delays: str = "none"
    deadline: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _checked(self) -> SplitSettings:
        OPTIMIZERS.resolve(self.optimizer)
        SCHEDULES.resolve(self.schedule)
        DELAYS.resolve(self.delays)
        return self
