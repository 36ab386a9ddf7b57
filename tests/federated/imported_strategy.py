"""A strategy for `--import`: FedAvg whose clients go back a share of their way before they reply."""

from __future__ import annotations

from sparsync import STRATEGIES
from sparsync.federated import FedAvg, FederationContext, Reply, Work
from sparsync.federated.fedavg import FedAvgClient
from sparsync.spec import config
from sparsync.workers import Client


@STRATEGIES.register("damped")
@config
class Damped(FedAvg):
    """FedAvg with damped clients.

    Attributes
    ----------
    share : float
        Of a client's way that it goes back.
    """

    share: float = 0.5

    def make_client(self, context: FederationContext) -> FedAvgClient:
        return DampedClient(self, context)


class DampedClient(FedAvgClient):
    def __init__(self, config: Damped, context: FederationContext) -> None:
        super().__init__(config, context)
        self.share = config.share

    def reply(self, client: Client, work: Work) -> Work | Reply:
        assert work.received is not None
        client.load(client.model().lerp(work.received, self.share))
        reply = super().reply(client, work)
        assert isinstance(reply, Reply)
        return Reply(reply.payload, {"share": self.share})
