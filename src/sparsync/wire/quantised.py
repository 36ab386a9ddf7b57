"""Numbers in 8, 4 or 2 bits with a common scale: the last stage of a lossy chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparsync.errors import PayloadError, UsageError

_FLOAT32 = np.finfo(np.float32)
_NUMBERS = {8: 5, 4: 6, 2: 7}


@dataclass(frozen=True)
class Quantised:
    """Symmetric uniform quantisation of float32.

    A block of numbers travels as its scale, ``max|x| / (2**(bits - 1) - 1)`` in float32, and one signed integer of
    `bits` bits per number. Up to float32's own rounding, ``|decode(encode(x)) - x|`` is at most half a scale, or less
    than a scale if rounding is stochastic. The scale is never below float32's smallest normal number, so zeros are
    exact. A block with NaN or infinity arrives as NaN throughout: the receiver notices that its sender diverged.

    Attributes
    ----------
    bits : {8, 4, 2}
        Bits per number: 255, 15 or 3 levels.
    block : int, optional
        Numbers that share a scale of 4 bytes. Default: all of a message.
    stochastic : bool
        Round up or down at random, so that the expectation is exact, instead of to the nearest, ties to even.
    """

    bits: Literal[8, 4, 2]
    block: int | None = None
    stochastic: bool = False
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise UsageError(f"q{self.bits}: a block of {self.block} numbers; use at least 1, or none at all")

    def __str__(self) -> str:
        options = [f"block={self.block}"] if self.block else []
        options += ["stochastic"] if self.stochastic else []
        return f"q{self.bits}" + (f"({','.join(options)})" if options else "")

    @property
    def number(self) -> int:
        return _NUMBERS[self.bits]

    @property
    def levels(self) -> int:
        """The largest integer in use; the smallest is its negative."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def scales(self) -> tuple[np.float32, np.float32]:
        """The least scale, which divides without underflow, and the largest, whose multiples stay finite."""
        return _FLOAT32.smallest_normal, np.nextafter(_FLOAT32.max / np.float32(self.levels), np.float32(0))

    def _blocks(self, numel: int) -> tuple[int, int]:
        """Return number of blocks and numbers per block."""
        block = min(self.block or numel, numel) or 1
        return -(-numel // block), block

    def body_bytes(self, numel: int) -> int:
        """Length of ``encode_body(x)`` for `numel` numbers."""
        return 4 * self._blocks(numel)[0] + -(-numel * self.bits // 8)

    def encode_body(self, x: Tensor, rng: np.random.Generator | None = None) -> bytes:
        """Encode a float32 vector: scales, then integers.

        Raises
        ------
        UsageError
            If rounding is stochastic and there is no generator.
        """
        if self.stochastic and rng is None:
            raise UsageError(f"{self} draws random numbers; hand encode a generator, rng=")
        blocks, block = self._blocks(x.numel())
        padded = np.zeros((blocks, block), np.float32)
        padded.reshape(-1)[: x.numel()] = x.numpy()
        peaks = np.maximum(padded.max(axis=1), -padded.min(axis=1))  # NaN wins
        diverged = ~np.isfinite(peaks)
        peaks[diverged] = 0
        padded[diverged] = 0
        scales: npt.NDArray[np.float32] = np.clip(peaks / np.float32(self.levels), *self.scales)
        padded /= scales[:, None]
        if rng is not None and self.stochastic:
            padded += rng.random(padded.shape, np.float32)
            np.floor(padded, out=padded)
        else:
            np.rint(padded, out=padded)
        np.clip(padded, -self.levels, self.levels, out=padded)
        padded += self.levels
        scales[diverged] = np.nan
        integers = padded.astype(np.uint8).reshape(-1)[: x.numel()]
        return scales.astype("<f4").tobytes() + self._joined(integers).tobytes()

    def decode_body(self, body: bytes | memoryview, numel: int) -> Tensor:
        """Decode a vector of `numel` numbers.

        Raises
        ------
        PayloadError
            If the bytes are not scales and integers for exactly so many numbers.
        """
        if len(body) != self.body_bytes(numel):
            raise PayloadError(f"payload: {len(body)} bytes of {self}, expected {numel} numbers")
        blocks, block = self._blocks(numel)
        scales = np.frombuffer(body, "<f4", blocks).astype(np.float32)
        least, largest = self.scales
        if ((scales < least) | (scales > largest)).any():  # NaN passes: a sender's way to say that it diverged
            raise PayloadError(f"payload: a scale of {self} outside {least:.3g} to {largest:.3g}")
        scales[np.isnan(scales)] = np.nan  # a hostile one may be of the kind that warns when multiplied
        integers = self._apart(np.frombuffer(body, np.uint8, offset=4 * blocks), numel)
        if integers.max(initial=0) > 2 * self.levels:
            raise PayloadError(f"payload: an integer of {self} beyond its {2 * self.levels + 1} levels")
        padded = np.zeros((blocks, block), np.float32)
        numbers = padded.reshape(-1)[:numel]
        np.subtract(integers, np.float32(self.levels), out=numbers)
        padded *= scales[:, None]
        return torch.from_numpy(numbers)

    def _joined(self, integers: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Several integers in a byte, the first in its lowest bits, the last byte filled up with zero bits."""
        per_byte = 8 // self.bits
        lanes = np.zeros((-(-len(integers) // per_byte), per_byte), np.uint8)
        lanes.reshape(-1)[: len(integers)] = integers
        joined = lanes[:, 0].copy()
        for lane in range(1, per_byte):
            joined |= lanes[:, lane] << self.bits * lane
        return joined

    def _apart(self, joined: npt.NDArray[np.uint8], numel: int) -> npt.NDArray[np.uint8]:
        per_byte = 8 // self.bits
        lanes = np.empty((len(joined), per_byte), np.uint8)
        for lane in range(per_byte):
            lanes[:, lane] = joined >> self.bits * lane & (1 << self.bits) - 1
        integers = lanes.reshape(-1)
        if integers[numel:].any():
            raise PayloadError("payload: the last byte is not filled up with zero bits")
        return integers[:numel]
