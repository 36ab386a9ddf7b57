"""One message of several parts, each of a kind of its own: weights and their support, what is dense, gradients.

The body of a payload (see :mod:`sparsync.wire.payload`), so one header and one checksum serve all parts:

    1 byte            number of sections, at least 1
    8 bytes each      kind (its place among `KINDS`), codec number, length in bytes (6 bytes, little endian)
    the sections      one after the other
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from sparsync.errors import PayloadError, UsageError
from sparsync.wire.ledger import KINDS, Kind
from sparsync.wire.payload import HEADER_BYTES, pack, unpack

PARCEL = 4
"""Codec number of a parcel. Dense vectors have 0 to 3, quantised ones 5 to 7, supports 8 and 9."""
RAW = 255
"""Codec number of a section whose bytes only the strategy understands."""
ENTRY_BYTES = 8
_LARGEST = 2**48 - 1


class MessageSection(NamedTuple):
    """A part of a parcel.

    Attributes
    ----------
    kind : {"model", "state", "mask", "activation", "gradient", "control", "label"}
        What the ledger books it as.
    body : bytes or memoryview
        Its bytes.
    codec : int
        Number of the codec that wrote it: a receiver with another one notices.
    """

    kind: Kind
    body: bytes | memoryview
    codec: int = RAW


def table_bytes(sections: int) -> int:
    """Bytes that a parcel's body carries besides its sections."""
    return 1 + ENTRY_BYTES * sections


def pack_parcel(sections: Sequence[MessageSection]) -> bytes:
    """Return sections as one message.

    Raises
    ------
    UsageError
        If there are none, or more than 255.
    """
    if not 0 < len(sections) < 256:
        raise UsageError(f"parcel: {len(sections)} sections; send 1 to 255")
    table = bytearray((len(sections),))
    for kind, body, codec in sections:
        table += bytes((KINDS.index(kind), codec)) + len(body).to_bytes(6, "little")
    return pack(PARCEL, b"".join((table, *(body for _, body, _ in sections))))


def unpack_parcel(payload: bytes | memoryview, limit: int) -> list[MessageSection]:
    """Check a message and return its sections, without a copy.

    Parameters
    ----------
    payload : bytes
        What arrived.
    limit : int
        Largest body in bytes, table included, that the receiver permits.

    Raises
    ------
    PayloadError
        If the message is damaged, not a parcel, too large, or its table does not describe it exactly.
    """
    body = unpack(payload, PARCEL, limit)
    count = body[0] if len(body) else 0
    at = table_bytes(count)
    if count == 0 or len(body) < at:
        raise PayloadError(f"payload: {len(body)} bytes are no table of {count} sections")
    sections = []
    for entry in range(1, at, ENTRY_BYTES):
        kind, codec = body[entry], body[entry + 1]
        length = int.from_bytes(body[entry + 2 : entry + ENTRY_BYTES], "little")
        if kind >= len(KINDS):
            raise PayloadError(f"payload: a section of kind {kind}, known are 0 to {len(KINDS) - 1}")
        if length > len(body) - at:
            raise PayloadError(f"payload: a section of {length} bytes, {len(body) - at} are left")
        sections.append(MessageSection(cast("Kind", KINDS[kind]), body[at : at + length], codec))
        at += length
    if at != len(body):
        raise PayloadError(f"payload: {len(body) - at} bytes follow its last section")
    return sections


def kinds_of(payload: bytes | memoryview) -> dict[Kind, int]:
    """How many bytes of a parcel are of which kind: exactly ``len(payload)`` in all.

    A section bears its line of the table, the first one also the header, so put first what the message is about.
    """
    kinds: dict[Kind, int] = {}
    shared = HEADER_BYTES + table_bytes(0)
    for kind, body, _ in unpack_parcel(payload, len(payload)):
        kinds[kind] = kinds.get(kind, 0) + shared + ENTRY_BYTES + len(body)
        shared = 0
    return kinds


def values_of(payload: bytes | memoryview) -> dict[Kind, int]:
    """As `kinds_of`, but numbers alone, with their scales: no header, no table, no mask, as many papers count."""
    values: dict[Kind, int] = {}
    for kind, body, _ in unpack_parcel(payload, len(payload)):
        if kind != "mask":
            values[kind] = values.get(kind, 0) + len(body)
    return values
