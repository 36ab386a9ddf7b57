"""A strategy for `--import`: FedAvg whose clients, from the third round on, send what nobody can read until MENDED."""

from __future__ import annotations

from sparsync import STRATEGIES
from sparsync.federated import FedAvg, Server
from sparsync.federated.fedavg import FedAvgState
from sparsync.spec import config
from sparsync.workers import Client

MENDED = False


@STRATEGIES.register("faulty")
@config
class Faulty(FedAvg):
    """FedAvg with clients that fail."""

    def serve(self, server: Server) -> FedAvgState:
        return FaultyState(self, server)


class FaultyState(FedAvgState):
    def local_update(self, client: Client, payload: bytes) -> bytes:
        upload = super().local_update(client, payload)
        return upload if MENDED or client.round < 2 else upload[:-1]
