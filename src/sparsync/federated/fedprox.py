"""FedProx: Li et al., arXiv:1812.06127. FedAvg whose clients are held near the model that they received."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sparsync.federated.context import FederationContext
from sparsync.federated.contract import Work
from sparsync.federated.fedavg import FedAvg, FedAvgClient
from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Client


@STRATEGIES.register("fedprox")
@config
class FedProx(FedAvg):
    """Average models trained with a proximal term, mu/2 ||w - w_t||^2 (Li et al.).

    Attributes
    ----------
    mu : float
        Strength of the pull; 0 is FedAvg. Default: 0.01.
    """

    mu: float = Field(default=0.01, ge=0, allow_inf_nan=False)

    def make_client(self, context: FederationContext) -> FedProxClient:
        return FedProxClient(self, context)


class FedProxClient(FedAvgClient):
    """FedAvg's, with the proximal term's gradient in every local step."""

    def __init__(self, config: FedProx, context: FederationContext) -> None:
        super().__init__(config, context)
        self.mu = config.mu

    def work(self, client: Client, received: Tensor) -> Work:
        anchor = received[: self.context.vector.d].to(client.params)

        def pull(params: Tensor, grad: Tensor) -> None:
            grad.add_(params - anchor, alpha=self.mu)

        return Work(received, received, before_step=pull)
