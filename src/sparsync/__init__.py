"""sparsync: distributed deep learning that communicates only when, what and with whom it must."""

from importlib.metadata import version

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
from sparsync.strategies import STRATEGIES
from sparsync.system import Profile
from sparsync.task import DATASETS, MODELS, PARTITIONS, Dataset, from_arrays, from_torch

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

__version__ = version("sparsync")
