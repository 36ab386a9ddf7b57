"""How activations and their gradients travel between clients and the server, each client's in a message of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsync.errors import PayloadError, UsageError
from sparsync.split.schedule import Ints
from sparsync.wire import (
    HEADER_BYTES,
    Chain,
    Dense,
    ErrorFeedback,
    Kind,
    MessageSection,
    kinds_of,
    pack_parcel,
    parse_chain,
    unpack_parcel,
    values_of,
)
from sparsync.wire.parcel import ENTRY_BYTES, table_bytes

_WIDTHS = ((1 << 8, torch.uint8), (1 << 15, torch.int16), (1 << 63, torch.int64))  # classes, and what holds a label


def channel_chain(text: str | None) -> Chain | None:
    """Return the codec chain of a channel; None: numbers travel as they are.

    Raises
    ------
    ValueError
        If it cannot be one; error feedback cannot, as no two messages are about the same samples.
    """
    if text is None:
        return None
    try:
        chain = parse_chain(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    if isinstance(chain, ErrorFeedback):
        raise ValueError(
            f"{text!r}: error feedback has no meaning for activations, which are never the same ones twice"
        )
    return chain


class Delivery(NamedTuple):
    """What one message per client costs.

    Attributes
    ----------
    wire : dict of kind to array of int64, (n,)
        Bytes of each client's message.
    values : dict of kind to int
        Bytes of values alone, over all clients, 4 a number and 8 a label: as papers count.
    """

    wire: dict[Kind, Ints]
    values: dict[Kind, int]

    @classmethod
    def of(cls, payloads: Sequence[bytes], labels: int = 0) -> Delivery:
        """Return what messages cost that carry so many labels between them."""
        kinds = [kinds_of(payload) for payload in payloads]
        wire = {kind: np.array([own.get(kind, 0) for own in kinds], np.int64) for kind in kinds[0]}
        values: Counter[Kind] = Counter()
        for payload in payloads:
            values.update(values_of(payload))
        return cls(wire, {**values, **({"label": 8 * labels} if labels else {})})


class Channel:
    """One direction.

    Parameters
    ----------
    kind : {"activation", "gradient"}
        What the ledger books the numbers as.
    chain : Chain, optional
        Default: every number travels as it is computed, so that nothing has to be encoded to know what arrives.
    classes : int
        Of the labels that may travel beside.
    """

    def __init__(self, kind: Kind, chain: Chain | None, classes: int) -> None:
        self.kind = kind
        self.chain = chain
        self.classes = classes
        self.label_dtype = next(dtype for most, dtype in _WIDTHS if classes <= most)

    def _codec(self, x: Tensor) -> Chain:
        return self.chain or Chain(values=Dense("float64" if x.dtype == torch.float64 else "float32"))

    def pack(self, x: Tensor, labels: Tensor | None = None, rng: np.random.Generator | None = None) -> bytes:
        """Return the message that carries one client's numbers, of any shape, and perhaps labels."""
        codec = self._codec(x)
        if self.chain is None:
            sections = [MessageSection(self.kind, codec.values.encode_body(x), codec.values.number)]
        else:
            sections = codec.encode_body(x.float(), self.kind, rng)
        if labels is not None:
            narrow = labels.to("cpu", self.label_dtype).contiguous()
            sections.append(MessageSection("label", memoryview(narrow.view(torch.uint8).numpy().data)))
        return pack_parcel(sections)

    def unpack(self, payload: bytes | memoryview, like: Tensor, samples: int = 0) -> tuple[Tensor, Tensor]:
        """Return the numbers of a message, of the shape and type of `like`, and as many labels as it must have.

        Raises
        ------
        PayloadError
            If it is damaged, or anything but that.
        """
        codec, labels = self._codec(like), samples * self.label_dtype.itemsize
        expected = [self.kind, *["mask"] * (codec.sections - 1), *["label"] * bool(samples)]
        sections = unpack_parcel(payload, table_bytes(len(expected)) + codec.most_bytes(like.numel()) + labels)
        if [section.kind for section in sections] != expected or (samples and len(sections[-1].body) != labels):
            raise PayloadError(f"payload: not {samples} samples' numbers and labels; give both sides the same channel")
        numbers = codec.decode_body(sections[: codec.sections], like.numel(), finite=True)
        narrow = torch.empty(samples, dtype=self.label_dtype)
        if samples:
            narrow.view(torch.uint8).numpy()[:] = np.frombuffer(sections[-1].body, np.uint8)
        told = narrow.long()
        if samples and not 0 <= told.min() <= told.max() < self.classes:
            raise PayloadError(f"payload: labels {told.min()} to {told.max()} of {self.classes} classes")
        return numbers.view(like.shape).to(like), told

    def carry(
        self, x: Tensor, sizes: Ints, labels: Tensor | None, rng: Callable[[int], np.random.Generator]
    ) -> tuple[Tensor, Delivery]:
        """Send numbers and perhaps labels without a network. Return what arrives of `x`, and what that costs.

        Parameters
        ----------
        x : Tensor, (B, ...)
            Of all clients' samples, one client after the other.
        sizes : array of int64, (n,)
            Samples of each; they sum to B.
        labels : Tensor, (B,), optional
            Travel beside.
        rng : callable
            Gives the generator of the i-th client's message, for stochastic codecs.
        """
        if self.chain is None:
            numbers = x[0].numel() * sizes
            wire, values = {self.kind: message_bytes(numbers * x.itemsize)}, {self.kind: 4 * int(numbers.sum())}
            if labels is not None:
                wire["label"] = ENTRY_BYTES + self.label_dtype.itemsize * sizes
                values["label"] = 8 * len(labels)
            return x, Delivery(wire, values)
        pieces = x.split_with_sizes(sizes.tolist())
        beside = labels.split_with_sizes(sizes.tolist()) if labels is not None else [None] * len(pieces)
        payloads = [self.pack(one, two, rng(i)) for i, (one, two) in enumerate(zip(pieces, beside, strict=True))]
        samples = sizes.tolist() if labels is not None else [0] * len(pieces)
        arrived = [self.unpack(*triple)[0] for triple in zip(payloads, pieces, samples, strict=True)]
        return torch.cat(arrived), Delivery.of(payloads, sum(samples))


def message_bytes(raw: int | Ints) -> Ints:
    """Length of a message of one section of so many bytes."""
    return np.asarray(HEADER_BYTES + table_bytes(1) + raw, np.int64)
