from __future__ import annotations

import pytest

from sparsync.errors import PayloadError, UsageError
from sparsync.wire import HEADER_BYTES, MessageSection, kinds_of, pack, pack_parcel, unpack_parcel, values_of

PARTS = [
    MessageSection("model", b"abc"),
    MessageSection("mask", b"", 8),
    MessageSection("gradient", b"d" * 300),
    MessageSection("model", b"e"),
]


def test_layout_by_hand() -> None:
    payload = pack_parcel([MessageSection("model", b"abc", 5), MessageSection("mask", b"de", 8)])
    assert payload[5] == 4
    assert payload[HEADER_BYTES:] == b"\2" + b"\0\5\3\0\0\0\0\0" + b"\2\x08\2\0\0\0\0\0" + b"abcde"


def test_goes_round_without_a_copy() -> None:
    payload = bytearray(pack_parcel(PARTS))
    got = unpack_parcel(payload, len(payload))
    assert [(kind, bytes(body), codec) for kind, body, codec in got] == PARTS
    payload[-1:] = b"!"
    assert bytes(got[-1].body) == b"!"


def test_every_byte_is_of_one_kind() -> None:
    payload = pack_parcel(PARTS)
    assert kinds_of(payload) == {"model": HEADER_BYTES + 1 + 8 + 3 + 8 + 1, "mask": 8, "gradient": 308}
    assert sum(kinds_of(payload).values()) == len(payload)
    assert values_of(payload) == {"model": 4, "gradient": 300}


@pytest.mark.parametrize("kind", ["model", "state", "mask", "activation", "gradient", "control"])
def test_every_kind(kind: str) -> None:
    payload = pack_parcel([MessageSection(kind, b"x")])  # type: ignore[arg-type]
    assert kinds_of(payload) == {kind: len(payload)}


@pytest.mark.parametrize("count", [0, 256])
def test_too_few_or_many_sections(count: int) -> None:
    with pytest.raises(UsageError, match=f"parcel: {count} sections; send 1 to 255"):
        pack_parcel([MessageSection("model", b"")] * count)
    assert len(unpack_parcel(pack_parcel([MessageSection("model", b"")] * 255), 10_000)) == 255


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "0 bytes are no table of 0 sections"),
        (b"\0", "1 bytes are no table of 0 sections"),
        (b"\0abc", "4 bytes are no table of 0 sections"),
        (b"\1\0\0\0", "4 bytes are no table of 1 sections"),
        (b"\xff" + bytes(8), "9 bytes are no table of 255 sections"),
        (b"\1\7\0\0\0\0\0\0\0", "a section of kind 7, known are 0 to 6"),
        (b"\1\0\0\2\0\0\0\0\0a", "a section of 2 bytes, 1 are left"),
        (b"\1\0\0\xff\xff\xff\xff\xff\xffa", "a section of 281474976710655 bytes, 1 are left"),
        (b"\1\0\0\0\0\0\0\0\0a", "1 bytes follow its last section"),
    ],
)
def test_bad_tables(body: bytes, says: str) -> None:
    for call in (kinds_of, values_of, lambda payload: unpack_parcel(payload, 100)):
        with pytest.raises(PayloadError) as caught:
            call(pack(4, body))
        assert says in str(caught.value)


def test_limit_and_codec() -> None:
    with pytest.raises(PayloadError, match="declares a body of 10 bytes, permitted are 9"):
        unpack_parcel(pack_parcel([MessageSection("model", b"a")]), 9)
    with pytest.raises(PayloadError, match="codec 0, expected 4"):
        kinds_of(pack(0, bytes(4)))
