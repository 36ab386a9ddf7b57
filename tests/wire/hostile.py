"""Messages that a hostile sender might send: good ones, bent, mostly with header and table that hold."""

from __future__ import annotations

import numpy as np
import torch

from sparsync.errors import PayloadError
from sparsync.wire import (
    HEADER_BYTES,
    Chain,
    KnownSupport,
    MaskedSupport,
    MessageSection,
    NonZeroSupport,
    RelativeSupport,
    pack,
    pack_parcel,
    parse_chain,
)
from sparsync.wire.parcel import PARCEL
from sparsync.wire.positions import CODES, encode_positions

_EXTREMES = np.array([0, 1, 2, 3, 127, 128, 129, 255], np.uint8)
_TEXTS = ["float32", "sparse", "topk(0.1)+q8(block=16)", "sparse+q4", "sparse+topk(0.5)+q2(block=3)", "sparse+float16"]


def _targets(rng: np.random.Generator) -> list[tuple[Chain, int, list[MessageSection]]]:
    """Chains with a length and a good message each, the supports in every code."""
    targets = []
    for numel in (0, 1, 40, 700, 3000):
        x = torch.from_numpy((rng.standard_normal(numel) * (rng.random(numel) < 0.1)).astype(np.float32))
        superset = (x != 0) | torch.from_numpy(rng.random(numel) < 0.1)
        senders = [parse_chain(text) for text in _TEXTS]
        senders += [
            Chain((support,))
            for support in (KnownSupport(superset), MaskedSupport(superset), RelativeSupport(superset))
        ]
        for chain in senders:
            targets.append((chain, numel, chain.encode_body(x)))
        for code in CODES:
            for mask in (x != 0, ~superset):
                side = encode_positions(np.flatnonzero(mask.numpy()), numel, code)
                numbers = Chain().encode_body(x[mask])
                targets.append((Chain((NonZeroSupport(),)), numel, [*numbers, MessageSection("mask", side, 8)]))
    return targets


def _bent(rng: np.random.Generator, body: bytes) -> bytes:
    """Change a few bytes or bits, cut, stretch or repeat."""
    raw = np.frombuffer(body, np.uint8).copy()
    at = int(rng.integers(len(raw) + 1))
    head = at if rng.random() < 0.5 else min(at, 8)  # heads hold codes, counts and parameters
    match rng.integers(7):
        case 0 if len(raw):
            raw[head - 1] ^= 1 << rng.integers(8)
        case 1 if len(raw):
            raw[head - 1] = rng.choice(_EXTREMES)
        case 2 if len(raw):
            raw[rng.integers(len(raw), size=3)] = rng.choice(_EXTREMES, 3)
        case 3:
            raw = raw[:at]
        case 4:
            raw = np.insert(raw, head, rng.choice(_EXTREMES, rng.integers(1, 9)))
        case 5:
            raw = np.delete(raw, slice(head, head + int(rng.integers(1, 9))))
        case 6:
            raw = rng.integers(256, size=rng.integers(64), dtype=np.uint8)
    return raw.tobytes()


def attack(turns: int, seed: int) -> tuple[int, int]:
    """Decode so many bent messages; return how many passed as good and how many were refused.

    Any other outcome is an exception. What passes has to be a vector of the expected length and type.
    """
    rng = np.random.default_rng(seed)
    targets = _targets(rng)
    passed = refused = 0
    for _ in range(turns):
        chain, numel, sections = targets[rng.integers(len(targets))]
        how = rng.integers(10)
        if how == 0:  # header holds, table bent
            payload = pack(PARCEL, _bent(rng, pack_parcel(sections)[HEADER_BYTES:]))
        elif how == 1:  # nothing holds
            payload = _bent(rng, pack_parcel(sections))
        else:  # table holds, one section bent
            bent = list(sections)
            chosen = -1 if rng.random() < 0.7 else 0  # mostly the support
            bent[chosen] = bent[chosen]._replace(body=_bent(rng, bytes(bent[chosen].body)))
            payload = pack_parcel(bent)
        fits = not any(hasattr(support, "mask") for support in chain.supports)  # a mask is for one length
        lengths = (0, max(0, numel - 1), numel + 1, 2 * numel + 8)
        expected = int(rng.choice(lengths)) if fits and rng.random() < 0.05 else numel
        try:
            x = chain.decode(payload, expected, finite=bool(rng.integers(2)))
        except PayloadError:
            refused += 1
        else:
            assert x.shape == (expected,)
            assert x.dtype == torch.float32
            passed += 1
    return passed, refused
