"""Who learns: the layout and arena of models, local training, and the fleet."""

from sparsync.workers.client import Bench, Client, LocalWork, ModelVector, Transform
from sparsync.workers.fleet import Fleet, Model
from sparsync.workers.group import Alone, Apart, Group
from sparsync.workers.layout import Arena, Layout
from sparsync.workers.optimizers import OPTIMIZERS, check_optimizer
from sparsync.workers.schedules import SCHEDULES
from sparsync.workers.training import Learner, LocalTraining

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Alone",
    "Apart",
    "Arena",
    "Bench",
    "Client",
    "Fleet",
    "Group",
    "Layout",
    "Learner",
    "LocalTraining",
    "LocalWork",
    "Model",
    "ModelVector",
    "Transform",
    "check_optimizer",
]
