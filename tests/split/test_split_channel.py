"""Messages at the cut: what arrives, how long they are, and that nothing but a PayloadError comes of a bad one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsync.errors import PayloadError
from sparsync.split.channel import Channel, channel_chain, message_bytes
from sparsync.wire import Dense, MessageSection, kinds_of, pack, pack_parcel, unpack_parcel
from sparsync.wire.parcel import PARCEL

TEXTS = [None, "float32", "bf16", "q8", "q4(block=7)", "topk(0.25)", "topk(0.5)+q8", "sparse", "q8(stochastic)"]
WIDTHS = {2: 1, 10: 1, 256: 1, 257: 2, 1000: 2, 32768: 2, 32769: 8, 40000: 8}  # classes, and bytes of a label

texts = st.sampled_from(TEXTS)
classes = st.sampled_from([10, 1000, 40000])
dtypes = st.sampled_from([torch.float32, torch.float64])


def numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Half of them zero, as behind a ReLU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).relu()


def labels_of(seed: int, samples: int, among: int) -> Tensor:
    drawn = torch.randint(among, (samples,), generator=torch.Generator().manual_seed(seed))
    drawn[0] = among - 1
    return drawn


def rng(i: int) -> np.random.Generator:
    return np.random.default_rng(i)


# 1. Round trips


@given(st.integers(0, 99), st.integers(1, 6), st.sampled_from([(), (3,), (2, 3, 1)]), classes, dtypes)
def test_without_a_chain_everything_arrives_as_it_was(seed, samples, shape, among, dtype):
    channel = Channel("activation", None, among)
    x, labels = numbers(seed, (samples, *shape), dtype), labels_of(seed, samples, among)
    payload = channel.pack(x, labels)
    assert isinstance(payload, bytes)
    back, told = channel.unpack(payload, x, samples)
    assert torch.equal(back, x)
    assert back.dtype == dtype
    assert torch.equal(told, labels)
    assert told.dtype == torch.int64
    bare, none = channel.unpack(channel.pack(x), x)
    assert torch.equal(bare, x)
    assert not len(none)


@given(st.integers(0, 99), st.integers(1, 5), classes, dtypes)
def test_what_a_codec_loses_is_lost(seed, samples, among, dtype):
    x, labels = numbers(seed, (samples, 8), dtype), labels_of(seed, samples, among)

    def arrived(text: str) -> Tensor:
        channel = Channel("gradient", channel_chain(text), among)
        back, told = channel.unpack(channel.pack(x, labels, rng(seed)), x, samples)
        assert torch.equal(told, labels)
        assert (back.shape, back.dtype) == (x.shape, dtype)
        return back

    single, scale = x.float(), float(x.max()) / 127
    assert torch.equal(arrived("float32"), single.to(dtype))
    assert torch.equal(arrived("sparse"), single.to(dtype))
    assert torch.equal(arrived("bf16"), x.float().bfloat16().to(dtype))
    assert (arrived("q8") - x).abs().max() <= 0.51 * scale
    assert (arrived("q8(stochastic)") - x).abs().max() <= 1.01 * scale
    kept = arrived("topk(0.25)").flatten()
    assert len(kept.nonzero()) <= len(x.flatten()) // 4
    places = kept.nonzero()
    assert torch.equal(kept[places], single.to(dtype).flatten()[places])
    assert torch.equal(kept.double().topk(2 * samples)[0], single.double().flatten().topk(2 * samples)[0])


@pytest.mark.parametrize(("among", "width"), WIDTHS.items())
def test_labels_take_as_few_bytes_as_there_are_classes(among, width):
    channel = Channel("activation", None, among)
    labels = torch.tensor([0, among - 1, among // 2])
    x = torch.zeros(3, 2)
    payload = channel.pack(x, labels)
    assert kinds_of(payload)["label"] == 8 + 3 * width
    assert torch.equal(channel.unpack(payload, x, 3)[1], labels)


# 2. What is booked


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), texts, classes, dtypes, st.booleans())
def test_carry_books_the_length_of_real_messages_and_delivers_their_content(sizes, text, among, dtype, told):
    channel = Channel("activation", channel_chain(text), among)
    total = sum(sizes)
    x, labels = numbers(1, (total, 2, 4), dtype), labels_of(1, total, among) if told else None
    asked: list[int] = []
    came, delivery = channel.carry(x, np.array(sizes), labels, lambda i: asked.append(i) or rng(i))
    payloads, arrived = [], []
    for i, piece in enumerate(x.split(sizes)):
        own = labels.split(sizes)[i] if labels is not None else None
        payloads.append(channel.pack(piece, own, rng(i)))
        arrived.append(channel.unpack(payloads[-1], piece, len(piece) if told else 0)[0])
    assert sum(delivery.wire.values()).tolist() == [len(payload) for payload in payloads]
    for i, payload in enumerate(payloads):
        assert {kind: own[i] for kind, own in delivery.wire.items()} == kinds_of(payload)
    assert torch.equal(came, torch.cat(arrived))
    assert came.dtype == dtype
    assert delivery.values.get("label") == (8 * total if told else None)
    assert asked == ([] if text is None else list(range(len(sizes))))
    if text is None:
        assert delivery.values["activation"] == 4 * 8 * total


def test_a_message_of_one_section():
    payload = pack_parcel([MessageSection("model", b"x" * 41)])
    assert message_bytes(41) == len(payload) == 29 + 41
    assert message_bytes(np.array([0, 5])).tolist() == [29, 34]


# 3. Hostile messages

SAME = {  # who else can read a message
    None: {None, "float32"},
    "float32": {None, "float32"},
    "q8": {"q8", "q8(stochastic)"},
    "q8(stochastic)": {"q8", "q8(stochastic)"},
    "topk(0.25)": {"topk(0.25)", "sparse"},
}
X, LABELS = numbers(7, (3, 5)), torch.tensor([0, 9, 4])


def refused(channel: Channel, payload: bytes, samples: int = 3, message: str = "^payload") -> None:
    with pytest.raises(PayloadError, match=message):
        channel.unpack(payload, X, samples)


def parts(channel: Channel) -> list[MessageSection]:
    payload = channel.pack(X, LABELS, rng(0))
    return [section._replace(body=bytes(section.body)) for section in unpack_parcel(payload, len(payload))]


@pytest.mark.parametrize("text", TEXTS)
def test_truncated_or_stretched_anywhere(text):
    channel = Channel("activation", channel_chain(text), 10)
    payload = channel.pack(X, LABELS, rng(0))
    for length in range(len(payload)):
        refused(channel, payload[:length])
    refused(channel, payload + b"\0")
    refused(channel, b"")


@pytest.mark.parametrize("text", TEXTS)
def test_every_flipped_bit_is_noticed(text):
    channel = Channel("activation", channel_chain(text), 10)
    payload = channel.pack(X, LABELS, rng(0))
    for at in range(len(payload)):
        refused(channel, payload[:at] + bytes([payload[at] ^ 1 << at % 8]) + payload[at + 1 :])


@pytest.mark.parametrize("text", TEXTS)
def test_a_good_message_about_something_else(text):
    channel = Channel("activation", channel_chain(text), 10)
    payload = channel.pack(X, LABELS, rng(0))
    refused(channel, payload, samples=0)
    refused(channel, payload, samples=2)
    refused(channel, payload, samples=4)
    refused(channel, channel.pack(X, None, rng(0)))
    for shape in ((3, 4), (2, 5), (3, 6)):
        with pytest.raises(PayloadError):
            channel.unpack(payload, torch.zeros(shape), 3)
    refused(Channel("gradient", channel_chain(text), 10), payload)
    refused(Channel("activation", channel_chain(text), 1000), payload)
    for other in set(TEXTS) - SAME.get(text, {text}):
        refused(Channel("activation", channel_chain(other), 10), payload)


@pytest.mark.parametrize("text", TEXTS)
def test_sections_of_another_kind_order_or_number(text):
    channel = Channel("activation", channel_chain(text), 10)
    good = parts(channel)
    assert torch.equal(channel.unpack(pack_parcel(good), X, 3)[1], LABELS)
    for i, section in enumerate(good):
        for kind in {"model", "gradient", "mask", "label", "activation", "control"} - {section.kind}:
            refused(channel, pack_parcel([*good[:i], section._replace(kind=kind), *good[i + 1 :]]))
        refused(channel, pack_parcel([*good[:i], section._replace(body=section.body[:-1]), *good[i + 1 :]]))
        refused(channel, pack_parcel([*good[:i], section._replace(body=section.body + b"\0"), *good[i + 1 :]]))
    refused(channel, pack_parcel([*good[1:], good[0]]))
    refused(channel, pack_parcel([*good, good[-1]]))
    refused(channel, pack_parcel(good[:-1]))
    refused(channel, pack(3, b"nonsense"))


def test_an_oversized_message_is_refused_before_it_is_read():
    channel = Channel("activation", None, 10)
    huge = pack_parcel(
        [MessageSection("activation", bytes(4 * 15), Dense().number), MessageSection("label", bytes(10**6))]
    )
    refused(channel, huge, message="declares a body of 1000077 bytes, permitted are 80")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", TEXTS)
def test_numbers_that_are_not_finite(text, value):
    bad = X.clone()
    bad[1, 2] = value
    channel = Channel("activation", channel_chain(text), 10)
    refused(channel, channel.pack(bad, LABELS, rng(0)), message="holds NaN or infinity")


@pytest.mark.parametrize(("among", "dtype", "label"), [(10, "u1", 10), (10, "u1", 255), (1000, "<i2", 1000)])
@pytest.mark.parametrize("text", [None, "q8"])
def test_labels_that_are_no_class(text, among, dtype, label):
    channel = Channel("activation", channel_chain(text), among)
    *rest, last = parts(channel)
    body = np.array([0, label, 1], dtype).tobytes()
    refused(channel, pack_parcel([*rest, last._replace(body=body)]), message=rf"labels 0 to {label} of {among} classes")


@pytest.mark.parametrize(("among", "dtype"), [(1000, "<i2"), (40000, "<i8")])
def test_negative_labels(among, dtype):
    channel = Channel("activation", None, among)
    *rest, last = parts(channel)
    body = np.array([0, -3, 1], dtype).tobytes()
    refused(channel, pack_parcel([*rest, last._replace(body=body)]), message=rf"labels -3 to 1 of {among} classes")


@given(st.sampled_from(TEXTS), st.data())
def test_whatever_the_bytes_are(text, data):
    """A section bent, or the whole body, under a header and table that hold."""
    channel = Channel("activation", channel_chain(text), 10)
    good = parts(channel)
    at = data.draw(st.integers(-1, len(good) - 1))
    if at < 0:
        payload = pack(PARCEL, data.draw(st.binary(max_size=80)))
    else:
        body = bytearray(good[at].body)
        for _ in range(data.draw(st.integers(1, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        payload = pack_parcel([*good[:at], good[at]._replace(body=bytes(body)), *good[at + 1 :]])
    try:
        back, labels = channel.unpack(payload, X, 3)
    except PayloadError:
        return
    assert back.shape == X.shape
    assert bool(back.isfinite().all())
    assert 0 <= labels.min() <= labels.max() < 10
