"""Parallel split learning (PSL) with global sampling: Kohankhaki et al., arXiv:2407.15738.

All clients run the same bottom half on their own samples, one server runs the top half. The server's sampler decides
how many samples each client contributes to each global batch; nothing else tells FLS, FPLS, UGS (GPSL) and LDS apart.
A step is one step of SGD on the pooled batch: one mean loss over it, bottoms' gradients summed, and every client takes
the same optimiser step, whether it took part or not. No model is ever averaged.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from sparsync.spec import config
from sparsync.split.crossing import Row
from sparsync.split.fixed import fls, fpls
from sparsync.split.lds import lds_epoch
from sparsync.split.schedule import Floats, Ints, Schedule, widen
from sparsync.split.site import Site
from sparsync.split.travel import Stateless, Travel
from sparsync.split.ugs import ugs
from sparsync.strategies import STRATEGIES

SAMPLERS = {"fls": fls, "fpls": fpls, "ugs": ugs, "gpsl": ugs}


@STRATEGIES.register("psl")
@config
class PSL(Travel):
    """One model cut in two, whose server composes every global batch (Kohankhaki et al.).

    Attributes
    ----------
    sampler : {"ugs", "lds", "fls", "fpls", "gpsl"}
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
        As in `Travel`: how what crosses the cut travels.
    copies : bool
        Hold every client's bottom although they are equal: slower, and the same. Default: one stands for all.
    """

    sampler: Literal["ugs", "lds", "fls", "fpls", "gpsl"] = "ugs"
    strength: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    concentration: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    sample_size: int | None = Field(default=None, ge=1)
    delays: Literal["known", "measured"] = "known"
    copies: bool = False

    def rows(self, clients: int) -> tuple[int, int]:
        """One bottom stands for all, unless each is to be held; one top."""
        return (clients if self.copies else 1), 1

    def split(self, site: Site) -> PSLState:
        """Begin a run."""
        self.set_up(site, histograms=self.sampler == "lds")
        return PSLState(self, site)


class PSLState(Stateless):
    """PSL in a run: all that changes is the site's."""

    def __init__(self, config: PSL, site: Site) -> None:
        self.config = config
        self.site = site

    def schedule(self, left: Ints, rng: np.random.Generator) -> Schedule:
        """Let the sampler compose the batches, of those clients that have samples left."""
        site, sampler = self.site, self.config.sampler
        active, total = np.flatnonzero(left), int(left.sum())
        counts, batch_size = left[active], min(site.settings.batch_size, total)
        if sampler == "lds" and total > 1:  # a last sample that was late leaves nothing to choose
            drawn = self._lds(active, counts, batch_size, rng)
        else:
            drawn = SAMPLERS.get(sampler, ugs)(counts, batch_size, rng)
        return site.announce(site.compose(widen(drawn, active, len(left))))

    def _lds(self, active: Ints, counts: Ints, batch_size: int, rng: np.random.Generator) -> Schedule:
        config, site, total = self.config, self.site, int(counts.sum())
        delays, observed = self._delays(), config.sample_size
        if observed is not None and total < site.samples.sum():  # what is left of an epoch may be fewer
            observed = min(observed, total - 1)
        epoch = lds_epoch(
            counts,
            batch_size,
            rng,
            histograms=site.histograms_left()[active],
            delays=None if delays is None else delays[active],
            concentration=config.concentration,
            sample_size=observed,
            strength=config.strength,
        )
        shares = dict(zip(active.tolist(), epoch.pi.tolist(), strict=True))
        site.notes = {"alpha_0": epoch.alpha_0, "pi": [shares.get(client, 0.0) for client in range(site.clients)]}
        return epoch.schedule

    def _delays(self) -> Floats | None:
        """Seconds per participation, (K,); None: not known yet, so nobody is a straggler."""
        told = self.site.reported(measured=self.config.delays == "measured")
        return None if np.isnan(told).all() else np.where(np.isnan(told), np.nanmean(told), told)

    def step(self, row: Row) -> float:
        """One step of SGD on the pooled batch."""
        site = self.site
        row = site.ask(row)
        crossing = site.forward(row)  # activations and labels up
        loss = site.top(crossing)  # one loss, one mean, over the whole batch
        site.backward(crossing)  # the activations' gradients down
        site.share_gradient(row)  # the bottoms' gradients up, their plain sum down to all
        site.update()  # every client and the server
        return loss
