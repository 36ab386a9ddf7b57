"""All that has a name, by kind: where something new is registered, and what the catalogue is written from."""

from __future__ import annotations

from typing import Any

from sparsync.hetero import GRAPHS
from sparsync.peers import MONITORS
from sparsync.spec import Registry
from sparsync.split import SAMPLERS
from sparsync.strategies import STRATEGIES
from sparsync.system import DELAYS, PRESETS
from sparsync.task import DATASETS, MODELS, PARTITIONS
from sparsync.wire import CODECS
from sparsync.workers import OPTIMIZERS, SCHEDULES

__all__ = [
    "CODECS",
    "DATASETS",
    "DELAYS",
    "GRAPHS",
    "KINDS",
    "MODELS",
    "MONITORS",
    "OPTIMIZERS",
    "PARTITIONS",
    "PRESETS",
    "SAMPLERS",
    "SCHEDULES",
    "STRATEGIES",
]

KINDS: dict[str, Registry[Any]] = {
    "strategies": STRATEGIES,
    "models": MODELS,
    "datasets": DATASETS,
    "partitions": PARTITIONS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "codecs": CODECS,
    "monitors": MONITORS,
    "samplers": SAMPLERS,
    "graphs": GRAPHS,
    "delays": DELAYS,
    "profile presets": PRESETS,
}
"""Registries by the title under which `sparsync list` shows their names."""
