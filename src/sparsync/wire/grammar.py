"""Chains as text: ``topk(0.05)+q8``, ``ef(topk(0.05)+q4(block=256,stochastic))``, ``sparse+bfloat16``, ``float16``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from sparsync.errors import UsageError
from sparsync.spec import Count, Registry
from sparsync.wire.chain import Chain, ValueStage
from sparsync.wire.dense import Dense
from sparsync.wire.quantised import Quantised
from sparsync.wire.supports import NonZeroSupport, SupportStage, TopKSupport

CODECS: Registry[SupportStage | ValueStage] = Registry("codec")
"""Functions (*, options) -> a stage of a chain: a `SupportStage`, or a `ValueStage` whose codec number is its own."""


@CODECS.register("topk")
def topk(*, fraction: float) -> TopKSupport:
    """Keep the largest magnitudes, such a fraction of all: ``topk(0.05)``."""
    return TopKSupport(fraction)


@CODECS.register("sparse")
def sparse() -> NonZeroSupport:
    """Keep what is not zero."""
    return NonZeroSupport()


@CODECS.register("float32")
def float32() -> Dense:
    """Numbers in 32 bits, as they are."""
    return Dense("float32")


@CODECS.register("bf16")
@CODECS.register("bfloat16")
def bfloat16() -> Dense:
    """Numbers in 16 bits with the range of float32."""
    return Dense("bfloat16")


@CODECS.register("f16")
@CODECS.register("float16")
def float16() -> Dense:
    """Numbers in 16 bits, IEEE half precision."""
    return Dense("float16")


def _quantised(bits: Literal[8, 4, 2]) -> Callable[..., Quantised]:
    def quantised(*, block: Count | None = None, stochastic: bool = False) -> Quantised:
        return Quantised(bits, block, stochastic)

    quantised.__doc__ = f"""Numbers in {bits} bits with a common scale.

    Parameters
    ----------
    block : int, optional
        Numbers that share a scale. Default: all of a message.
    stochastic : bool
        Round up or down at random, so that the expectation is exact.
    """
    return quantised


for _bits in (8, 4, 2):
    CODECS.register(f"q{_bits}")(_quantised(_bits))


def _stage(text: str) -> tuple[str, SupportStage | ValueStage]:
    """Return a stage and its name."""
    found = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", text)
    if found is None:
        raise UsageError(f"expected stages such as topk(0.05)+q8, got {text or 'nothing'!r} for one")
    if found[1] == "ef":
        raise UsageError("ef wraps a whole chain, once: ef(topk(0.05)+q8)")
    return found[1], CODECS.build(CODECS.inner(text))


def _chain(text: str) -> Chain:
    supports: list[SupportStage] = []
    values: ValueStage | None = None
    for piece in re.split(r"\+(?![^(]*\))", text):  # at a plus that stands outside parentheses
        name, stage = _stage(piece.strip())
        if values is not None:
            raise UsageError(f"{values} turns numbers into bytes, so it ends a chain, but {name} follows it")
        if isinstance(stage, ValueStage):
            values = stage
        else:
            supports.append(stage)
    return Chain(tuple(supports), values or Dense())


def parse_chain(text: str) -> Chain:
    """Build the chain that a text describes; ``str(chain)`` gives the text back, written out.

    Parameters
    ----------
    text : str
        Stages joined by ``+``: any number of ``topk(FRACTION)`` and ``sparse``, then at most one of ``float32`` (the
        default), ``bfloat16`` or ``bf16``, ``float16`` or ``f16``, ``q8``, ``q4`` and ``q2``, the last three with
        options ``(block=NUMBERS,stochastic)``; or what else is registered. ``ef(...)`` around it is error feedback.

    Raises
    ------
    UsageError
        If a stage is unknown, out of place, or has a wrong argument.
    """
    bare = text.strip()
    wrapped = re.fullmatch(r"ef\s*\((.*)\)", bare)
    try:
        return _chain(wrapped[1]).with_feedback() if wrapped else _chain(bare)
    except UsageError as error:
        raise UsageError(f"chain {bare!r}: {error}") from None
