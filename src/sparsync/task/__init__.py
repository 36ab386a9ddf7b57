"""What is learnt: datasets, their partitions among workers, models, loss and metric."""

from sparsync.task.data import Dataset, Examples
from sparsync.task.datasets import DATASETS, from_arrays, from_torch, load_dataset
from sparsync.task.flops import forward_flops, total_flops
from sparsync.task.models import MODELS, build_model
from sparsync.task.partitions import PARTITIONS, counts, partition
from sparsync.task.state import evaluating
from sparsync.task.task import Task

__all__ = [
    "DATASETS",
    "MODELS",
    "PARTITIONS",
    "Dataset",
    "Examples",
    "Task",
    "build_model",
    "counts",
    "evaluating",
    "forward_flops",
    "from_arrays",
    "from_torch",
    "load_dataset",
    "partition",
    "total_flops",
]
