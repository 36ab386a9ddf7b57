"""FedBuff: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, arXiv:2106.06639, Algorithm 1.

Clients send what their local steps have changed. Whenever a buffer of Z such updates is full (K in the paper), the
server takes a step along their mean, w <- w + lr / Z sum_i s(tau_i) Delta_i, each scaled by the staleness tau of the
model that its client began with: s(tau) = 1 / sqrt(1 + tau), which the paper adds to the algorithm in section 5. Not
here: what it adds besides, learning rates normalised by the size of a batch and momentum of the server. Our choices:
the mean is weighted as the federation says, where the paper's weights are uniform; buffers of the model, which are not
differences, become the mean of the clients' in the same weights.

What is said here of the paper is as others quote it: its text could not be consulted. Meta's own FLSim differs: by
default it sums, without 1 / Z, and discounts nothing; where it does discount, staleness 1 counts as 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import AsynchronousServer
from sparsync.federated.fedavg import FedAvg, FedAvgClient, FedAvgServer
from sparsync.federated.messages import chain_of
from sparsync.spec import Count, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import ErrorFeedback


@STRATEGIES.register("fedbuff")
@config
class FedBuff(FedAvg):
    """Collect what clients have changed, and take a step whenever a buffer is full; nobody waits (Nguyen et al.).

    Attributes
    ----------
    buffer : int
        Updates per step of the server, Z. Default: 10, as in the paper and in FLSim's example (Sent140).
    concurrency : int, optional
        Clients that train at once. Default: the federation's cohort.
    lr : float
        Of the server. Default: 1, our choice: the paper tunes it together with the clients', per data set, from 0.049
        to 1000 (Table 4); FLSim's example has 0.7 on the sum of ten, which is 7 here, with momentum 0.9.
    exponent : float
        Of the discount (1 + staleness)^-exponent; 0: none. Default: 0.5.
    """

    buffer: Count = 10
    concurrency: Count | None = None
    lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    exponent: float = Field(default=0.5, ge=0, allow_inf_nan=False)

    def check_codecs(self) -> None:
        """Refuse error feedback."""
        super().check_codecs()
        if isinstance(chain_of(self.uplink), ErrorFeedback):
            raise ValueError(
                f"uplink={self.uplink}: a client may train again before its last upload is accepted, and then does not "
                "know what to make up for; leave out ef(...)"
            )

    def make_server(self, context: ServerContext) -> FedBuffServer:
        return FedBuffServer(self, context)

    def make_client(self, context: FederationContext) -> FedBuffClient:
        return FedBuffClient(self, context)


class FedBuffServer(FedAvgServer, AsynchronousServer):
    """The global model."""

    def __init__(self, config: FedBuff, context: ServerContext) -> None:
        super().__init__(config, context)
        self.lr, self.exponent = config.lr, config.exponent
        self.buffer = config.buffer
        self.concurrency = config.concurrency or context.cohort

    def decode(self, payload: bytes) -> Tensor:
        """Return what the client's steps have changed, and the buffers of its model, (D,)."""
        return self.up.decode(payload)

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        context, d = self.context, self.context.vector.d
        mean = context.average(uploads, self.decode, len(self.weights), self.buffer, self.discount)
        stepped = self.weights[:d] + self.lr * mean[:d]
        self.weights = torch.cat((stepped, mean[d:] / context.discount)).float()
        return None

    def discount(self, upload: Upload) -> float:
        """Return s, between 0 and 1."""
        return float((1 + upload.staleness) ** -self.exponent)


class FedBuffClient(FedAvgClient):
    """FedAvg's; it sends what has changed, whatever the codec."""

    def __init__(self, config: FedBuff, context: FederationContext) -> None:
        super().__init__(config, context)
        self.changes = True
