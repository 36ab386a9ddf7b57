"""What the two sides of a federation know, as a strategy sees it; and the server's means of uploads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsync.errors import PayloadError, SparsyncError
from sparsync.federated.exact import ExactState
from sparsync.federated.settings import Federation
from sparsync.randomness import SHARED, generator
from sparsync.sparsity import ParamView, prunable_names
from sparsync.workers import Group, ModelVector, SingleProcess
from sparsync.workers.batches import batches_per_pass
from sparsync.workers.group import gather, total


@dataclass(frozen=True)
class Upload:
    """What arrived from a client.

    Attributes
    ----------
    client : int
        Which one.
    payload : bytes
        What it sent.
    staleness : int
        How often the server has updated the model since it sent it to this client.
    """

    client: int
    payload: bytes
    staleness: int = 0


class TooFewUploads(SparsyncError):
    """Fewer clients than a round needs have sent something valid; the server's state is as before the round."""


class FederationContext:
    """What every site of a federation knows, clients too: the model's shape and the settings.

    Parameters
    ----------
    vector : ModelVector
        Shape of a model; its row holds the first one.
    module : nn.Module
        The model, for its layers.
    settings : Federation
        Rounds, cohorts and weights.
    classes : int
        Labels of the task.
    seed : int
        Seed of the run.

    Attributes
    ----------
    exact : ExactState
        What models hold that is no float32 number.
    """

    def __init__(
        self, vector: ModelVector, module: nn.Module, settings: Federation, *, classes: int = 10, seed: int = 0
    ) -> None:
        self.vector, self.module, self.settings, self.seed = vector, module, settings, seed
        self.classes = classes
        self.exact = ExactState(vector.arena)

    @property
    def rounds(self) -> int:
        """Rounds of the whole run, T: what schedules are stretched over."""
        return self.settings.rounds

    def view(self, rule: str = "sparsyfed") -> ParamView:
        """Return the prunable parameters of the model by a named rule."""
        return ParamView(self.vector.arena.layout.slots, prunable_names(self.module, rule))

    def generator(self, purpose: str, *index: int) -> np.random.Generator:
        """Return the generator that all sites share for a purpose, and further coordinates such as the round."""
        return generator(self.seed, purpose, SHARED, *index)


class ServerContext(FederationContext):
    """What the server knows besides: all clients. Every process computes the same, each with its clients' uploads.

    Parameters
    ----------
    vector, module, settings, classes, seed
        As of `FederationContext`.
    samples : sequence of int, (N,)
        Samples per client.
    batch_size : int
        Samples per local batch.
    joined : bool
        Whether clients join a last batch of one sample to the batch before it. Default: no.
    group : Group
        The processes. Default: this one alone.

    Attributes
    ----------
    cohort : int
        Clients per round.
    initial : Tensor, (D,)
        The first model.
    share : float
        Of all clients' weight, what the last mean took in.
    discount : float
        Weighted mean of the last mean's discounts.
    rejected : dict of int to str
        Clients whose upload was refused in the current exchange, and why: the same in all processes.
    journal : dict
        Numbers of the current exchange for the history.
    """

    def __init__(
        self,
        vector: ModelVector,
        module: nn.Module,
        samples: Sequence[int],
        settings: Federation,
        *,
        batch_size: int = 32,
        classes: int = 10,
        seed: int = 0,
        joined: bool = False,
        group: Group | None = None,
    ) -> None:
        super().__init__(vector, module, settings, classes=classes, seed=seed)
        self.batch_size, self.joined = batch_size, joined
        self.group: Group = group or SingleProcess()
        self.samples = np.asarray(samples, np.int64)
        self.cohort = settings.cohort_of(len(self.samples))
        self.initial = vector.read()
        self.share, self.discount = 0.0, 1.0
        self.rejected: dict[int, str] = {}
        self.journal: dict[str, Any] = {}

    @property
    def clients(self) -> int:
        """Number of clients, N."""
        return len(self.samples)

    def sample(self, rng: np.random.Generator, number: int | None = None, without: Collection[int] = ()) -> list[int]:
        """Select a cohort, without replacement, by the federation's settings.

        Parameters
        ----------
        rng : Generator
            Where the randomness comes from.
        number : int, optional
            How many. Default: the federation's cohort.
        without : collection of int
            Who is not to be selected.
        """
        eligible = np.delete(np.arange(self.clients), np.array(list(without), np.int64))
        samples = self.samples[eligible]
        chances = samples / samples.sum() if self.settings.sampling == "weighted" else None
        chosen = rng.choice(eligible, self.cohort if number is None else number, replace=False, p=chances)
        return sorted(int(client) for client in chosen)

    def steps_of(self, client: int) -> int:
        """How many local steps a client takes when it is selected."""
        settings = self.settings
        return settings.steps or (settings.epochs or 1) * self.batches_of(client)

    def batches_of(self, client: int) -> int:
        """How many batches a pass over a client's samples has."""
        return batches_per_pass(int(self.samples[client]), self.batch_size, self.settings.drop_last, self.joined)

    def weight(self, client: int) -> float:
        """A client's weight in means: its number of samples, or 1."""
        return float(self.samples[client]) if self.settings.weights == "samples" else 1.0

    def average(
        self,
        uploads: Iterable[Upload],
        decode: Callable[[bytes], Tensor],
        numel: int,
        minimum: int | None = None,
        discount: Callable[[Upload], float] | None = None,
        observe: Callable[[Upload, Tensor], None] | None = None,
    ) -> Tensor:
        """Weighted mean of what valid uploads decode to, taken as they come: one vector is held, not a cohort's.

        What is exact of the models among them moves the server's, by the same weights, and without a discount.

        Parameters
        ----------
        uploads : iterable of Upload
            Those of this process.
        decode : callable
            From a payload to a vector (numel,); a `PayloadError`, or a number that is not finite, costs its sender.
        numel : int
            Length of the vectors.
        minimum : int, optional
            Valid uploads needed. Default: the federation's.
        discount : callable, optional
            Factor on what an upload decodes to; the mean's divisor is without it. Default: none.
        observe : callable, optional
            Gets every valid upload and the vector that it decodes to.

        Returns
        -------
        Tensor, (numel,), float64
            The same bits in all processes.

        Raises
        ------
        TooFewUploads
            If fewer than the minimum were valid, over all processes.
        """
        exact = self.exact
        sums = torch.zeros(numel + exact.numel + 3, dtype=torch.float64)  # ..., weight, discounted, valid uploads
        refused: dict[int, str] = {}
        for upload in uploads:
            try:
                payload, values = exact.split(upload.payload)
                x = finite(decode(payload))
            except PayloadError as error:
                refused[upload.client] = str(error)
                continue
            if observe is not None:
                observe(upload, x)
            weight = self.weight(upload.client)
            discounted = weight if discount is None else weight * discount(upload)
            sums[:numel].add_(x, alpha=discounted)
            if values is not None:
                sums[numel:-3].add_(exact.change(values), alpha=weight)
            sums[-3] += weight
            sums[-2] += discounted
            sums[-1] += 1
        self.rejected = dict(sorted(gather(self.group, refused).items()))
        sums = total(self.group, sums)
        valid, needed = int(sums[-1]), self.settings.minimum if minimum is None else minimum
        if valid < needed:
            raise TooFewUploads(f"{valid} valid uploads, {needed} needed{self._reasons()}")
        everyone = self.samples.sum() if self.settings.weights == "samples" else self.clients
        self.share = float(sums[-3]) / float(everyone)
        self.discount = float(sums[-2]) / float(sums[-3])
        exact.move(sums[numel:-3] / sums[-3])
        return sums[:numel] / sums[-3]

    def _reasons(self, most: int = 3) -> str:
        """Why uploads were refused, as the end of a sentence."""
        reasons = [f"client {client}: {reason}" for client, reason in self.rejected.items()]
        if len(reasons) > most:
            reasons[most:] = [f"{len(reasons) - most} more"]
        return f" ({'; '.join(reasons)})" if reasons else ""

    def record(self, **numbers: Any) -> None:
        """Note numbers of this round that a user will want to see."""
        self.journal.update(numbers)


def finite(x: Tensor) -> Tensor:
    """Return `x`, if all of it is finite.

    Raises
    ------
    PayloadError
        If not.
    """
    if not bool(torch.isfinite(x).all()):
        raise PayloadError("upload holds NaN or infinity; its sender diverged")
    return x
