"""FedDIP: Long et al., arXiv:2309.06805 (ICDM 2023); DPF is Lin et al., arXiv:2006.07253.

Clients keep dense weights omega and compute gradients at the pruned ones, theta = m * omega, so that what the mask
hides still learns (error feedback). Every R rounds the server decides the mask anew, over all layers together, while
the sparsity follows a cubic ramp. A penalty on the norm of each pruned layer grows in steps.

``mask_init=clients,reconfigure_on=masked`` is what the authors' code computes, ``EricLoong/feddip`` @ 4327d96, but for
normalisation: there its statistics come from a second pass of the dense model, and in round 0 its weights count as
layers of the ERK mask and of the penalty, as shortcuts do. Defaults differ: one mask, the server's, from the first
download on, decided on the dense mean, so that pruned weights can return.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.masked import MaskedClient, MaskedConfig, MaskedServer, MaskedWork, over_parameters
from sparsync.shares import exact
from sparsync.sparsity import Cubic, ParamView, Staircase, counts, erk, kept, random_mask, top_k_mask
from sparsync.spec import MOST, Count, Natural, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import KnownSupport
from sparsync.workers import Client

MaskInit = Annotated[
    Literal["erk", "clients", "none"], BeforeValidator(lambda value: "none" if value is None else value)
]
Norm = Annotated[Literal["1", "2", "inf"], BeforeValidator(str)]  # from Python, numbers are welcome, too


@config
class DynamicPruning(MaskedConfig):
    """What FedDIP and DPF have in common.

    Attributes
    ----------
    sparsity, sparsity_init : float
        Fraction of zeros among prunable entries at the end, s_p, and at the start, s_0. Default: 0.9 and 0.5.
    reconfiguration_interval : int
        R, rounds between two decisions about the mask. Default: 5.
    first_reconfiguration : int
        First round, counted from 0, that may decide. Default: 0, as in that code.
    reconfigure_on : {"dense", "masked"}
        Whether the mask is ranked on the clients' dense mean, so that pruned weights can return, or on what the old
        mask leaves of it (as in that code: masks are nested).
    upload : {"dense_on_reconfiguration", "dense", "masked"}
        What clients send: everything in rounds that decide and the mask's entries in others; or always the one.
    mask_init : {"erk", "clients", "none"}
        The first mask: random at ERK densities, the same for all; one for each client, which draws it and trains with
        it from the dense model in round 0, as in that code; or everything.
    erk_power : float
        gamma of ERK; 0 is uniform. Default: 1.
    prunable : str
        Which layers are pruned: ``feddip`` (no shortcuts), ``sparsyfed`` (all) or ``weights_no_ends``.
    uplink, downlink : str, optional
        How the numbers travel. Default: float32.
    """

    sparsity: float = Field(default=0.9, ge=0, lt=1)
    sparsity_init: float = Field(default=0.5, ge=0, lt=1)
    reconfiguration_interval: Count = 5
    first_reconfiguration: Natural = 0
    reconfigure_on: Literal["dense", "masked"] = "dense"
    upload: Literal["dense_on_reconfiguration", "dense", "masked"] = "dense_on_reconfiguration"
    mask_init: MaskInit = "erk"
    erk_power: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    prunable: Literal["feddip", "sparsyfed", "weights_no_ends"] = "feddip"

    @model_validator(mode="after")
    def _combination(self) -> DynamicPruning:
        if self.sparsity_init > self.sparsity:
            raise ValueError(
                f"sparsity_init={self.sparsity_init} exceeds sparsity={self.sparsity}; sparsity only grows"
            )
        if self.mask_init == "clients" and self.first_reconfiguration > 0:
            raise ValueError(
                f"mask_init=clients with first_reconfiguration={self.first_reconfiguration}: clients' own masks last "
                "for round 0, and the server's first follows it; take first_reconfiguration=0, or mask_init=erk"
            )
        if self.reconfigure_on == "dense" and self.upload == "masked":
            raise ValueError(
                "reconfigure_on=dense with upload=masked: the server would rank what clients never sent; "
                "take upload=dense_on_reconfiguration, or reconfigure_on=masked"
            )
        if self.reconfigure_on == "masked" and self.upload == "dense_on_reconfiguration":
            warnings.warn(
                "reconfigure_on=masked ignores what is off the mask; upload=masked gives the same models for less",
                stacklevel=2,
            )
        return self

    def penalty(self, rounds: int) -> Staircase | None:
        """Return the strength of the regularisation by round, if there is one."""
        return None

    @property
    def norm(self) -> Norm:
        """Norm of the regularisation."""
        return "2"

    def own_masks(self, round_: int) -> bool:
        """Whether clients draw masks of their own, since there is none yet."""
        return self.mask_init == "clients" and round_ == 0

    def decides(self, round_: int) -> bool:
        """Whether a round, counted from 0, ends with a new mask."""
        return round_ % self.reconfiguration_interval == 0 and round_ >= self.first_reconfiguration

    def dense_upload(self, round_: int) -> bool:
        """Whether clients send what is off the mask, too."""
        when_deciding = self.upload == "dense_on_reconfiguration" and self.decides(round_)
        return self.upload == "dense" or when_deciding or self.own_masks(round_)

    def drawn(self, view: ParamView, rng: np.random.Generator) -> Tensor:
        """Return a random mask (M,) at ERK densities, of the sparsity that the ramp starts at."""
        densities = erk(view.shapes, 1 - exact(self.sparsity_init), self.erk_power)
        return random_mask(view.shapes, counts(view.shapes, densities), rng)

    def make_server(self, context: ServerContext) -> FedDIPServer:
        return FedDIPServer(self, context)

    def make_client(self, context: FederationContext) -> FedDIPClient:
        return FedDIPClient(self, context)


@STRATEGIES.register("feddip")
@config
class FedDIP(DynamicPruning):
    """Prune dynamically with error feedback and a growing penalty on the layers' norms (FedDIP).

    Besides what dpf has as well: `sparsity`, `sparsity_init`, `reconfiguration_interval`, `first_reconfiguration`,
    `reconfigure_on`, `upload`, `mask_init`, `erk_power`, `prunable`, `uplink` and `downlink`.

    Attributes
    ----------
    lambda_max, lambda_min : float
        Range of the penalty; the last step stays below its upper end, as in that code. Default: 1e-3 and 5e-4.
    lambda_steps : int
        Q, steps of the staircase; during the first the penalty is 0. Default: 20.
    norm_order : {"2", "1", "inf"}
        Of each layer's norm, which is not squared.
    """

    lambda_max: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    lambda_min: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    lambda_steps: int = Field(default=20, ge=2, le=MOST)
    norm_order: Norm = "2"

    @model_validator(mode="after")
    def _rising(self) -> FedDIP:
        if self.lambda_max and self.lambda_min > self.lambda_max:
            raise ValueError(
                f"lambda_min={self.lambda_min} exceeds lambda_max={self.lambda_max}; lambda_max=0 is no penalty at all"
            )
        return self

    def penalty(self, rounds: int) -> Staircase | None:
        if not self.lambda_max:
            return None
        if rounds < self.lambda_steps:
            raise UsageError(
                f"feddip: lambda_steps={self.lambda_steps} in {rounds} rounds; ask for fewer steps or more rounds"
            )
        return Staircase(0.0, self.lambda_min, self.lambda_max, self.lambda_steps, rounds)

    @property
    def norm(self) -> Norm:
        return self.norm_order


class FedDIPServer(MaskedServer):
    """The global model, (D,), and its mask, (M,), which some rounds decide anew."""

    def __init__(self, config: DynamicPruning, context: ServerContext) -> None:
        ramp = Cubic(config.sparsity_init, config.sparsity, context.rounds)
        super().__init__(config, context, ramp, config.prunable)
        self.config = config
        self.penalty = config.penalty(context.rounds)
        if config.mask_init == "erk" and config.sparsity_init > 0:
            self.mask = config.drawn(self.view, context.generator("mask"))
        self.weights = self.pruned(self.weights, self.mask)

    def downlink(self, round_: int) -> bytes:
        payload = super().downlink(round_)
        if self.penalty:
            self.context.record(**{"lambda": self.penalty(round_)})
        return payload

    def kept(self, round_: int) -> int:
        """Return k_t, ones of a mask that is decided in a round."""
        return kept(self.view.numel, self.sparsity(round_))

    def support(self, round_: int, decoded: Tensor) -> Tensor:
        """Return the mask (M,) that a client would choose alone, where it sends all that this takes."""
        if not self.config.dense_upload(round_):
            return self.mask
        if not self.config.decides(round_):
            return torch.ones_like(self.mask)
        return top_k_mask(self.prunable(decoded), self.kept(round_))

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        everything = torch.ones_like(self.mask)
        known = KnownSupport(everything if self.config.dense_upload(round_) else self.mask)
        mean = self.mean(
            uploads,
            lambda payload: self.up.decode(payload, known),
            len(self.weights),
            partial(self.support, round_),
        ).float()
        if self.config.reconfigure_on == "masked":
            mean = self.pruned(mean, self.mask)
        if self.config.decides(round_):
            self.decide(self.prunable(mean), self.kept(round_))
        self.weights = self.pruned(mean, self.mask)
        return None

    def decide(self, aggregate: Tensor, count: int) -> None:
        """Take as many of the largest magnitudes of the aggregate (M,) for the new mask."""
        if self.config.reconfigure_on == "masked":  # never fill up with zeros that the old mask has left
            count = min(count, int(aggregate.count_nonzero()))
        old, self.mask = self.mask, top_k_mask(aggregate, count)
        total, lost = float(aggregate.double().square().sum()), float(aggregate[~self.mask].double().square().sum())
        self.context.record(
            returned=int((self.mask & ~old).count_nonzero()),
            dropped=int((old & ~self.mask).count_nonzero()),
            delta=lost / total if total else 0.0,
        )


class FedDIPClient(MaskedClient):
    """The client's half: dense weights, whose gradients are those of the pruned ones."""

    def __init__(self, config: DynamicPruning, context: FederationContext) -> None:
        super().__init__(config, context, config.prunable)
        self.config = config
        self.penalty = config.penalty(context.rounds)

    def work_on(self, client: Client, received: Tensor, mask: Tensor) -> Work:
        if self.config.own_masks(client.round):
            mask = self.config.drawn(self.view, client.generator("mask"))
        strength = self.penalty(client.round) if self.penalty else 0.0
        transform = MaskTransform(self.view, mask, strength, self.config.norm)
        return MaskedWork(received, received, transform=transform, mask=mask)

    def reply(self, client: Client, work: Work) -> Work | Reply:
        assert isinstance(work, MaskedWork)
        if not self.config.dense_upload(client.round):
            return super().reply(client, work)
        trained, mask, everything = self.prunable(client.model()).double(), work.mask, torch.ones_like(work.mask)
        off_mask = float(trained[~mask].norm() / trained[mask].norm().clamp_min(1e-30))
        return self.send(client, work, KnownSupport(everything), everything, notes={"off_mask": off_mask})


class MaskTransform:
    """The transform of local training: theta = m * omega, whose gradient is omega's as well (straight through).

    The gradient is not masked: entries that the mask hides move, too. The penalty's gradient is
    lambda theta_l / ||theta_l|| in each layer, 0 for a layer of zeros.

    Parameters
    ----------
    view : ParamView
        The prunable entries.
    mask : Tensor, (M,)
        Which of them are kept.
    strength : float
        lambda. Default: 0.
    norm : {"2", "1", "inf"}
        Of the penalty.
    """

    def __init__(self, view: ParamView, mask: Tensor, strength: float = 0.0, norm: Norm = "2") -> None:
        self.view, self.strength, self.norm = view, strength, norm
        self.on = over_parameters(view, mask)
        self.theta: Tensor | None = None

    def weights(self, raw: Tensor, out: Tensor) -> None:
        self.theta = torch.mul(raw, self.on.to(raw), out=out)

    def gradient(self, raw: Tensor, grad: Tensor) -> None:
        if self.strength and self.theta is not None:
            for start, stop in self.view.spans:
                grad[start:stop].add_(self._direction(self.theta[start:stop]), alpha=self.strength)

    def _direction(self, theta: Tensor) -> Tensor:
        """Gradient of a layer's norm, 0 where it is 0."""
        if self.norm == "1":
            return theta.sign()
        if self.norm == "inf":
            largest = theta.abs().argmax()
            return torch.zeros_like(theta).index_copy_(0, largest[None], theta[largest][None].sign())
        length = theta.norm()
        return theta / length if length > 0 else theta
