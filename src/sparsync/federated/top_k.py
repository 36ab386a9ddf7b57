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

from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.fedavg import FedAvg, FedAvgClient, FedAvgServer
from sparsync.federated.messages import ModelPacking, chain_of, only_values
from sparsync.federated.watching import SupportWatch, of_client
from sparsync.sparsity import ParamView, kept, top_k_mask
from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.wire import NonZeroSupport, RelativeSupport
from sparsync.workers import Client, ModelVector


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

    def sparsity_of(self, client: int | None = None) -> float:
        """Return how sparse a client's upload is, or what is meant for all."""
        return self.sparsity

    def make_server(self, context: ServerContext) -> TopKServer:
        return TopKServer(self, context)

    def make_client(self, context: FederationContext) -> TopKClient:
        return TopKClient(self, context)


def sparse_packings(vector: ModelVector, config: TopK, view: ParamView) -> tuple[ModelPacking, ModelPacking]:
    """Return how models go up, and down as positions and values."""
    down = chain_of(config.downlink).with_support(NonZeroSupport())
    return ModelPacking(vector, chain_of(config.uplink), view=view), ModelPacking(vector, down, view=view)


class TopKServer(FedAvgServer):
    """The global model; its prunable entries travel as positions and values, in both directions."""

    def __init__(self, config: TopK, context: ServerContext) -> None:
        super().__init__(config, context)
        self.sparsity = config.sparsity_of()
        self.view = context.view("sparsyfed")
        self.up, self.down = sparse_packings(context.vector, config, self.view)
        self.watch = SupportWatch(context, self.view)

    def prunable(self, model: Tensor) -> Tensor:
        """Return prunable entries, (M,), of a model (D,)."""
        return self.view.gather(model[: self.view.total])

    def downlink(self, round_: int) -> bytes:
        payload = super().downlink(round_)
        self.watch.sent(round_, self.prunable(self.sent))
        self.context.record(sparsity_target=self.sparsity)
        return payload

    def decode(self, payload: bytes) -> Tensor:
        return self.up.decode(payload, RelativeSupport(self.prunable(self.sent) != 0))

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        def observe(upload: Upload, model: Tensor) -> None:
            self.watch.received(upload.client, self.prunable(model))

        self.weights = self.context.average(uploads, self.decode, len(self.weights), observe=observe).float()
        self.watch.agreement()
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "watch": self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.watch.load_state_dict(state["watch"])


class TopKClient(FedAvgClient):
    """The client's half: train dense, prune, send."""

    def __init__(self, config: TopK, context: FederationContext) -> None:
        super().__init__(config, context)
        self.config = config
        self.view = context.view("sparsyfed")
        self.up, self.down = sparse_packings(context.vector, config, self.view)

    def prunable(self, model: Tensor) -> Tensor:
        """Return prunable entries, (M,), of a model (D,)."""
        return self.view.gather(model[: self.view.total])

    def reply(self, client: Client, work: Work) -> Work | Reply:
        """Prune the model that was trained, and send what is left."""
        assert work.received is not None
        model, before = client.model(), self.prunable(work.received)
        trained = self.prunable(model)
        count = kept(self.view.numel, self.config.sparsity_of(client.number))
        pruned = trained.where(top_k_mask(trained, count), 0)
        self.view.scatter_(model[: self.view.total], pruned)
        notes = {**self.notes(), **of_client(before, trained, pruned)}
        return Reply(self.encode(model, client, work.received), notes)

    def notes(self) -> dict[str, float]:
        """Return further numbers of the client's round. Default: none."""
        return {}

    def encode(self, model: Tensor, client: Client, received: Tensor) -> bytes:
        """Encode a pruned model; its support lies within what was received once clients agree."""
        return self.up.encode(model, client.generator("codec"), support=RelativeSupport(self.prunable(received) != 0))
