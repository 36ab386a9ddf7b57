"""The server's side of a federation, as a strategy sees it: who there is, the first model, and means of uploads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsync.errors import PayloadError, SparsyncError
from sparsync.federated.settings import Federation
from sparsync.randomness import SHARED, generator
from sparsync.sparsity import ParamView, prunable_names
from sparsync.workers import Alone, Group, ModelVector
from sparsync.workers.batches import batches_per_pass
from sparsync.workers.group import gather, total


@dataclass(frozen=True)
class Upload:
    """What arrived from a client."""

    client: int
    payload: bytes


class TooFewUploads(SparsyncError):
    """Fewer clients than a round needs have sent something valid; the server's state is as before the round."""


class Server:
    """What every process knows of a federation. All compute the same from it, each with the uploads of its clients.

    Parameters
    ----------
    vector : ModelVector
        Shape of a model; its row holds the first one.
    module : nn.Module
        The model, for its layers.
    samples : sequence of int, (N,)
        Samples per client.
    settings : Federation
        Rounds, cohorts and weights.
    batch_size : int
        Samples per local batch.
    classes : int
        Labels of the task.
    seed : int
        Seed of the run.
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
        group: Group | None = None,
    ) -> None:
        self.vector, self.module, self.settings, self.seed = vector, module, settings, seed
        self.batch_size, self.classes = batch_size, classes
        self.group: Group = group or Alone()
        self.samples = np.asarray(samples, np.int64)
        self.cohort = settings.cohort_of(len(self.samples))
        self.initial = vector.read()
        self.share = 0.0
        self.rejected: dict[int, str] = {}
        self.journal: dict[str, Any] = {}

    @property
    def clients(self) -> int:
        """Number of clients, N."""
        return len(self.samples)

    @property
    def rounds(self) -> int:
        """Rounds of the whole run, T: what schedules are stretched over."""
        return self.settings.rounds

    def view(self, rule: str = "sparsyfed") -> ParamView:
        """Return the prunable parameters of the model by a named rule."""
        return ParamView(self.vector.arena.layout.slots, prunable_names(self.module, rule))

    def generator(self, purpose: str, *index: int) -> np.random.Generator:
        """Return the generator of a purpose on the server, and of further coordinates such as the round."""
        return generator(self.seed, purpose, SHARED, *index)

    def sample(self, rng: np.random.Generator) -> list[int]:
        """Select a cohort, without replacement, by the federation's settings."""
        chances = self.samples / self.samples.sum() if self.settings.sampling == "weighted" else None
        chosen = rng.choice(self.clients, self.cohort, replace=False, p=chances)
        return sorted(int(client) for client in chosen)

    def batches_of(self, client: int) -> int:
        """How many batches a pass over a client's samples has."""
        return batches_per_pass(int(self.samples[client]), self.batch_size, self.settings.drop_last)

    def weight(self, client: int) -> float:
        """A client's weight in means: its number of samples, or 1."""
        return float(self.samples[client]) if self.settings.weights == "samples" else 1.0

    def average(
        self,
        uploads: Iterable[Upload],
        decode: Callable[[bytes], Tensor],
        numel: int,
        minimum: int | None = None,
    ) -> Tensor:
        """Weighted mean of what valid uploads decode to, taken as they come: one vector is held, not a cohort's.

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

        Returns
        -------
        Tensor, (numel,), float64
            The same bits in all processes.

        Raises
        ------
        TooFewUploads
            If fewer than the minimum were valid, over all processes.
        """
        sums = torch.zeros(numel + 2, dtype=torch.float64)  # ..., total weight, number of valid uploads
        refused: dict[int, str] = {}
        for upload in uploads:
            try:
                x = finite(decode(upload.payload))
            except PayloadError as error:
                refused[upload.client] = str(error)
                continue
            weight = self.weight(upload.client)
            sums[:numel].add_(x, alpha=weight)
            sums[numel] += weight
            sums[numel + 1] += 1
        self.rejected = dict(sorted(gather(self.group, refused).items()))
        sums = total(self.group, sums)
        valid, needed = int(sums[numel + 1]), self.settings.minimum if minimum is None else minimum
        if valid < needed:
            raise TooFewUploads(f"{valid} valid uploads, {needed} needed{self._reasons()}")
        everyone = self.samples.sum() if self.settings.weights == "samples" else self.clients
        self.share = float(sums[numel]) / float(everyone)
        return sums[:numel] / sums[numel]

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
