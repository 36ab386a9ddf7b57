"""Activation pruning: docs/methods/sparsyfed.md P6 and P7, against gradients computed from their definition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.sparsity import ActivationPruning, PruningRule, prunable_names, reparametrize, top_k_mask
from sparsync.task.models import resnet8
from tolerance import distance, rounding

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (5, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (5, 4, 7, 6)),
    "conv2d-unbatched": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 6)),
    "conv2d-no-bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (5, 4, 7, 6)),
    "conv2d-everything": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2),
        (5, 4, 7, 6),
    ),
    "conv2d-reflect": (lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect", groups=2), (5, 4, 7, 6)),
    "conv2d-circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (5, 4, 7, 6)),
    "conv2d-same": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 2)), (5, 4, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), padding=1), (3, 2, 4, 5, 4)),
    "linear": (lambda: nn.Linear(8, 5), (9, 8)),
    "linear-1d": (lambda: nn.Linear(8, 5), (8,)),
    "linear-3d": (lambda: nn.Linear(8, 5), (3, 4, 8)),
    "linear-4d-no-bias": (lambda: nn.Linear(8, 5, bias=False), (2, 3, 4, 8)),
}


def made(kind: str, sparsity: float = 0.8) -> tuple[nn.Module, Tensor]:
    """A layer with that share of zeros, and an input."""
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = build().double()
    with torch.no_grad():
        flat = layer.weight.view(-1)
        flat[torch.randperm(len(flat))[: round(sparsity * len(flat))]] = 0
    return layer, torch.randn(shape, dtype=torch.float64)


def sparse(x: Tensor, density: float) -> Tensor:
    """The definition: keep |x| >= tau, the k-th largest magnitude of the whole tensor."""
    k = math.ceil(max(density, 1e-7) * x.numel())
    tau = x.abs().flatten().sort(descending=True).values[k - 1]
    return torch.where(x.abs() >= tau, x, 0)


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Output, gradients by parameter, and gradient by input, of a loss that is linear in the output."""
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    names = [name for name, _ in layer.named_parameters()]
    *found, by_input = torch.autograd.grad((y * weights).sum(), [*layer.parameters(), x])
    return y.detach(), dict(zip(names, found, strict=True)), by_input


@pytest.mark.parametrize("kind", LAYERS)
def test_p6_only_the_weight_gradient_differs_and_comes_from_the_sparse_input(kind):
    layer, x = made(kind)
    density = int(layer.weight.count_nonzero()) / layer.weight.numel()
    y, dense, by_input = gradients(layer, x)
    _, expected, _ = gradients(layer, sparse(x, density))
    with ActivationPruning(layer) as pruning:
        found = gradients(layer, x)
        assert pruning.densities["weight"] < 1
    assert torch.equal(found[0], y)
    assert torch.equal(found[2], by_input)
    assert not torch.allclose(found[1]["weight"], dense["weight"])
    most = rounding(y.numel(), float(dense["weight"].abs().max()))  # sums over all outputs
    assert distance(found[1]["weight"], expected["weight"]) <= most
    if layer.bias is not None:
        assert torch.equal(found[1]["bias"], dense["bias"])
    assert torch.equal(gradients(layer, x)[1]["weight"], dense["weight"])  # removed


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("threshold", ["per_batch", "cached_per_round"])
def test_dense_weights_and_evaluation_change_no_bit(kind, threshold):
    for sparsity, training in ((0.0, True), (0.8, False)):
        layer, x = made(kind, sparsity)
        layer.train(training)
        y, by_parameter, by_input = gradients(layer, x)
        with ActivationPruning(layer, threshold=threshold):
            found = gradients(layer, x)
        assert torch.equal(found[0], y)
        assert torch.equal(found[2], by_input)
        assert all(torch.equal(found[1][name], by_parameter[name]) for name in by_parameter)


def kept_inputs(x: Tensor, **options) -> Tensor:
    """Which inputs reach the weight's gradient: with one output that sums, it is their sum over the batch."""
    layer = nn.Linear(x.shape[1], 1, bias=False, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.weight[0, : x.shape[1] // 2] = 0
    saved = []
    for row in torch.eye(len(x), dtype=x.dtype):
        layer.weight.grad = None
        with ActivationPruning(layer, **options):
            layer(x)[:, 0].dot(row).backward()
        saved.append(layer.weight.grad[0])
    return torch.stack(saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_p7_keeps_the_largest_and_all_ties(dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 10).mul(2).round().div(2).to(dtype)  # many ties
    kept = kept_inputs(x)
    k = math.ceil(0.5 * x.numel())
    assert torch.equal(kept, sparse(x, 0.5))
    assert int(kept.count_nonzero()) >= k
    assert torch.all((kept != 0)[top_k_mask(x.flatten(), k).view(x.shape)])


def test_p7_one_threshold_over_the_batch():
    torch.manual_seed(0)
    x = torch.randn(6, 10) * torch.logspace(0, 3, 6)[:, None]
    kept = kept_inputs(x)
    assert (kept != 0).sum(1).tolist()[0] == 0  # joint, not per sample
    order = torch.randperm(6)
    assert torch.equal(kept_inputs(x[order]), kept[order])


def test_nothing_is_dropped_where_the_threshold_is_zero():
    x = torch.randn(6, 10).relu() * (torch.rand(6, 10) < 0.3)
    assert torch.equal(kept_inputs(x), x)


def test_an_empty_layer_keeps_one_entry():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    x = torch.arange(8.0).view(2, 4)
    with ActivationPruning(layer) as pruning:
        layer(x).sum().backward()
        assert pruning.densities == {"weight": 1 / 8}
    assert layer.weight.grad.tolist() == [[0, 0, 0, 7]] * 3


def test_fixed_density_for_every_layer():
    """ZeroFL's, whatever the weights' own density."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 16, 3), nn.Linear(3, 2))
    names = prunable_names(module, PruningRule(first=False))
    with ActivationPruning(module, names, density=0.25) as pruning:
        module(torch.randn(4, 1, 6, 6)).sum().backward()
        assert pruning.densities == {"2.weight": 0.25, "3.weight": 0.25}
    with ActivationPruning(module, density=1.0) as pruning:
        module(torch.randn(4, 1, 6, 6)).sum().backward()
        assert set(pruning.densities.values()) == {1.0}


def test_cached_thresholds_live_for_a_round_and_in_convolutions_only():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(100, 2))
    x = torch.rand(1, 1, 10, 10)
    with ActivationPruning(module, density=0.25, threshold="cached_per_round") as pruning:
        for scale in (1, 2):
            pruning.new_round()
            assert pruning.densities == {}
            module(x * scale).sum().backward()
            assert pruning.densities == {"0.weight": 0.25, "2.weight": 0.25}
        first = x.flatten().sort(descending=True).values[24] * 2  # of the second round's first batch
        module(x).sum().backward()
        later = float((x >= first).float().mean())
        assert pruning.densities["0.weight"] == pytest.approx((0.25 + later) / 2)
        assert pruning.densities["2.weight"] == 0.25


def test_cached_threshold_starts_with_the_first_batch_that_is_pruned_and_outlives_dense_weights():
    """With beta = 1 a pruned layer is dense after one step; the authors' code keeps the threshold."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(1, 4, 1, bias=False), torch.randn(2, 1, 5, 5)
    for threshold, last in (("cached_per_round", 0.5), ("per_batch", 1.0)):
        with ActivationPruning(layer, threshold=threshold) as pruning:
            nn.init.ones_(layer.weight)
            layer(x)
            assert pruning.densities == {"weight": 1.0}
            with torch.no_grad():
                layer.weight[:2] = 0
            layer(x)
            assert pruning.densities == {"weight": 0.75}
            nn.init.ones_(layer.weight)
            layer(x)
            assert pruning.densities["weight"] == pytest.approx((1 + 0.5 + last) / 3)


def test_whole_model_forward_and_input_gradient_are_unchanged():
    torch.manual_seed(0)
    module = resnet8((3, 8, 8), 10, width=4, norm="group").double()
    with torch.no_grad():
        for name in prunable_names(module):
            weight = module.get_parameter(name)
            weight *= top_k_mask(weight.flatten(), weight.numel() // 5).view(weight.shape)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    y, dense, by_input = gradients(module, x)
    with ActivationPruning(module) as pruning:
        found = gradients(module, x)
    weights = set(prunable_names(module))
    assert set(pruning.densities) == weights
    assert torch.equal(found[0], y)
    assert torch.equal(found[2], by_input)
    for name, gradient in dense.items():
        assert torch.equal(found[1][name], gradient) == (name not in weights), name


def test_hooks_attributes_and_rebound_parameters_keep_working():
    layer, x = made("conv2d")
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    pruning = ActivationPruning(layer)
    assert type(layer) is nn.Conv2d
    assert (layer.out_channels, "weight" in layer._parameters) == (6, True)
    layer._parameters["weight"] = nn.Parameter(layer.weight.detach() * 2)  # as a seat does
    doubled = layer(x)
    pruning.remove()
    assert torch.equal(layer(x), doubled)
    assert calls == ["hook"] * 2
    assert "_conv_forward" not in layer.__dict__


def test_with_reparametrised_layers_in_either_order():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)).double()
    with torch.no_grad():
        for name in prunable_names(module):
            weight = module.get_parameter(name)
            weight *= torch.rand_like(weight) < 0.3
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    first, second = copy.deepcopy(module), copy.deepcopy(module)
    names = prunable_names(module, PruningRule(biases=True))
    pruned = [ActivationPruning(reparametrize(first, 1.25, names)), ActivationPruning(second)]
    reparametrize(second, 1.25, names)
    results = [gradients(one, x)[1] for one in (first, second)]
    plain = gradients(reparametrize(copy.deepcopy(module), 1.25, names), x)[1]
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name])
        assert torch.equal(gradient, plain[name]) == ("bias" in name)
    assert all(max(one.densities.values()) < 0.5 for one in pruned)


def test_a_copy_is_a_layer_of_its_own():
    layer, x = made("linear")
    pruning = ActivationPruning(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight *= 3
        other.bias.zero_()
    torch.testing.assert_close(other(x), nn.functional.linear(x, layer.weight * 3))
    assert pruning.densities == {}


def test_without_gradients_nothing_is_computed():
    layer, x = made("linear")
    with ActivationPruning(layer) as pruning:
        with torch.no_grad():
            layer(x)
        layer.weight.requires_grad_(False)
        layer(x)
        assert pruning.densities == {}


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def pruned(*arguments, **options) -> None:
    ActivationPruning(nn.Sequential(Own(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)), *arguments, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pruned(threshold="never"), "threshold='never'; expected 'per_batch' or 'cached_per_round'"),
        (lambda: pruned(density=0), "density=0; expected above 0"),
        (lambda: pruned(density=1.5), "density=1.5"),
        (lambda: pruned(["3.weight"]), "no parameter '3.weight'"),
        (lambda: pruned(["1.weight"]), "'1.weight' is no weight of a convolution or linear layer"),
        (lambda: pruned(["2.bias"]), "'2.bias' is no weight"),
        (lambda: pruned(), "'0.weight' is of a Own with its own forward"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_twice_is_a_mistake_and_autocast_too():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    with ActivationPruning(layer):
        with pytest.raises(UsageError, match="pruned already"):
            ActivationPruning(layer)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(UsageError, match="autocast"):
            layer(torch.randn(3, 2))


def test_removing_twice_leaves_a_later_pruning_alone():
    layer = nn.Linear(2, 2)
    with ActivationPruning(layer) as first:
        first.remove()
        second = ActivationPruning(layer)
    assert "forward" in layer.__dict__
    second.remove()
    assert "forward" not in layer.__dict__
