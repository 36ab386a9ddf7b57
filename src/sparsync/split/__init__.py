"""One model cut in two, and a sampler that composes every global batch: parallel split learning and its relatives."""

from sparsync.split.centralised import Centralised
from sparsync.split.contract import SplitState, SplitStrategy
from sparsync.split.crossing import Row, Unanswered
from sparsync.split.cut import Cut, cuts, default_cut, split_at
from sparsync.split.fixed import fls, fpls
from sparsync.split.lds import lds, lds_epoch, lds_prior, map_em
from sparsync.split.psl import PSL, SAMPLERS
from sparsync.split.schedule import Schedule, deviations, expected_deviation
from sparsync.split.settings import Split
from sparsync.split.site import Site
from sparsync.split.splitfed import SplitFed
from sparsync.split.ugs import ugs

__all__ = [
    "PSL",
    "SAMPLERS",
    "Centralised",
    "Cut",
    "Row",
    "Schedule",
    "Site",
    "Split",
    "SplitFed",
    "SplitState",
    "SplitStrategy",
    "Unanswered",
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
