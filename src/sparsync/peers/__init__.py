"""Equals that average: every-step and fixed-period averaging, and FDA."""

from sparsync.peers.contract import Cadence, ExchangesGradients, Follower, PeerState, PeerStrategy
from sparsync.peers.fda import FDA
from sparsync.peers.local_sgd import LocalSGD
from sparsync.peers.synchronous import Synchronous

__all__ = [
    "FDA",
    "Cadence",
    "ExchangesGradients",
    "Follower",
    "LocalSGD",
    "PeerState",
    "PeerStrategy",
    "Synchronous",
]
