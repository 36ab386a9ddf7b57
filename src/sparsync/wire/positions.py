"""Which k of n positions are set, in the shortest of several codes; the code's number is the first byte.

    code      bytes after the first
    list      4 k                     positions
    bitmap    n / 8                   shorter than the list if and only if k / n > 1/32
    varint    k (1 + q) or so         gaps, q being the share of gaps of 128 and more
    rice      about n H(k/n) / 8      gaps, with H the binary entropy: the shortest for all but few positions

If more than half of the positions are set, the others are written, and the first byte's highest bit says so: all set
and none set take one byte. A decoder trusts nothing but n, checks everything, and allocates memory in proportion to n.
"""

from __future__ import annotations

import numpy as np

from sparsync.errors import PayloadError, UsageError
from sparsync.wire.codes import Bitmap, PositionCode, PositionList, Positions, Varint
from sparsync.wire.rice import Rice

CODES: dict[str, type[PositionCode]] = {"list": PositionList, "bitmap": Bitmap, "varint": Varint, "rice": Rice}
"""The codes; the number of one is its place."""
MAX_NUMEL = 2**31 - 1

_BY_NUMBER = list(CODES.values())
_OTHERS = 0x80


def _others(positions: Positions, numel: int) -> Positions:
    rest = np.ones(numel, bool)
    rest[positions] = False
    return np.flatnonzero(rest)


def _check(numel: int) -> None:
    if numel > MAX_NUMEL:
        raise UsageError(f"support: {numel} numbers in one vector; send at most {MAX_NUMEL} at a time")


def _listed(positions: Positions, numel: int) -> tuple[Positions, int]:
    """Return the positions to write, the set ones or the others, and the first byte's flag."""
    _check(numel)
    return (_others(positions, numel), _OTHERS) if 2 * len(positions) > numel else (positions, 0)


def sizes(positions: Positions, numel: int) -> dict[str, int]:
    """Length in bytes of ``encode_positions(positions, numel, code)`` by code, without encoding."""
    listed, _ = _listed(positions, numel)
    return {name: 1 + code(listed, numel).nbytes for name, code in CODES.items()}


def most_bytes(numel: int) -> int:
    """Length in bytes that no ``encode_positions(positions, numel)`` exceeds: a bitmap's."""
    return 1 + -(-numel // 8)


def encode_positions(positions: Positions, numel: int, code: str | None = None) -> bytes:
    """Encode which positions are set.

    Parameters
    ----------
    positions : array of int64, (k,)
        Strictly increasing, from 0 to `numel` - 1.
    numel : int
        How many positions there are, at most 2,147,483,647.
    code : {"list", "bitmap", "varint", "rice"}
        Default: the shortest.
    """
    listed, flag = _listed(positions, numel)
    written = [CODES[code](listed, numel)] if code else [made(listed, numel) for made in _BY_NUMBER]
    shortest = min(written, key=lambda made: made.nbytes)
    return bytes((_BY_NUMBER.index(type(shortest)) | flag,)) + shortest.write()


def decode_positions(side: bytes | memoryview, numel: int) -> Positions:
    """Decode which positions are set.

    Raises
    ------
    PayloadError
        If the bytes are not exactly one code of increasing positions below `numel`.
    """
    _check(numel)
    view = memoryview(side)
    number = view[0] & ~_OTHERS if len(view) else len(CODES)
    if number >= len(CODES):
        raise PayloadError(f"payload: support code {number}, known are 0 to {len(CODES) - 1}")
    positions = _BY_NUMBER[number].read(view[1:], numel)
    return _others(positions, numel) if view[0] & _OTHERS else positions
