from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsync.errors import PayloadError
from sparsync.wire import HEADER_BYTES, Dense
from sparsync.wire.dense import Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

anything = st.floats(width=32) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 65_504.0, 65_520.0, 1e-45])


def same(a: Tensor, b: Tensor) -> bool:
    """Same values, NaN where NaN, and the sign of zero."""
    return bool(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) and torch.equal(a.isnan(), b.isnan())) and bool(
        torch.equal(a[~a.isnan()].signbit(), b[~b.isnan()].signbit())
    )


def test_by_hand() -> None:
    x = torch.tensor([1.0, -2.5])
    assert Dense().encode(x)[HEADER_BYTES:] == np.array([1.0, -2.5], "<f4").tobytes()
    assert Dense("bfloat16").encode(x)[HEADER_BYTES:] == bytes.fromhex("803f20c0")
    assert Dense("float16").encode(x)[HEADER_BYTES:] == np.array([1.0, -2.5], "<f2").tobytes()
    assert Dense("float64").encode(x)[HEADER_BYTES:] == np.array([1.0, -2.5], "<f8").tobytes()


@given(st.sampled_from(PRECISIONS), st.lists(anything, min_size=1, max_size=20), st.booleans())
def test_round_is_what_the_receiver_holds(precision: Precision, numbers: list[float], double: bool) -> None:
    codec = Dense(precision)
    x = torch.tensor(numbers, dtype=torch.float64 if double else torch.float32)
    payload = codec.encode(x)
    assert len(payload) == codec.nbytes(len(numbers)) == HEADER_BYTES + SIZES[precision] * len(numbers)
    received = codec.decode(payload, len(numbers))
    assert received.dtype == (torch.float64 if precision == "float64" else torch.float32)
    rounded = codec.round(x)
    assert rounded.dtype == x.dtype
    assert same(rounded.double(), received.double())
    assert same(codec.round(rounded), rounded)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 4), (2, 0, 5), (2, 3, 4)])
def test_any_shape_is_flattened(precision: Precision, shape: tuple[int, ...]) -> None:
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    payload = Dense(precision).encode(x)
    assert len(payload) == Dense(precision).nbytes(x.numel())
    assert torch.equal(Dense(precision).decode(payload, x.numel()).float(), x.flatten())


def test_views_and_gradients_travel_too() -> None:
    x = torch.arange(12.0).view(3, 4)
    few = (x[0, 1].expand(1), torch.from_numpy(np.zeros(0, np.float32)), torch.from_numpy(np.ones(5)[::5]).float())
    for view in (x.t(), x[:, 1], x[::2], torch.nn.Parameter(x), *few):
        assert torch.equal(Dense().decode(Dense().encode(view), view.numel()), view.detach().reshape(-1))


def test_decoded_memory_is_writable_and_its_own() -> None:
    payload = bytearray(Dense().encode(torch.ones(3)))
    x = Dense().decode(memoryview(payload), 3)
    payload[HEADER_BYTES:] = bytes(12)
    assert x.add_(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_passes_unless_refused(precision: Precision, bad: float) -> None:
    payload = Dense(precision).encode(torch.tensor([1.0, bad]))
    assert not math.isfinite(Dense(precision).decode(payload, 2)[1].item())
    with pytest.raises(PayloadError, match="holds NaN or infinity; its sender diverged"):
        Dense(precision).decode(payload, 2, finite=True)


def test_float16_overflows_and_bfloat16_does_not() -> None:
    x = torch.tensor([65_504.0, 70_000.0])
    assert Dense("float16").round(x).tolist() == [65_504.0, math.inf]
    assert Dense("bfloat16").round(x)[1].item() == pytest.approx(70_000, rel=2**-8)


def test_own_precision_is_not_copied() -> None:
    x = torch.ones(3)
    assert Dense("float32").round(x) is x


@pytest.mark.parametrize(
    ("sender", "receiver", "numel", "says"),
    [
        ("float32", "bfloat16", 4, "payload: codec 0, expected 1"),
        ("float64", "float32", 4, "payload: codec 3, expected 0"),
        ("float32", "float32", 3, "payload: declares a body of 16 bytes, permitted are 12"),
        ("float32", "float32", 5, "payload: 16 bytes of float32, expected 5 numbers"),
        ("float16", "float16", 0, "payload: declares a body of 8 bytes, permitted are 0"),
    ],
)
def test_wrong_codec_or_length(sender: Precision, receiver: Precision, numel: int, says: str) -> None:
    with pytest.raises(PayloadError) as caught:
        Dense(receiver).decode(Dense(sender).encode(torch.ones(4)), numel)
    assert says in str(caught.value)
