"""What crosses the network: payloads, codecs, topologies and the ledger that books every byte."""

from sparsync.wire.chain import Chain, ErrorFeedback, decode_parts
from sparsync.wire.dense import Dense
from sparsync.wire.grammar import CODECS, parse_chain
from sparsync.wire.ledger import Kind, Ledger
from sparsync.wire.parcel import MessageSection, kinds_of, pack_parcel, unpack_parcel, values_of
from sparsync.wire.payload import HEADER_BYTES, pack, unpack
from sparsync.wire.quantised import Quantised
from sparsync.wire.supports import (
    KnownSupport,
    MaskedSupport,
    NonZeroSupport,
    RelativeSupport,
    SupportStage,
    TopKSupport,
)
from sparsync.wire.topology import TOPOLOGIES, Ring, Star, Topology, Traffic

__all__ = [
    "CODECS",
    "HEADER_BYTES",
    "TOPOLOGIES",
    "Chain",
    "Dense",
    "ErrorFeedback",
    "Kind",
    "KnownSupport",
    "Ledger",
    "MaskedSupport",
    "MessageSection",
    "NonZeroSupport",
    "Quantised",
    "RelativeSupport",
    "Ring",
    "Star",
    "SupportStage",
    "TopKSupport",
    "Topology",
    "Traffic",
    "decode_parts",
    "kinds_of",
    "pack",
    "pack_parcel",
    "parse_chain",
    "unpack",
    "unpack_parcel",
    "values_of",
]
