"""FedProx: Li et al., arXiv:1812.06127. FedAvg whose clients are held near the model that they received."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from sparsync.federated.fedavg import FedAvg, FedAvgState
from sparsync.federated.server import Server
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

    def serve(self, server: Server) -> FedAvgState:
        """Begin a run."""
        return FedProxState(self, server)


class FedProxState(FedAvgState):
    """FedAvg's, with the proximal term's gradient in every local step."""

    def __init__(self, config: FedProx, server: Server) -> None:
        super().__init__(config, server)
        self.mu = config.mu

    def train(self, client: Client, received: Tensor) -> None:
        anchor = received[: self.server.vector.d].to(client.params)
        client.train(before_step=lambda: client.grad.add_(client.params - anchor, alpha=self.mu))
