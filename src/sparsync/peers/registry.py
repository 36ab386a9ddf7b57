"""The one door for strategies among peers."""

from __future__ import annotations

from sparsync.peers.contract import PeerStrategy
from sparsync.spec import Registry

STRATEGIES: Registry[PeerStrategy] = Registry("strategy")
