"""DPF: dynamic pruning with feedback, Lin et al., arXiv:2006.07253, in rounds.

FedDIP without its regularisation. The error memory lives for one round, since what is off the mask is not sent down.
"""

from __future__ import annotations

from sparsync.federated.feddip import DynamicPruning
from sparsync.spec import config
from sparsync.strategies import STRATEGIES


@STRATEGIES.register("dpf")
@config
class DPF(DynamicPruning):
    """Prune dynamically with error feedback (DPF): FedDIP without its penalty."""
