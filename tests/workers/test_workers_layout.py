from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.workers import Arena, Layout
from sparsync.workers.layout import BoundModule

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Two names for one weight, a frozen layer, a counter and a running statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.norm(self.frozen(self.embed(x)))
        return self.out(hidden)


def seated(module: nn.Module, k: int, dtype: torch.dtype = torch.float32) -> tuple[Arena, Callable[[int], nn.Module]]:
    arena = Arena(module, k, CPU, dtype)
    bound = BoundModule(module, arena)
    held = [(arena.parameters(i), arena.row_buffers(i)) for i in range(k)]
    return arena, lambda i: bound.bind(*held[i])


def test_layout_by_hand() -> None:
    layout = Layout.of_parameters(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False)))
    assert [(slot.names, tuple(slot.shape), slot.start, slot.stop) for slot in layout.slots] == [
        (("0.weight",), (3, 2), 0, 6),
        (("0.bias",), (3,), 6, 9),
        (("1.weight",), (1, 3), 9, 12),
    ]
    assert layout.numel == 12
    row = torch.arange(12.0)
    weight, bias, last = layout.views(row)
    assert weight.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert bias.tolist() == [6, 7, 8]
    last[0, 2] = -1  # a view
    assert row[11] == -1


def test_shared_parameters_have_one_slot_and_frozen_ones_none() -> None:
    layout = Layout.of_parameters(Tied())
    assert [slot.names for slot in layout.slots] == [("embed.weight", "out.weight"), ("norm.weight",), ("norm.bias",)]
    assert layout.numel == 15 + 3 + 3
    buffers, counters = Layout.of_averaged_buffers(Tied()), Layout.of_other_buffers(Tied())[torch.int64, True]
    assert [slot.names[0] for slot in buffers.slots] == ["norm.running_mean", "norm.running_var"]
    assert [slot.names[0] for slot in counters.slots] == ["norm.num_batches_tracked"]


def test_a_module_used_twice_has_one_slot() -> None:
    layer = nn.Linear(2, 2)
    layout = Layout.of_parameters(nn.Sequential(layer, nn.ReLU(), layer))
    assert [slot.names for slot in layout.slots] == [("0.weight", "2.weight"), ("0.bias", "2.bias")]


def lone(parameter: Any) -> nn.Module:
    module = nn.Module()
    module.register_parameter("p", parameter)
    return module


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.ReLU(), "the model has no trainable parameters; set requires_grad=True on what is to be trained"),
        (nn.Linear(2, 2).requires_grad_(False), "the model has no trainable parameters"),
        (lone(nn.Parameter(torch.zeros(2, dtype=torch.complex64))), "parameter 'p' is complex; hold its real and imag"),
        (lone(nn.Parameter(torch.zeros(2, 2).to_sparse())), "parameter 'p' is sparse (torch.sparse_coo); only dense"),
        (nn.Linear(2, 2, device="meta"), "parameter 'weight' is on the meta device; give it storage first"),
        (nn.LazyLinear(2), "parameter 'weight' has no shape yet; run the lazy model once before handing it over"),
    ],
    ids=["nothing", "all frozen", "complex", "sparse", "meta", "lazy"],
)
def test_refusals(module: nn.Module, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Layout.of_parameters(module)
    assert says in str(caught.value)


def test_arena_rows_start_as_the_module() -> None:
    module = Tied()
    module.norm.running_mean.fill_(0.5)
    arena = Arena(module, 3, CPU, torch.float64)
    flat = nn.utils.parameters_to_vector(p for p in module.parameters() if p.requires_grad)
    assert torch.equal(arena.params, flat.detach().double().expand(3, -1))
    assert arena.params.shape == arena.grads.shape == (3, 21)
    assert arena.buffers.tolist() == [[0.5] * 3 + [1.0] * 3] * 3
    assert arena.others[0].tolist() == [[0]] * 3
    assert Arena(module, 2, CPU, torch.float32, gradients=False).grads.shape == (2, 0)


def test_writing_a_row_changes_the_seated_module_and_back() -> None:
    module = Tied()
    arena, sit = seated(module, 2)
    sit(1)
    arena.params[1].fill_(2.0)
    assert all(p.eq(2).all() for p in module.parameters() if p.requires_grad)
    assert module.out.weight is module.embed.weight
    with torch.no_grad():
        module.out.weight.fill_(3.0)
    assert arena.params[1, :15].eq(3).all()
    assert not arena.params[0].eq(3).any()
    assert module.out.weight.untyped_storage().data_ptr() == arena.params.untyped_storage().data_ptr()
    arena.row(1).data.fill_(4.0)  # what an optimiser writes
    assert module.norm.bias.eq(4).all()


def test_gradients_arrive_in_the_row_and_nowhere_else() -> None:
    module = Tied()
    arena, sit = seated(module, 3)
    sit(1)(torch.tensor([0, 1, 4])).square().sum().backward()
    assert arena.grads[1].count_nonzero() > 15
    assert arena.grads[0].eq(0).all()
    assert arena.grads[2].eq(0).all()
    grad = module.embed.weight.grad
    assert grad is not None
    assert grad.untyped_storage().data_ptr() == arena.grads.untyped_storage().data_ptr()
    assert torch.equal(arena.row(1).grad, arena.grads[1])


def test_tied_gradients_add_up_as_in_the_module_itself() -> None:
    torch.manual_seed(0)
    alone, module = Tied(), Tied()
    module.load_state_dict(alone.state_dict())
    arena, sit = seated(module, 1)
    for model in (alone, sit(0)):
        model(torch.tensor([0, 1, 4])).square().sum().backward()
    own = torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None])
    assert torch.equal(arena.grads[0], own)


def test_running_statistics_and_counters_are_each_workers_own() -> None:
    module = Tied()
    arena, sit = seated(module, 2)
    sit(0)(torch.tensor([0, 1, 2]))
    sit(0)(torch.tensor([0, 1, 2]))
    sit(1)(torch.tensor([3, 4, 4]))
    assert arena.others[0].tolist() == [[2], [1]]
    assert not torch.equal(arena.buffers[0], arena.buffers[1])


class Counting(nn.Module):
    """Counts its batches in a buffer that is neither floating nor int64."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(1, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.line(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_no_buffer_is_shared_between_workers(dtype: torch.dtype) -> None:
    """Each worker's own, or refused: "never silently dropped"."""
    module = Counting(dtype)
    try:
        _, sit = seated(module, 3)
    except UsageError:
        return
    for worker in range(3):
        sit(worker)(torch.ones(1, 2))
        assert module.seen.tolist() == [1]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.recurrent = kind(3, 4, num_layers=2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.recurrent(x)[0]
        return self.out(hidden[:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_that_keep_references_of_their_own(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    module, x = Recurrent(kind), torch.randn(5, 6, 3)
    expected = module(x)
    arena, sit = seated(module, 2)
    assert torch.equal(sit(1)(x), expected)
    arena.params[1].mul_(0.5)
    halved = sit(1)(x)
    assert not torch.allclose(halved, expected)
    assert torch.equal(sit(0)(x), expected)
    sit(1)(x).sum().backward()
    assert arena.grads[1].count_nonzero() > 0.9 * arena.grads.shape[1]
    assert arena.grads[0].eq(0).all()


@pytest.mark.parametrize(
    "module",
    [
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        nn.MultiheadAttention(4, 2),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU()),
        nn.ParameterList([torch.zeros(2), torch.ones(3)]),
    ],
    ids=["weight_norm", "attention", "conv", "list"],
)
def test_binding_reaches_every_kind_of_module(module: nn.Module) -> None:
    arena, sit = seated(module, 2)
    arena.params.copy_(torch.arange(arena.params.numel()).view_as(arena.params))
    for i in (1, 0):
        flat = nn.utils.parameters_to_vector(sit(i).parameters())
        assert sorted(flat.tolist()) == arena.params[i].tolist()
