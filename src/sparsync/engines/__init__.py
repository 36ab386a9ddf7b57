"""Where a run takes place: in this process, or in several over torch.distributed."""

from sparsync.engines.loop import Budget, PeerLoop
from sparsync.engines.pace import Action, Pace
from sparsync.engines.ranks import Ranks

__all__ = ["Action", "Budget", "Pace", "PeerLoop", "Ranks"]
