"""Messages: models in parcels and back, with some entries through a chain; everything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sparsync.errors import PayloadError
from sparsync.federated.messages import ModelPacking, pack_mask, pack_numbers, unpack_mask, unpack_numbers
from sparsync.sparsity import ParamView
from sparsync.wire import KnownSupport, MaskedSupport, NonZeroSupport, kinds_of, parse_chain, values_of
from sparsync.workers import Arena, ModelVector


def model() -> nn.Module:
    torch_state = torch.get_rng_state()
    torch.manual_seed(3)
    made = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    torch.set_rng_state(torch_state)
    return made


@pytest.fixture
def vector() -> ModelVector:
    """d = 20 + 4 + 4 + 4 + 12 + 3 = 47 parameters, 8 averaged buffers."""
    return ModelVector(Arena(model(), 1, torch.device("cpu"), torch.float32))


@pytest.fixture
def view(vector: ModelVector) -> ParamView:
    """The two weight matrices: 32 numbers."""
    return ParamView(vector.arena.layout.slots, ["0.weight", "2.weight"])


def some(vector: ModelVector) -> torch.Tensor:
    return torch.randn(vector.numel, generator=torch.Generator().manual_seed(1))


def test_a_model_goes_round(vector):
    packing, x = ModelPacking(vector), some(vector)
    assert (vector.d, vector.b, packing.numel, packing.rest) == (47, 8, 47, 8)
    payload = packing.encode(x)
    assert torch.equal(packing.decode(payload), x)
    assert len(payload) == 20 + 1 + 2 * 8 + 4 * 55
    assert kinds_of(payload) == {"model": len(payload)}
    assert values_of(payload) == {"model": 4 * 55}


def test_only_parameters_pass_the_chain(vector):
    packing, x = ModelPacking(vector, parse_chain("q8")), some(vector)
    decoded = packing.decode(packing.encode(x))
    assert torch.equal(decoded[47:], x[47:])
    assert float((decoded[:47] - x[:47]).abs().max()) <= float(x[:47].abs().max()) / 127 / 2 * 1.001
    assert not packing.lossless
    assert ModelPacking(vector).lossless


def test_only_the_entries_of_a_view_pass_the_chain(vector, view):
    packing, x = ModelPacking(vector, parse_chain("q4"), view=view), some(vector)
    assert (packing.numel, packing.rest) == (32, 23)
    decoded = packing.decode(packing.encode(x))
    through = torch.zeros(vector.numel, dtype=torch.bool)
    for start, stop in view.spans:
        through[start:stop] = True
    assert torch.equal(decoded[~through], x[~through])
    assert not torch.equal(decoded[through], x[through])
    assert float((decoded - x).abs().max()) <= float(x[through].abs().max()) / 7 / 2 * 1.001
    assert torch.equal(packing.join(*packing.split(x)), x)


def test_what_else_is_sent_comes_behind(vector):
    packing, x = ModelPacking(vector), some(vector)
    payload = packing.encode(x, extra={"state": torch.arange(5.0), "control": torch.tensor([7.0])})
    assert packing.decode(payload, extra=[5, 1]).tolist() == [*x.tolist(), 0, 1, 2, 3, 4, 7]
    assert values_of(payload) == {"model": 4 * 55, "state": 20, "control": 4}


@pytest.mark.parametrize("support", ["known", "told"])
def test_a_support_comes_before_the_chain(vector, view, support):
    packing, x = ModelPacking(vector, view=view), some(vector)
    mask = torch.arange(32) % 3 == 0
    payload = packing.encode(x, support=KnownSupport(mask) if support == "known" else MaskedSupport(mask))
    expected = x.clone()
    view.scatter_(expected[:47], view.gather(x[:47]).where(mask, 0))
    assert torch.equal(
        packing.decode(payload, KnownSupport(mask) if support == "known" else NonZeroSupport()), expected
    )
    assert ("mask" in kinds_of(payload)) == (support == "told")


def test_a_mask_is_told_even_where_its_values_are_zero(vector, view):
    packing, mask = ModelPacking(vector, view=view), torch.arange(32) % 3 == 0
    decoded, told = packing.decode_mask(packing.encode(torch.zeros(vector.numel), support=MaskedSupport(mask)))
    assert torch.equal(told, mask)
    assert not decoded.any()
    assert torch.equal(unpack_mask(pack_mask(mask), 32), mask)
    assert kinds_of(pack_mask(mask)).keys() == {"mask"}


def test_feedback_is_kept_where_the_sender_says(vector):
    packing, memory = ModelPacking(vector, parse_chain("ef(topk(0.1))")), {}
    x = some(vector)
    first = packing.decode(packing.encode(x, memory=memory))
    assert torch.allclose(first[:47] + memory["feedback"], x[:47])
    second = packing.decode(packing.encode(x, memory=memory))
    assert torch.allclose(first[:47] + second[:47] + memory["feedback"], 2 * x[:47], atol=1e-6)


def test_numbers_that_are_no_model():
    numbers = torch.tensor([1.0, -2.5, 1e-30])
    payload = pack_numbers(numbers, "state")
    assert torch.equal(unpack_numbers(payload, 3), numbers)
    assert kinds_of(payload) == {"state": len(payload)} == {"state": 20 + 1 + 8 + 12}


def flipped(payload: bytes) -> bytes:
    at = len(payload) // 2
    return payload[:at] + bytes((payload[at] ^ 1,)) + payload[at + 1 :]


HOSTILE = {
    "empty": lambda packing, x: b"",
    "truncated": lambda packing, x: packing.encode(x)[:-1],
    "a byte too many": lambda packing, x: packing.encode(x) + b"\0",
    "a flipped bit": lambda packing, x: flipped(packing.encode(x)),
    "random": lambda packing, x: np.random.default_rng(0).bytes(300),
    "too short a vector": lambda packing, x: pack_numbers(x[:-1], "model"),
    "too long a vector": lambda packing, x: pack_numbers(torch.cat((x, x)), "model"),
    "another chain": lambda packing, x: ModelPacking(packing.vector, parse_chain("bf16")).encode(x),
    "a section too many": lambda packing, x: packing.encode(x, extra={"state": torch.zeros(1)}),
    "declares terabytes": lambda packing, x: packing.encode(x)[:8] + (2**42).to_bytes(8, "little"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_else_arrives_is_refused(vector, view, name):
    bad = HOSTILE[name](ModelPacking(vector), some(vector))
    for refused in (
        lambda: ModelPacking(vector).decode(bad),
        lambda: ModelPacking(vector, parse_chain("topk(0.1)+q8"), view=view).decode(bad),
        lambda: ModelPacking(vector, view=view).decode_mask(bad),
        lambda: unpack_numbers(bad, 7),
        lambda: unpack_mask(bad, 32),
    ):
        with pytest.raises(PayloadError):
            refused()


def test_a_mask_alone_is_no_model_and_a_model_no_mask(vector, view):
    with pytest.raises(PayloadError):
        ModelPacking(vector, view=view).decode_mask(pack_mask(torch.ones(32, dtype=torch.bool)))
    with pytest.raises(PayloadError):
        unpack_mask(ModelPacking(vector).encode(some(vector)), 32)
    with pytest.raises(PayloadError):
        unpack_mask(pack_mask(torch.arange(33) == 32), 32)
