"""The virtual clock: what a run would have taken on its profile's devices and links, not on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sparsync.system.profile import Profile


class Clock:
    """Virtual seconds of every worker.

    Local steps advance each worker on its own; an exchange is a barrier, which waits for the slowest, and then takes
    its messages' latencies and its bytes' time on the link.

    Attributes
    ----------
    times : array of float64, (K,)
        When each worker is ready, in virtual seconds.
    """

    def __init__(self, workers: int, profile: Profile) -> None:
        self.profile = profile
        self.times = np.zeros(workers, np.float64)

    @property
    def now(self) -> float:
        """When the last worker is ready, in virtual seconds."""
        return float(self.times.max())

    def compute(self, steps: int | Sequence[int]) -> None:
        """Every worker takes its local steps."""
        self.times += np.asarray(steps, np.float64) * self.profile.step_seconds

    def exchange(self, messages: int, serial_bytes: int) -> None:
        """All workers wait for one another, then exchange."""
        self.advance(messages * self.profile.latency + serial_bytes / self.profile.bandwidth)

    def visit(self, clients: Sequence[int], steps: Sequence[int], nbytes: Sequence[int]) -> None:
        """A server and its clients go through a round: each receives, trains and sends, and all wait for the last.

        Parameters
        ----------
        clients, steps, nbytes : sequence of int, (P,)
            Who, their local steps, and what each receives and sends.
        """
        profile = self.profile
        took = np.asarray(steps, np.float64) * profile.step_seconds + np.asarray(nbytes) / profile.bandwidth
        self.advance(2 * profile.latency + float(took.max(initial=0.0)))

    def advance(self, seconds: float) -> None:
        """All workers wait for one another, and spend so long together."""
        self.times[:] = self.now + seconds

    def state_dict(self) -> dict[str, Any]:
        """Return the workers' times, for a checkpoint."""
        return {"times": torch.from_numpy(self.times.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.times = state["times"].numpy().copy()
