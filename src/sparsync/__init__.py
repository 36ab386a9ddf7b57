"""sparsync: distributed deep learning that communicates only when, what and with whom it must.

Importing it loads nothing: a name is looked up where it is defined when it is first used.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which is not loaded for this
if TYPE_CHECKING:
    from typing import Any

    from sparsync.attaching import Attached, attach
    from sparsync.comparison import compare, resume
    from sparsync.errors import (
        DataError,
        DivergedError,
        Interrupted,
        PayloadError,
        SparsyncError,
        UsageError,
    )
    from sparsync.experiment import Experiment
    from sparsync.peers import FDA, LocalSGD, Synchronous
    from sparsync.registries import STRATEGIES
    from sparsync.system import Profile
    from sparsync.task import DATASETS, MODELS, PARTITIONS, Dataset, from_arrays, from_torch

    __version__: str

__all__ = [
    "DATASETS",
    "FDA",
    "MODELS",
    "PARTITIONS",
    "STRATEGIES",
    "Attached",
    "DataError",
    "Dataset",
    "DivergedError",
    "Experiment",
    "Interrupted",
    "LocalSGD",
    "PayloadError",
    "Profile",
    "SparsyncError",
    "Synchronous",
    "UsageError",
    "attach",
    "compare",
    "from_arrays",
    "from_torch",
    "resume",
]

_HOMES = {
    "attaching": ("Attached", "attach"),
    "comparison": ("compare", "resume"),
    "errors": ("DataError", "DivergedError", "Interrupted", "PayloadError", "SparsyncError", "UsageError"),
    "experiment": ("Experiment",),
    "peers": ("FDA", "LocalSGD", "Synchronous"),
    "registries": ("STRATEGIES",),
    "system": ("Profile",),
    "task": ("DATASETS", "MODELS", "PARTITIONS", "Dataset", "from_arrays", "from_torch"),
}


def __getattr__(name: str) -> Any:
    """Load a public name, or the version, when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("sparsync")
    else:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
