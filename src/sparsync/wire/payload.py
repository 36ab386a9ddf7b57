"""One message as bytes: a small checked header, then a body that a codec understands.

    offset  size  field
    0       4     magic, b"SPSY"
    4       1     version of this layout
    5       1     codec number
    6       2     zero
    8       8     length of the body in bytes, little endian
    16      4     CRC-32 of everything before it and of the body

Whatever arrives is treated as hostile: length and checksum are checked before a codec sees the body, nothing is
unpickled, and every fault is a `PayloadError`.
"""

from __future__ import annotations

import struct
import zlib

from sparsync.errors import PayloadError

_FIELDS = struct.Struct("<4sBBHQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"SPSY"
_VERSION = 1
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
"""Bytes that every payload carries besides its body: 20."""


def pack(codec: int, body: bytes | memoryview) -> bytes:
    """Return header and body as one message."""
    fields = _FIELDS.pack(_MAGIC, _VERSION, codec, 0, len(body))
    return b"".join((fields, _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(fields))), body))


def body_bytes(header: bytes | memoryview, limit: int) -> int:
    """How long a body the header of a message declares, before the body has been read.

    Raises
    ------
    PayloadError
        If it is no header of this layout, or declares more than is permitted.
    """
    if len(header) != HEADER_BYTES:
        raise PayloadError(f"payload: {len(header)} bytes are no header of {HEADER_BYTES}")
    magic, version, _, zero, length = _FIELDS.unpack_from(header)
    if magic != _MAGIC or zero != 0 or version != _VERSION:
        raise PayloadError("payload: does not start like a sparsync message of this version")
    if length > limit:
        raise PayloadError(f"payload: declares a body of {length} bytes, permitted are {limit}")
    return int(length)


def unpack(payload: bytes | memoryview, codec: int, limit: int) -> memoryview:
    """Check a message and return its body, without a copy.

    Parameters
    ----------
    payload : bytes
        What arrived.
    codec : int
        The codec number that the receiver expects.
    limit : int
        Largest body in bytes that the receiver permits.

    Raises
    ------
    PayloadError
        If the message is truncated, oversized, of another codec or version, or its checksum does not hold.
    """
    view = memoryview(payload)
    if len(view) < HEADER_BYTES:
        raise PayloadError(f"payload of {len(view)} bytes: shorter than its header of {HEADER_BYTES}")
    magic, version, number, zero, length = _FIELDS.unpack_from(view)
    if magic != _MAGIC or zero != 0:
        raise PayloadError("payload: does not start like a sparsync message")
    if version != _VERSION:
        raise PayloadError(f"payload: layout version {version}, expected {_VERSION}; run the same sparsync everywhere")
    if number != codec:
        raise PayloadError(f"payload: codec {number}, expected {codec}; give sender and receiver the same codec")
    if length > limit:
        raise PayloadError(f"payload: declares a body of {length} bytes, permitted are {limit}")
    body = view[HEADER_BYTES:]
    if len(body) != length:
        raise PayloadError(f"payload: body of {len(body)} bytes, its header declares {length}")
    (checksum,) = _CHECKSUM.unpack_from(view, _FIELDS.size)
    if zlib.crc32(body, zlib.crc32(view[: _FIELDS.size])) != checksum:
        raise PayloadError("payload: checksum does not hold; it was damaged on the way")
    return body
