"""One model cut in two, and a sampler that composes every global batch: parallel split learning and its relatives."""

from sparsync.split.batch import BatchComposition, NoClientAnswered
from sparsync.split.centralised import Centralised
from sparsync.split.clients import LocalSplitClients, SplitClients
from sparsync.split.contract import SplitState, SplitStrategy
from sparsync.split.cut import Cut, cuts, default_cut, split_at
from sparsync.split.fixed import fls, fpls
from sparsync.split.lds import lds, lds_epoch, lds_prior, map_em
from sparsync.split.psl import PSL, SAMPLERS
from sparsync.split.schedule import Schedule, deviations, expected_deviation
from sparsync.split.settings import SplitSettings
from sparsync.split.splitfed import SplitFed
from sparsync.split.trainer import SplitTrainer
from sparsync.split.ugs import ugs

__all__ = [
    "PSL",
    "SAMPLERS",
    "BatchComposition",
    "Centralised",
    "Cut",
    "LocalSplitClients",
    "NoClientAnswered",
    "Schedule",
    "SplitClients",
    "SplitFed",
    "SplitSettings",
    "SplitState",
    "SplitStrategy",
    "SplitTrainer",
    "cuts",
    "default_cut",
    "deviations",
    "expected_deviation",
    "fls",
    "fpls",
    "lds",
    "lds_epoch",
    "lds_prior",
    "map_em",
    "split_at",
    "ugs",
]
