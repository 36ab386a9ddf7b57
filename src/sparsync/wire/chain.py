"""Chains: supports keep some numbers, the last stage turns those into bytes, as ``topk(0.05)+q8`` says.

A chain turns a float32 vector into one payload and back. Sender and receiver are configured with the same chain and the
same length; a receiver trusts nothing else. Inside a message of several parts, a chain contributes sections: its
numbers first, then one for every support that the receiver is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sparsync.errors import PayloadError, UsageError
from sparsync.wire.dense import Dense
from sparsync.wire.ledger import Kind
from sparsync.wire.parcel import MessageSection, pack_parcel, table_bytes, unpack_parcel
from sparsync.wire.positions import most_bytes
from sparsync.wire.supports import Floats, SupportStage

_EXACT = (torch.float32, torch.bfloat16, torch.float16)  # float32 holds any of their numbers


@runtime_checkable
class ValueStage(Protocol):
    """A chain's last stage: numbers to bytes and back, as `Dense` and `Quantised` do.

    Attributes
    ----------
    number : int
        Codec number, which no other codec has.
    lossless : bool
        Whether every float32 comes back as it was.
    """

    @property
    def number(self) -> int: ...

    @property
    def lossless(self) -> bool: ...

    def body_bytes(self, numel: int) -> int:
        """Length of ``encode_body(x)`` for `numel` numbers."""

    def encode_body(self, x: Tensor, rng: np.random.Generator | None = None) -> bytes:
        """Encode a float32 vector in the CPU's memory."""

    def decode_body(self, body: bytes | memoryview, numel: int) -> Tensor:
        """Decode `numel` numbers to float32; anything but exactly so many raises PayloadError."""


@dataclass(frozen=True)
class Chain:
    """Stages in the order in which a sender passes them.

    Attributes
    ----------
    supports : tuple of SupportStage
        Which numbers travel; each sees those that the one before it kept. Default: all numbers travel.
    values : Dense or Quantised
        How a number travels. Default: float32.
    """

    supports: tuple[SupportStage, ...] = ()
    values: ValueStage = field(default_factory=Dense)

    def __str__(self) -> str:
        return "+".join(str(stage) for stage in (*self.supports, self.values))

    @property
    def lossless(self) -> bool:
        """Whether finite vectors arrive as they were, but for what explicit masks leave out."""
        return self.values.lossless and all(support.lossless for support in self.supports)

    @property
    def stochastic(self) -> bool:
        """Whether encoding draws random numbers."""
        return bool(getattr(self.values, "stochastic", False))

    @property
    def sections(self) -> int:
        """How many sections of a parcel this chain takes."""
        return 1 + sum(support.told for support in self.supports)

    def with_support(self, support: SupportStage) -> Chain:
        """Return a chain that begins with one more support, such as an explicit mask."""
        return replace(self, supports=(support, *self.supports))

    def with_feedback(self) -> ErrorFeedback:
        """Return the chain whose sender makes up in its next message for what this one lost."""
        return ErrorFeedback(self.supports, self.values)

    def most_bytes(self, numel: int) -> int:
        """Bytes that the sections for `numel` numbers never exceed, together: what a receiver has to permit."""
        return self.values.body_bytes(numel) + (self.sections - 1) * most_bytes(numel)

    def encode_body(
        self, x: Tensor, kind: Kind = "model", rng: np.random.Generator | None = None
    ) -> list[MessageSection]:
        """Encode a vector as a part of a parcel.

        Parameters
        ----------
        x : Tensor
            float32, or bfloat16 or float16, which float32 holds exactly; of any shape, flattened.
        kind : str
            What the ledger books the numbers as; supports are booked as ``"mask"``.
        rng : Generator, optional
            For stochastic rounding.

        Raises
        ------
        UsageError
            If `x` is of another type, a mask of another length, or a generator is missing.
        """
        if x.dtype not in _EXACT:
            raise UsageError(f"chain {self}: a vector of {x.dtype}; chains carry float32, so send x.float()")
        flat: Tensor = x.detach().reshape(-1).to("cpu", torch.float32).contiguous()
        numbers: Floats = flat.numpy()
        sides = []
        for support in self.supports:
            positions, side = support.encode(numbers)
            numbers = numbers[positions]
            sides += [side] if side is not None else []
        return [
            MessageSection(kind, self.values.encode_body(torch.from_numpy(numbers), rng), self.values.number),
            *sides,
        ]

    def decode_body(self, sections: Sequence[MessageSection], numel: int, *, finite: bool = False) -> Tensor:
        """Decode the sections that `encode_body` gave; the rest as for `decode`."""
        if len(sections) != self.sections or any(side.kind != "mask" for side in sections[1:]):
            kinds = ", ".join(section.kind for section in sections)
            raise PayloadError(f"payload: sections of {kinds or 'no'} kind, but {self} has {self.sections}, masks last")
        content, sides = sections[0], iter(sections[1:])
        if content.codec != self.values.number:
            expected = self.values.number
            raise PayloadError(f"payload: codec {content.codec}, expected {expected}; give both sides the same chain")
        kept = []
        left = numel
        for support in self.supports:
            positions = support.decode(next(sides) if support.told else None, left)
            kept.append((positions, left))
            left = len(positions)
        numbers = self.values.decode_body(content.body, left)
        if finite and not bool(torch.isfinite(numbers).all()):
            raise PayloadError("payload: holds NaN or infinity; its sender diverged")
        narrow: Floats = numbers.numpy()
        for positions, size in reversed(kept):
            wide = np.zeros(size, np.float32)
            wide[positions] = narrow
            narrow = wide
        return torch.from_numpy(narrow)

    def encode(self, x: Tensor, rng: np.random.Generator | None = None) -> bytes:
        """Encode a vector as a message of its own."""
        return pack_parcel(self.encode_body(x, rng=rng))

    def decode(self, payload: bytes | memoryview, numel: int, *, finite: bool = False) -> Tensor:
        """Decode a message of its own.

        Parameters
        ----------
        payload : bytes
            What arrived.
        numel : int
            How many numbers the receiver expects.
        finite : bool
            Refuse NaN and infinity. Default: let them pass.

        Returns
        -------
        Tensor
            Of shape (numel,), float32; zero where nothing travelled.

        Raises
        ------
        PayloadError
            If the message is damaged, or not exactly what this chain makes of `numel` numbers.
        """
        return decode_parts(payload, [(self, numel)], finite=finite)[0]

    def round(self, x: Tensor) -> Tensor:
        """What the receiver of ``encode(x)`` will hold of a vector (n,), in its own dtype again."""
        return self.decode(self.encode(x.float()), x.numel()).to(x)

    def compress(
        self, x: Tensor, memory: Tensor | None, kind: Kind = "model", rng: np.random.Generator | None = None
    ) -> tuple[list[MessageSection], Tensor | None]:
        """Encode as `encode_body` does, for a sender that may keep a memory between messages.

        Parameters
        ----------
        x : Tensor
            The vector.
        memory : Tensor, optional
            What the last call returned; None before the first one.
        kind, rng
            As in `encode_body`.

        Returns
        -------
        list of Section
            What to send.
        Tensor or None
            What to keep: always None, except under error feedback.
        """
        return self.encode_body(x, kind, rng), None


class ErrorFeedback(Chain):
    """A chain whose sender keeps what a message lost, and adds it to the next one (Seide et al., Interspeech 2014).

    Messages and their decoding are the chain's own. What was decoded in all, plus the memory, is what was to be sent in
    all. A vector that is not finite spoils the memory for good: check before sending.
    """

    def __str__(self) -> str:
        return f"ef({super().__str__()})"

    def compress(
        self, x: Tensor, memory: Tensor | None, kind: Kind = "model", rng: np.random.Generator | None = None
    ) -> tuple[list[MessageSection], Tensor]:
        """As `Chain.compress`; the memory is (n,), float32."""
        wanted = x.detach().reshape(-1).to("cpu")
        wanted = wanted if memory is None else wanted + memory
        sections = self.encode_body(wanted, kind, rng)
        return sections, wanted - self.decode_body(sections, wanted.numel())


def decode_parts(
    payload: bytes | memoryview, parts: Sequence[tuple[Chain, int]], *, finite: bool = False
) -> list[Tensor]:
    """Decode a parcel whose sections several chains wrote, one after the other.

    Parameters
    ----------
    payload : bytes
        What arrived.
    parts : sequence of (Chain, int)
        The chain and the length of each vector that the receiver expects.
    finite : bool
        Refuse NaN and infinity. Default: let them pass.

    Returns
    -------
    list of Tensor
        A float32 vector per part.

    Raises
    ------
    PayloadError
        If the message is not exactly those parts.
    """
    expected = sum(chain.sections for chain, _ in parts)
    sections = unpack_parcel(payload, table_bytes(expected) + sum(chain.most_bytes(numel) for chain, numel in parts))
    if len(sections) != expected:
        raise PayloadError(f"payload: {len(sections)} sections, expected {expected}; give both sides the same chains")
    vectors = []
    for chain, numel in parts:
        vectors.append(chain.decode_body(sections[: chain.sections], numel, finite=finite))
        sections = sections[chain.sections :]
    return vectors
