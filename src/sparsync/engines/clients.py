"""The clients of one process: what `RoundLoop` asks of them, and those that train in it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sparsync.errors import PayloadError
from sparsync.federated import FederatedClient, FederationContext
from sparsync.wire import Kind, kinds_of, values_of
from sparsync.workers import Client, ClientRuntime


@dataclass(frozen=True)
class Envelope:
    """What comes with every message to a client.

    Attributes
    ----------
    client : int
        Whom it is for.
    round, exchange : int
        Which round, and which exchange of it, counted from 0.
    rate : float
        Factor of the round on the optimiser's learning rate.
    """

    client: int
    round: int
    rate: float
    exchange: int = 0


class FederatedClients(Protocol):
    """Clients that a loop can reach.

    Attributes
    ----------
    stateful : bool
        Whether clients remember something from round to round.
    """

    @property
    def stateful(self) -> bool:
        """Whether clients remember something from round to round."""

    def update(self, envelope: Envelope, message: bytes) -> tuple[bytes, dict[str, Any]]:
        """Let a client work; return its upload, and what the history and the ledger need of its round.

        The latter is plain: local `steps`, the sum of their `loss`, `bytes` and `values` of the upload by kind, and
        `notes`.
        """

    def settle(self, accepted: Collection[int]) -> None:
        """End an exchange: what clients remember of it lasts if their upload was accepted."""

    def state_dict(self) -> dict[str, Any]:
        """Return what clients remember, by number."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""


class LocalFederatedClients:
    """Clients that train in this process, one after the other.

    Parameters
    ----------
    half : FederatedClient
        Their half of the strategy.
    context : FederationContext
        What they know of the federation.
    runtime : ClientRuntime
        Where they train.
    """

    def __init__(self, half: FederatedClient, context: FederationContext, runtime: ClientRuntime) -> None:
        self.half, self.context, self.runtime = half, context, runtime
        self.pending: dict[int, dict[str, Any]] = {}  # memories of the current exchange
        self.respond = half.respond

    @property
    def stateful(self) -> bool:
        return self.half.stateful

    def update(self, envelope: Envelope, message: bytes) -> tuple[bytes, dict[str, Any]]:
        client = Client(envelope.client, envelope.round, envelope.rate, self.runtime, envelope.exchange)
        exact = self.context.exact
        message, received = exact.split(message)
        exact.write(received)
        reply = self.respond(client, message)
        upload = reply.payload
        with suppress(PayloadError):  # one that is malformed is the server's to refuse
            upload = exact.join(upload, exact.read())
        if self.stateful:
            self.pending[client.number] = client.memory
        nbytes, values = _measured(upload)
        return upload, {
            "steps": client.steps,
            "loss": client.loss_sum,
            "bytes": nbytes,
            "values": values,
            "notes": dict(reply.notes),
        }

    def settle(self, accepted: Collection[int]) -> None:
        for number, memory in self.pending.items():
            if number in accepted:
                self.runtime.remember(number, memory)
        self.pending.clear()

    def state_dict(self) -> dict[str, Any]:
        return {str(number): memory for number, memory in self.runtime.memories.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.runtime.memories = {int(number): memory for number, memory in state.items()}


def _measured(upload: bytes) -> tuple[dict[Kind, int], dict[Kind, int]]:
    """Bytes of an upload by kind, all of them and of values; of one that is malformed, its length."""
    try:
        return kinds_of(upload), values_of(upload)
    except PayloadError:
        return {"model": len(upload)}, {}
