"""Buffers that are no float32 numbers: counters, masks, tables of integers. They travel with models, as they are.

The server moves each number by the weighted mean of what clients have changed it by, rounded to the buffer's type: what
no client changes keeps every bit, counters become mean counts, and masks go by majority.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsync.errors import PayloadError
from sparsync.wire import MessageSection, pack_parcel, unpack_parcel
from sparsync.wire.parcel import RAW
from sparsync.workers import Arena


class ExactState:
    """What a model's ``state_dict()`` holds beside what a `ModelVector` has, in one row of an arena.

    Parameters
    ----------
    arena : Arena
        Its first row is the first model.

    Attributes
    ----------
    values : list of Tensor
        What the server holds, in the buffers' own types.
    numel : int
        How many numbers that are.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.initial = [rows[0].clone() for rows in arena.others]
        self.values = self.read()
        self.numel = sum(map(len, self.values))
        self.nbytes = sum(value.nbytes for value in self.values)

    def read(self) -> list[Tensor]:
        """Return a copy of the row's, in the CPU's memory."""
        pairs = zip(self.arena.others, self.arena.saved, strict=True)
        return [rows[0].to("cpu", copy=True) for rows, saved in pairs if saved]

    def write(self, values: Sequence[Tensor] | None = None) -> None:
        """Load a model's into the row, by default the server's; buffers that nobody saves become as at first."""
        given = iter(self.values if values is None else values)
        for rows, saved, initial in zip(self.arena.others, self.arena.saved, self.initial, strict=True):
            rows[0].copy_(next(given) if saved else initial)

    def join(self, payload: bytes, values: Sequence[Tensor]) -> bytes:
        """Add a model's to a message, if that carries a model."""
        sections = self._sections(payload)
        if not sections:
            return payload
        body = b"".join(value.view(torch.uint8).numpy().tobytes() for value in values)
        return pack_parcel([*sections, MessageSection("model", body)])

    def split(self, payload: bytes) -> tuple[bytes, list[Tensor] | None]:
        """Return a message as it was before `join`, and what that has added.

        Raises
        ------
        PayloadError
            If it carries a model, but not exactly that.
        """
        sections = self._sections(payload)
        if not sections:
            return payload, None
        *rest, (_, body, codec) = sections
        if not rest or codec != RAW or len(body) != self.nbytes:
            raise PayloadError(f"payload: its last section has {len(body)} bytes, expected {self.nbytes} of buffers")
        whole = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        pieces = whole.split_with_sizes([value.nbytes for value in self.values])
        values = [piece.clone().view(like.dtype) for piece, like in zip(pieces, self.values, strict=True)]
        for piece, value in zip(pieces, values, strict=True):
            if value.dtype is torch.bool and bool((piece > 1).any()):
                raise PayloadError("payload: a truth value that is neither 0 nor 1")
            if not bool(torch.isfinite(value).all()):
                raise PayloadError("payload: a buffer holds NaN or infinity")
        return pack_parcel(rest), values

    def _sections(self, payload: bytes) -> list[MessageSection]:
        """Sections of a message that carries a model which has such buffers; none of another."""
        sections = unpack_parcel(payload, len(payload)) if self.numel else []
        return sections if any(section.kind == "model" for section in sections) else []

    def change(self, values: Sequence[Tensor]) -> Tensor:
        """Return by how much values differ from the server's, (numel,), float64."""
        pairs = zip(values, self.values, strict=True)
        return torch.cat([(value.to(_wide(held)) - held.to(_wide(held))).double() for value, held in pairs])

    def move(self, change: Tensor) -> None:
        """Change the server's values by so much, (numel,), rounded to their types."""
        pieces = change.split_with_sizes([len(value) for value in self.values])
        for i, (held, piece) in enumerate(zip(self.values, pieces, strict=True)):
            step = piece if held.is_floating_point() else piece.round()
            self.values[i] = (held.to(_wide(held)) + step.to(_wide(held))).to(held.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.is_floating_point() else torch.int64
