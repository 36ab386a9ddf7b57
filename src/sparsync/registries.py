"""All that has a name, by kind: what `sparsync list` shows, and where something new is registered."""

from __future__ import annotations

from typing import Any

from sparsync.hetero import GRAPHS
from sparsync.peers import MONITORS
from sparsync.spec import Entry, Registry, unknown
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
    "MODELS",
    "MONITORS",
    "OPTIMIZERS",
    "PARTITIONS",
    "PRESETS",
    "SAMPLERS",
    "SCHEDULES",
    "STRATEGIES",
    "described",
    "listed",
]

_KINDS: dict[str, Registry[Any]] = {
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


def listed() -> str:
    """Return every name with its parameters and summary, one a line, kind by kind."""
    lines = []
    for title, registry in _KINDS.items():
        lines += ["", title, *(_line(entry) for _, entry in sorted(registry.entries.items()))]
    return "\n".join(lines)


def described(name: str) -> str:
    """Return all that is known of a name, of whatever kind it is.

    Raises
    ------
    UsageError
        If nothing is called so.
    """
    found = [(registry.kind, registry[name]) for registry in _KINDS.values() if name in registry.entries]
    if not found:
        raise unknown("name", name, sorted({one for registry in _KINDS.values() for one in registry.entries}))
    return "\n\n".join(_whole(kind, entry) for kind, entry in found)


def _line(entry: Entry[Any]) -> str:
    parameters = ", ".join(str(parameter) for parameter in entry.parameters)
    return f"  {entry.name}{f': {parameters}' if parameters else ''}  {entry.summary}"


def _whole(kind: str, entry: Entry[Any]) -> str:
    lines, meanings = [f"{kind} {entry.name}", "", entry.text], entry.meanings
    for parameter in entry.parameters:
        lines += ["", f"  {parameter}", f"      {meanings.get(parameter.name, 'see above')}"]
    return "\n".join(lines)
