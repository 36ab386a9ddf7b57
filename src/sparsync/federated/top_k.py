"""Top-K: federated averaging of models that their clients prune before they send them.

Clients train dense and then keep the k largest magnitudes over all prunable entries together; the server averages and
prunes nothing, so that it sends the union of what it received. The plain baseline of SparsyFed (arXiv:2504.05153), and
exactly that method with beta = 1 and no activation pruning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from sparsync.federated.fedavg import FedAvg, FedAvgState
from sparsync.federated.messages import ModelPacking, chain_of, only_values
from sparsync.federated.server import Server, Upload
from sparsync.federated.watching import SupportWatch, of_client
from sparsync.sparsity import kept, top_k_mask
from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.wire import NonZeroSupport, RelativeSupport
from sparsync.workers import Client


@STRATEGIES.register("top-k")
@config
class TopK(FedAvg):
    """Send the largest weights of the trained model, a fixed number over all layers.

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among prunable entries, the weights of convolutions and linear layers. Default: 0.95.
    uplink, downlink : str, optional
        How the numbers travel that are not zero, such as ``bf16`` or ``q8``. Default: float32.
    """

    sparsity: float = Field(default=0.95, ge=0, lt=1)

    def check_codecs(self) -> None:
        """Refuse codecs that choose what travels."""
        only_values(uplink=self.uplink, downlink=self.downlink)

    def serve(self, server: Server) -> FedAvgState:
        """Begin a run."""
        return TopKState(self, server)


class TopKState(FedAvgState):
    """The global model; its prunable entries travel as positions and values, in both directions."""

    def __init__(self, config: TopK, server: Server) -> None:
        super().__init__(config, server)
        self.sparsity = config.sparsity
        self.view = server.view("sparsyfed")
        self.up = ModelPacking(server.vector, chain_of(config.uplink), view=self.view)
        self.down = ModelPacking(
            server.vector, chain_of(config.downlink).with_support(NonZeroSupport()), view=self.view
        )
        self.watch = SupportWatch(server, self.view)

    def prunable(self, model: Tensor) -> Tensor:
        """Prunable entries, (M,), of a model (D,)."""
        return self.view.gather(model[: self.view.total])

    def downlink(self, round_: int) -> bytes:
        payload = super().downlink(round_)
        self.watch.sent(round_, self.prunable(self.sent))
        self.server.record(sparsity_target=self.sparsity)
        return payload

    def upload(self, client: Client, received: Tensor) -> bytes:
        """Prune the model that was trained, and send what is left."""
        model, before = client.model(), self.prunable(received)
        trained = self.prunable(model)
        pruned = trained.where(top_k_mask(trained, kept(self.view.numel, self.sparsity_of(client.number))), 0)
        self.view.scatter_(model[: self.view.total], pruned)
        client.note(of_client(before, trained, pruned))
        self.watch.received(client.number, pruned)
        return self.encode(model, client, received)

    def encode(self, model: Tensor, client: Client, received: Tensor) -> bytes:
        """Encode a pruned model; its support lies within what was received once clients agree."""
        return self.up.encode(model, client.generator("codec"), support=RelativeSupport(self.prunable(received) != 0))

    def decode(self, payload: bytes) -> Tensor:
        return self.up.decode(payload, RelativeSupport(self.prunable(self.sent) != 0))

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        super().aggregate(round_, uploads)
        self.watch.agreement()
        return None

    def sparsity_of(self, client: int) -> float:
        """How sparse a client's upload is."""
        return self.sparsity

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "watch": self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.watch.load_state_dict(state["watch"])
