"""What all federated strategies of an experiment have in common: rounds, cohorts and the clients' local work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sparsync.errors import UsageError
from sparsync.spec import config
from sparsync.workers import SCHEDULES, LocalWork, check_optimizer


@config
class Federation:
    """How a server and its clients work together.

    Attributes
    ----------
    rounds : int
        Rounds, at most. Default: 100.
    cohort : int, optional
        Clients selected per round.
    participation : float, optional
        Instead of `cohort`: the fraction of all clients, rounded, at least one. Default: 1 if neither is given.
    minimum : int
        Valid uploads that a round needs; with fewer it is repeated with another cohort. Default: 1.
    sampling : {"uniform", "weighted"}
        How clients are selected, without replacement: equally, or in proportion to their samples.
    epochs, steps : int, optional
        Local work of a round: passes over the client's samples (default: 1), or batches.
    drop_last : bool
        Leave out the smaller last batch of a pass. Default: keep it.
    weights : {"samples", "uniform"}
        What the server's mean weights clients by.
    optimizer : str
        Spec of the clients' optimiser; it starts afresh in every round. Default: ``sgd:lr=0.1``.
    schedule : str
        Spec of the learning rate's factor, by round.
    eval_every : int
        Rounds between two evaluations of the global model.
    client_accuracy : bool
        Evaluate it for the clients too: mean and worst decile over all of them, each on the test set reweighted to
        its own classes.
    """

    rounds: int = Field(default=100, ge=1)
    cohort: int | None = Field(default=None, ge=1)
    participation: float | None = Field(default=None, gt=0, le=1)
    minimum: int = Field(default=1, ge=1)
    sampling: Literal["uniform", "weighted"] = "uniform"
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    drop_last: bool = False
    weights: Literal["samples", "uniform"] = "samples"
    optimizer: str = "sgd:lr=0.1"
    schedule: str = "constant"
    eval_every: int = Field(default=1, ge=1)
    client_accuracy: bool = False

    @model_validator(mode="after")
    def _checked(self) -> Federation:
        if self.cohort is not None and self.participation is not None:
            raise ValueError("give either cohort (clients per round) or participation (their fraction), not both")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give either epochs or steps of local work, not both")
        check_optimizer(self.optimizer)
        SCHEDULES.build(self.schedule)
        return self

    def cohort_of(self, clients: int) -> int:
        """How many of `clients` are selected per round.

        Raises
        ------
        UsageError
            If there are fewer clients, or the cohort is smaller than the valid uploads that a round needs.
        """
        cohort = self.cohort or max(1, round((self.participation or 1.0) * clients))
        if cohort > clients:
            raise UsageError(f"federation: a cohort of {cohort} out of {clients} clients; select at most all of them")
        if self.minimum > cohort:
            raise UsageError(f"federation: minimum={self.minimum} valid uploads of a cohort of {cohort}; ask for fewer")
        return cohort

    def local_work(self, batch_size: int) -> LocalWork:
        """Return what a selected client does."""
        epochs = self.epochs if self.steps is not None or self.epochs is not None else 1
        return LocalWork(batch_size, epochs, self.steps, self.drop_last, self.optimizer)
