"""What devices and their coordinator say: it arrives as it was, and nothing else is ever taken for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsync.engines.devices.device import RETRIES, time_out
from sparsync.engines.devices.messages import (
    LAST_STEP,
    LONGEST_CONTROL,
    BackupRequest,
    BroadcastDone,
    BroadcastMean,
    CycleReport,
    CycleStart,
    DeviceAddress,
    DeviceFailed,
    DeviceReady,
    DevicesLost,
    EndTraining,
    JoinReply,
    JoinRequest,
    ModelChunk,
    RingCommit,
    RingDone,
    RingStart,
    SkipRing,
    chunk_limit,
    read_chunk,
    read_control,
    tag_of,
)
from sparsync.errors import PayloadError
from sparsync.wire import HEADER_BYTES, Dense, pack
from sparsync.wire.parcel import RAW

PEERS = [DeviceAddress(number=3, host="::1", port=1), DeviceAddress(number=0, host="10.0.0.9", port=65535)]

FROM_DEVICE = [
    JoinRequest(port=29400, fingerprint="0f" * 8, version=7, merged=2),
    DeviceReady(version=3, step_seconds=0.25),
    CycleReport(cycle=1, version=9, step_seconds=1e-3, sent=10, received=20, loss=0.5),
    CycleReport(cycle=1, version=9, step_seconds=1e-3, sent=0, received=0, loss=None),
    RingDone(cycle=4, attempt=1, digest="ab" * 16),
    DevicesLost(cycle=4, attempt=0, devices=[2, 1]),
    DevicesLost(cycle=4, attempt=0, devices=[2], why="payload: é"),
    BroadcastDone(cycle=4),
    DeviceFailed(why="its loss is not finite"),
]
FROM_COORDINATOR = [
    JoinReply(cycle=0, version=0, warmup=1, rate=0.1, model=True),
    CycleStart(cycle=1, steps=2**40, capped=False),
    RingStart(cycle=1, attempt=0, ring=PEERS, place=1, broadcaster=3, others=[], shares=[0.25, 0.75], wait=1.0),
    RingStart(cycle=1, attempt=2, ring=PEERS[:1], place=0, broadcaster=3, others=PEERS[1:], shares=None, wait=2.5),
    SkipRing(cycle=1),
    RingCommit(cycle=1, attempt=0),
    BroadcastMean(cycle=1),
    BackupRequest(cycle=1),
    EndTraining(),
    EndTraining(why="enough"),
]
EVERY = [(word, "device") for word in FROM_DEVICE] + [(word, "coordinator") for word in FROM_COORDINATOR]


@pytest.mark.parametrize(("word", "sender"), EVERY)
def test_words_arrive_as_they_were(word, sender):
    assert read_control(word.pack(), sender) == word
    other = "coordinator" if sender == "device" else "device"
    with pytest.raises(PayloadError, match=f"payload: no message of a {other}"):
        read_control(word.pack(), other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"kind": "dance"}',
        '{"kind": "sent"}',
        '{"kind": "sent", "cycle": -1}',
        '{"kind": "sent", "cycle": 1.5}',
        '{"kind": "sent", "cycle": "1"}',
        '{"kind": "sent", "cycle": true}',
        '{"kind": "sent", "cycle": 1, "more": 1}',
        '{"kind": "sent", "cycle": 9007199254740993}',
        '{"kind": "sent", "cycle": 1' + "0" * 5000 + "}",
        '{"kind": "ready", "version": 1, "step_seconds": 0}',
        '{"kind": "ready", "version": 1, "step_seconds": 1e-300}',
        '{"kind": "ready", "version": 1, "step_seconds": 1e300}',
        '{"kind": "ready", "version": 1, "step_seconds": NaN}',
        '{"kind": "ready", "version": 1, "step_seconds": Infinity}',
        '{"kind": "join", "port": 0, "fingerprint": "", "version": 0, "merged": 0}',
        '{"kind": "join", "port": 65536, "fingerprint": "", "version": 0, "merged": 0}',
        '{"kind": "lost", "cycle": 1, "attempt": 0, "devices": ' + str([0] * 10_001) + "}",
        '{"kind": "version", "cycle": 1, "version": 1, "step_seconds": 1, "sent": 0, "received": 0, "loss": NaN}',
        '{"kind": "failed", "why": "' + "x" * 301 + '"}',
        "[" * 100_000,
    ],
)
def test_what_is_no_word_is_refused(text):
    with pytest.raises(PayloadError, match="payload: no message of a device"):
        read_control(pack(RAW, text.encode()), "device")


@given(st.binary(max_size=200))
def test_whatever_arrives_is_a_word_or_refused(noise):
    for sender in ("device", "coordinator"):
        for payload in (noise, pack(RAW, noise)):
            with pytest.raises(PayloadError):
                read_control(payload, sender)


@given(st.sampled_from(EVERY), st.data())
def test_a_word_that_was_damaged_is_another_one_or_refused(said, data):
    word, sender = said
    body = bytearray(word.pack()[HEADER_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for changed in (bytes(body), bytes(body[:cut])):
        try:
            read = read_control(pack(RAW, changed), sender)
        except PayloadError:
            continue
        assert read_control(read.pack(), sender) == read
    torn = bytearray(word.pack())
    torn[data.draw(st.integers(0, len(torn) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PayloadError):
        read_control(bytes(torn), sender)


def test_a_word_has_a_greatest_length():
    with pytest.raises(PayloadError, match="declares a body of"):
        read_control(pack(RAW, b" " * (LONGEST_CONTROL + 1)), "device")


# Numbers


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("numel", [0, 1, 13])
def test_numbers_arrive_bit_for_bit(kind, numel):
    dense = Dense(kind)
    values = torch.randn(numel, dtype=dense.dtype)
    tag = (2**60, 3, LAST_STEP)
    payload = ModelChunk(tag, values).pack(dense)
    assert tag_of(payload) == tag
    assert torch.equal(read_chunk(payload, dense, numel), values)
    assert len(payload) - HEADER_BYTES <= chunk_limit(dense, numel)


def wrong(values: torch.Tensor, kind: str = "float32") -> bytes:
    return ModelChunk((1, 0, 0), values).pack(Dense(kind))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        wrong(torch.zeros(4)),
        wrong(torch.zeros(6)),
        wrong(torch.zeros(5, dtype=torch.float64), "float64"),
        wrong(torch.tensor([0.0, 1.0, torch.nan, 0.0, 0.0])),
        wrong(torch.tensor([0.0, 1.0, 0.0, 0.0, -torch.inf])),
        wrong(torch.zeros(5))[:-1],
        wrong(torch.zeros(5)) + b"0",
        RingCommit(cycle=1, attempt=0).pack(),
    ],
)
def test_other_numbers_than_expected_are_refused(payload):
    with pytest.raises(PayloadError, match="payload"):
        read_chunk(payload, Dense("float32"), 5)


@given(st.binary(max_size=80))
def test_noise_is_no_numbers(noise):
    dense = Dense("float32")
    for payload in (noise, pack(RAW, noise)):
        with pytest.raises(PayloadError):
            read_chunk(payload, dense, 3)
    body = pack(dense.number, noise)
    try:
        assert len(read_chunk(body, dense, 3)) == 3
    except PayloadError:
        pass
    else:
        assert len(noise) == 16 + 12
    try:
        tag_of(body)
    except PayloadError:
        assert len(noise) < 16


def test_a_ring_has_time_for_slow_members():
    """Whoever is slow but answers is waited for `RETRIES` times after the first."""
    for members in range(1, 40):
        assert time_out(2.0, members) > 2.0 * (RETRIES + 1)
