"""A Rice code of gaps in split streams: near the entropy of a random mask, and vectorised in both directions.

A gap g (unset positions before a set one) is cut into a quotient ``g >> b``, written in unary, and a remainder of its
b lowest bits (R. F. Rice, JPL Publication 79-22, 1979). All quotients form one stream and all remainders another: the
unary stream is a bit mask whose set bits are the ends of the codes, and remainders are written bit plane by bit plane,
so neither direction goes gap by gap. As the density of a mask differs from layer to layer, b is chosen for every
`BLOCK` gaps.

    4 bytes     number of gaps, k, little endian
    1 byte each b, per block
    remainders  plane 0 (lowest bits) of all gaps with b > 0, then plane 1 of all with b > 1, ...; padded to a byte
    quotients   each as so many zeros and a one; padded to a byte
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsync.errors import PayloadError
from sparsync.wire.codes import Gaps, Positions, from_gaps, gaps_of

BLOCK = 512
_COUNT_BYTES = 4


def parameters(gaps: Gaps) -> npt.NDArray[np.uint8]:
    """Return the b of each block that makes the code shortest, exactly.

    A block of c gaps takes ``c (b + 1) + sum(g >> b)`` bits, convex in b: another bit of remainder costs c and saves
    ``sum(ceil((g >> b) / 2))``, which only falls as b grows. So b is raised while that pays.
    """
    starts = np.arange(0, len(gaps), BLOCK)
    counts = np.diff(starts, append=len(gaps))
    chosen = np.zeros(len(starts), np.uint8)
    while True:
        pays = np.add.reduceat((gaps + 1) >> 1, starts) > counts
        if not pays.any():
            return chosen
        chosen += pays
        gaps = gaps >> 1


class Rice:
    """Gaps as quotients and remainders."""

    def __init__(self, positions: Positions, numel: int) -> None:
        self.gaps = gaps_of(positions)
        self.chosen = parameters(self.gaps)
        self.b = np.repeat(self.chosen.astype(np.int64), BLOCK)[: len(self.gaps)]
        self.quotients = self.gaps >> self.b
        unary = len(self.gaps) + int(self.quotients.sum())
        self.nbytes = _COUNT_BYTES + len(self.chosen) + -(-int(self.b.sum()) // 8) + -(-unary // 8)

    def write(self) -> bytes:
        ends = np.cumsum(self.quotients + 1) - 1
        unary = np.zeros(ends[-1] + 1 if len(ends) else 0, bool)
        unary[ends] = True
        planes = [(self.gaps[self.b > j] & (1 << j)) != 0 for j in range(int(self.chosen.max(initial=0)))]
        remainders = np.concatenate(planes or [np.zeros(0, bool)])
        head = len(self.gaps).to_bytes(_COUNT_BYTES, "little") + self.chosen.tobytes()
        return head + np.packbits(remainders).tobytes() + np.packbits(unary).tobytes()

    @staticmethod
    def read(body: memoryview, numel: int) -> Positions:
        count = int.from_bytes(body[:_COUNT_BYTES], "little")
        start = _COUNT_BYTES + -(-count // BLOCK)
        if count > numel or len(body) < start:
            raise PayloadError(f"payload: no Rice code of {count} among {numel} positions in {len(body)} bytes")
        chosen = np.frombuffer(body[_COUNT_BYTES:start], np.uint8)
        if chosen.max(initial=0) > numel.bit_length():
            raise PayloadError(f"payload: a Rice code with b = {chosen.max()} among {numel} positions")
        b = np.repeat(chosen.astype(np.int64), BLOCK)[:count]
        bits = int(b.sum())
        split = start + -(-bits // 8)
        if len(body) < split or len(body) - split > -(-numel // 8):  # no more bits than positions: a zero skips 2**b
            raise PayloadError(f"payload: {len(body)} bytes are no Rice code of {count} among {numel} positions")
        remainders = np.unpackbits(np.frombuffer(body[start:split], np.uint8))
        unary = np.unpackbits(np.frombuffer(body[split:], np.uint8)).view(bool)
        ends = np.flatnonzero(unary)
        unused = len(unary) - (int(ends[-1]) + 1 if len(ends) else 0)
        if len(ends) != count or unused >= 8 or remainders[bits:].any():
            raise PayloadError(f"payload: a Rice code of {len(ends)} quotients, expected {count}, or bits left over")
        gaps: Gaps = np.diff(ends, prepend=-1) - 1
        if (gaps > numel >> b).any():
            raise PayloadError(f"payload: a Rice code leaves its {numel} positions")
        gaps <<= b
        at = 0
        for plane in range(int(chosen.max(initial=0))):
            where = np.flatnonzero(b > plane)
            gaps[where] |= remainders[at : at + len(where)].astype(np.int64) << plane
            at += len(where)
        return from_gaps(gaps, numel)
