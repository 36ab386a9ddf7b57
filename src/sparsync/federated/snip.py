"""SNIP: Lee et al., ICLR 2019 (arXiv:1810.02340), with one mask for the whole federation.

Before the first round one client scores every weight by its connection sensitivity |g * w|, the gradient with respect
to a multiplicative mask at 1, on one batch, and sends the mask of the largest scores; everybody trains on that mask.
After the port in ``EricLoong/feddip`` @ 4327d96, but with cross-entropy of the logits, and masked from the first
download on. Its known weakness: the mask depends on one client's data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from sparsync.errors import UsageError
from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.masked import MaskedClient, MaskedConfig, MaskedServer, voted
from sparsync.federated.messages import pack_mask
from sparsync.sparsity import Constant, kept, top_k_mask
from sparsync.spec import Natural, config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Client


@STRATEGIES.register("snip")
@config
class Snip(MaskedConfig):
    """Fix the mask before training, by one client's connection sensitivity on one batch (SNIP).

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among prunable entries. Default: 0.9.
    saliency_init : {"xavier", "model"}
        Weights of the saliency pass: drawn anew (as in the port), or the model's. Training starts from the model's.
    client : int
        Who scores. Default: 0.
    uplink, downlink : str, optional
        How the numbers on the mask travel. Default: float32.
    """

    sparsity: float = Field(default=0.9, ge=0, lt=1)
    saliency_init: Literal["xavier", "model"] = "xavier"
    client: Natural = 0

    def make_server(self, context: ServerContext) -> SnipServer:
        return SnipServer(self, context)

    def make_client(self, context: FederationContext) -> SnipClient:
        return SnipClient(self, context)


class SnipServer(MaskedServer):
    """The global model and its mask; `scored` says whether there is one."""

    def __init__(self, config: Snip, context: ServerContext) -> None:
        super().__init__(config, context, Constant(config.sparsity))
        if config.client >= context.clients:
            raise UsageError(f"snip: client={config.client} of {context.clients}; they are numbered from 0")
        self.client = config.client
        self.scored = False

    def select(self, round_: int, rng: np.random.Generator) -> Sequence[int]:
        return super().select(round_, rng) if self.scored else [self.client]

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        if self.scored:
            return super().aggregate(round_, uploads)
        self.mask = voted(self.context, uploads, self.view.numel)
        self.weights = self.pruned(self.weights, self.mask)
        self.scored = True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scored": self.scored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.scored = state["scored"]


class SnipClient(MaskedClient):
    """The client's half: the first exchange of all asks for the mask."""

    def __init__(self, config: Snip, context: FederationContext) -> None:
        super().__init__(config, context)
        self.config = config

    def receive(self, client: Client, message: bytes) -> Work | Reply:
        if client.round or client.exchange:
            return super().receive(client, message)
        received, _ = self.down.decode_mask(message)
        client.load(received)
        if self.config.saliency_init == "xavier":
            self.draw(client)
        batch = client.batches[0]
        labels = np.unique(client.runtime.task.dataset.train.labels[batch], return_counts=True)
        scores = self.view.gather(client.gradient(batch)) * self.view.gather(client.params)
        return Reply(
            pack_mask(top_k_mask(scores, kept(self.view.numel, self.config.sparsity))),
            {f"scored_label/{label}": int(count) for label, count in zip(*labels, strict=True)},
        )

    def draw(self, client: Client) -> None:
        """Draw Xavier-normal weights for the saliency pass."""
        rng = client.torch_generator("saliency")
        for (start, stop), shape in zip(self.view.spans, self.view.shapes, strict=True):
            drawn = nn.init.xavier_normal_(torch.empty(shape), generator=rng)
            client.params[start:stop] = drawn.view(-1)
