"""What split learning costs: bytes in the ledger, and seconds on the devices and links of a profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsync.split.channel import Delivery
from sparsync.split.schedule import Floats, Ints
from sparsync.system import Clock, Profile, System
from sparsync.wire import Kind, Ledger

_FORWARD = 1 / 3  # of a step's operations; the backward pass has one product by the weights and one by the inputs


@dataclass
class StepTimes:
    """Seconds of one step, in the order in which they pass; those of clients one after another, (n,).

    Attributes
    ----------
    up : array
        Until a client's activations have arrived.
    server : float
        While the server computes.
    back : array
        Until a client's gradient has arrived.
    down : float
        Until all clients have stepped.
    """

    up: Floats
    back: Floats
    server: float = 0.0
    down: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the step: each phase waits for the slowest who takes part."""
        return float(self.up.max(initial=0.0) + self.server + self.back.max(initial=0.0) + self.down)


class SplitCosts:
    """The book, the clock, and how long clients and server take for what they do.

    Parameters
    ----------
    profile : Profile
        Devices and links of the clients; the server is a device of power 1. Its `step_seconds` are those of
        `batch_size` samples through the whole model, forward and back.
    batch_size : int
        See there.
    bottom : float
        Share of a sample's operations that are the clients'.
    clients : int
        K.
    seed : int
        Seed of the run.
    """

    def __init__(self, profile: Profile, batch_size: int, bottom: float, clients: int, seed: int) -> None:
        self.system = System.of(profile, clients, seed)
        self.ledger, self.clock = Ledger(clients), Clock(self.system)
        self._whole = profile.step_seconds / batch_size
        self._top = self._whole * (1 - bottom)
        self._bottoms = self.system.step_seconds / batch_size * bottom

    # Seconds

    def forward(self, clients: Ints, sizes: Ints) -> Floats:
        """Of so many samples through clients' bottoms, (n,)."""
        seconds: Floats = self._bottoms[clients] * _FORWARD * sizes
        return seconds

    def backward(self, clients: Ints, sizes: Ints) -> Floats:
        """Of so many samples back through clients' bottoms, (n,)."""
        seconds: Floats = self._bottoms[clients] * (1 - _FORWARD) * sizes
        return seconds

    def top(self, samples: int) -> float:
        """Of so many samples through the top and back."""
        return self._top * samples

    def whole(self, samples: int) -> float:
        """Of so many samples through the whole model and back, in one place."""
        return self._whole * samples

    # Messages: who sends or receives how many bytes, all at once; each returns the seconds until they are there, (n,)

    def up(self, kind: Kind, clients: Ints, nbytes: int | Ints) -> Floats:
        """Clients send a message each."""
        self.ledger.book_messages(kind, clients, up=nbytes)
        return self._travel(nbytes, self.system.up[clients])

    def down(self, kind: Kind, clients: Ints, nbytes: int | Ints) -> Floats:
        """Clients receive a message each."""
        self.ledger.book_messages(kind, clients, down=nbytes)
        return self._travel(nbytes, self.system.down[clients])

    def delivered(self, delivery: Delivery, clients: Ints, *, up: bool) -> Floats:
        """Clients send or receive a message each, of several kinds in one."""
        for kind, nbytes in delivery.wire.items():
            self.ledger.book_messages(kind, clients, **{"up" if up else "down": nbytes})
        for kind, values in delivery.values.items():
            self.ledger.book_paper(kind, values)
        rates = self.system.up if up else self.system.down
        return self._travel(sum(delivery.wire.values(), np.zeros(len(clients), np.int64)), rates[clients])

    def _travel(self, nbytes: int | Ints, rates: Floats) -> Floats:
        each = np.broadcast_to(np.asarray(nbytes, np.float64), rates.shape)
        seconds: Floats = self.system.latency + np.maximum(each / rates, each.sum() / self.system.shared)
        return seconds
