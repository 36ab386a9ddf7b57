"""What the server and the clients of split learning say to each other, as bytes: one side packs, the other unpacks."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsync.errors import PayloadError
from sparsync.split.channel import Channel
from sparsync.split.schedule import Ints
from sparsync.transport import MessageKind
from sparsync.wire import Dense, MessageSection, pack, pack_parcel, unpack, unpack_parcel
from sparsync.wire.parcel import RAW, table_bytes

OUTPUTS = Channel("activation", None, 1)
"""How the top's outputs travel, where labels stay with the clients: as they are computed."""
GRADIENT = Channel("gradient", None, 1)
"""How gradients of outputs and of whole bottoms travel: as they are computed."""
BOTTOM = Channel("model", None, 1)
"""How a bottom travels that is to be averaged: parameters and buffers, as they are."""

_EXACT = {torch.float32: Dense(), torch.float64: Dense("float64")}
_NUMBERED = {dense.number: dense for dense in _EXACT.values()}
_OPENING = struct.Struct("<4Qd?")
_STEP = struct.Struct("<Q")
_SECONDS = struct.Struct("<d")
_PAIRS, _REST = 1, 2  # a column of the schedule: as pairs of step and size; of what is left of an epoch that has begun


class SplitKind(MessageKind):
    """What a message between the server and a client is for."""

    OPEN = 16  # server: a run begins, or goes on
    SIZES = 17  # client: how many samples it has
    ASK_TYPICAL = 18  # server: how long is the client known to take to answer?
    ASK_MEASURED = 19  # server: how long has the client taken of late?
    DELAY = 20  # client: seconds
    SCHEDULE = 21  # server: how many samples the client is asked for, and when
    START = 22  # server: a step begins
    ACTIVATIONS = 23  # client: activations, and perhaps labels
    OUTPUTS = 24  # server: outputs of the top, where labels stay
    OUTPUT_DELTA = 25  # client: gradients of the outputs
    DELTA = 26  # server: gradients of the activations
    GRADIENT = 27  # client: gradient of its bottom
    SUM = 28  # server: sum of all bottoms' gradients; the client takes a step
    ASK_BOTTOM = 29  # server: what is the client's bottom now?
    ASK_STATE = 30  # server: what are its bottom and the state of its optimiser?
    BOTTOM = 31  # client: its bottom; server: the bottom that it is to hold

    @property
    def is_bare(self) -> bool:
        """Questions are."""
        return self.name.startswith("ASK_")


class RunOpening(NamedTuple):
    """Where a client begins, or goes on.

    Attributes
    ----------
    run, step : int
        Which run, and its step.
    epochs : int
        Epochs begun.
    used : int
        Of the client's samples, in the last of these.
    measured : float
        Seconds that it has taken to answer; NaN before it has been asked.
    histograms : bool
        Whether it is to say how many samples of each class it has.
    """

    run: int
    step: int
    epochs: int
    used: int
    measured: float
    histograms: bool

    def pack(self, rows: Sequence[Tensor], momentum: Mapping[str, Tensor]) -> bytes:
        """Return the message, with the client's bottom as in `pack_state`."""
        return pack_parcel([*_sections(rows, momentum), MessageSection("control", _OPENING.pack(*self))])

    @classmethod
    def unpack(cls, payload: bytes) -> tuple[RunOpening, list[MessageSection]]:
        """Return it, and what `unpack_state` reads."""
        *state, control = unpack_parcel(payload, len(payload))
        return cls(*_OPENING.unpack(control.body)), state


def pack_state(rows: Sequence[Tensor], momentum: Mapping[str, Tensor]) -> bytes:
    """Return a message of a bottom's rows and the state of its optimiser, exactly as they are."""
    return pack_parcel(_sections(rows, momentum))


def _sections(rows: Sequence[Tensor], momentum: Mapping[str, Tensor]) -> list[MessageSection]:
    exact = [(one, _EXACT[one.dtype]) for one in (*rows, *momentum.values())]
    model = [MessageSection("model", dense.encode_body(one), dense.number) for one, dense in exact]
    return [*model, MessageSection("control", ",".join(momentum).encode())]


def unpack_state(sections: Sequence[MessageSection], rows: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return a bottom's rows, as long as those here, and the state of its optimiser.

    Raises
    ------
    PayloadError
        If there is anything else.
    """
    *model, control = sections
    names = [name for name in bytes(control.body).decode("ascii", "replace").split(",") if name]
    if len(model) != len(rows) + len(names) or not all(name.isidentifier() for name in names):
        raise PayloadError(f"payload: {len(model)} tensors are no bottom with the state of its optimiser")
    tensors = []
    for section in model:
        dense = _NUMBERED.get(section.codec, _EXACT[torch.float32])
        tensors.append(dense.decode_body(section.body, len(section.body) // dense.dtype.itemsize))
    sizes = [len(one) for one in tensors]
    if sizes[: len(rows)] != [len(row) for row in rows] or not {1, len(rows[0])}.issuperset(sizes[len(rows) :]):
        raise PayloadError("payload: the bottom of another model; start all with one experiment")
    states = (one.squeeze() if len(one) == 1 else one for one in tensors[len(rows) :])
    return tensors[: len(rows)], dict(zip(names, states, strict=True))


def pack_numbers(numbers: Ints) -> bytes:
    """Return a message of whole numbers."""
    return pack_parcel([MessageSection("control", numbers.astype(np.int64).tobytes())])


def unpack_numbers(payload: bytes, count: int) -> Ints:
    """Return so many whole numbers.

    Raises
    ------
    PayloadError
        If they are others.
    """
    return np.frombuffer(_control(payload, 8 * count), np.int64)


def pack_column(steps: Ints, sizes: Ints, total: int, *, rest: bool) -> bytes:
    """Return a client's column of a schedule of `total` steps: all sizes, or pairs of step and size if that is shorter.

    `rest` says that it is for the rest of an epoch that has begun.
    """
    if total <= 2 * len(steps):
        column, how = np.zeros(total, np.int32), 0
        column[steps] = sizes
    else:
        column, how = np.stack([steps, sizes], axis=1).astype(np.int32).ravel(), _PAIRS
    return pack_parcel([MessageSection("control", column.tobytes(), how + _REST * rest)])


def unpack_column(payload: bytes) -> tuple[list[int], bool]:
    """Return the sizes that are asked for, in their order; and whether it is for the rest of an epoch."""
    (section,) = unpack_parcel(payload, len(payload))
    column = np.frombuffer(section.body, np.int32)
    sizes = column[1::2] if section.codec & _PAIRS else column[column > 0]
    return sizes.tolist(), bool(section.codec & _REST)


def pack_step(step: int) -> bytes:
    """Return the message that begins a step."""
    return pack(RAW, _STEP.pack(step))


def unpack_step(payload: bytes) -> int:
    """Return which step it is."""
    return int(_STEP.unpack(unpack(payload, RAW, _STEP.size))[0])


def pack_seconds(seconds: float) -> bytes:
    """Return the message of a delay."""
    return pack_parcel([MessageSection("control", _SECONDS.pack(seconds))])


def unpack_seconds(payload: bytes) -> float:
    """Return a delay; NaN if it is not known.

    Raises
    ------
    PayloadError
        If it is anything else.
    """
    (seconds,) = _SECONDS.unpack(_control(payload, _SECONDS.size))
    if seconds < 0 or seconds == np.inf:
        raise PayloadError(f"payload: a delay of {seconds:g} seconds")
    return float(seconds)


def _control(payload: bytes, size: int) -> memoryview:
    body = unpack_parcel(payload, table_bytes(1) + size)[0].body
    if len(body) != size:
        raise PayloadError(f"payload: {len(body)} bytes, expected {size}")
    return memoryview(body)
