"""Decentralised FedAvg: all workers train for as many steps, and average their models round a ring.

Federated averaging (McMahan et al., arXiv:1602.05629) without its server and with everyone in every round: what HADFL
(arXiv:2111.08274) is compared with. It is local SGD whose period is a number of local epochs.
"""

from __future__ import annotations

from sparsync.peers.local_sgd import LocalSGD, LocalSGDState
from sparsync.spec import Count, config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Fleet


@STRATEGIES.register("decentralised-fedavg")
@config
class DecentralisedFedAvg:
    """Average all models round a ring after so many local epochs.

    Attributes
    ----------
    epochs : int
        Of the worker with fewest samples; all take as many steps as it does. Default: 1.
    unit : int, optional
        Local steps that count as an epoch, as of HADFL. Default: those in which that worker has seen all its samples.
    """

    epochs: Count = 1
    unit: Count | None = None

    def start(self, fleet: Fleet) -> LocalSGDState:
        """Begin a run."""
        fleet.need_ring("decentralised-fedavg")
        return LocalSGD(period=self.epochs * (self.unit or fleet.epoch_steps)).start(fleet)
