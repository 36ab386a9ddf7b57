"""Federated averaging (FedAvg): McMahan et al., arXiv:1602.05629, Algorithm 1.

Clients of a cohort train the global model on their own samples; the server takes the weighted mean of what they send.
The other strategies of this room say only where they differ from this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor

from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import FederatedClient, FederatedServer, FederatedStrategy, Reply, Work
from sparsync.federated.messages import any_chain, packings
from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.wire import ErrorFeedback
from sparsync.workers import Client


@STRATEGIES.register("fedavg")
@config
class FedAvg(FederatedStrategy):
    """Average the models that the clients of a round have trained (McMahan et al.).

    Attributes
    ----------
    uplink : str, optional
        Codec chain of what clients send, such as ``topk(0.05)+q8``. A lossy one encodes the change of the parameters
        since the download; ``ef(...)`` lets each client remember what was lost. Default: the model, in float32.
    downlink : str, optional
        Codec chain of what they receive, such as ``bf16``; nothing may be left out. Default: float32.
    """

    uplink: str | None = None
    downlink: str | None = None

    @model_validator(mode="after")
    def _codecs(self) -> FedAvg:
        self.check_codecs()
        return self

    def check_codecs(self) -> None:
        """Refuse codecs that make no sense for this strategy.

        Raises
        ------
        ValueError
            If so, one line that says what does.
        """
        any_chain(self.uplink, self.downlink)

    def make_server(self, context: ServerContext) -> FedAvgServer:
        return FedAvgServer(self, context)

    def make_client(self, context: FederationContext) -> FedAvgClient:
        return FedAvgClient(self, context)


class FedAvgServer(FederatedServer):
    """The server's half. What changes during a run: the global model, (D,)."""

    def __init__(self, config: FedAvg, context: ServerContext) -> None:
        self.context = context
        self.weights = context.initial.clone()
        self.sent = self.weights  # what clients hold after the download
        self.up, self.down = packings(context.vector, config)
        self.changes = not self.up.lossless  # whether clients send what has changed, not what it has become

    def downlink(self, round_: int) -> bytes:
        """Return the message of the global model."""
        payload = self.down.encode(self.weights, self.context.generator("downlink", round_))
        self.sent = self.down.decode(payload)
        return payload

    def decode(self, payload: bytes) -> Tensor:
        """Return the client's model, (D,)."""
        model, d = self.up.decode(payload), self.context.vector.d
        if self.changes:
            model[:d] += self.sent[:d]
        return model

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        """Take the mean of the uploads, and a step towards it."""
        mean = self.context.average(uploads, self.decode, len(self.weights))
        self.weights = self.step(mean.float())
        return None

    def step(self, mean: Tensor) -> Tensor:
        """Return the next global model, given the clients' mean, both (D,)."""
        return mean

    def model(self) -> Tensor:
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = self.sent = torch.as_tensor(state["weights"])


class FedAvgClient(FederatedClient):
    """The client's half: load, train, send."""

    def __init__(self, config: FedAvg, context: FederationContext) -> None:
        self.context = context
        self.up, self.down = packings(context.vector, config)
        self.changes = not self.up.lossless
        self.stateful = isinstance(self.up.chain, ErrorFeedback)

    def receive(self, client: Client, message: bytes) -> Work | Reply:
        return self.work(client, self.down.decode(message))

    def work(self, client: Client, received: Tensor) -> Work:
        """Return what is trained of a model (D,) that was received."""
        return Work(received, received)

    def reply(self, client: Client, work: Work) -> Work | Reply:
        """Encode the model that was trained, or, through a lossy chain, what has changed of its parameters."""
        model, d = client.model(), self.context.vector.d
        if not self.changes:
            return Reply(self.up.encode(model))
        assert work.received is not None
        model[:d] -= work.received[:d]
        memory = client.memory if self.stateful else None
        return Reply(self.up.encode(model, client.generator("codec"), memory=memory))
