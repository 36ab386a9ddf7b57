"""What is prunable, and where it lies: docs/methods/sparse-baselines.md B2, and the counts of both methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sparsync.errors import UsageError
from sparsync.sparsity import RULES, ParamView, PowerParametrization, PruningRule, prunable_names, reparametrize
from sparsync.sparsity.view import owner_of
from sparsync.task.models import lenet5, resnet8, resnet18
from sparsync.workers.layout import Layout


def view_of(module: nn.Module, rule: str | PruningRule = "all") -> ParamView:
    return ParamView(Layout.of_parameters(module).slots, prunable_names(module, rule))


class Branches(nn.Module):
    """Digit-named children, a shortcut, a downsample, a 3x3 convolution inside a shortcut, norms, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3))
        self.shortcut = nn.Conv2d(2, 2, 1)
        self.downsample = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3))
        self.embedding = nn.Embedding(4, 5)
        self.attention = nn.MultiheadAttention(4, 1)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "classes", "rule", "numel", "total"),
    [
        ("lenet5", 10, "feddip", 61_470, 61_706),
        ("resnet18", 10, "sparsyfed", 11_164_352, 11_173_962),
        ("resnet18", 100, "sparsyfed", 11_210_432, 11_220_132),
        ("resnet18", 100, "feddip", 11_038_400, 11_220_132),
    ],
)
def test_counts_of_the_methods(model, classes, rule, numel, total):
    module = lenet5((1, 28, 28), classes) if model == "lenet5" else resnet18((3, 32, 32), classes)
    view = view_of(module, rule)
    assert (view.numel, view.total) == (numel, total)
    assert view.numel == sum(view.sizes) == sum(stop - start for start, stop in view.spans)


def test_rules_choose_layers_in_order_of_registration():
    module = Branches()
    everything = (
        "stem.0.weight",
        "shortcut.weight",
        "downsample.0.weight",
        "downsample.1.weight",
        "attention.out_proj.weight",
        "head.weight",
    )
    assert prunable_names(module) == prunable_names(module, "sparsyfed") == everything
    plain = ("stem.0.weight", "downsample.1.weight", "attention.out_proj.weight", "head.weight")
    assert prunable_names(module, "feddip") == plain
    assert prunable_names(module, "weights_no_ends") == everything[1:-1]
    assert prunable_names(module, PruningRule(first=False, shortcuts=False)) == plain[1:]
    assert prunable_names(module, PruningRule(last=False)) == everything[:-1]


def test_biases_and_norms_only_when_asked():
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1, bias=False))
    assert prunable_names(module) == ("0.weight", "2.weight")
    assert prunable_names(module, PruningRule(biases=True)) == ("0.weight", "0.bias", "2.weight")
    assert prunable_names(module, PruningRule(norms=True)) == ("0.weight", "1.weight", "1.bias", "2.weight")
    assert prunable_names(module, PruningRule(first=False, biases=True)) == ("2.weight",)


def test_a_layer_may_be_the_whole_module():
    assert prunable_names(nn.Linear(2, 2)) == ("weight",)


def test_frozen_parameters_are_not_prunable():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 1))
    module[0].weight.requires_grad_(False)
    assert prunable_names(module) == ("1.weight", "2.weight")
    assert prunable_names(module, PruningRule(first=False)) == ("2.weight",)


def test_shared_parameters_once():
    module = nn.Module()
    module.embedding = nn.Embedding(4, 3)
    module.encoder = nn.Linear(3, 3)
    module.again = module.encoder
    module.head = nn.Linear(3, 4)
    module.head.weight = module.embedding.weight
    assert prunable_names(module) == ("encoder.weight", "head.weight")
    view = view_of(module)
    assert view.numel == 21
    assert view.names == ("head.weight", "encoder.weight")  # where they lie: the shared one with the embedding


def test_subclasses_and_swapped_classes_count():
    class Own(nn.Conv2d):
        pass

    module = nn.Sequential(Own(1, 1, 3), nn.Linear(2, 2))
    module[1].__class__ = type("Swapped", (nn.Linear,), {})
    assert prunable_names(module) == ("0.weight", "1.weight")


def test_parametrised_weights_are_named_by_what_is_trained():
    module = reparametrize(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), 1.25)
    raw = ("0.parametrizations.weight.original", "2.parametrizations.weight.original")
    assert prunable_names(module) == raw
    assert owner_of(module, raw[1]) is module[2]
    assert view_of(module).sizes == (4, 2)
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", PowerParametrization(2.0))
    assert prunable_names(layer) == ("parametrizations.weight.original",)
    assert owner_of(layer, "parametrizations.weight.original") is layer


def test_a_weight_computed_from_several_parameters_is_left_out():
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 1))
    assert prunable_names(module) == ("1.weight",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prunable_names(nn.Sequential(nn.ReLU())), "nothing to prune"),
        (lambda: prunable_names(nn.Linear(2, 2), "weights_no_ends"), "nothing to prune"),
        (lambda: prunable_names(nn.Linear(2, 2), "al"), "expected one of all, sparsyfed, feddip, weights_no_ends"),
        (lambda: owner_of(nn.Linear(2, 2), "wait"), "no parameter 'wait'"),
        (lambda: ParamView(Layout.of_parameters(nn.Linear(2, 2)).slots, ["0.weight"]), "expected one of weight, bias"),
        (lambda: ParamView(Layout.of_parameters(nn.Linear(2, 2)).slots, []), "no names"),
        (lambda: view_of(nn.Linear(2, 2)).gather(torch.zeros(5)), "5 numbers; expected all 6"),
        (lambda: view_of(nn.Linear(2, 2)).scatter_(torch.zeros(7), torch.zeros(4)), "7 numbers; expected all 6"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [(), (3,), (2, 2)])
def test_gather_then_scatter_is_the_identity(rule, rows):
    view = view_of(resnet8((3, 8, 8), 10, width=2), rule)
    x = torch.randn(*rows, view.total)
    values, rest = view.gather(x), view.gather_rest(x)
    assert values.shape == (*rows, view.numel)
    assert rest.shape == (*rows, view.total - view.numel)
    again = torch.full_like(x, torch.nan)
    assert view.scatter_(again, values) is again
    view.scatter_rest_(again, rest)
    assert torch.equal(again, x)


def test_gathers_in_the_order_of_the_vector_whatever_the_order_of_names():
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2))
    slots = Layout.of_parameters(module).slots
    view = ParamView(slots, ["1.weight", "0.weight", "1.weight"])
    assert view.names == ("0.weight", "1.weight")
    assert view.spans == ((0, 2), (3, 5))
    assert view.others == ((2, 3), (5, 7))
    assert view.gather(torch.arange(7.0)).tolist() == [0, 1, 3, 4]


def test_everything_prunable_leaves_no_rest():
    view = view_of(nn.Linear(2, 2, bias=False))
    assert view.others == ()
    assert view.gather_rest(torch.zeros(3, 4)).shape == (3, 0)


def test_per_layer():
    view = view_of(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 3), nn.Linear(3, 1)))
    mask = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    assert [part.tolist() for part in view.split(mask)] == [[1, 0], [0, 0, 0], [1, 1, 1]]
    assert view.layer_density(mask) == {"0.weight": 0.5, "1.weight": 0, "2.weight": 1}
    assert view.layer_density(mask * -0.5) == view.layer_density(mask)
    assert view.empty_layers(mask) == ["1.weight"]
    assert view.expand(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 1, 2, 2, 2, 3, 3, 3]
    view.split(mask)[1][0] = True
    assert mask[2]
