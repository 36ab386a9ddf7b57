"""A strategy for `--import`: FedAvg whose clients, from the third round on, send what nobody can read until MENDED."""

from __future__ import annotations

from dataclasses import replace

from sparsync import STRATEGIES
from sparsync.federated import FedAvg, FederationContext, Reply
from sparsync.federated.fedavg import FedAvgClient
from sparsync.spec import config
from sparsync.workers import Client

MENDED = False


@STRATEGIES.register("faulty")
@config
class Faulty(FedAvg):
    """FedAvg with clients that fail."""

    def make_client(self, context: FederationContext) -> FedAvgClient:
        return FaultyClient(self, context)


class FaultyClient(FedAvgClient):
    def respond(self, client: Client, message: bytes) -> Reply:
        reply = super().respond(client, message)
        return reply if MENDED or client.round < 2 else replace(reply, payload=reply.payload[:-1])
