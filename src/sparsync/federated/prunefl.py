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
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.federated.fedavg import FedAvgState
from sparsync.federated.masked import MaskedConfig, MaskedState, over_parameters
from sparsync.federated.messages import pack_mask, unpack_mask
from sparsync.federated.server import Server, Upload
from sparsync.shares import exact
from sparsync.sparsity import Cubic, counts, erk, random_mask, top_k_among
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

    def serve(self, server: Server) -> FedAvgState:
        """Begin a run."""
        return PruneFLState(self, server)


class PruneFLState(MaskedState):
    """The global model and its mask; `begun` says whether the first mask is there."""

    def __init__(self, config: PruneFL, server: Server) -> None:
        super().__init__(config, server, Cubic(config.sparsity_init, config.sparsity, server.rounds))
        self.config = config
        self.times = self.view.expand(self._layer_times(config.layer_time or {}))
        self.begun = config.initial_mask == "erk"
        if self.begun:
            ones = counts(self.view.shapes, erk(self.view.shapes, 1 - exact(config.sparsity_init)))
            self.mask = random_mask(self.view.shapes, ones, server.generator("mask"))
            self.weights = self.pruned(self.weights, self.mask)

    def decides(self, round_: int) -> bool:
        """Whether a round, counted from 0, ends with a new mask."""
        return (round_ + 1) % self.config.reconfiguration_interval == 0

    def select(self, round_: int, rng: np.random.Generator) -> Sequence[int]:
        return super().select(round_, rng) if self.begun else super().select(round_, rng)[:1]

    def local_update(self, client: Client, payload: bytes) -> bytes:
        if self.begun:
            return super().local_update(client, payload)
        received, mask = self.down.decode_mask(payload)
        client.load(received)
        return pack_mask(self._alone(client, mask))

    def _alone(self, client: Client, mask: Tensor) -> Tensor:
        """Find the first mask on one client."""
        each = len(client.batches)
        enough = 1 / self.server.classes + _BETTER
        for done in range(1, self.config.initial_rounds + 1):
            squares = self._train(client, mask, range((done - 1) * each, done * each))
            if done % _ALONE == 0:
                mask = self.decided(squares, mask, self.view.gather(client.params).cpu(), self.config.sparsity_init)
                client.params.mul_(over_parameters(self.view, mask).to(client.params))
                client.runtime.optimizer.state.clear()  # momentum would move what was dropped
            if done >= _ALONE and client.accuracy() > enough:
                break
        return mask

    def _train(self, client: Client, mask: Tensor, steps: range | None = None) -> Tensor:
        """Train on a mask; return the dense squared gradient (M,) of the last batch."""
        on = over_parameters(self.view, mask).to(client.params)
        last = torch.zeros_like(client.grad)

        def before_step() -> None:
            last.copy_(client.grad)
            client.grad.mul_(on)

        client.train(steps, before_step=before_step)
        return self.view.gather(last).square().to("cpu", torch.float32)

    def train_on(self, client: Client, mask: Tensor) -> Tensor:
        self.squares = self._train(client, mask)
        return mask

    def extra(self, round_: int) -> Mapping[Kind, Tensor]:
        return {"gradient": self.squares} if self.decides(round_) else {}

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        numel, size = len(self.weights), self.view.numel
        if not self.begun:
            chosen = self.server.average(uploads, lambda payload: unpack_mask(payload, size).float(), size, minimum=1)
            self.mask, self.begun = chosen > 0, True
            self.weights = self.pruned(self.weights, self.mask)
            return False
        if not self.decides(round_):
            return super().aggregate(round_, uploads)
        known = KnownSupport(self.mask)
        both = self.server.average(uploads, lambda payload: self.up.decode(payload, known, [size]), numel + size)
        mean, squares = both.split_with_sizes((numel, size))
        self.mask = self.decided(squares, self.mask, self.prunable(mean), self.sparsity(round_))
        self.weights = self.pruned(mean.float(), self.mask)
        self.watch.agreement()
        return None

    def decided(self, squares: Tensor, mask: Tensor, weights: Tensor, sparsity: float) -> Tensor:
        """Return the mask (M,) that follows one, of weights and G2 (M,), at most so sparse."""
        ones = [int(part.count_nonzero()) for part in self.view.split(mask)]
        stay = [one - math.floor(exact(self.config.droppable) * one) for one in ones]
        layers = zip(self.view.split(weights), self.view.split(mask), stay, strict=True)
        stays = torch.cat([top_k_among(*layer) for layer in layers])
        least = (1 - sparsity) * self.view.numel  # in floating point, as both ports
        return worthwhile(squares, self.times, least, stays, self.config.order == "rate")

    def _layer_times(self, given: Mapping[str, float]) -> Tensor:
        for name in given:
            if name not in self.view.names:
                names = ", ".join(self.view.names)
                raise UsageError(f"prunefl: layer_time of {name!r}, which is not pruned; expected some of {names}")
        return torch.tensor([given.get(name, 1.0) for name in self.view.names], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.begun = state["begun"]


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
