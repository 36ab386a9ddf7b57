"""What crosses the network: payloads, codecs, topologies and the ledger that books every byte."""

from sparsync.wire.dense import Dense
from sparsync.wire.ledger import Ledger
from sparsync.wire.payload import HEADER_BYTES, pack, unpack
from sparsync.wire.topology import TOPOLOGIES, Ring, Star, Topology, Traffic

__all__ = ["HEADER_BYTES", "TOPOLOGIES", "Dense", "Ledger", "Ring", "Star", "Topology", "Traffic", "pack", "unpack"]
