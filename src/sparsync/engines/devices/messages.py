"""What HADFL's coordinator and devices say to each other: small checked messages, and models and pieces of them."""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from sparsync.errors import PayloadError
from sparsync.transport import MessageKind
from sparsync.wire import HEADER_BYTES, Dense, pack, unpack
from sparsync.wire.parcel import RAW

LONGEST_CONTROL = 1 << 20
"""Bytes of a message other than a model that anybody accepts."""
LAST_STEP = 2**32 - 1
"""Step of a whole model, beyond those of any ring."""

_TAG = struct.Struct("<QII")

SHORTEST_STEP, LONGEST_STEP = 1e-6, 1e6
"""Seconds that a local step may take."""

Count = Annotated[int, Field(ge=0, le=2**53)]
Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]
StepTime = Annotated[float, Field(ge=SHORTEST_STEP, le=LONGEST_STEP)]


class DeviceKind(MessageKind):
    """What a message among devices and their coordinator is for."""

    CONTROL = 16  # a `ControlMessage`
    CHUNK = 17  # device: a piece of a model, round the ring
    MODEL = 18  # device, or coordinator: a whole model


class ControlMessage(BaseModel):
    """A message that is not a model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def pack(self) -> bytes:
        """Return it as a payload."""
        return pack(RAW, self.model_dump_json().encode())


class DeviceAddress(ControlMessage):
    """A device, and where it listens."""

    number: Count
    host: Annotated[str, Field(max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]


class JoinRequest(ControlMessage):
    """Device: it is here, and listens at `port`; it has trained `version` steps, and merged the mean of a cycle."""

    kind: Literal["join"] = "join"
    port: Annotated[int, Field(ge=1, le=65535)]
    fingerprint: Annotated[str, Field(max_length=64)]
    version: Count
    merged: Count


class DeviceReady(ControlMessage):
    """Device: it has warmed up, and a local step takes it so long."""

    kind: Literal["ready"] = "ready"
    version: Count
    step_seconds: StepTime


class CycleReport(ControlMessage):
    """Device: how far it is at the end of a cycle, and what it has sent to other devices since it began."""

    kind: Literal["version"] = "version"
    cycle: Count
    version: Count
    step_seconds: StepTime
    sent: Count
    received: Count
    loss: Annotated[float, Field(allow_inf_nan=False)] | None


class RingDone(ControlMessage):
    """Device: it holds the ring's mean, of which this is the digest."""

    kind: Literal["done"] = "done"
    cycle: Count
    attempt: Count
    digest: Annotated[str, Field(max_length=64)]


class DevicesLost(ControlMessage):
    """Device: others who do not answer, or (`why`) send what cannot be used."""

    kind: Literal["lost"] = "lost"
    cycle: Count
    attempt: Count
    devices: Annotated[list[Count], Field(max_length=10_000)]
    why: Annotated[str, Field(max_length=300)] | None = None


class BroadcastDone(ControlMessage):
    """Device: it has passed a cycle's mean on to everyone."""

    kind: Literal["sent"] = "sent"
    cycle: Count


class DeviceFailed(ControlMessage):
    """Device: it cannot go on."""

    kind: Literal["failed"] = "failed"
    why: Annotated[str, Field(max_length=300)]


class JoinReply(ControlMessage):
    """Coordinator: begin, with the model that follows, or go on with your own (`model` false)."""

    kind: Literal["welcome"] = "welcome"
    cycle: Count
    version: Count
    warmup: Count
    rate: Time
    model: bool


class CycleStart(ControlMessage):
    """Coordinator: so many local steps until the cycle's end, at least; a device that is capped then waits."""

    kind: Literal["plan"] = "plan"
    cycle: Count
    steps: Count
    capped: bool


class RingStart(ControlMessage):
    """Coordinator: the cycle is over, and these average; one of them tells the others.

    Attributes
    ----------
    attempt : int
        How often this cycle's ring has been formed anew.
    place : int
        Where in it the receiver is.
    shares : list of float, optional
        Weights of the members, which sum to 1. None: all alike.
    wait : float
        Seconds to wait for the previous member before it is asked whether it lives.
    """

    kind: Literal["sync"] = "sync"
    cycle: Count
    attempt: Count
    ring: Annotated[list[DeviceAddress], Field(min_length=1)]
    place: Count
    broadcaster: Count
    others: list[DeviceAddress]
    shares: list[Annotated[float, Field(gt=0, le=1)]] | None
    wait: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @property
    def tag(self) -> tuple[int, int]:
        """Cycle and attempt."""
        return self.cycle, self.attempt


class SkipRing(ControlMessage):
    """Coordinator: the cycle is over, and you go on."""

    kind: Literal["next"] = "next"
    cycle: Count


class RingCommit(ControlMessage):
    """Coordinator: everyone in the ring holds the same mean; adopt it, and pass this on round the ring."""

    kind: Literal["commit"] = "commit"
    cycle: Count
    attempt: Count


class BroadcastMean(ControlMessage):
    """Coordinator: tell the others the mean of a cycle, since who should have is gone."""

    kind: Literal["broadcast"] = "broadcast"
    cycle: Count


class BackupRequest(ControlMessage):
    """Coordinator: send me the last mean."""

    kind: Literal["backup"] = "backup"
    cycle: Count


class EndTraining(ControlMessage):
    """Coordinator: training is over; or you are of no use any more (`why`)."""

    kind: Literal["stop"] = "stop"
    why: Annotated[str, Field(max_length=300)] | None = None


FromDevice = JoinRequest | DeviceReady | CycleReport | RingDone | DevicesLost | BroadcastDone | DeviceFailed
FromCoordinator = (
    JoinReply | CycleStart | RingStart | SkipRing | RingCommit | BroadcastMean | BackupRequest | EndTraining
)

_READ: dict[str, TypeAdapter[Any]] = {
    "device": TypeAdapter(Annotated[FromDevice, Field(discriminator="kind")]),
    "coordinator": TypeAdapter(Annotated[FromCoordinator, Field(discriminator="kind")]),
}


def read_control(payload: bytes, sender: Literal["device", "coordinator"]) -> Any:
    """Check what somebody says.

    Raises
    ------
    PayloadError
        If it is damaged, or nothing that one can say.
    """
    try:
        return _READ[sender].validate_json(bytes(unpack(payload, RAW, LONGEST_CONTROL)))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "message"
        raise PayloadError(f"payload: no message of a {sender} ({where}: {wrong['msg']})") from None


class ModelChunk(NamedTuple):
    """A model, or a piece of one: of which cycle, attempt and step of the ring."""

    tag: tuple[int, int, int]
    values: Tensor

    def pack(self, dense: Dense) -> bytes:
        """Return it as a payload, exactly as it is."""
        return pack(dense.number, _TAG.pack(*self.tag) + dense.encode_body(self.values))


def tag_of(payload: bytes) -> tuple[int, int, int]:
    """Whose payload a `ModelChunk` is, before it is checked.

    Raises
    ------
    PayloadError
        If it is too short for one.
    """
    if len(payload) < HEADER_BYTES + _TAG.size:
        raise PayloadError("payload: too short for a piece of a model")
    cycle, attempt, step = _TAG.unpack_from(payload, HEADER_BYTES)
    return cycle, attempt, step


def read_chunk(payload: bytes, dense: Dense, numel: int) -> Tensor:
    """Check a model, or a piece of one, (numel,).

    Raises
    ------
    PayloadError
        If it is damaged, of another length or type, or not finite.
    """
    body = unpack(payload, dense.number, _TAG.size + dense.body_bytes(numel))
    values = dense.decode_body(body[_TAG.size :], numel)
    if not bool(values.isfinite().all()):
        raise PayloadError("payload: holds NaN or infinity; its sender diverged")
    return values


def chunk_limit(dense: Dense, numel: int) -> int:
    """Bytes of the largest body that carries so many numbers, or any word."""
    return max(LONGEST_CONTROL, _TAG.size + dense.body_bytes(numel))
