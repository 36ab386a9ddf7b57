"""SCAFFOLD: Karimireddy et al., arXiv:1910.06378, Algorithm 1 with option II.

Server and clients keep control variates, c and c_i, which estimate their gradients; a local step follows
g - c_i + c, so that clients with different data do not drift apart. Twice the bytes of FedAvg in both directions. The
control variates assume that clients take plain SGD steps of one rate in a round. Both means are weighted as the
federation says, so c is always the mean of all c_i in the same weights; with uniform ones that is the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field

from sparsync.errors import UsageError
from sparsync.federated.fedavg import FedAvg, FedAvgState
from sparsync.federated.messages import ModelPacking
from sparsync.federated.server import Server, Upload
from sparsync.federated.settings import Federation
from sparsync.spec import config, parse
from sparsync.strategies import STRATEGIES
from sparsync.workers import Client


@STRATEGIES.register("scaffold")
@config
class Scaffold(FedAvg):
    """Correct every local step by control variates (Karimireddy et al.).

    Attributes
    ----------
    lr : float
        Of the server. Default: 1, the clients' mean.
    """

    lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def check_codecs(self) -> None:
        """Refuse all codecs: a lossy control variate corrects for nothing."""
        if self.uplink or self.downlink:
            raise ValueError("control variates travel as they are; leave out uplink and downlink")

    def check(self, settings: Federation) -> None:
        """Refuse clients whose optimiser is not plain SGD."""
        optimizer = parse(settings.optimizer)
        if optimizer.name != "sgd" or float(optimizer.parameters.get("momentum", 0)) != 0:
            raise UsageError(
                f"scaffold: its control variates assume plain SGD on the clients, not {settings.optimizer!r}; "
                "set federation.optimizer to sgd without momentum"
            )

    def serve(self, server: Server) -> FedAvgState:
        """Begin a run."""
        self.check(server.settings)
        return ScaffoldState(self, server)


class ScaffoldState(FedAvgState):
    """The global model and control variate c, (d,); clients remember c_i."""

    def __init__(self, config: Scaffold, server: Server) -> None:
        super().__init__(config, server)
        self.stateful = True
        self.lr = config.lr
        self.control = torch.zeros(server.vector.d)  # c
        self.both = ModelPacking(server.vector)

    def downlink(self, round_: int) -> bytes:
        return self.both.encode(self.weights, extra={"state": self.control})

    def local_update(self, client: Client, payload: bytes) -> bytes:
        d, numel = self.server.vector.d, self.server.vector.numel
        received, control = self.both.decode(payload, extra=[d]).split_with_sizes((numel, d))
        mine = client.memory.get("control", torch.zeros(d))  # c_i
        correction = (control - mine).to(client.params)
        client.load(received)
        client.train(before_step=lambda: client.grad.add_(correction))
        trained = client.model()
        change = torch.zeros(d)
        if length := client.steps * client.learning_rate:
            change = (received[:d] - trained[:d]) / length - control  # option II: of c_i
        client.memory["control"] = mine + change
        return self.both.encode(trained, extra={"state": change})

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        server, d = self.server, self.server.vector.d
        numel = server.vector.numel
        both = server.average(uploads, lambda payload: self.both.decode(payload, extra=[d]), numel + d)
        mean, change = both.float().split_with_sizes((numel, d))
        stepped = self.weights[:d] + self.lr * (mean[:d] - self.weights[:d])
        self.weights = torch.cat((stepped if self.lr != 1 else mean[:d], mean[d:]))
        self.control = self.control + server.share * change  # c remains the clients' weighted mean of c_i
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "control": self.control}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.control = torch.as_tensor(state["control"])
