"""PruneFL: Jiang et al., arXiv:1909.12326, after two ports of it; the original's order is an option.

A mask is trained, and every R rounds decided anew from squared gradients: coordinates are taken in the order of their
aggregated G2 as long as each is worth its time, and at least as many as the schedule asks for. In rounds that decide,
clients also send the dense squared gradient of their last batch. The first mask is made by one client, which trains
alone for some rounds; only the mask is kept.

Order and end are those of ``bibikar/feddst`` @ 25d6184; schedule, last batch and first mask are after
``EricLoong/feddip`` @ 4327d96, which ends by G2 undivided, ranks normalisation, too, and leaves the mask to clients;
here only prunable entries are ranked, and the server applies it. The original, ``jiangyuang/PruneFL`` @ b499d3a, takes
coordinates in the order of G2 per time (`order`) and drops only the smallest weights (`droppable`). It also squares
sums of gradients, of all rounds since the last decision, counts the gain of biases, and asks for no least number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.masked import (
    MaskedClient,
    MaskedConfig,
    MaskedServer,
    MaskedWork,
    over_parameters,
    voted,
)
from sparsync.federated.messages import pack_mask
from sparsync.shares import exact
from sparsync.sparsity import Cubic, ParamView, counts, erk, random_mask, top_k_among
from sparsync.spec import MOST, Count, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import Kind, KnownSupport
from sparsync.workers import Client

_BASE_TIME = 0.2  # T_acc at the start, in units of a coordinate's time (both ports)
_ALONE = 5  # rounds of the first client between two decisions, and before it may stop
_BETTER = 0.01  # accuracy above chance at which it does: 0.11 of 10 classes, 0.02 of 100 (EricLoong/feddip)


@STRATEGIES.register("prunefl")
@config
class PruneFL(MaskedConfig):
    """Decide the mask from aggregated squared gradients per unit of time (PruneFL).

    Attributes
    ----------
    sparsity, sparsity_init : float
        Upper end of the sparsity by round, a cubic ramp; masks may be denser. Default: 0.9 and 0.5.
    reconfiguration_interval : int
        R, rounds between two decisions. Default: 20.
    initial_mask : {"client", "erk"}
        First mask: one client trains alone and decides, or a random one at ERK densities.
    initial_rounds : int
        Most rounds of that client; it stops after five once its accuracy exceeds chance by 0.01. Default: 50.
    order : {"squares", "rate"}
        Whether coordinates are taken by falling G2, or by falling G2 per time as in the original.
    droppable : float
        Share of each layer's ones, the smallest weights, that a decision may drop: 0.3 at first in the original, and
        half as much every 10,000 rounds. Default: 1, any.
    layer_time : mapping of str to float, optional
        Time per coordinate, by parameter, in one unit; 1 where nothing is said. Default: the same for all. Given, not
        measured, so that a run can be repeated; from Python only.
    uplink, downlink : str, optional
        How the numbers on the mask travel. Default: float32.
    """

    sparsity: float = Field(default=0.9, ge=0, lt=1)
    sparsity_init: float = Field(default=0.5, ge=0, lt=1)
    reconfiguration_interval: Count = 20
    initial_mask: Literal["client", "erk"] = "client"
    initial_rounds: int = Field(default=50, ge=_ALONE, le=MOST)
    order: Literal["squares", "rate"] = "squares"
    droppable: float = Field(default=1.0, ge=0, le=1)
    layer_time: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None

    @model_validator(mode="after")
    def _ramp(self) -> PruneFL:
        if self.sparsity_init > self.sparsity:
            raise ValueError(
                f"sparsity_init={self.sparsity_init} exceeds sparsity={self.sparsity}; sparsity only grows"
            )
        return self

    def decides(self, round_: int) -> bool:
        """Whether a round, counted from 0, ends with a new mask."""
        return (round_ + 1) % self.reconfiguration_interval == 0

    def make_server(self, context: ServerContext) -> PruneFLServer:
        return PruneFLServer(self, context)

    def make_client(self, context: FederationContext) -> PruneFLClient:
        return PruneFLClient(self, context)


class MaskDecision:
    """The mask (M,) that follows another one.

    Parameters
    ----------
    config : PruneFL
        Times, order, and what may be dropped.
    view : ParamView
        The prunable entries.

    Attributes
    ----------
    times : Tensor, (M,)
        Time per coordinate.
    """

    def __init__(self, config: PruneFL, view: ParamView) -> None:
        self.config, self.view = config, view
        layer_times = config.layer_time or {}
        for name in layer_times:
            if name not in view.names:
                names = ", ".join(view.names)
                raise UsageError(f"prunefl: layer_time of {name!r}, which is not pruned; expected some of {names}")
        self.times = view.expand(torch.tensor([layer_times.get(name, 1.0) for name in view.names], dtype=torch.float64))

    def __call__(self, squares: Tensor, mask: Tensor, weights: Tensor, sparsity: float) -> Tensor:
        """Return the mask that follows one, of weights and G2 (M,), at most so sparse."""
        ones = [int(part.count_nonzero()) for part in self.view.split(mask)]
        stay = [count - math.floor(exact(self.config.droppable) * count) for count in ones]
        layers = zip(self.view.split(weights), self.view.split(mask), stay, strict=True)
        stays = torch.cat([top_k_among(*layer) for layer in layers])
        least = (1 - sparsity) * self.view.numel  # in floating point, as both ports
        return worthwhile(squares, self.times, least, stays, self.config.order == "rate")


class PruneFLServer(MaskedServer):
    """The global model and its mask; `begun` says whether the first mask is there."""

    def __init__(self, config: PruneFL, context: ServerContext) -> None:
        super().__init__(config, context, Cubic(config.sparsity_init, config.sparsity, context.rounds))
        self.config = config
        self.decided = MaskDecision(config, self.view)
        self.begun = config.initial_mask == "erk"
        if self.begun:
            ones = counts(self.view.shapes, erk(self.view.shapes, 1 - exact(config.sparsity_init)))
            self.mask = random_mask(self.view.shapes, ones, context.generator("mask"))
            self.weights = self.pruned(self.weights, self.mask)

    def select(self, round_: int, rng: np.random.Generator) -> Sequence[int]:
        return super().select(round_, rng) if self.begun else super().select(round_, rng)[:1]

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        numel, size = len(self.weights), self.view.numel
        if not self.begun:
            self.mask, self.begun = voted(self.context, uploads, size), True
            self.weights = self.pruned(self.weights, self.mask)
            return False
        if not self.config.decides(round_):
            return super().aggregate(round_, uploads)
        known = KnownSupport(self.mask)
        both = self.mean(uploads, lambda payload: self.up.decode(payload, known, [size]), numel + size)
        mean, squares = both.split_with_sizes((numel, size))
        self.mask = self.decided(squares, self.mask, self.prunable(mean), self.sparsity(round_))
        self.weights = self.pruned(mean.float(), self.mask)
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.begun = state["begun"]


@dataclass
class GradientWork(MaskedWork):
    """Work on a mask of which the last batch's gradient is wanted.

    Attributes
    ----------
    last : Tensor, (d,)
        Dense gradient of the last batch.
    alone : int
        Rounds of the client that makes the first mask, with this one; 0: there is a mask.
    """

    last: Tensor = field(kw_only=True)
    alone: int = 0


class PruneFLClient(MaskedClient):
    """The client's half: the first exchange of all may ask for the first mask."""

    def __init__(self, config: PruneFL, context: FederationContext) -> None:
        super().__init__(config, context)
        self.config = config
        self.decided = MaskDecision(config, self.view)
        self.enough = 1 / context.classes + _BETTER

    def work_on(self, client: Client, received: Tensor, mask: Tensor) -> Work:
        work = self.observed(client, mask)
        work.start = work.received = received
        if self.config.initial_mask == "client" and not client.round and not client.exchange:
            work.steps, work.alone = range(len(client.batches)), 1
        return work

    def observed(self, client: Client, mask: Tensor) -> GradientWork:
        """Return training on a mask (M,) that keeps the dense gradient of its last batch."""
        on, last = over_parameters(self.view, mask).to(client.params), torch.zeros_like(client.grad)

        def before_step(_: Tensor, grad: Tensor) -> None:
            last.copy_(grad)
            grad.mul_(on)

        return GradientWork(before_step=before_step, mask=mask, last=last)

    def reply(self, client: Client, work: Work) -> Work | Reply:
        assert isinstance(work, GradientWork)
        squares = self.view.gather(work.last).square().to("cpu", torch.float32)
        if work.alone:
            return self.go_on_alone(client, work, squares)
        extra: Mapping[Kind, Tensor] = {"gradient": squares} if self.config.decides(client.round) else {}
        return self.send(client, work, KnownSupport(work.mask), work.mask, extra)

    def go_on_alone(self, client: Client, work: GradientWork, squares: Tensor) -> Work | Reply:
        """Decide the first mask anew now and then; reply once the client is better than chance."""
        mask, done, each = work.mask, work.alone, len(client.batches)
        if done % _ALONE == 0:
            mask = self.decided(squares, mask, self.view.gather(client.params).cpu(), self.config.sparsity_init)
            client.params.mul_(over_parameters(self.view, mask).to(client.params))
            client.forget_momentum()  # it would move what was dropped
        if (done >= _ALONE and client.accuracy() > self.enough) or done == self.config.initial_rounds:
            return Reply(pack_mask(mask))
        following = self.observed(client, mask)
        following.steps, following.alone = range(done * each, (done + 1) * each), done + 1
        return following


def worthwhile(
    squares: Tensor, times: Tensor, least: float, stays: Tensor | None = None, by_rate: bool = False
) -> Tensor:
    """Mask (M,) of the coordinates worth their time.

    After those that stay, in the order of falling G2, coordinate j is kept while G2_j / time_j is at least what all
    before it gained per time, or no more than `least` are kept yet; the first that is neither ends it.

    Parameters
    ----------
    squares : Tensor, (M,)
        Aggregated squared gradients, G2.
    times : Tensor, (M,)
        Time per coordinate; 1 is the unit of the base time, 0.2.
    least : float
        n_req: more coordinates than this are kept in any case.
    stays : Tensor, (M,), optional
        Mask of those that are kept in any case, and count first. Default: none.
    by_rate : bool
        Order the others by falling G2 / time instead. Default: no.
    """
    squares = squares.double()
    order = torch.argsort(squares / times if by_rate else squares, descending=True, stable=True)
    surely = math.floor(least) + 1
    if stays is not None:
        order = torch.cat((order[stays[order]], order[~stays[order]]))
        surely = max(surely, int(stays.count_nonzero()))
    gain, time = squares[order], times[order]
    gained, spent = gain.cumsum(0) - gain, _BASE_TIME + time.cumsum(0) - time  # before each
    ends = torch.nonzero((gain / time < gained / spent)[surely:])
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[: surely + int(ends[0]) if len(ends) else len(order)]] = True
    return mask
