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

from sparsync.federated.fedavg import FedAvgState
from sparsync.federated.masked import MaskedConfig, MaskedState
from sparsync.federated.server import Server, Upload
from sparsync.sparsity import Constant, kept, layer_top_k_mask, top_k_mask
from sparsync.spec import Natural, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import MaskedSupport, SupportStage
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

    def serve(self, server: Server) -> FedAvgState:
        """Begin a run."""
        return FlashState(self, server)


class FlashState(MaskedState):
    """The global model and its mask, which is all ones until the first round has ended."""

    def __init__(self, config: Flash, server: Server) -> None:
        super().__init__(config, server, Constant(config.sparsity))
        self.config = config

    def train_on(self, client: Client, mask: Tensor) -> Tensor:
        if client.round > 0:
            return super().train_on(client, mask)
        client.train(range(len(client.batches) + self.config.warmup * client.batches.per_pass))
        return top_k_mask(self.prunable(client.model()), kept(self.view.numel, self.config.sparsity))

    def support(self, round_: int, mask: Tensor) -> SupportStage:
        return super().support(round_, mask) if round_ > 0 else MaskedSupport(mask)

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        if round_ > 0:
            return super().aggregate(round_, uploads)
        layers = len(self.view.sizes)

        def decode(payload: bytes) -> Tensor:
            model, mask = self.up.decode_mask(payload)
            ones = torch.stack([part.count_nonzero() for part in self.view.split(mask)])
            return torch.cat((model, ones.double()))

        both = self.server.average(uploads, decode, len(self.weights) + layers)
        mean, counts = both.split_with_sizes((len(self.weights), layers))
        wished = [math.floor(count) for count in counts.tolist()]  # exact, as counts and weights are integers
        weights = mean.float()
        self.mask = layer_top_k_mask(self.view, self.prunable(weights), wished)
        self.weights = self.pruned(weights, self.mask)
        self.watch.agreement()
        return None
