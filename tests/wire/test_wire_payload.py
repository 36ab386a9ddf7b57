from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import pytest

from sparsync.errors import PayloadError
from sparsync.wire import HEADER_BYTES, Dense, pack, unpack

BODY = b"0123456789"


def forged(
    magic: bytes = b"SPSY",
    version: int = 1,
    codec: int = 3,
    zero: int = 0,
    length: int = len(BODY),
    body: bytes = BODY,
) -> bytes:
    """A message whose checksum holds, whatever its fields say."""
    fields = struct.pack("<4sBBHQ", magic, version, codec, zero, length)
    return fields + struct.pack("<I", zlib.crc32(fields + body)) + body


def test_layout_by_hand() -> None:
    assert HEADER_BYTES == 20
    assert pack(3, BODY) == forged()
    assert bytes(unpack(pack(3, BODY), 3, len(BODY))) == BODY
    assert bytes(unpack(pack(255, b""), 255, 0)) == b""


def test_body_is_not_copied() -> None:
    message = bytearray(pack(3, BODY))
    body = unpack(memoryview(message), 3, len(BODY))
    message[HEADER_BYTES] = ord("x")
    assert bytes(body) == b"x123456789"


@pytest.mark.parametrize("at", range(HEADER_BYTES + len(BODY)))
def test_every_damaged_byte_is_noticed(at: int) -> None:
    for bit in range(8):
        message = bytearray(pack(3, BODY))
        message[at] ^= 1 << bit
        with pytest.raises(PayloadError):
            unpack(bytes(message), 3, len(BODY))


@pytest.mark.parametrize("length", range(HEADER_BYTES + len(BODY)))
def test_truncation_at_every_length(length: int) -> None:
    with pytest.raises(PayloadError):
        unpack(pack(3, BODY)[:length], 3, len(BODY))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "payload of 0 bytes: shorter than its header of 20"),
        (b"SPSY", "payload of 4 bytes: shorter than its header of 20"),
        (forged(magic=b"SPSZ"), "does not start like a sparsync message"),
        (forged(zero=1), "does not start like a sparsync message"),
        (forged(version=2), "layout version 2, expected 1; run the same sparsync everywhere"),
        (forged(codec=4), "codec 4, expected 3; give sender and receiver the same codec"),
        (forged(length=11), "declares a body of 11 bytes, permitted are 10"),
        (forged(length=2**64 - 1), "declares a body of 18446744073709551615 bytes, permitted are 10"),
        (forged(length=9), "body of 10 bytes, its header declares 9"),
        (forged(body=BODY[:9]), "body of 9 bytes, its header declares 10"),
        (forged() + b"!", "body of 11 bytes, its header declares 10"),
        (forged()[:-1] + b"!", "checksum does not hold"),
    ],
)
def test_bad_messages(message: bytes, says: str) -> None:
    with pytest.raises(PayloadError) as caught:
        unpack(message, 3, len(BODY))
    assert says in str(caught.value)


def test_declared_length_is_not_allocated() -> None:
    for length in (2**32, 2**63, 2**64 - 1):
        message = forged(length=length)
        for limit in (0, 10, 2**62, 2**64):  # even where the receiver would permit it
            tracemalloc.start()
            try:
                with pytest.raises(PayloadError):
                    unpack(message, 3, limit)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 1 << 20


def test_hostile_inputs_are_payload_errors_and_nothing_else() -> None:
    """Ten thousand messages: noise, noise behind a good magic, good messages cut, stretched, spliced or bent."""
    rng = random.Random(0)
    codec = Dense("float16")
    good = pack(2, rng.randbytes(32))  # 16 numbers, as they are expected
    passed = 0
    for turn in range(10_000):
        message = bytearray(good)
        match turn % 7:
            case 0:
                message = bytearray(rng.randbytes(rng.randrange(80)))
            case 1:
                message[4:] = rng.randbytes(rng.randrange(80))
            case 2:
                del message[rng.randrange(len(message)) :]
            case 3:
                message += rng.randbytes(rng.randrange(1, 40))
            case 4:
                at = rng.randrange(len(message))
                message[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                message = bytearray(
                    forged(
                        rng.choice([b"SPSY", b"ABCD"]),
                        rng.randrange(3),
                        rng.randrange(6),
                        rng.randrange(2),
                        rng.choice([0, 1, 31, 32, 33, 2**63, 2**64 - 1]),
                        rng.randbytes(rng.choice([0, 1, 31, 32, 33])),
                    )
                )
            case 6:
                message = bytearray(pack(2, rng.randbytes(32)))  # any bits are numbers: half of them pass, or all
        try:
            codec.decode(bytes(message), 16, finite=bool(turn % 2))
            passed += 1
        except PayloadError:
            pass
    assert 0 < passed < 3000  # nearly all of kind 6 without `finite`, some with it, and hardly any other


def test_a_short_vector_is_refused_even_with_a_checksum_that_holds() -> None:
    for numel in (0, 1, 15):
        with pytest.raises(PayloadError, match=rf"payload: {4 * numel} bytes of float32, expected 16 numbers"):
            Dense().decode(pack(0, bytes(4 * numel)), 16)
