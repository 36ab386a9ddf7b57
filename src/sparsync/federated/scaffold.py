"""SCAFFOLD: Karimireddy et al., arXiv:1910.06378, Algorithm 1 with option II.

Server and clients keep control variates, c and c_i, which estimate their gradients; a local step follows
g - c_i + c, so that clients with different data do not drift apart. Twice the bytes of FedAvg in both directions. The
control variates assume that clients take plain SGD steps of one rate in a round. Both means are weighted as the
federation says, so c is always the mean of all c_i in the same weights; with uniform ones that is the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.fedavg import FedAvg, FedAvgClient, FedAvgServer
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

    def make_server(self, context: ServerContext) -> ScaffoldServer:
        self.check(context.settings)
        return ScaffoldServer(self, context)

    def make_client(self, context: FederationContext) -> ScaffoldClient:
        return ScaffoldClient(self, context)


class ScaffoldServer(FedAvgServer):
    """The global model and control variate c, (d,)."""

    def __init__(self, config: Scaffold, context: ServerContext) -> None:
        super().__init__(config, context)
        self.lr = config.lr
        self.control = torch.zeros(context.vector.d)  # c

    def downlink(self, round_: int) -> bytes:
        return self.down.encode(self.weights, extra={"state": self.control})

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        context, d, numel = self.context, self.context.vector.d, self.context.vector.numel
        both = context.average(uploads, lambda payload: self.up.decode(payload, extra=[d]), numel + d)
        mean, change = both.float().split_with_sizes((numel, d))
        stepped = self.weights[:d] + self.lr * (mean[:d] - self.weights[:d])
        self.weights = torch.cat((stepped if self.lr != 1 else mean[:d], mean[d:]))
        self.control = self.control + context.share * change  # c remains the clients' weighted mean of c_i
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "control": self.control}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.control = torch.as_tensor(state["control"])


@dataclass
class ScaffoldWork(Work):
    """Work under the server's control variate.

    Attributes
    ----------
    control : Tensor, (d,)
        c, as it was received.
    """

    control: Tensor = field(kw_only=True)


class ScaffoldClient(FedAvgClient):
    """The client's half: clients remember c_i, (d,)."""

    def __init__(self, config: Scaffold, context: FederationContext) -> None:
        super().__init__(config, context)
        self.stateful = True

    def receive(self, client: Client, message: bytes) -> Work | Reply:
        d, numel = self.context.vector.d, self.context.vector.numel
        received, control = self.down.decode(message, extra=[d]).split_with_sizes((numel, d))
        correction = (control - self.variate(client)).to(client.params)
        return ScaffoldWork(received, received, before_step=lambda _, grad: grad.add_(correction), control=control)

    def reply(self, client: Client, work: Work) -> Work | Reply:
        assert isinstance(work, ScaffoldWork)
        assert work.received is not None
        d = self.context.vector.d
        trained, change = client.model(), torch.zeros(d)
        if length := client.steps * client.learning_rate:
            change = (work.received[:d] - trained[:d]) / length - work.control  # option II: of c_i
        client.memory["control"] = self.variate(client) + change
        return Reply(self.up.encode(trained, extra={"state": change}))

    def variate(self, client: Client) -> Tensor:
        """Return c_i, (d,), at first 0."""
        control: Tensor = client.memory.get("control", torch.zeros(self.context.vector.d))
        return control
