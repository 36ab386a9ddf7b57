"""Federated averaging (FedAvg): McMahan et al., arXiv:1602.05629, Algorithm 1.

Clients of a cohort train the global model on their own samples; the server takes the weighted mean of what they send.
The other strategies of this room say only where they differ from this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from sparsync.federated.messages import ModelPacking, any_chain, chain_of
from sparsync.federated.server import Server, Upload
from sparsync.federated.settings import Federation
from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.wire import ErrorFeedback
from sparsync.workers import Client


@STRATEGIES.register("fedavg")
@config
class FedAvg:
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

    def check(self, settings: Federation) -> None:
        """Accept any federation; a subclass may be more particular."""

    def serve(self, server: Server) -> FedAvgState:
        """Begin a run."""
        return FedAvgState(self, server)


class FedAvgState:
    """What changes during a run: the global model, (D,)."""

    def __init__(self, config: FedAvg, server: Server) -> None:
        self.server = server
        self.weights = server.initial.clone()
        self.sent = self.weights  # what clients hold after the download
        self.up = ModelPacking(server.vector, chain_of(config.uplink))
        self.down = ModelPacking(server.vector, chain_of(config.downlink))
        self.changes = not self.up.lossless  # whether clients send what has changed, not what it has become
        self.stateful = isinstance(self.up.chain, ErrorFeedback)

    def select(self, round_: int, rng: np.random.Generator) -> Sequence[int]:
        """Sample a cohort by the federation's settings."""
        return self.server.sample(rng)

    def downlink(self, round_: int) -> bytes:
        """The global model."""
        payload = self.down.encode(self.weights, self.server.generator("downlink", round_))
        self.sent = self.down.decode(payload)
        return payload

    def local_update(self, client: Client, payload: bytes) -> bytes:
        """Load, train, send."""
        received = self.down.decode(payload)
        client.load(received)
        self.train(client, received)
        return self.upload(client, received)

    def train(self, client: Client, received: Tensor) -> None:
        """Take the local steps of the round."""
        client.train()

    def upload(self, client: Client, received: Tensor) -> bytes:
        """Encode the model that was trained, or, through a lossy chain, what has changed of its parameters."""
        model, d = client.model(), self.server.vector.d
        if not self.changes:
            return self.up.encode(model)
        model[:d] -= received[:d]
        return self.up.encode(model, client.generator("codec"), memory=client.memory if self.stateful else None)

    def decode(self, payload: bytes) -> Tensor:
        """Return the client's model, (D,)."""
        model, d = self.up.decode(payload), self.server.vector.d
        if self.changes:
            model[:d] += self.sent[:d]
        return model

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        """Take the mean of the uploads, and a step towards it."""
        mean = self.server.average(uploads, self.decode, len(self.weights))
        self.weights = self.step(mean.float())
        return None

    def step(self, mean: Tensor) -> Tensor:
        """Return the next global model, given the clients' mean, both (D,)."""
        return mean

    def model(self) -> Tensor:
        """Return the global model, (D,)."""
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = self.sent = torch.as_tensor(state["weights"])
