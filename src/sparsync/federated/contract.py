"""The contract of federated strategies: a server's half and a client's, which share nothing but messages.

A half is built from what its side knows: the server's from a `ServerContext`, the client's from a `FederationContext`.
Between `FederatedClient.receive` and `FederatedClient.reply` the engine trains, wherever the client is.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from torch import Tensor

from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.settings import Federation
from sparsync.workers import Client, StepHook, Transform


@dataclass
class Work:
    """What the engine trains before a client replies.

    Attributes
    ----------
    start : Tensor, (D,), optional
        Model to begin with. Default: the one that the client holds.
    received : Tensor, (D,), optional
        Model of the message, for the reply.
    steps : range, optional
        Which of the round's local steps. Default: all of them.
    transform : Transform, optional
        Effective weights that the model computes with.
    before_step : StepHook, optional
        Changes the gradient of every step.
    """

    start: Tensor | None = None
    received: Tensor | None = None
    steps: range | None = None
    transform: Transform | None = None
    before_step: StepHook | None = None


@dataclass(frozen=True)
class Reply:
    """What a client answers.

    Attributes
    ----------
    payload : bytes
        Message to the server.
    notes : mapping of str to float
        Numbers of the client's round, for the history.
    """

    payload: bytes
    notes: Mapping[str, float] = field(default_factory=dict)


class Contract:
    """A base class whose subclasses may not misspell what they override."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        bases = [base for base in cls.__mro__ if Contract in base.__bases__]
        hooks = {name for base in bases for name in vars(base) if not name.startswith("_")}
        for name, value in vars(cls).items():
            if cls in bases or name in hooks or name.startswith("_") or not inspect.isfunction(value):
                continue
            for hook in get_close_matches(name, hooks, 1, 0.85):
                raise TypeError(f"{cls.__name__}.{name}: is {hook} meant? rename it; the contract has no {name}")


class FederatedServer(Contract, ABC):
    """The server's half of a strategy in a run: the same in all processes.

    What it changes is all in its `state_dict`.
    """

    context: ServerContext

    def select(self, round_: int, rng: np.random.Generator) -> Sequence[int]:
        """Select the clients of a round, counted from 0; of a repeated one, by other numbers.

        Default: a sample by the federation's settings.
        """
        return self.context.sample(rng)

    @abstractmethod
    def downlink(self, round_: int) -> bytes:
        """Return the message that each selected client receives."""

    @abstractmethod
    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        """Decode, combine, step; uploads come one by one, those of this process only.

        False says that the round is not over: another exchange follows before the next one is counted.

        Raises
        ------
        TooFewUploads
            The global model is then as before the round, which begins again with another cohort.
        """

    @abstractmethod
    def model(self) -> Tensor:
        """Return the global model as it computes, (D,): what is evaluated and kept."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes during a run: tensors, numbers, strings, in nested dicts and lists."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


class AsynchronousServer(FederatedServer):
    """A server's half that waits for no cohort: it updates the model with what has arrived.

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
    buffer: int = 1


class FederatedClient(Contract, ABC):
    """The client's half of a strategy in a run: it serves many clients and holds nothing of a single one.

    Attributes
    ----------
    stateful : bool
        Whether clients remember something from round to round, in ``client.memory``. Default: no.
    """

    stateful = False

    @abstractmethod
    def receive(self, client: Client, message: bytes) -> Work | Reply:
        """Decode the server's message; return what to train, or the reply where nothing is trained.

        Raises
        ------
        PayloadError
            If the message is not what this strategy's server sends.
        """

    @abstractmethod
    def reply(self, client: Client, work: Work) -> Work | Reply:
        """Encode what the client has trained; or return what else to train, beginning with what it holds."""

    def respond(self, client: Client, message: bytes) -> Reply:
        """Go from a message to its reply, and let the client train in between."""
        answer = self.receive(client, message)
        while isinstance(answer, Work):
            if answer.start is not None:
                client.load(answer.start)
            client.train(answer.steps, transform=answer.transform, before_step=answer.before_step)
            answer = self.reply(client, answer)
        return answer


class FederatedStrategy(Contract, ABC):
    """What the user chooses: frozen, and able to serve many runs."""

    def check(self, settings: Federation) -> None:
        """Look at the federation before anything has begun. Default: accept any.

        Raises
        ------
        UsageError
            If the strategy makes no sense in it.
        """

    @abstractmethod
    def make_server(self, context: ServerContext) -> FederatedServer:
        """Begin a run on the server."""

    @abstractmethod
    def make_client(self, context: FederationContext) -> FederatedClient:
        """Begin a run where clients are."""
