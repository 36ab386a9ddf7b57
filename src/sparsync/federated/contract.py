"""The contract of federated strategies: a server and clients, in rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sparsync.federated.server import Server, Upload
from sparsync.federated.settings import Federation
from sparsync.workers import Client


class FederatedState(Protocol):
    """A strategy in a run. What it changes is all in its `state_dict`; it is the same in all processes.

    Attributes
    ----------
    stateful : bool
        Whether clients remember something from round to round (``client.memory``).
    """

    stateful: bool

    def select(self, round_: int, rng: np.random.Generator) -> Sequence[int]:
        """Who takes part in a round, counted from 0. Asked again, with other numbers, if the round failed."""

    def downlink(self, round_: int) -> bytes:
        """The message that each selected client receives."""

    def local_update(self, client: Client, payload: bytes) -> bytes:
        """On the client: load, train, compress."""

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        """On the server: decode, combine, step; uploads come one by one, those of this process only.

        False says that the round is not over: another exchange follows before the next one is counted.

        Raises
        ------
        TooFewUploads
            The global model is then as before the round, which begins again with another cohort.
        """

    def model(self) -> Tensor:
        """Return the global model as it computes, (D,): what is evaluated and kept."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run: tensors, numbers, strings, in nested dicts and lists."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


@runtime_checkable
class Asynchronous(FederatedState, Protocol):
    """A strategy in a run whose server waits for no cohort: it updates the model with what has arrived.

    Clients train at once, each at its own pace, and whenever one is done, another one is sent the model of that moment
    (`select` is never asked). They take the federation's local steps and remember nothing, since they may train again
    before their last upload is accepted. A round is one update of the model: `aggregate` completes it, or raises
    `TooFewUploads`, and further arrivals take the place of those that were refused.

    Attributes
    ----------
    concurrency : int
        Clients that train at once.
    buffer : int
        Uploads per update.
    """

    concurrency: int
    buffer: int


@runtime_checkable
class FederatedStrategy(Protocol):
    """What the user chooses: frozen, and able to serve many runs."""

    def serve(self, server: Server) -> FederatedState:
        """Begin a run."""


@runtime_checkable
class RequiresFederation(Protocol):
    """A strategy that does not go with every federation."""

    def check(self, settings: Federation) -> None:
        """Look at the federation before anything has begun.

        Raises
        ------
        UsageError
            If the strategy makes no sense in it.
        """
