"""What all federated strategies of an experiment have in common: rounds, cohorts and the clients' local work."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from sparsync.errors import UsageError
from sparsync.shares import exact
from sparsync.spec import Count, config
from sparsync.workers import OPTIMIZERS, SCHEDULES, LocalWork


@config
class Federation:
    """How a server and its clients work together.

    Attributes
    ----------
    rounds : int
        Rounds, at most.
    cohort : int, optional
        Clients selected per round.
    participation : float, optional
        Instead of `cohort`: the fraction of all clients that is selected, rounded, at least one. Default: 1.
    minimum : int
        Valid uploads that a round needs; with fewer it is tried with another cohort, three times.
    sampling : {"uniform", "weighted"}
        How clients are selected, without replacement: ``uniform``, or ``weighted`` by their samples.
    epochs : int, optional
        Local work of a round: passes over the client's samples. Default: 1.
    steps : int, optional
        Instead of `epochs`: batches.
    drop_last : bool
        Leave out the smaller last batch of a pass.
    weights : {"samples", "uniform"}
        What the server's mean weights clients by: ``samples`` or ``uniform``.
    optimizer : str
        Spec of the clients' optimiser, which starts afresh in every round.
    schedule : str
        Spec of the learning rate's factor, by round.
    eval_every : int
        Rounds between two evaluations of the global model on the test set.
    client_accuracy : bool
        Evaluate it for the clients too: mean and worst decile over all of them, each on the test set reweighted to
        its own classes.
    """

    rounds: Count = 100
    cohort: Count | None = None
    participation: float | None = Field(default=None, gt=0, le=1)
    minimum: Count = 1
    sampling: Literal["uniform", "weighted"] = "uniform"
    epochs: Count | None = None
    steps: Count | None = None
    drop_last: bool = False
    weights: Literal["samples", "uniform"] = "samples"
    optimizer: str = "sgd:lr=0.1"
    schedule: str = "constant"
    eval_every: Count = 1
    client_accuracy: bool = False

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, given: Any) -> Any:
        """Let everyone take part, and make one pass, unless something else is said."""
        keys = (given.kwargs or {}) if isinstance(given, ArgsKwargs) else given
        if not isinstance(keys, dict):
            return given
        made = dict(keys)
        for either, other, default in (("participation", "cohort", 1.0), ("epochs", "steps", 1)):
            if made.get(either) is None and made.get(other) is None:
                made[either] = default
        return made

    @model_validator(mode="after")
    def _checked(self) -> Federation:
        if self.cohort is not None and self.participation is not None:
            raise ValueError("give either cohort (clients per round) or participation (their fraction), not both")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give either epochs or steps of local work, not both")
        OPTIMIZERS.resolve(self.optimizer)
        SCHEDULES.resolve(self.schedule)
        return self

    def cohort_of(self, clients: int) -> int:
        """How many of `clients` are selected per round.

        Raises
        ------
        UsageError
            If there are fewer clients, or the cohort is smaller than the valid uploads that a round needs.
        """
        cohort = self.cohort or max(1, round(exact(self.participation or 0) * clients))
        if cohort > clients:
            raise UsageError(f"federation: a cohort of {cohort} out of {clients} clients; select at most all of them")
        if self.minimum > cohort:
            raise UsageError(f"federation: minimum={self.minimum} valid uploads of a cohort of {cohort}; ask for fewer")
        return cohort

    def local_work(self, batch_size: int) -> LocalWork:
        """Return what a selected client does."""
        return LocalWork(batch_size, self.epochs, self.steps, self.drop_last, self.optimizer)
