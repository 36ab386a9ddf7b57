from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsync.errors import PayloadError, UsageError
from sparsync.wire import (
    HEADER_BYTES,
    Chain,
    Dense,
    KnownSupport,
    MaskedSupport,
    MessageSection,
    NonZeroSupport,
    Quantised,
    RelativeSupport,
    TopKSupport,
    decode_parts,
    kinds_of,
    pack_parcel,
    parse_chain,
    unpack_parcel,
    values_of,
)
from sparsync.wire.supports import SupportStage, largest

CHAINS = [
    "float32",
    "bfloat16",
    "float16",
    "sparse",
    "sparse+float16",
    "sparse+q8",
    "topk(0.05)+q8(block=16)",
    "topk(0.5)+q4(block=7,stochastic)",
    "topk(1)",
    "sparse+topk(0.3)+q2",
    "ef(topk(0.1)+bf16)",
]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(0.0)
vectors = st.one_of(
    st.lists(finite, max_size=40).map(lambda numbers: torch.tensor(numbers, dtype=torch.float32)),
    st.tuples(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 99)).map(lambda given: sparse(*given)),
)


def sparse(numel: int, density: float, seed: int = 0) -> Tensor:
    """Normal numbers, of which a share is not zero."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=draw) * (torch.rand(numel, generator=draw) < density)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_layout_by_hand() -> None:
    payload = parse_chain("topk(0.5)+q8").encode(torch.tensor([0.0, -127.0, 1.0, 64.0]))
    numbers, side = unpack_parcel(payload, 100)
    assert numbers == MessageSection("model", np.float32(1).tobytes() + bytes([0, 127 + 64]), 5)
    assert side == MessageSection("mask", bytes([1, 0b01010000]), 8)  # a bitmap
    assert len(payload) == HEADER_BYTES + 1 + 2 * 8 + 6 + 2


@pytest.mark.parametrize("text", CHAINS)
@given(x=vectors)
def test_goes_round(text: str, x: Tensor) -> None:
    chain = parse_chain(text)
    payload = chain.encode(x, rng())
    got = chain.decode(memoryview(payload), len(x))
    assert got.dtype == torch.float32
    assert got.shape == x.shape
    assert sum(kinds_of(payload).values()) == len(payload)
    assert sum(len(section.body) for section in chain.encode_body(x, rng=rng())) <= chain.most_bytes(len(x))
    if chain.lossless:
        assert torch.equal(got, x)
    assert chain.encode(x, rng()) == payload


@pytest.mark.parametrize(
    ("text", "lossless"),
    [("float32", True), ("sparse", True), ("topk(1)", True), ("topk(0.9)", False), ("float16", False), ("q8", False)],
)
def test_lossless(text: str, lossless: bool) -> None:
    assert parse_chain(text).lossless == lossless


@given(vectors)
def test_half_precision_is_torchs(x: Tensor) -> None:
    for text, dtype in (("float16", torch.float16), ("sparse+bf16", torch.bfloat16)):
        chain = parse_chain(text)
        assert torch.equal(chain.decode(chain.encode(x), len(x)), x.to(dtype).float())


@given(vectors, st.sampled_from([8, 4, 2]))
def test_quantisation_errs_by_half_a_scale(x: Tensor, bits: int) -> None:
    chain = parse_chain(f"sparse+q{bits}")
    error = (chain.decode(chain.encode(x), len(x)).double() - x.double()).abs().max() if len(x) else torch.tensor(0)
    peak = float(x.abs().max()) if len(x) else 0.0
    assert float(error) <= max(peak / (2 ** (bits - 1) - 1), float(np.finfo(np.float32).smallest_normal)) * 0.50001


def test_minus_zero_arrives_as_zero_where_only_non_zeros_travel() -> None:
    x = torch.tensor([-0.0, 1.0])
    for text, sign in (("float32", True), ("sparse", False)):
        chain = parse_chain(text)
        assert chain.decode(chain.encode(x), 2).signbit().tolist() == [sign, False]


@pytest.mark.parametrize("text", CHAINS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_noticed(text: str, bad: float) -> None:
    x = sparse(100, 0.5)
    x[17] = bad
    chain = parse_chain(text)
    payload = chain.encode(x, rng())
    assert not math.isfinite(chain.decode(payload, 100)[17].item())
    with pytest.raises(PayloadError, match="holds NaN or infinity; its sender diverged"):
        chain.decode(payload, 100, finite=True)


def test_signalling_nan_raises_no_warning() -> None:
    bits = np.full(100, 0x3F800000, np.uint32)
    bits[17] = 0x7F800001
    x = torch.from_numpy(bits.view(np.float32))
    for text in CHAINS:
        chain = parse_chain(text)
        assert chain.decode(chain.encode(x, rng()), 100)[17].isnan()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 4), (2, 0, 5), (2, 3, 4)])
def test_any_shape_is_flattened(shape: tuple[int, ...]) -> None:
    x = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    for text in CHAINS:
        chain = parse_chain(text)
        assert chain.decode(chain.encode(x, rng()), x.numel()).shape == (x.numel(),)


def test_views_gradients_and_half_precision_travel_too() -> None:
    x = torch.arange(12.0).view(3, 4)
    chain = parse_chain("sparse")
    for view in (x.t(), x[:, 1], x[::2], x[0, 1].expand(5), torch.nn.Parameter(x), x.bfloat16(), x.half()):
        assert torch.equal(chain.decode(chain.encode(view), view.numel()), view.detach().reshape(-1).float())
    top = parse_chain("topk(0.5)")
    assert top.decode(top.encode(x[:, 1]), 3).tolist() == [0, 5, 9]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match=rf"chain sparse\+q8: a vector of {dtype}; chains carry float32, so send x.fl"):
        parse_chain("sparse+q8").encode(torch.ones(3, dtype=dtype))


def test_decoded_memory_is_writable_and_its_own() -> None:
    for text in CHAINS:
        chain = parse_chain(text)
        x = torch.ones(8)
        payload = bytearray(chain.encode(x, rng()))
        got = chain.decode(memoryview(payload), 8)
        payload[HEADER_BYTES:] = bytes(len(payload) - HEADER_BYTES)
        assert got[0].item() == 1
        got.zero_()
        assert x.sum() == 8


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.inf, math.nan]), max_size=30), st.integers(1, 30))
def test_largest_are_those_of_a_stable_sort(numbers: list[float], count: int) -> None:
    count = min(count, len(numbers))
    ranks = [2e9 if math.isnan(number) else min(abs(number), 1e9) for number in numbers]
    expected = sorted(sorted(range(len(numbers)), key=lambda at: -ranks[at])[:count])  # Python's sort is stable
    assert largest(np.array(numbers, np.float32), count).tolist() == expected


@pytest.mark.parametrize(("numel", "fraction", "count"), [(0, 0.5, 0), (1, 0.01, 1), (10, 0.25, 2), (100, 0.999, 100)])
def test_topk_keeps_an_exact_count(numel: int, fraction: float, count: int) -> None:
    chain = Chain((TopKSupport(fraction),))
    assert int((chain.decode(chain.encode(torch.ones(numel)), numel) != 0).sum()) == count


def test_topk_counts_what_arrives() -> None:
    payload = parse_chain("topk(0.5)").encode(torch.arange(10.0))
    with pytest.raises(PayloadError, match=r"5 of 10 numbers, but topk\(0.2\) keeps 2"):
        parse_chain("topk(0.2)").decode(payload, 10)


# Masks that strategies hold.


def test_masked_sends_zeros_under_the_mask_and_nothing_outside() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    payload = Chain((MaskedSupport(mask),)).encode(torch.tensor([0.0, 5.0, 2.0, 3.0]))
    assert values_of(payload) == {"model": 12}
    assert Chain((NonZeroSupport(),)).decode(payload, 4).tolist() == [0, 0, 2, 3]


def test_known_costs_not_one_byte() -> None:
    x = sparse(1000, 0.1)
    chain = Chain().with_support(KnownSupport(x != 0))
    payload = chain.encode(x)
    assert kinds_of(payload) == {"model": HEADER_BYTES + 1 + 8 + 4 * int((x != 0).sum())}
    assert torch.equal(chain.decode(payload, 1000), x)
    assert chain.sections == 1


def test_relative_is_shorter_and_falls_back() -> None:
    superset = torch.rand(10_000, generator=torch.Generator().manual_seed(1)) < 0.1
    x = sparse(10_000, 0.9) * superset
    chain = Chain((RelativeSupport(superset),))
    payload = chain.encode(x)
    assert torch.equal(chain.decode(payload, 10_000), x)
    assert kinds_of(payload)["mask"] <= 8 + 1 + int(superset.sum()) / 8
    assert kinds_of(payload)["mask"] < kinds_of(Chain((NonZeroSupport(),)).encode(x))["mask"] / 3
    x[int((~superset).nonzero()[0])] = 1.0  # outside
    assert torch.equal(chain.decode(chain.encode(x), 10_000), x)
    assert chain.encode(x) == Chain((NonZeroSupport(),)).encode(x)
    with pytest.raises(PayloadError, match="positions are missing, or relative to a mask"):
        Chain((NonZeroSupport(),)).decode(payload, 10_000)


@pytest.mark.parametrize("count", [0, 1, 64])
def test_masks_of_nothing_and_everything(count: int) -> None:
    mask = torch.arange(64) < count
    x = torch.ones(64) * mask
    for support in (MaskedSupport(mask), KnownSupport(mask), RelativeSupport(mask)):
        chain = Chain((support,))
        assert torch.equal(chain.decode(chain.encode(x), 64), x)


def test_supports_compose() -> None:
    mask = torch.arange(100) % 2 == 0
    chain = parse_chain("topk(0.1)+q8").with_support(KnownSupport(mask))
    got = chain.decode(chain.encode(torch.arange(100.0)), 100)
    assert got.nonzero().flatten().tolist() == [90, 92, 94, 96, 98]
    assert str(chain) == "known+topk(0.1)+q8"


@pytest.mark.parametrize("made", [MaskedSupport, KnownSupport, RelativeSupport])
def test_mask_of_another_length(made: type[MaskedSupport] | type[KnownSupport] | type[RelativeSupport]) -> None:
    support: SupportStage = made(torch.ones(3, dtype=torch.bool))
    with pytest.raises(UsageError, match=f"{support}: a mask of 3 entries for 4 numbers; give it one for each"):
        Chain((support,)).encode(torch.ones(4))
    if made is not MaskedSupport:
        with pytest.raises(UsageError, match="a mask of 3 entries for 4 numbers"):
            Chain((support,)).decode(Chain((support,)).encode(torch.ones(3)), 4)


# Error feedback.


def test_error_feedback_by_hand() -> None:
    chain = parse_chain("ef(topk(0.5))")
    sections, memory = chain.compress(torch.tensor([3.0, 2.0]), None)
    assert chain.decode_body(sections, 2).tolist() == [3, 0]
    assert memory is not None
    assert memory.tolist() == [0, 2]
    sections, memory = chain.compress(torch.tensor([3.0, 2.0]), memory)
    assert chain.decode_body(sections, 2).tolist() == [0, 4]
    assert memory is not None
    assert memory.tolist() == [3, 0]


@pytest.mark.parametrize(
    "text", ["ef(topk(0.05)+q4(block=16,stochastic))", "ef(topk(0.2))", "ef(q2)", "ef(sparse+f16)"]
)
def test_error_feedback_loses_nothing(text: str) -> None:
    chain, draw, memory = parse_chain(text), rng(), None
    sent, arrived = torch.zeros(200, dtype=torch.float64), torch.zeros(200, dtype=torch.float64)
    for turn in range(30):
        x = sparse(200, 0.8, turn)
        sections, memory = chain.compress(x, memory, rng=draw)
        sent += x
        arrived += chain.decode_body(sections, 200)
    assert memory is not None
    assert torch.allclose(arrived + memory, sent, atol=1e-4)
    assert not torch.allclose(arrived, sent, atol=1e-2) or text == "ef(sparse+f16)"


def test_without_feedback_there_is_no_memory() -> None:
    x = sparse(50, 0.5)
    chain = parse_chain("topk(0.1)+q8")
    sections, memory = chain.compress(x, None, "gradient")
    assert memory is None
    assert sections == chain.encode_body(x, "gradient")
    assert sections[0].kind == "gradient"


def test_feedback_changes_no_message_of_its_own() -> None:
    x = sparse(50, 0.5)
    assert parse_chain("ef(topk(0.1)+q8)").encode(x) == parse_chain("topk(0.1)+q8").encode(x)
    assert str(parse_chain("ef(q8)").with_support(NonZeroSupport())) == "ef(sparse+q8)"


def test_compressing_touches_neither_input_nor_memory() -> None:
    x, memory = torch.ones(4), torch.ones(4)
    for text in ("ef(float32)", "ef(q8)"):
        parse_chain(text).compress(x, memory)
        parse_chain(text).compress(x, None)
    assert x.tolist() == memory.tolist() == [1] * 4


# Messages of several parts.


def test_parts_share_a_header() -> None:
    weights, rest, gradients = sparse(1000, 0.05), torch.arange(10.0), sparse(1000, 1.0)
    up = parse_chain("sparse+f16")
    payload = pack_parcel(
        [*up.encode_body(weights), *Chain().encode_body(rest), *Chain().encode_body(gradients, "gradient")]
    )
    got = decode_parts(payload, [(up, 1000), (Chain(), 10), (Chain(), 1000)])
    assert all(torch.equal(a, b) for a, b in zip(got, (weights.half().float(), rest, gradients), strict=True))
    count = int((weights != 0).sum())
    assert values_of(payload) == {"model": 2 * count + 40, "gradient": 4000}
    assert kinds_of(payload)["gradient"] == 4008
    assert kinds_of(payload)["model"] == HEADER_BYTES + 1 + 2 * 8 + 2 * count + 40
    for parts in ([(up, 1000)], [(up, 1000), (Chain(), 10)], [(up, 1000), (Chain(), 10), (up, 1000)]):
        with pytest.raises(PayloadError):
            decode_parts(payload, parts)
    with pytest.raises(PayloadError, match="codec 2, expected 0; give both sides the same chain"):
        decode_parts(payload, [(Chain(), 1000), (up, 10), (Chain(), 1000)])


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ([], "sections of no kind, but sparse+q8 has 2, masks last"),
        ([MessageSection("model", b"")], "sections of model kind, but sparse+q8 has 2, masks last"),
        (
            [MessageSection("model", b""), MessageSection("model", b"")],
            "sections of model, model kind, but sparse+q8 has 2",
        ),
        (
            [MessageSection("model", b""), MessageSection("mask", b"")],
            "codec 255, expected 5; give both sides the same chain",
        ),
        (
            [MessageSection("model", b"", 5), MessageSection("mask", b"")],
            "positions are missing, or relative to a mask",
        ),
        (
            [MessageSection("model", b"", 5), MessageSection("mask", bytes(4), 8)],
            "4 bytes for positions among 9, a bitmap is shorter",
        ),
        ([MessageSection("model", b"", 5), MessageSection("mask", b"", 8)], "support code 4"),
        ([MessageSection("model", b"", 5), MessageSection("mask", b"\x80", 8)], "0 bytes of q8, expected 9 numbers"),
    ],
)
def test_bad_sections(sections: list[MessageSection], says: str) -> None:
    with pytest.raises(PayloadError) as caught:
        parse_chain("sparse+q8").decode_body(sections, 9)
    assert says in str(caught.value)


def test_precisions_are_not_mistaken_for_each_other() -> None:
    for sender in ("float16", "bfloat16", "q8", "q4"):
        for receiver in {"float16", "bfloat16", "q8", "q4"} - {sender}:
            with pytest.raises(PayloadError):
                parse_chain(receiver).decode(parse_chain(sender).encode(torch.ones(8)), 8)


def test_numbers_of_codecs_are_unique() -> None:
    numbers = [Dense(precision).number for precision in ("float32", "bfloat16", "float16", "float64")]
    numbers += [Quantised(bits).number for bits in (8, 4, 2)]
    assert numbers == [0, 1, 2, 3, 5, 6, 7]
