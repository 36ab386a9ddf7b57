"""FedDST: Bibikar et al., AAAI 2022, partly after its authors' code, partly after FedDIP's port of it.

Everybody trains a mask of the target sparsity at ERK densities. In every R-th round, half-way through its local steps,
a client moves a share of each layer's ones to where its dense gradient is largest; the server averages what clients
kept, by coordinate, and prunes each layer back to its number of ones.

From the authors' code, ``bibikar/feddst`` @ 25d6184: the first mask by magnitude, weights ranked as the client holds
them, the gradient of one batch, a mask that counts at once, the mean by coordinate. From the port, ``EricLoong/feddip``
@ 4327d96: ERK densities (the original scales raw sparsities), the drop share a/2 (1 + cos) up to the last round (there
times a once more, and up to half of the rounds), decisions in rounds R, 2 R, ... (there 2, R + 2, ..., at every tenth
local epoch), and positions that were just dropped may be grown again, but no others that live. Half-way is ours: early
enough for grown weights to be worth something when they are sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.masked import MaskedClient, MaskedConfig, MaskedServer, MaskedWork, freezing
from sparsync.shares import exact
from sparsync.sparsity import (
    Constant,
    CosineDrop,
    ParamView,
    counts,
    erk,
    layer_top_k_mask,
    random_mask,
    top_k_among,
)
from sparsync.spec import Count, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import KnownSupport, MaskedSupport
from sparsync.workers import Client


@STRATEGIES.register("feddst")
@config
class FedDST(MaskedConfig):
    """Let clients drop and grow weights under a mask of constant sparsity (FedDST).

    Attributes
    ----------
    sparsity : float
        Fraction of zeros among prunable entries, from the start. Default: 0.9.
    readjustment_interval : int
        R: clients move ones in rounds R, 2 R, ... Default: 20.
    drop_fraction : float
        a: share of a layer's ones that the first move may take; it falls to 0 on half a cosine. Default: 0.5.
    drop_until : int, optional
        Round, counted from 0, from which on it is 0. Default: the number of rounds, so that the last one moves some.
    aggregate : {"mask_weighted", "fedavg"}
        Mean over the clients that kept a coordinate, or over all.
    mask_init : {"magnitude", "random"}
        First mask: each layer's largest weights (``bibikar/feddst``), or random ones (``EricLoong/feddip``).
    uplink, downlink : str, optional
        How the numbers on the mask travel. Default: float32.
    """

    sparsity: float = Field(default=0.9, ge=0, lt=1)
    readjustment_interval: Count = 20
    drop_fraction: float = Field(default=0.5, gt=0, le=1)
    drop_until: Count | None = None
    aggregate: Literal["mask_weighted", "fedavg"] = "mask_weighted"
    mask_init: Literal["magnitude", "random"] = "magnitude"

    def make_server(self, context: ServerContext) -> FedDSTServer:
        return FedDSTServer(self, context)

    def make_client(self, context: FederationContext) -> FedDSTClient:
        return FedDSTClient(self, context)

    def readjusts(self, round_: int) -> bool:
        """Whether clients move ones in a round, counted from 0."""
        return (round_ + 1) % self.readjustment_interval == 0

    def drop(self, rounds: int) -> CosineDrop:
        """Return the share of ones that is moved, by round."""
        return CosineDrop(self.drop_fraction, self.drop_until or rounds)


class FedDSTServer(MaskedServer):
    """The global model and its mask, with as many ones per layer as at the start."""

    def __init__(self, config: FedDST, context: ServerContext) -> None:
        super().__init__(config, context, Constant(config.sparsity))
        self.config = config
        self.ones = counts(self.view.shapes, erk(self.view.shapes, 1 - exact(config.sparsity)))
        if config.mask_init == "random":
            self.mask = random_mask(self.view.shapes, self.ones, context.generator("mask"))
        else:
            self.mask = layer_top_k_mask(self.view, self.prunable(self.weights), self.ones)
        self.weights = self.pruned(self.weights, self.mask)
        self.drop = config.drop(context.rounds)

    def downlink(self, round_: int) -> bytes:
        payload = super().downlink(round_)
        self.context.record(drop_fraction=self.drop(round_))
        return payload

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        numel, size = len(self.weights), self.view.numel

        def decode(payload: bytes) -> Tensor:
            if not self.config.readjusts(round_):
                return torch.cat((self.up.decode(payload, KnownSupport(self.mask)), self.mask.float()))
            model, mask = self.up.decode_mask(payload)
            return torch.cat((model, mask.float()))

        sums = self.mean(uploads, decode, numel + size, lambda decoded: decoded[numel:])
        mean, holders = sums.split_with_sizes((numel, size))
        values = self.prunable(mean)
        if self.config.aggregate == "mask_weighted":  # 0 where nobody kept the coordinate
            values = torch.where(holders > 0, values / holders, 0.0)
        self.mask = layer_top_k_mask(self.view, values.float(), self.ones)
        weights = mean.float()
        self.view.scatter_(weights[: self.view.total], values.float())
        self.weights = self.pruned(weights, self.mask)
        return None


class FedDSTClient(MaskedClient):
    """The client's half: in some rounds it moves ones, half-way through its steps."""

    def __init__(self, config: FedDST, context: FederationContext) -> None:
        super().__init__(config, context)
        self.config, self.drop = config, config.drop(context.rounds)

    def work_on(self, client: Client, received: Tensor, mask: Tensor) -> Work:
        work = super().work_on(client, received, mask)
        if self.config.readjusts(client.round):
            work.steps = range(len(client.batches) // 2)
        return work

    def reply(self, client: Client, work: Work) -> Work | Reply:
        assert isinstance(work, MaskedWork)
        if work.start is None:
            return self.send(client, work, MaskedSupport(work.mask), work.mask)
        if not self.config.readjusts(client.round):
            return super().reply(client, work)
        steps = len(client.batches)
        extra = client.batches[int(client.generator("readjust").integers(steps))]
        grad, weights = self.view.gather(client.gradient(extra)).cpu(), self.view.gather(client.params).cpu()
        mask, weights = drop_and_grow(self.view, work.mask, weights, grad, self.drop(client.round))
        self.view.scatter_(client.params, weights.to(client.params))
        client.forget_momentum()  # it would move what was dropped
        hook = freezing(self.view, mask, client)
        return MaskedWork(None, work.received, range(steps // 2, steps), before_step=hook, mask=mask)


def drop_and_grow(
    view: ParamView, mask: Tensor, weights: Tensor, grad: Tensor, fraction: float
) -> tuple[Tensor, Tensor]:
    """Move a share of each layer's ones: the smallest weights go, the largest gradients outside come, at 0.

    Parameters
    ----------
    view : ParamView
        The layers.
    mask, weights, grad : Tensor, (M,)
        Of the prunable entries, the gradient dense.
    fraction : float
        Share of a layer's ones that is moved, rounded up.

    Returns
    -------
    mask, weights : Tensor, (M,)
        As many ones per layer as before.
    """
    masks, values = [], []
    for on, weight, slope in zip(view.split(mask), view.split(weights), view.split(grad), strict=True):
        ones = int(on.count_nonzero())
        moved = math.ceil(exact(fraction) * ones)
        stay = top_k_among(weight, on, ones - moved)
        grown = top_k_among(slope, ~stay, moved)
        masks.append(stay | grown)
        values.append(weight.where(stay, 0))
    return torch.cat(masks), torch.cat(values)
