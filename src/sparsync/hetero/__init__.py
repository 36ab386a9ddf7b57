"""Devices of unequal speed: how much each trains, which of them average, and how they pass their models around."""

from sparsync.hetero.graphs import GRAPHS, GraphSpec, connected, make_graph, metropolis, spectral_gap
from sparsync.hetero.plan import HyperperiodPlan, ideal_throughput, make_plan
from sparsync.hetero.planner import CyclePlanner, RingSelection
from sparsync.hetero.ring import RingPlan, ring_mean
from sparsync.hetero.selection import (
    default_members,
    draw_members,
    inclusion_probabilities,
    selection_log_probabilities,
    selection_probabilities,
)
from sparsync.hetero.versions import Forecast

__all__ = [
    "GRAPHS",
    "CyclePlanner",
    "Forecast",
    "GraphSpec",
    "HyperperiodPlan",
    "RingPlan",
    "RingSelection",
    "connected",
    "default_members",
    "draw_members",
    "ideal_throughput",
    "inclusion_probabilities",
    "make_graph",
    "make_plan",
    "metropolis",
    "ring_mean",
    "selection_log_probabilities",
    "selection_probabilities",
    "spectral_gap",
]
