"""Chains as text: ``topk(0.05)+q8``, ``ef(topk(0.05)+q4(block=256,stochastic))``, ``sparse+bfloat16``, ``float16``."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Literal

from sparsync.errors import UsageError
from sparsync.spec import unknown
from sparsync.wire.chain import Chain, Values
from sparsync.wire.dense import Dense, Precision
from sparsync.wire.quantised import Quantised
from sparsync.wire.supports import NonZero, Support, TopK


def _bare(name: str, arguments: list[str]) -> None:
    if arguments:
        raise UsageError(f"{name} takes no arguments, got {','.join(arguments)!r}")


def _topk(arguments: list[str]) -> TopK:
    try:
        (fraction,) = map(float, arguments)
    except ValueError:
        raise UsageError(f"topk takes one fraction, as in topk(0.05), got {','.join(arguments)!r}") from None
    return TopK(fraction)


def _sparse(arguments: list[str]) -> NonZero:
    _bare("sparse", arguments)
    return NonZero()


def _dense(precision: Precision, arguments: list[str]) -> Dense:
    _bare(precision, arguments)
    return Dense(precision)


def _quantised(bits: Literal[8, 4, 2], arguments: list[str]) -> Quantised:
    block, stochastic = None, False
    for argument in arguments:
        key, equals, value = (piece.strip() for piece in argument.partition("="))
        if argument == "stochastic" and not stochastic:
            stochastic = True
        elif key == "block" and equals and block is None and value.isascii() and value.isdigit():
            block = int(value)
        else:
            raise UsageError(f"q{bits} takes block=NUMBERS and stochastic, once each, got {argument!r}")
    return Quantised(bits, block, stochastic)


_SUPPORTS: dict[str, Callable[[list[str]], Support]] = {"sparse": _sparse, "topk": _topk}
_VALUES: dict[str, Callable[[list[str]], Values]] = {
    "float32": partial(_dense, "float32"),
    "bfloat16": partial(_dense, "bfloat16"),
    "bf16": partial(_dense, "bfloat16"),
    "float16": partial(_dense, "float16"),
    "f16": partial(_dense, "float16"),
    "q8": partial(_quantised, 8),
    "q4": partial(_quantised, 4),
    "q2": partial(_quantised, 2),
}
_STAGE = re.compile(r"(\w+)\s*(?:\((.*)\))?", re.ASCII)


def _stage(text: str) -> tuple[str, list[str]]:
    """Return a stage's name and arguments."""
    found = _STAGE.fullmatch(text)
    if found is None:
        raise UsageError(f"expected stages such as topk(0.05)+q8, got {text or 'nothing'!r} for one")
    name, inside = found[1], found[2]
    if name == "ef":
        raise UsageError("ef wraps a whole chain, once: ef(topk(0.05)+q8)")
    if name not in _SUPPORTS and name not in _VALUES:
        raise unknown("stage", name, [*_SUPPORTS, *_VALUES, "ef"])
    return name, [piece.strip() for piece in inside.split(",")] if inside and inside.strip() else []


def _chain(text: str) -> Chain:
    supports: list[Support] = []
    values: Values | None = None
    for piece in re.split(r"\+(?![^(]*\))", text):  # at a plus that stands outside parentheses
        name, arguments = _stage(piece.strip())
        if values is not None:
            raise UsageError(f"{values} turns numbers into bytes, so it ends a chain, but {name} follows it")
        if name in _SUPPORTS:
            supports.append(_SUPPORTS[name](arguments))
        else:
            values = _VALUES[name](arguments)
    return Chain(tuple(supports), values or Dense())


def parse_chain(text: str) -> Chain:
    """Build the chain that a text describes; ``str(chain)`` gives the text back, written out.

    Parameters
    ----------
    text : str
        Stages joined by ``+``: any number of ``topk(FRACTION)`` and ``sparse``, then at most one of ``float32`` (the
        default), ``bfloat16`` or ``bf16``, ``float16`` or ``f16``, ``q8``, ``q4`` and ``q2``, the last three with
        options ``(block=NUMBERS,stochastic)``. ``ef(...)`` around it all is error feedback.

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
