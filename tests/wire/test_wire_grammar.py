from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.wire import Chain, Dense, ErrorFeedback, NonZeroSupport, Quantised, TopKSupport, parse_chain

supports = st.lists(st.just(NonZeroSupport()) | st.floats(0, 1, exclude_min=True).map(TopKSupport), max_size=3).map(
    tuple
)
values = st.sampled_from(["float32", "bfloat16", "float16"]).map(Dense) | st.builds(  # type: ignore[arg-type]
    Quantised, st.sampled_from([8, 4, 2]), st.none() | st.integers(1, 10**6), st.booleans()
)


@given(supports, values, st.booleans())
def test_text_goes_round(
    supports: tuple[TopKSupport | NonZeroSupport, ...], values: Dense | Quantised, feedback: bool
) -> None:
    chain = Chain(supports, values)
    chain = chain.with_feedback() if feedback else chain
    assert parse_chain(str(chain)) == chain
    assert isinstance(parse_chain(str(chain)), ErrorFeedback) == feedback


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("float32", "float32"),
        (" f16 ", "float16"),
        ("sparse", "sparse+float32"),
        ("sparse+bf16", "sparse+bfloat16"),
        ("topk(5e-2)+q8()", "topk(0.05)+q8"),
        ("topk(fraction=0.05)+q8(64,stochastic=true)", "topk(0.05)+q8(block=64,stochastic)"),
        ("topk( 1 ) + q4( stochastic , block = 256 )", "topk(1.0)+q4(block=256,stochastic)"),
        ("topk(1e+0)", "topk(1.0)+float32"),
        ("sparse+topk(0.5)+q2", "sparse+topk(0.5)+q2"),
        ("ef(topk(0.05)+q4(block=256,stochastic))", "ef(topk(0.05)+q4(block=256,stochastic))"),
        ("ef( float16 )", "ef(float16)"),
    ],
)
def test_written_out(text: str, canonical: str) -> None:
    assert str(parse_chain(text)) == canonical


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "chain '': expected stages such as topk(0.05)+q8, got 'nothing' for one"),
        ("topk(0.1)+", "expected stages such as topk(0.05)+q8, got 'nothing'"),
        ("+q8", "expected stages"),
        ("q8)", "expected stages such as topk(0.05)+q8, got 'q8)'"),
        ("topk(0.1", "expected stages such as topk(0.05)+q8, got 'topk(0.1'"),
        ("top-k(0.1)", "expected stages"),
        ("top(0.1)", "unknown codec 'top': did you mean 'topk'? choose one of bf16, bfloat16, f16"),
        ("float64", "unknown codec 'float64': did you mean 'float16'?"),
        ("masked", "unknown codec 'masked'"),
        ("q8+topk(0.1)", "chain 'q8+topk(0.1)': q8 turns numbers into bytes, so it ends a chain, but topk follows it"),
        ("q4(block=9)+float16", "q4(block=9) turns numbers into bytes, so it ends a chain, but float16 follows it"),
        ("float32+sparse", "float32 turns numbers into bytes, so it ends a chain, but sparse follows it"),
        ("topk", "codec 'topk': fraction: Field required"),
        ("topk(a)", "codec 'topk': fraction: Input should be a valid number"),
        ("topk(0.1,0.2)", "codec 'topk' has no parameter '0.2': its parameters are fraction"),
        ("topk(0)", "topk: fraction 0.0 is not in (0, 1]; topk(0.05) keeps 5 %"),
        ("topk(1.5)", "topk: fraction 1.5 is not in (0, 1]"),
        ("topk(-0.1)", "topk: fraction -0.1 is not in (0, 1]"),
        ("topk(nan)", "topk: fraction nan is not in (0, 1]"),
        ("sparse(0.1)", "codec 'sparse' has no parameter '0.1': its parameters are none at all"),
        ("float16(8)", "codec 'float16' has no parameter '8'"),
        ("q8(block=0)", "codec 'q8': block: Input should be greater than or equal to 1, got '0'"),
        ("q8(block=-1)", "got '-1'"),
        ("q8(block=1.5)", "got '1.5'"),
        ("q8(block=4,block=4)", "codec 'q8': 'block=4' is empty, or one argument too many"),
        ("q8(stochastic,stochastic)", "'stochastic' is empty, or one argument too many"),
        ("q4(block=256,)", "'' is empty"),
        ("topk(0.1)+ef(q8)", "ef wraps a whole chain, once: ef(topk(0.05)+q8)"),
        ("ef(ef(q8))", "ef wraps a whole chain, once"),
        ("ef(q8)+sparse", "ef wraps a whole chain, once"),
        ("ef()", "got 'nothing'"),
        ("ef", "ef wraps a whole chain, once"),
    ],
)
def test_bad_chains(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_chain(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text("topksarefqbicl0123456789.()+=, ", max_size=30))
def test_any_text_is_a_chain_or_a_usage_error(text: str) -> None:
    try:
        chain = parse_chain(text)
    except UsageError:
        return
    assert parse_chain(str(chain)) == chain
