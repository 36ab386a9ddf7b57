from __future__ import annotations

import numpy as np
import pytest
import torch
from hostile import attack

from sparsync.errors import PayloadError
from sparsync.wire import MessageSection, pack_parcel, parse_chain
from sparsync.wire.positions import CODES, decode_positions, encode_positions


@pytest.mark.parametrize("seed", range(4))
def test_hostile_messages_are_payload_errors_and_nothing_else(seed: int) -> None:
    passed, refused = attack(2500, seed)
    assert passed + refused == 2500
    assert passed > 50  # a bent number is a number
    assert refused > 1000


@pytest.mark.parametrize("code", ["list", "bitmap", "varint"])
def test_what_decodes_is_what_would_be_encoded(code: str) -> None:
    """These codes have one text per mask, so whatever is accepted can be written again."""
    rng, number, accepted = np.random.default_rng(0), list(CODES).index(code), 0
    for _ in range(3000):
        numel = int(rng.integers(30))
        body = np.sort(rng.choice(np.array([0, 0, 0, 1, 2, 3, 9, 128, 130], np.uint8), rng.integers(9)))
        side = bytes((number,)) + (body if rng.random() < 0.5 else body[::-1]).tobytes()
        try:
            positions = decode_positions(side, numel)
        except PayloadError:
            continue
        accepted += 1
        if 2 * len(positions) <= numel:
            assert encode_positions(positions, numel, code) == side
    assert accepted > 20


def test_truncation_at_every_length() -> None:
    x = np.zeros(600, np.float32)
    x[::7] = 1
    for text in ("sparse", "topk(0.1)+q8", "sparse+q4(block=8)", "float16"):
        chain = parse_chain(text)
        sections = chain.encode_body(torch.from_numpy(x))
        for which, section in enumerate(sections):
            for length in range(len(section.body)):
                cut = [*sections[:which], section._replace(body=section.body[:length]), *sections[which + 1 :]]
                with pytest.raises(PayloadError):
                    chain.decode(pack_parcel(cut), 600)
        with pytest.raises(PayloadError):
            chain.decode(pack_parcel([*sections, MessageSection("model", b"")]), 600)
