"""Which of a vector's numbers travel, and how the receiver learns which: the first stages of a chain.

A support keeps some of the numbers that reach it and hands them on, in order. Only the positions kept are its concern;
where it lets the receiver know them, they make a section of kind ``mask``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sparsync.errors import PayloadError, UsageError
from sparsync.shares import exact
from sparsync.wire.codes import Positions
from sparsync.wire.parcel import MessageSection
from sparsync.wire.positions import decode_positions, encode_positions, most_bytes

Floats = npt.NDArray[np.float32]

_ABSOLUTE, _WITHIN = 8, 9  # codec numbers: among all numbers, or among those of a mask that the receiver holds


class SupportStage(Protocol):
    """A stage that keeps some numbers.

    Attributes
    ----------
    told : bool
        Whether the receiver is told the positions, in a section.
    lossless : bool
        Whether what it keeps is all that a receiver needs: the rest is zero, or left out by an explicit mask.
    """

    @property
    def told(self) -> bool: ...

    @property
    def lossless(self) -> bool: ...

    def encode(self, x: Floats) -> tuple[Positions, MessageSection | None]:
        """Choose the positions to keep; return them and, if the receiver is told, how."""

    def decode(self, section: MessageSection | None, numel: int) -> Positions:
        """Return the positions that the sender kept of `numel` numbers."""


def _absolute(positions: Positions, numel: int) -> MessageSection:
    return MessageSection("mask", encode_positions(positions, numel), _ABSOLUTE)


def _decoded(section: MessageSection | None, numel: int, codec: int = _ABSOLUTE) -> Positions:
    if section is None or section.codec != codec:
        raise PayloadError("payload: positions are missing, or relative to a mask; give both sides the same chain")
    if len(section.body) > most_bytes(numel):
        raise PayloadError(f"payload: {len(section.body)} bytes for positions among {numel}, a bitmap is shorter")
    return decode_positions(section.body, numel)


def largest(x: Floats, count: int) -> Positions:
    """Positions of the `count` (at least 1) numbers of largest magnitude; of equal ones, those with the lowest index.

    NaN counts as larger than infinity, so that a sender that diverged is noticed.
    """
    if count >= len(x):
        return np.arange(len(x))
    magnitude = x.view(np.int32) & 0x7FFFFFFF  # without the sign, floats order like their bits
    smallest = np.partition(magnitude, len(x) - count)[len(x) - count]
    keep = magnitude > smallest
    ties = np.flatnonzero(magnitude == smallest)
    keep[ties[: count - np.count_nonzero(keep)]] = True
    return np.flatnonzero(keep)


@dataclass(frozen=True)
class TopKSupport:
    """Keep the numbers of largest magnitude: exactly ``max(1, round(fraction * n))`` of n.

    Attributes
    ----------
    fraction : float
        Share to keep, above 0 and up to 1.
    """

    fraction: float
    told: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageError(f"topk: fraction {self.fraction} is not in (0, 1]; topk(0.05) keeps 5 %")

    def __str__(self) -> str:
        return f"topk({self.fraction})"

    @property
    def lossless(self) -> bool:
        return self.fraction == 1

    def count(self, numel: int) -> int:
        """How many of `numel` numbers are kept."""
        return min(numel, max(1, round(exact(self.fraction) * numel)))

    def encode(self, x: Floats) -> tuple[Positions, MessageSection]:
        positions = largest(x, self.count(len(x)))
        return positions, _absolute(positions, len(x))

    def decode(self, section: MessageSection | None, numel: int) -> Positions:
        positions = _decoded(section, numel)
        if len(positions) != self.count(numel):
            raise PayloadError(f"payload: {len(positions)} of {numel} numbers, but {self} keeps {self.count(numel)}")
        return positions


@dataclass(frozen=True)
class NonZeroSupport:
    """Keep what is not zero. NaN is not; -0.0 is, and arrives as 0.0."""

    told: ClassVar[bool] = True
    lossless: ClassVar[bool] = True

    def __str__(self) -> str:
        return "sparse"

    def encode(self, x: Floats) -> tuple[Positions, MessageSection]:
        positions = np.flatnonzero(x != 0)
        return positions, _absolute(positions, len(x))

    def decode(self, section: MessageSection | None, numel: int) -> Positions:
        return _decoded(section, numel)


class _OfMask:
    """A support that is given a mask, of any shape."""

    lossless: ClassVar[bool] = True

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.detach().reshape(-1).to("cpu").numpy().astype(bool)
        self.positions = np.flatnonzero(self.mask)

    def __str__(self) -> str:
        return type(self).__name__.removesuffix("Support").lower()

    def _check(self, numel: int) -> None:
        if numel != len(self.mask):
            raise UsageError(f"{self}: a mask of {len(self.mask)} entries for {numel} numbers; give it one for each")


class MaskedSupport(_OfMask):
    """Keep what a mask says, zeros included, and send the mask along.

    The receiver has no need of the mask: it decodes with `NonZeroSupport` in this stage's place.
    """

    told: ClassVar[bool] = True

    def encode(self, x: Floats) -> tuple[Positions, MessageSection]:
        self._check(len(x))
        return self.positions, _absolute(self.positions, len(x))

    def decode(self, section: MessageSection | None, numel: int) -> Positions:
        return _decoded(section, numel)


class KnownSupport(_OfMask):
    """Keep what a mask says that the receiver holds as well: not one byte for the support."""

    told: ClassVar[bool] = False

    def encode(self, x: Floats) -> tuple[Positions, None]:
        self._check(len(x))
        return self.positions, None

    def decode(self, section: MessageSection | None, numel: int) -> Positions:
        self._check(numel)
        return self.positions


class RelativeSupport(_OfMask):
    """Keep what is not zero, told as positions within a larger mask that the receiver holds as well.

    If anything outside that mask is not zero, positions are told as `NonZeroSupport` tells them.
    """

    told: ClassVar[bool] = True

    def encode(self, x: Floats) -> tuple[Positions, MessageSection]:
        self._check(len(x))
        live = x != 0
        positions = np.flatnonzero(live)
        within = np.flatnonzero(live[self.mask])
        if len(within) < len(positions):
            return positions, _absolute(positions, len(x))
        return positions, MessageSection("mask", encode_positions(within, len(self.positions)), _WITHIN)

    def decode(self, section: MessageSection | None, numel: int) -> Positions:
        self._check(numel)
        if section is not None and section.codec == _WITHIN:
            return self.positions[_decoded(section, len(self.positions), _WITHIN)]
        return _decoded(section, numel)
