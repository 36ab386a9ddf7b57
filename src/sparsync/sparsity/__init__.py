"""Sparse training: what is prunable, masks, densities, schedules, re-parametrisation, activation pruning."""

from sparsync.sparsity.activations import ActivationPruning
from sparsync.sparsity.densities import counts, erk, random_mask, uniform
from sparsync.sparsity.masks import deactivated, iou, kept, layer_top_k_mask, overlap, regrown, top_k_among, top_k_mask
from sparsync.sparsity.reparametrization import (
    PowerParametrization,
    export,
    inverse_power,
    power,
    power_gradient,
    power_slope,
    reparametrize,
    spectral_beta,
    spectral_network_beta,
    truncated_normal_,
)
from sparsync.sparsity.schedules import Constant, CosineDrop, Cubic, Staircase
from sparsync.sparsity.view import RULES, ParamView, PruningRule, prunable_names

__all__ = [
    "RULES",
    "ActivationPruning",
    "Constant",
    "CosineDrop",
    "Cubic",
    "ParamView",
    "PowerParametrization",
    "PruningRule",
    "Staircase",
    "counts",
    "deactivated",
    "erk",
    "export",
    "inverse_power",
    "iou",
    "kept",
    "layer_top_k_mask",
    "overlap",
    "power",
    "power_gradient",
    "power_slope",
    "prunable_names",
    "random_mask",
    "regrown",
    "reparametrize",
    "spectral_beta",
    "spectral_network_beta",
    "top_k_among",
    "top_k_mask",
    "truncated_normal_",
    "uniform",
]
