"""Where a run takes place: in this process, or in several over torch.distributed."""

from sparsync.engines.asynchronous import AsyncRoundLoop
from sparsync.engines.clients import Envelope, FederatedClients, LocalFederatedClients
from sparsync.engines.epochs import EpochLoop
from sparsync.engines.evaluation import Budget, Progress
from sparsync.engines.loop import PeerLoop
from sparsync.engines.pace import Pace, PaceAction
from sparsync.engines.ranks import TorchDistributed
from sparsync.engines.rounds import RoundLoop

__all__ = [
    "AsyncRoundLoop",
    "Budget",
    "Envelope",
    "EpochLoop",
    "FederatedClients",
    "LocalFederatedClients",
    "Pace",
    "PaceAction",
    "PeerLoop",
    "Progress",
    "RoundLoop",
    "TorchDistributed",
]
