"""Equals that average: every-step and fixed-period averaging, and FDA."""

from sparsync.peers.ad_psgd import ADPSGD
from sparsync.peers.contract import (
    Cadence,
    ExchangesGradients,
    Follower,
    FollowsClock,
    HasModel,
    PeerState,
    PeerStrategy,
)
from sparsync.peers.decentralised_fedavg import DecentralisedFedAvg
from sparsync.peers.fda import FDA
from sparsync.peers.gossip import Gossip
from sparsync.peers.hadfl import HADFL
from sparsync.peers.local_sgd import LocalSGD
from sparsync.peers.monitors import MONITORS, Monitor
from sparsync.peers.synchronous import Synchronous

__all__ = [
    "ADPSGD",
    "FDA",
    "HADFL",
    "MONITORS",
    "Cadence",
    "DecentralisedFedAvg",
    "ExchangesGradients",
    "Follower",
    "FollowsClock",
    "Gossip",
    "HasModel",
    "LocalSGD",
    "Monitor",
    "PeerState",
    "PeerStrategy",
    "Synchronous",
]
