from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import PayloadError, UsageError
from sparsync.wire import Quantised

Bits = Literal[8, 4, 2]
BITS: tuple[Bits, ...] = (8, 4, 2)
MAX = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).smallest_normal)


def scales_of(x: torch.Tensor, codec: Quantised) -> torch.Tensor:
    """The scale that each number was divided by, in float64."""
    block = codec.block or max(1, len(x))
    peaks = [float(part.abs().max()) for part in x.double().split(block) if len(part)]
    scales = torch.tensor([max(peak / codec.levels, TINY) for peak in peaks], dtype=torch.float64)
    return scales.repeat_interleave(block)[: len(x)]


def test_by_hand() -> None:
    x = torch.tensor([7.0, -7.0, 3.4, 0.0, -0.6])
    body = Quantised(4).encode_body(x)
    assert body == np.float32(1).tobytes() + bytes([14 | 0 << 4, 10 | 7 << 4, 6])
    assert Quantised(4).decode_body(body, 5).tolist() == [7, -7, 3, 0, -1]
    assert Quantised(8).encode_body(torch.tensor([127.0, -1.5])) == np.float32(1).tobytes() + bytes([254, 125])
    ternary = Quantised(2).encode_body(torch.tensor([2.0, -2.0, 0.9, 1.1, 0.0]))
    assert ternary == np.float32(2).tobytes() + bytes([2 | 0 << 2 | 1 << 4 | 2 << 6, 1])


def test_ties_go_to_the_even_integer() -> None:
    x = torch.tensor([7.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert Quantised(4).decode_body(Quantised(4).encode_body(x), 6).tolist() == [7, 0, 2, 2, 0, -2]


@given(
    st.sampled_from(BITS),
    st.none() | st.integers(1, 9),
    st.booleans(),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40),
)
def test_error_stays_within_the_bound(bits: Bits, block: int | None, stochastic: bool, numbers: list[float]) -> None:
    codec = Quantised(bits, block, stochastic)
    x = torch.tensor(numbers, dtype=torch.float32)
    body = codec.encode_body(x, np.random.default_rng(0))
    assert len(body) == codec.body_bytes(len(x)) == 4 * math.ceil(len(x) / (block or 40)) + math.ceil(len(x) * bits / 8)
    got = codec.decode_body(body, len(x))
    assert got.dtype == torch.float32
    assert got.shape == (len(x),)
    scales = scales_of(x, codec)
    assert ((got.double() - x.double()).abs() <= scales * ((1 if stochastic else 0.5) + 1e-4)).all()
    assert (got[x == 0] == 0).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("peak", [MAX, float(np.nextafter(np.float32(MAX), np.float32(0))), 1e38, TINY, 1e-40, 1e-45])
def test_extreme_scales(bits: Bits, peak: float) -> None:
    x = torch.tensor([peak, -peak, 0.0])
    got = Quantised(bits).decode_body(Quantised(bits).encode_body(x), 3)
    assert got.isfinite().all()
    assert ((got - x).abs() <= max(peak / Quantised(bits).levels, TINY) / 2).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_zeros_are_exact(bits: Bits, stochastic: bool) -> None:
    codec = Quantised(bits, 4, stochastic)
    got = codec.decode_body(codec.encode_body(torch.zeros(10), np.random.default_rng(0)), 10)
    assert got.tolist() == [0] * 10


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_arrives_as_nan(bits: Bits, stochastic: bool, bad: float) -> None:
    codec = Quantised(bits, 3, stochastic)
    body = codec.encode_body(torch.tensor([1.0, 1.0, 1.0, 2.0, bad, 0.0, 3.0]), np.random.default_rng(0))
    got = codec.decode_body(body, 7)
    assert got.isnan().tolist() == [False] * 3 + [True] * 3 + [False]
    assert got[:3].tolist() == pytest.approx([1.0] * 3)


def test_stochastic_rounding_is_unbiased_and_reproducible() -> None:
    codec = Quantised(2, None, True)
    x = torch.tensor([1.0, 0.3, -0.7, 0.05, -1.0]).repeat(40_000)
    body = codec.encode_body(x, np.random.default_rng(3))
    assert body == codec.encode_body(x, np.random.default_rng(3))
    mean = codec.decode_body(body, len(x)).view(-1, 5).mean(0)
    assert mean.tolist() == pytest.approx(x[:5].tolist(), abs=0.01)  # 4 standard deviations of the mean
    assert mean[0] == -mean[4] == 1


def test_stochastic_rounding_needs_a_generator() -> None:
    with pytest.raises(UsageError, match=r"q4\(stochastic\) draws random numbers; hand encode a generator, rng="):
        Quantised(4, stochastic=True).encode_body(torch.ones(3))


@pytest.mark.parametrize(
    ("bits", "body", "says"),
    [
        (8, np.float32(1).tobytes() + bytes(2), "6 bytes of q8, expected 3 numbers"),
        (8, np.float32(1).tobytes() + bytes(4), "8 bytes of q8, expected 3 numbers"),
        (8, np.float32(1).tobytes() + b"\0\0\xff", "an integer of q8 beyond its 255 levels"),
        (4, np.float32(1).tobytes() + b"\x0f\0", "an integer of q4 beyond its 15 levels"),
        (4, np.float32(1).tobytes() + b"\0\x10", "not filled up with zero bits"),
        (2, np.float32(1).tobytes() + b"\x03", "an integer of q2 beyond its 3 levels"),
        (2, np.float32(1).tobytes() + b"\x40", "not filled up with zero bits"),
        (8, np.float32(-1).tobytes() + bytes(3), "a scale of q8 outside 1.18e-38 to 2.68e+36"),
        (8, np.float32(0).tobytes() + bytes(3), "a scale of q8 outside 1.18e-38 to 2.68e+36"),
        (8, np.float32(math.inf).tobytes() + bytes(3), "a scale of q8 outside 1.18e-38 to 2.68e+36"),
    ],
)
def test_bad_bodies(bits: Bits, body: bytes, says: str) -> None:
    with pytest.raises(PayloadError) as caught:
        Quantised(bits).decode_body(body, 3)
    assert says in str(caught.value)
