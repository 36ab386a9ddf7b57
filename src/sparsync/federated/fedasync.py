"""FedAsync: Xie, Koyejo, Gupta, Asynchronous Federated Optimization, arXiv:1903.03934, Algorithm 1.

Whenever a client's model arrives, the server moves towards it, w <- (1 - a_t) w + a_t w_client, the less the older the
model is that the client began with: a_t = alpha s(t - tau). Clients hold on to that model by a proximal term, mu/2
||w - w_tau||^2 (rho in the paper). As in ``xcgoner/async_fl`` @ 912ecf3: the three discounts;
staleness t - tau is the number of updates in between, 0 for a model that is current, which so counts with all of alpha;
buffers of the model are mixed as its parameters are, and have no proximal term. Unlike there, alpha stays what it is:
its script halves it at update 800 of 2000.

Values said below to be the paper's, of its section 5, are as others quote them: its text could not be consulted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sparsync.federated.context import ServerContext, Upload
from sparsync.federated.contract import AsynchronousServer
from sparsync.federated.fedavg import FedAvgServer
from sparsync.federated.fedprox import FedProx
from sparsync.federated.messages import chain_of
from sparsync.spec import Count, config
from sparsync.strategies import STRATEGIES


@STRATEGIES.register("fedasync")
@config
class FedAsync(FedProx):
    """Mix every client's model into the server's when it arrives; nobody waits (Xie et al.).

    Attributes
    ----------
    alpha : float
        How much of a client's model is taken, before its discount. Default: 0.6, of the paper's 0.6 and 0.9 on
        CIFAR-10; that code has 0.9, its script 0.8.
    discount : {"polynomial", "hinge", "constant"}
        How staleness t reduces that: (1 + t)^-a; 1 / (1 + a (t - b)) where t exceeds b; not at all.
    a, b : float
        Of the discount. Default: 0.5 and 4. The paper's polynomial has a=0.5, its hinge on CIFAR-10 a=10, b=4.
    concurrency : int, optional
        Clients that train at once. Default: the federation's cohort.
    mu : float
        Strength of the clients' pull towards what they received. Default: 0.005, of the paper's 0.005 and 0.01 on
        CIFAR-10; that code's script has 0.1, given as its product with a learning rate of 0.1.
    """

    alpha: float = Field(default=0.6, gt=0, le=1)
    discount: Literal["polynomial", "hinge", "constant"] = "polynomial"
    a: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    b: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    concurrency: Count | None = None
    mu: float = Field(default=0.005, ge=0, allow_inf_nan=False)

    def check_codecs(self) -> None:
        """Refuse uploads that are not exact: the server has kept no model to which a change could be added."""
        super().check_codecs()
        if not chain_of(self.uplink).lossless:
            raise ValueError(
                f"uplink={self.uplink}: the server mixes whole models, and has not kept those that clients began with; "
                "leave it out, or take fedbuff, whose clients send what has changed"
            )

    def factor(self, staleness: int) -> float:
        """Return s, between 0 and 1."""
        match self.discount:
            case "polynomial":
                return float((1 + staleness) ** -self.a)
            case "hinge":
                return 1 / (1 + self.a * max(0.0, staleness - self.b))
            case "constant":
                return 1.0

    def make_server(self, context: ServerContext) -> FedAsyncServer:
        return FedAsyncServer(self, context)


class FedAsyncServer(FedAvgServer, AsynchronousServer):
    """The global model."""

    def __init__(self, config: FedAsync, context: ServerContext) -> None:
        super().__init__(config, context)
        self.config = config
        self.concurrency = config.concurrency or context.cohort

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        context, alpha = self.context, self.config.alpha
        discounted = context.average(  # s w_client
            uploads, self.decode, len(self.weights), 1, lambda upload: self.config.factor(upload.staleness)
        )
        self.weights = ((1 - alpha * context.discount) * self.weights + alpha * discounted).float()
        return None
