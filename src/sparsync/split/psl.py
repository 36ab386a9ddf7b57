"""Parallel split learning (PSL) with global sampling: Kohankhaki et al., arXiv:2407.15738.

All clients run the same bottom half on their own samples, one server runs the top half. The server's sampler decides
how many samples each client contributes to each global batch; nothing else tells FLS, FPLS, UGS (GPSL) and LDS apart.
A step is one step of SGD on the pooled batch: one mean loss over it, bottoms' gradients summed, and every client takes
the same optimiser step, whether it took part or not. No model is ever averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from sparsync.spec import Count, Registry, config
from sparsync.split.batch import BatchComposition
from sparsync.split.cut_codecs import CutCodecs, StatelessStrategy
from sparsync.split.fixed import fls, fpls
from sparsync.split.lds import lds_epoch
from sparsync.split.schedule import Floats, Ints, Schedule, widen
from sparsync.split.trainer import SplitTrainer
from sparsync.split.ugs import ugs
from sparsync.strategies import STRATEGIES

SAMPLERS: Registry[Schedule] = Registry("sampler", Schedule)
"""Functions (counts, batch_size, rng, pool, *, options) -> Schedule, (T, n), of the n clients that have samples left.

`counts` (n,) are those samples; `context` tells more of the clients, and what that costs is booked.
"""

_BLIND = ("ugs", "gpsl", "fls", "fpls")  # to classes, of which clients need not tell

SamplerSpec = Annotated[str, AfterValidator(SAMPLERS.check)]


@dataclass(frozen=True)
class SamplerContext:
    """What a sampler may ask beside the numbers of samples.

    Attributes
    ----------
    config : PSL
        What the user has chosen.
    trainer : SplitTrainer
        Clients and server.
    active : array of int64, (n,)
        Clients that have samples left.
    """

    config: PSL
    trainer: SplitTrainer
    active: Ints

    def histograms(self) -> Ints:
        """Samples of each class that each client has left, (n, M)."""
        return self.trainer.histograms_left()[self.active]

    def delays(self) -> Floats | None:
        """Seconds per participation, (n,); None: not known yet, so nobody is a straggler."""
        told = self.trainer.reported(measured=self.config.delays == "measured")
        return None if np.isnan(told).all() else np.where(np.isnan(told), np.nanmean(told), told)[self.active]


def _registered(name: str, sampler: Callable[..., Schedule]) -> None:
    """Register a sampler that needs to know no more."""

    @SAMPLERS.register(name)
    @wraps(sampler)
    def drawn(counts: Ints, batch_size: int, rng: np.random.Generator, _pool: SamplerContext) -> Schedule:
        return sampler(counts, batch_size, rng)


_registered("ugs", ugs)
_registered("gpsl", ugs)
_registered("fls", fls)
_registered("fpls", fpls)


@SAMPLERS.register("lds")
def latent(counts: Ints, batch_size: int, rng: np.random.Generator, context: SamplerContext) -> Schedule:
    """Latent Dirichlet sampling (LDS): uniform, tilted against stragglers by psl's strength and concentration."""
    config, trainer, total = context.config, context.trainer, int(counts.sum())
    if total == 1:  # a last sample that was late leaves nothing to choose
        return ugs(counts, batch_size, rng)
    delays, observed = context.delays(), config.sample_size
    if observed is not None and total < trainer.samples.sum():  # what is left of an epoch may be fewer
        observed = min(observed, total - 1)
    epoch = lds_epoch(
        counts,
        batch_size,
        rng,
        histograms=context.histograms(),
        delays=delays,
        concentration=config.concentration,
        sample_size=observed,
        strength=config.strength,
    )
    shares = dict(zip(context.active.tolist(), epoch.pi.tolist(), strict=True))
    trainer.notes = {"alpha_0": epoch.alpha_0, "pi": [shares.get(client, 0.0) for client in range(trainer.clients)]}
    return epoch.schedule


@STRATEGIES.register("psl")
@config
class PSL(CutCodecs):
    """One model cut in two, whose server composes every global batch (Kohankhaki et al.).

    Attributes
    ----------
    sampler : {"ugs", "lds", "fls", "fpls", "gpsl"}, or another that is registered
        Uniform global sampling (``gpsl`` is its later name), latent Dirichlet sampling, or fixed local batches, equal
        or in proportion to the clients' samples. Default: ``ugs``.
    strength : float
        LDS: how strongly stragglers' samples are packed into few batches; 0: not at all. Default: 0.5.
    concentration : float
        LDS: how closely contributions follow the clients' samples. Default: 1.
    sample_size : int, optional
        LDS: labels that are observed. Default: 1000, or half of all samples if that is less.
    delays : {"known", "measured"}
        LDS: whether delays are known beforehand, or a moving mean of what clients report, and nothing in the first
        epoch. Default: ``known``.
    uplink, downlink, labels
        As in `CutCodecs`: how what crosses the cut travels.
    copies : bool
        Hold every client's bottom although they are equal: slower, and the same. Default: one stands for all.
    """

    sampler: SamplerSpec = "ugs"
    strength: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    concentration: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    sample_size: Count | None = None
    delays: Literal["known", "measured"] = "known"
    copies: bool = False

    def rows(self, clients: int) -> tuple[int, int]:
        """One bottom stands for all, unless each is to be held; one top."""
        return (clients if self.copies else 1), 1

    def split(self, trainer: SplitTrainer) -> PSLState:
        """Begin a run."""
        self.set_up(trainer, histograms=SAMPLERS.inner(self.sampler).name not in _BLIND)
        return PSLState(self, trainer)


class PSLState(StatelessStrategy):
    """PSL in a run: all that changes is the trainer's."""

    def __init__(self, config: PSL, trainer: SplitTrainer) -> None:
        self.config = config
        self.trainer = trainer

    def schedule(self, left: Ints, rng: np.random.Generator) -> Schedule:
        """Let the sampler compose the batches, of those clients that have samples left."""
        trainer, active, total = self.trainer, np.flatnonzero(left), int(left.sum())
        context, batch_size = SamplerContext(self.config, trainer, active), min(trainer.settings.batch_size, total)
        sampler = SAMPLERS.inner(self.config.sampler)
        drawn = SAMPLERS.build(sampler, left[active], batch_size, rng, context)
        return trainer.announce(trainer.compose(widen(drawn, active, len(left))))

    def step(self, row: BatchComposition) -> float:
        """One step of SGD on the pooled batch."""
        trainer = self.trainer
        row = trainer.ask(row)
        cut_tensors = trainer.forward(row)  # activations and labels up
        loss = trainer.top(cut_tensors)  # one loss, one mean, over the whole batch
        trainer.backward(cut_tensors)  # the activations' gradients down
        trainer.share_gradient(row)  # the bottoms' gradients up, their plain sum down to all
        trainer.update()  # every client and the server
        return loss
