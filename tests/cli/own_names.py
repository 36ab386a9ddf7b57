"""One of every kind that can be registered from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
from torch import nn

from sparsync import Dataset, from_arrays
from sparsync.peers import Monitor
from sparsync.registries import CODECS, DELAYS, GRAPHS, MONITORS, OPTIMIZERS, PRESETS, SAMPLERS
from sparsync.split import fls
from sparsync.system import ParticipationDelays
from sparsync.wire import TopKSupport


@CODECS.register("largest")
def largest(*, percent: float = 10.0) -> TopKSupport:
    """Keep so many per cent.

    Parameters
    ----------
    percent : float
        How many of a hundred numbers travel.
    """
    return TopKSupport(percent / 100)


class Always(Monitor):
    paper_bytes = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def variance(self, fleet: Any, anchor: Any, *, weighted: bool = False) -> float:
        return self.value


@MONITORS.register("always")
def always(_fleet: Any, _settings: Any, *, value: float = 1.0) -> Monitor:
    """Say the same whatever happens."""
    return Always(value)


@SAMPLERS.register("whole")
def whole(counts: Any, batch_size: int, rng: np.random.Generator, _pool: Any, *, factor: int = 2) -> Any:
    """Fixed batches, larger by a factor."""
    return fls(counts, factor * batch_size, rng)


@GRAPHS.register("wheel")
def wheel(workers: int, _degree: int, _seed: int) -> nx.Graph:
    """A ring, and everyone is linked to the first."""
    return nx.wheel_graph(workers)


@DELAYS.register("even")
def even(clients: int, seed: int, *, seconds: float = 0.5) -> ParticipationDelays:
    """Every second client is late."""
    return ParticipationDelays(np.where(np.arange(clients) % 2, 0.0, seconds), 0.0, seed)


@PRESETS.register("moon")
def moon() -> Mapping[str, Any]:
    """1.3 light seconds."""
    return {"latency": 1.3}


@OPTIMIZERS.register("no-optimizer")
def no_optimizer(_rows: Any) -> None:
    """Returns nothing."""


def net(shape: tuple[int, ...], classes: int, hidden=3, *, bias: bool = True) -> nn.Module:  # type: ignore[no-untyped-def]
    return nn.Sequential(nn.Flatten(), nn.Linear(2, hidden), nn.Linear(hidden, classes, bias=bias))


class Net(nn.Sequential):
    def __init__(self, hidden: int) -> None:
        super().__init__(nn.Linear(2, hidden), nn.Linear(hidden, 2))


def blobs(root: object, n: int = 40) -> Dataset:
    x = np.random.default_rng(0).normal(size=(n, 2)).astype("f4")
    return from_arrays(x, np.arange(n) % 2, x, np.arange(n) % 2)
