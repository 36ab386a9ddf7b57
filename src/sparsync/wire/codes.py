"""Three plain codes of set positions; :mod:`sparsync.wire.rice` is the fourth.

A code is made from positions, knows its length at once, and writes itself only if it is chosen.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from sparsync.errors import PayloadError

Positions = npt.NDArray[np.int64]
"""Set positions in increasing order, (k,)."""
Gaps = npt.NDArray[np.int64]
"""Unset positions before each set one, (k,)."""


def gaps_of(positions: Positions) -> Gaps:
    """Return the gaps before strictly increasing positions."""
    gaps: Gaps = np.diff(positions, prepend=-1) - 1
    return gaps


def from_gaps(gaps: Gaps, numel: int) -> Positions:
    """Return the positions with these gaps, of which there are at most n, none above 2 n, n < 2**31: no overflow."""
    positions: Positions = np.cumsum(gaps + 1) - 1
    if len(positions) and positions[-1] >= numel:
        raise PayloadError(f"payload: position {positions[-1]} of {numel}")
    return positions


class PositionCode(Protocol):
    """One way to write which of `numel` positions are set.

    Attributes
    ----------
    nbytes : int
        Length of ``write()``.
    """

    nbytes: int

    def __init__(self, positions: Positions, numel: int) -> None: ...

    def write(self) -> bytes:
        """Return the bytes."""

    @staticmethod
    def read(body: memoryview, numel: int) -> Positions:
        """Return positions that increase strictly from 0 to `numel` - 1, or raise PayloadError."""


class PositionList:
    """Each position in 4 bytes, little endian."""

    def __init__(self, positions: Positions, numel: int) -> None:
        self.positions = positions
        self.nbytes = 4 * len(positions)

    def write(self) -> bytes:
        return self.positions.astype("<u4").tobytes()

    @staticmethod
    def read(body: memoryview, numel: int) -> Positions:
        if len(body) % 4 or len(body) > 4 * numel:
            raise PayloadError(f"payload: {len(body)} bytes are no list of at most {numel} positions")
        positions = np.frombuffer(body, "<u4").astype(np.int64)
        if len(positions) and (positions[-1] >= numel or (np.diff(positions) <= 0).any()):
            raise PayloadError(f"payload: a list of positions that do not increase, or reach {numel}")
        return positions


class Bitmap:
    """One bit per position, the first in the highest bit of the first byte."""

    def __init__(self, positions: Positions, numel: int) -> None:
        self.positions, self.numel = positions, numel
        self.nbytes = -(-numel // 8)

    def write(self) -> bytes:
        mask = np.zeros(self.numel, bool)
        mask[self.positions] = True
        return np.packbits(mask).tobytes()

    @staticmethod
    def read(body: memoryview, numel: int) -> Positions:
        if len(body) != -(-numel // 8):
            raise PayloadError(f"payload: {len(body)} bytes are no bitmap of {numel} positions")
        positions = np.flatnonzero(np.unpackbits(np.frombuffer(body, np.uint8)).view(bool))
        if len(positions) and positions[-1] >= numel:
            raise PayloadError(f"payload: a bitmap of {numel} positions with a bit set beyond them")
        return positions


class Varint:
    """Gaps in base 128, lowest digit first (LEB128): a byte's highest bit says that another digit follows."""

    DIGITS = 5  # a number below 2**31 has at most so many

    def __init__(self, positions: Positions, numel: int) -> None:
        self.gaps = gaps_of(positions)
        longer = (np.count_nonzero(self.gaps >= 1 << 7 * digit) for digit in range(1, self.DIGITS))
        self.nbytes = len(self.gaps) + sum(int(count) for count in longer)

    def write(self) -> bytes:
        lengths = np.ones(len(self.gaps), np.int64)
        for digit in range(1, self.DIGITS):
            lengths += self.gaps >= 1 << 7 * digit
        starts = np.cumsum(lengths) - lengths
        body = np.zeros(self.nbytes, np.uint8)
        for digit in range(self.DIGITS):
            where = np.flatnonzero(lengths > digit)
            follows = np.where(lengths[where] > digit + 1, 128, 0)
            body[starts[where] + digit] = self.gaps[where] >> 7 * digit & 127 | follows
        return body.tobytes()

    @staticmethod
    def read(body: memoryview, numel: int) -> Positions:
        raw = np.frombuffer(body, np.uint8)
        if len(raw) > Varint.DIGITS * numel or (len(raw) and raw[-1] >= 128):
            raise PayloadError(f"payload: {len(raw)} bytes are no gaps between at most {numel} positions")
        ends = np.flatnonzero(raw < 128)
        lengths = np.diff(ends, prepend=-1)
        if len(ends) > numel or (lengths > Varint.DIGITS).any() or ((lengths > 1) & (raw[ends] == 0)).any():
            raise PayloadError(f"payload: gaps between at most {numel} positions with too many digits")
        starts = ends - lengths + 1
        gaps = np.zeros(len(ends), np.int64)
        for digit in range(Varint.DIGITS):
            where = np.flatnonzero(lengths > digit)
            gaps[where] |= (raw[starts[where] + digit] & 127).astype(np.int64) << 7 * digit
        if (gaps >= numel).any():
            raise PayloadError(f"payload: a gap as large as all {numel} positions")
        return from_gaps(gaps, numel)
