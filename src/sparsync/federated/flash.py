"""FLASH: Babakniya et al., arXiv:2208.13092, its fixed-mask variant as in ``AGuastella/fl_powerpropagation``.

In the first round clients train dense and send their largest weights; from then on everybody trains the mask that the
server makes of these: in each layer as many of the average's largest entries as clients kept there on average. Unlike
that code, which also freezes biases that start at zero, masks touch weights only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.masked import MaskedClient, MaskedConfig, MaskedServer, MaskedWork
from sparsync.sparsity import Constant, kept, layer_top_k_mask, top_k_mask
from sparsync.spec import Natural, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import MaskedSupport
from sparsync.workers import Client


@STRATEGIES.register("flash")
@config
class Flash(MaskedConfig):
    """Fix the mask after a first, dense round, at the layers' densities that clients found (FLASH).

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among prunable entries. Default: 0.95.
    warmup : int
        Further epochs of the first round. Default: 0.
    uplink, downlink : str, optional
        How the numbers on the mask travel. Default: float32.
    """

    sparsity: float = Field(default=0.95, ge=0, lt=1)
    warmup: Natural = 0

    def make_server(self, context: ServerContext) -> FlashServer:
        return FlashServer(self, context, Constant(self.sparsity))

    def make_client(self, context: FederationContext) -> FlashClient:
        return FlashClient(self, context)


class FlashServer(MaskedServer):
    """The global model and its mask, which is all ones until the first round has ended."""

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        if round_ > 0:
            return super().aggregate(round_, uploads)
        sizes = len(self.weights), len(self.view.sizes), self.view.numel

        def decode(payload: bytes) -> Tensor:
            model, mask = self.up.decode_mask(payload)
            ones = torch.stack([part.count_nonzero() for part in self.view.split(mask)])
            return torch.cat((model, ones.double(), mask.double()))

        sums = self.mean(uploads, decode, sum(sizes), lambda decoded: decoded[-self.view.numel :])
        mean, counts, _ = sums.split_with_sizes(sizes)
        wished = [math.floor(count) for count in counts.tolist()]  # exact, as counts and weights are integers
        weights = mean.float()
        self.mask = layer_top_k_mask(self.view, self.prunable(weights), wished)
        self.weights = self.pruned(weights, self.mask)
        return None


class FlashClient(MaskedClient):
    """The client's half: dense in the first round, of which it sends the largest weights."""

    def __init__(self, config: Flash, context: FederationContext) -> None:
        super().__init__(config, context)
        self.config = config

    def work_on(self, client: Client, received: Tensor, mask: Tensor) -> Work:
        if client.round > 0:
            return super().work_on(client, received, mask)
        steps = range(len(client.batches) + self.config.warmup * client.batches.per_pass)
        return MaskedWork(received, received, steps, mask=mask)

    def reply(self, client: Client, work: Work) -> Work | Reply:
        if client.round > 0:
            return super().reply(client, work)
        mask = top_k_mask(self.prunable(client.model()), kept(self.view.numel, self.config.sparsity))
        return self.send(client, work, MaskedSupport(mask), mask)
