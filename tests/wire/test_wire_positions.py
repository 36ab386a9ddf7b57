from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import PayloadError, UsageError
from sparsync.wire import rice
from sparsync.wire.codes import gaps_of
from sparsync.wire.positions import CODES, decode_positions, encode_positions, most_bytes, sizes

Mask = npt.NDArray[np.bool_]
DENSITIES = [0.5, 0.2, 0.1, 0.05, 0.01, 0.001]


def entropy(p: float) -> float:
    """Binary entropy in bits."""
    return 0.0 if p in (0, 1) else float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def layered(numel: int, density: float) -> Mask:
    """The largest of numbers from layers of very different widths and scales."""
    rng = np.random.default_rng(1)
    parts = np.split(np.arange(numel), (np.array([0.002, 0.03, 0.1, 0.3, 0.5, 0.98]) * numel).astype(int))
    scales = [1.0, 0.3, 0.2, 0.1, 0.06, 0.03, 0.5]
    x = np.concatenate(
        [np.abs(rng.standard_normal(len(part))) * scale for part, scale in zip(parts, scales, strict=True)]
    )
    mask = np.zeros(numel, bool)
    mask[np.argsort(-x)[: round(density * numel)]] = True
    return mask


masks = st.one_of(
    st.lists(st.booleans(), max_size=70).map(lambda bits: np.array(bits, bool)),
    st.tuples(st.integers(0, 5000), st.floats(0, 1), st.integers(0, 99)).map(
        lambda given: np.random.default_rng(given[2]).random(given[0]) < given[1]
    ),
    st.tuples(st.integers(0, 5000), st.integers(0, 5000)).map(lambda ends: np.arange(max(ends)) >= min(ends)),
)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("list", "00 01000000 05000000"),
        ("bitmap", "01 4400"),
        ("varint", "02 01 03"),
        ("rice", "03 02000000 01 c0 a0"),  # b = 1: lowest bits 1 and 1; quotients 0 and 1 are "1" and "01"
    ],
)
def test_by_hand(code: str, expected: str) -> None:
    positions = np.array([1, 5])  # gaps 1 and 3
    assert encode_positions(positions, 9, code) == bytes.fromhex(expected)
    assert decode_positions(bytes.fromhex(expected), 9).tolist() == [1, 5]
    others = bytes((bytes.fromhex(expected)[0] | 0x80,)) + bytes.fromhex(expected)[1:]
    assert encode_positions(np.array([0, 2, 3, 4, 6, 7, 8]), 9, code) == others
    assert decode_positions(others, 9).tolist() == [0, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("numel", [0, 1, 2, 7, 8, 9, 511, 512, 513, 1025])
@pytest.mark.parametrize("code", [None, *CODES])
def test_none_and_all_set(numel: int, code: str | None) -> None:
    for positions in (np.arange(0), np.arange(numel)):
        side = encode_positions(positions, numel, code)
        assert np.array_equal(decode_positions(side, numel), positions)
        if code is None:
            assert len(side) == 1


@given(masks)
def test_every_code_goes_round_and_the_shortest_is_taken(mask: Mask) -> None:
    positions = np.flatnonzero(mask)
    lengths = sizes(positions, len(mask))
    for code in CODES:
        side = encode_positions(positions, len(mask), code)
        assert len(side) == lengths[code]
        assert np.array_equal(decode_positions(memoryview(side), len(mask)), positions)
    assert len(encode_positions(positions, len(mask))) == min(lengths.values()) <= most_bytes(len(mask))


@pytest.mark.parametrize("gap", [1, 127, 128, 129, 2**14, 2**14 + 1, 2**21, 2**21 + 1, 2**28, 2**28 + 1, 2**31 - 2])
def test_wide_gaps(gap: int) -> None:
    numel = 2**31 - 1
    positions = np.array([gap]) if gap > 2**30 else np.array([0, gap, 2 * gap])
    for code in ("list", "varint", "rice"):
        side = encode_positions(positions, numel, code)
        if code != "rice":  # reading unsets no other positions: no memory but for those set
            assert np.array_equal(decode_positions(side, numel), positions)
    if gap < 2**22:
        assert np.array_equal(decode_positions(side, 3 * gap), positions)


def test_lengths_are_the_formulas() -> None:
    numel, positions = 11_164_352, np.arange(558_218) * 20  # ResNet-18's prunable weights at 95 % sparsity
    lengths = sizes(positions, numel)
    assert lengths["bitmap"] == 1 + 1_395_544
    assert lengths["list"] == 1 + 4 * 558_218
    assert lengths["varint"] == 1 + 558_218
    gaps = np.array([0, 127, 128, 2**14 - 1, 2**14, 2**21])
    assert sizes(np.cumsum(gaps + 1) - 1, 2**22)["varint"] == 1 + 1 + 1 + 2 + 2 + 3 + 4


@pytest.mark.parametrize("numel", [3200, 32_000])
def test_bitmap_beats_the_list_above_one_in_32(numel: int) -> None:
    for count in range(numel // 32 - 5, numel // 32 + 6):
        lengths = sizes(np.arange(count) * 2, numel)
        assert (lengths["bitmap"] < lengths["list"]) == (count > numel / 32)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("kind", ["random", "layered"])
def test_near_the_entropy(density: float, kind: str) -> None:
    numel = 200_000
    mask = layered(numel, density) if kind == "layered" else np.random.default_rng(0).random(numel) < density
    count = int(mask.sum())
    side = encode_positions(np.flatnonzero(mask), numel)
    ideal = numel * entropy(count / numel) / 8
    assert len(side) + 4 * count <= 1.05 * (ideal + 4 * count) + 64
    assert len(side) <= 1.06 * ideal + 64


def test_layers_of_different_density_are_worth_a_parameter_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = np.flatnonzero(layered(200_000, 0.05))
    adapted = sizes(positions, 200_000)["rice"]
    monkeypatch.setattr(rice, "BLOCK", 200_000)
    assert adapted < 0.9 * sizes(positions, 200_000)["rice"]


@given(masks)
def test_rice_parameters_are_the_best_there_are(mask: Mask) -> None:
    gaps = gaps_of(np.flatnonzero(mask))
    for at, chosen in enumerate(rice.parameters(gaps)):
        block = gaps[at * rice.BLOCK : (at + 1) * rice.BLOCK]
        bits = [len(block) * (b + 1) + int((block >> b).sum()) for b in range(20)]
        assert bits[chosen] == min(bits)


@pytest.mark.parametrize(
    ("side", "says"),
    [
        ("", "support code 4, known are 0 to 3"),
        ("04", "support code 4, known"),
        ("ff", "support code 127, known"),
        ("00 010000", "no list of at most 9"),
        ("00" + "00000000" * 10, "no list of at most 9"),
        ("00 09000000", "do not increase, or reach 9"),
        ("00 05000000 05000000", "do not increase"),
        ("00 05000000 01000000", "do not increase"),
        ("00 ffffffff", "or reach 9"),
        ("01 44", "1 bytes are no bitmap of 9"),
        ("01 440000", "3 bytes are no bitmap of 9"),
        ("01 4440", "a bit set beyond them"),
        ("02 80", "no gaps between"),
        ("02 8000", "too many digits"),
        ("02 808080808001", "too many digits"),
        ("02 01 80808080 01", "a gap as large as all 9"),
        ("02 09", "a gap as large as all 9"),
        ("02 01 07", "position 9 of 9"),
        ("02" + "00" * 10, "at most 9 positions with too many"),
        ("02" + "00" * 46, "46 bytes are no gaps"),
        ("03 0100", "no Rice code of 1 among 9"),
        ("03 0a000000", "no Rice code of 10 among 9"),
        ("03 ffffffff 00", "no Rice code of 4294967295 among 9"),
        ("03 01000000", "no Rice code of 1 among 9"),
        ("03 01000000 05 00 80", "b = 5 among 9"),
        ("03 01000000 ff", "b = 255 among 9"),
        ("03 01000000 01", "5 bytes are no Rice code of 1 among 9"),
        ("03 01000000 00 808080", "8 bytes are no Rice code of 1 among 9"),
        ("03 01000000 01 80", "of 0 quotients, expected 1"),
        ("03 01000000 00 c0", "of 2 quotients, expected 1"),
        ("03 01000000 00 8000", "or bits left over"),
        ("03 01000000 01 c0 80", "or bits left over"),
        ("03 01000000 04 80 40", "leaves its 9"),
        ("03 01000000 00 0040", "position 9 of 9"),
        ("03 00000000 00", "or bits left over"),
    ],
)
def test_bad_codes(side: str, says: str) -> None:
    for flag in (0, 0x80):
        raw = bytearray.fromhex(side)
        raw[:1] = bytes((raw[0] | flag,)) if raw else b""
        with pytest.raises(PayloadError) as caught:
            decode_positions(bytes(raw), 9)
        assert says in str(caught.value)


def test_memory_is_in_proportion_to_what_is_expected() -> None:
    noise = np.random.default_rng(0).integers(256, size=4_000_000, dtype=np.uint8).tobytes()
    for code in range(4):
        for head in (b"", bytes.fromhex("ffffffff"), bytes.fromhex("e8030000")):
            for body in (noise, bytes(4_000_000), b"\x1f" * 4_000_000):
                side = bytes((code,)) + head + body
                tracemalloc.start()
                try:
                    with pytest.raises(PayloadError):
                        decode_positions(memoryview(side), 1000)
                    peak = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                assert peak < 200_000


def test_too_long_a_vector() -> None:
    with pytest.raises(UsageError, match="2147483648 numbers in one vector; send at most 2147483647 at a time"):
        encode_positions(np.arange(3), 2**31)
    with pytest.raises(UsageError, match="send at most 2147483647 at a time"):
        decode_positions(bytes(1), 2**31)
