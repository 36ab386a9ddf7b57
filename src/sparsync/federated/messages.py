"""How models become messages: some entries through a chain of codecs, the rest as they are, in one parcel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.sparsity import ParamView
from sparsync.wire import (
    Chain,
    ErrorFeedback,
    Kind,
    MaskedSupport,
    MessageSection,
    NonZeroSupport,
    SupportStage,
    decode_parts,
    pack_parcel,
    parse_chain,
    unpack_parcel,
)
from sparsync.wire.parcel import table_bytes
from sparsync.wire.positions import most_bytes
from sparsync.workers import ModelVector

_PLAIN = Chain()  # every number, in float32


class Codecs(Protocol):
    """Settings with specs of chains, None for float32."""

    @property
    def uplink(self) -> str | None:
        """What clients send."""

    @property
    def downlink(self) -> str | None:
        """What they receive."""


class ModelPacking:
    """A model (D,) as a message and back.

    Parameters
    ----------
    vector : ModelVector
        The parts of a model.
    chain : Chain, optional
        How its parameters travel; buffers always do in float32. Default: so do they.
    view : ParamView, optional
        Only these parameters pass the chain. Default: all that are trained.
    """

    def __init__(self, vector: ModelVector, chain: Chain | None = None, *, view: ParamView | None = None) -> None:
        self.vector, self.chain, self.view = vector, chain or _PLAIN, view
        self.numel = view.numel if view else vector.d  # numbers that pass the chain
        self.rest = vector.numel - self.numel

    @property
    def lossless(self) -> bool:
        """Whether what arrives is what was sent."""
        return self.chain.lossless

    def split(self, model: Tensor) -> tuple[Tensor, Tensor]:
        """Return what passes the chain, (n,), and the rest, (D - n,)."""
        d = self.vector.d
        if self.view is None:
            return model[:d], model[d:]
        return self.view.gather(model[:d]), torch.cat((self.view.gather_rest(model[:d]), model[d:]))

    def join(self, values: Tensor, rest: Tensor) -> Tensor:
        """Return the model that `split` took apart."""
        if self.view is None:
            return torch.cat((values, rest))
        model, d = torch.empty(self.vector.numel), self.vector.d
        self.view.scatter_(model[:d], values)
        others = d - self.view.numel
        self.view.scatter_rest_(model[:d], rest[:others])
        model[d:] = rest[others:]
        return model

    def encode(
        self,
        model: Tensor,
        rng: np.random.Generator | None = None,
        *,
        support: SupportStage | None = None,
        memory: dict[str, Tensor] | None = None,
        extra: Mapping[Kind, Tensor] | None = None,
    ) -> bytes:
        """Encode a model.

        Parameters
        ----------
        model : Tensor, (D,)
            What is sent.
        rng : Generator, optional
            For stochastic rounding.
        support : SupportStage, optional
            Which of the numbers travel, before the chain's own stages.
        memory : dict, optional
            Where a sender keeps what error feedback makes up for in its next message.
        extra : mapping of kind to vector, optional
            What else is sent, in float32.
        """
        values, rest = self.split(model)
        chain = self.chain.with_support(support) if support else self.chain
        kept = None if memory is None else memory.get("feedback")
        sections, kept = chain.compress(values, kept, rng=rng)
        if memory is not None and kept is not None:
            memory["feedback"] = kept
        if self.rest:
            sections += _PLAIN.encode_body(rest)
        for kind, numbers in (extra or {}).items():
            sections += _PLAIN.encode_body(numbers, kind)
        return pack_parcel(sections)

    def decode(self, payload: bytes, support: SupportStage | None = None, extra: Sequence[int] = ()) -> Tensor:
        """Decode a model, (D,), and what else was sent, of these lengths, behind it in one vector.

        Raises
        ------
        PayloadError
            If the message is not exactly that.
        """
        chain = self.chain.with_support(support) if support else self.chain
        dense = [self.rest, *extra] if self.rest else list(extra)
        values, *others = decode_parts(payload, [(chain, self.numel), *((_PLAIN, numel) for numel in dense)])
        rest = others.pop(0) if self.rest else torch.empty(0)
        return torch.cat([self.join(values, rest), *others])

    def decode_mask(self, payload: bytes) -> tuple[Tensor, Tensor]:
        """Decode a model (D,) and the mask (n,) of the numbers that travelled, zeros or not.

        Raises
        ------
        PayloadError
            If the message is not a model with a mask.
        """
        model = self.decode(payload, NonZeroSupport())
        return model, _mask(unpack_parcel(payload, len(payload))[1], self.numel)


def pack_numbers(numbers: Tensor, kind: Kind) -> bytes:
    """Return a message of some numbers, in float32, that are no model."""
    return pack_parcel(_PLAIN.encode_body(numbers, kind))


def unpack_numbers(payload: bytes, numel: int) -> Tensor:
    """Decode a message of `numel` numbers.

    Raises
    ------
    PayloadError
        If it is not exactly that.
    """
    return decode_parts(payload, [(_PLAIN, numel)])[0]


def pack_mask(mask: Tensor) -> bytes:
    """Return a message of a mask (n,) and nothing else."""
    numbers = torch.zeros(mask.numel()).numpy()
    return pack_parcel([MaskedSupport(mask).encode(numbers)[1]])


def unpack_mask(payload: bytes, numel: int) -> Tensor:
    """Decode a mask (n,).

    Raises
    ------
    PayloadError
        If the message is not exactly that.
    """
    sections = unpack_parcel(payload, table_bytes(1) + most_bytes(numel))
    return _mask(sections[0] if len(sections) == 1 else None, numel)


def _mask(section: MessageSection | None, numel: int) -> Tensor:
    mask = torch.zeros(numel, dtype=torch.bool)
    mask[torch.from_numpy(NonZeroSupport().decode(section, numel))] = True  # it decodes any mask that was sent
    return mask


def any_chain(uplink: str | None, downlink: str | None) -> None:
    """Check the codecs of a strategy that sends dense models.

    Raises
    ------
    ValueError
        If one is no chain, or a download would leave something out.
    """
    _parsed("uplink", uplink)
    down = _parsed("downlink", downlink)
    if any(not support.lossless for support in down.supports) or isinstance(down, ErrorFeedback):
        raise ValueError(
            f"downlink={downlink}: a client that holds nothing cannot fill in what is left out; "
            "give only how numbers travel, such as bf16 or q8"
        )


def only_values(**codecs: str | None) -> None:
    """Check the codecs of a strategy that chooses itself which numbers travel.

    Raises
    ------
    ValueError
        If one chooses, or remembers, on its own.
    """
    for name, text in codecs.items():
        chain = _parsed(name, text)
        if chain.supports or isinstance(chain, ErrorFeedback):
            raise ValueError(
                f"{name}={text}: the strategy itself chooses which numbers travel; "
                "give only how they do: float32, bf16, f16, q8, q4 or q2"
            )


def _parsed(name: str, text: str | None) -> Chain:
    try:
        return chain_of(text)
    except UsageError as error:
        raise ValueError(f"{name}: {error}") from None


def chain_of(text: str | None) -> Chain:
    """Return the chain of a spec; None: float32."""
    return parse_chain(text) if text else _PLAIN


def packings(vector: ModelVector, config: Codecs, view: ParamView | None = None) -> tuple[ModelPacking, ModelPacking]:
    """Return how models go up and down by a strategy's codecs, perhaps those of some parameters only."""
    up, down = (ModelPacking(vector, chain_of(text), view=view) for text in (config.uplink, config.downlink))
    return up, down
