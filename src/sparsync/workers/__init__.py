"""Who learns: the layout and arena of models, local training, and the fleet."""

from sparsync.workers.client import Client, ClientRuntime, LocalWork, ModelVector, StepHook, Transform
from sparsync.workers.fleet import Fleet, Model
from sparsync.workers.group import Group, SeparateProcess, SingleProcess
from sparsync.workers.layout import Arena, Layout
from sparsync.workers.optimizers import OPTIMIZERS
from sparsync.workers.schedules import SCHEDULES
from sparsync.workers.training import Learner, LocalTraining

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Arena",
    "Client",
    "ClientRuntime",
    "Fleet",
    "Group",
    "Layout",
    "Learner",
    "LocalTraining",
    "LocalWork",
    "Model",
    "ModelVector",
    "SeparateProcess",
    "SingleProcess",
    "StepHook",
    "Transform",
]
