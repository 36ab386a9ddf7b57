"""Power re-parametrisation: docs/methods/sparsyfed.md P1, P2, P3 and T15."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from sparsync.errors import UsageError
from sparsync.sparsity import (
    PowerParametrization,
    export,
    inverse_power,
    power,
    power_gradient,
    prunable_names,
    reparametrize,
    spectral_beta,
    spectral_network_beta,
    truncated_normal_,
)
from sparsync.task.models import resnet8
from tolerance import rounding

BETAS = [1.05, 1.125, 1.15, 1.25, 1.375, 1.5, 2.0, 2.25, 3.0, 4.0]
FLOATS = st.floats(-1e6, 1e6, width=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ulps(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error in units in the last place of float32."""
    size = exact.abs().float()
    unit = torch.nextafter(size, torch.tensor(math.inf)) - size
    return float(((found.double() - exact).abs() / unit.double()).max())


def test_p1_and_p2_by_hand():
    assert float(power(torch.tensor(0.5), 1.25)) == pytest.approx(0.420448, abs=5e-7)
    slopes = power_gradient(torch.tensor([0.1, -0.1, 0.0, -0.0]), 1.25)
    assert slopes.tolist() == pytest.approx([0.702927, 0.702927, 0, 0], abs=5e-7)
    assert slopes[2:].tolist() == [0, 0]


@pytest.mark.parametrize("beta", BETAS)
def test_close_to_the_exact_values_and_to_pow(beta):
    omega = torch.randn(20_000, generator=generator()) * torch.logspace(-6, 2, 20_000)
    exact = omega.double().abs().pow(beta).copysign(omega.double())
    few = rounding(16, dtype=torch.float32)  # a logarithm, a product and an exponential on either side
    assert ulps(power(omega, beta), exact) < 3
    assert ulps(power_gradient(omega, beta), beta * omega.double().abs().pow(beta - 1)) < 3
    torch.testing.assert_close(power(omega, beta), omega.abs().pow(beta).copysign(omega), rtol=few, atol=0)
    torch.testing.assert_close(inverse_power(power(omega, beta), beta), omega, rtol=2 * few, atol=0)


@given(a=FLOATS, b=FLOATS, beta=st.sampled_from(BETAS))
def test_odd_and_monotone(a, b, beta):
    low, high = sorted((a, b))
    theta = power(torch.tensor([low, high, -low, -high]), beta)
    assert theta[0] <= theta[1]
    assert torch.equal(theta[:2], -theta[2:])


def test_beta_one_is_no_operation():
    omega = torch.randn(3, requires_grad=True)
    assert power(omega, 1) is omega
    assert power(omega, 1.0) is omega
    assert inverse_power(omega, 1.0) is omega
    assert power_gradient(omega, 1.0).tolist() == [1, 1, 1]


def test_one_beta_per_entry_and_rows():
    omega = torch.randn(3, 4, generator=generator())
    omega[1, 2] = 0
    betas = torch.tensor([1.0, 1.25, 2.0, 1.15])
    for function in (power, power_gradient, inverse_power):
        together = function(omega, betas)
        for column, beta in enumerate([1.0, 1.25, 2.0, 1.15]):
            torch.testing.assert_close(together[:, column], function(omega[:, column], beta), rtol=1e-6, atol=0)
    assert power_gradient(omega, betas)[1, 2] == 0


@pytest.mark.parametrize("beta", [1.15, 1.25, 2.0, torch.tensor([1.0, 1.25, 2.0, 3.0], dtype=torch.float64)])
def test_autograd(beta):
    omega = torch.tensor([0.3, -1.2, 0.01, -0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: power(x, beta), omega)
    power(omega, beta).backward(torch.full((4,), 3.0, dtype=torch.float64))
    assert torch.allclose(omega.grad, 3 * power_gradient(omega, beta), rtol=rounding(32), atol=0)
    assert not power_gradient(omega, beta).requires_grad


def test_no_nan_at_zero():
    omega = torch.tensor([0.0, -0.0, 1e-45], requires_grad=True)
    power(omega, 1.25).sum().backward()
    assert omega.grad[:2].tolist() == [0, 0]
    assert omega.grad.isfinite().all()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3)
    )


def train(module: nn.Module, steps: int = 20, momentum: float = 0.0) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=1e-3, momentum=momentum)
    inputs, labels = torch.randn(8, 2, 4, 4, generator=generator()), torch.arange(8) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("beta", [1.0, 1.15, 1.25])
def test_p3_zeros_are_absorbing(beta, momentum):
    module = reparametrize(net(), beta)
    parameters = dict(module.named_parameters())
    raw = {name: parameters[name] for name in prunable_names(module)}
    zeros = {name: torch.rand(omega.shape, generator=generator()) < 0.7 for name, omega in raw.items()}
    with torch.no_grad():
        for name, omega in raw.items():
            omega[zeros[name]] = 0
    before = {name: omega.clone() for name, omega in raw.items()}
    train(module, momentum=momentum)
    for name, omega in raw.items():
        assert not torch.equal(omega, before[name])
        if beta > 1:
            assert torch.all(omega[zeros[name]] == 0), name
        else:
            assert torch.any(omega[zeros[name]] != 0), name


def test_functions_on_flat_vectors_equal_the_parametrised_module():
    """What a strategy does on rows: theta = p(omega) in the plain layers, and gradients scaled by the slope."""
    plain, parametrised = net(), reparametrize(net(), 1.25)
    inputs = torch.randn(8, 2, 4, 4, generator=generator())
    omegas = {
        name.replace("parametrizations.", "").removesuffix(".original"): p
        for name, p in parametrised.named_parameters()
    }
    weights = prunable_names(plain)
    with torch.no_grad():
        for name in weights:
            plain.get_parameter(name).copy_(power(omegas[name], 1.25))
    for module in (plain, parametrised):
        module(inputs).square().sum().backward()
    assert torch.equal(plain(inputs), parametrised(inputs))
    for name in weights:
        slope = power_gradient(omegas[name], 1.25)
        torch.testing.assert_close(omegas[name].grad, plain.get_parameter(name).grad * slope)


def test_t15_existing_weights_keep_their_function():
    torch.manual_seed(1)
    module = resnet8((3, 8, 8), 4, width=4).eval()
    inputs = torch.randn(4, 3, 8, 8, generator=generator())
    expected = module(inputs)
    betas = {name: 1.1 + 0.1 * i for i, name in enumerate(prunable_names(module))}
    reparametrize(module, betas)
    torch.testing.assert_close(module(inputs), expected, rtol=1e-4, atol=1e-5)
    raw = {name.removesuffix(".parametrizations.weight.original") for name, _ in module.named_parameters()}
    assert {name.removesuffix(".weight") for name in betas} <= raw


@pytest.mark.parametrize("training", [True, False])
def test_export_keeps_every_bit(training):
    module = reparametrize(net(), 1.25)
    train(module, 3)
    module.train(training)
    inputs = torch.randn(4, 2, 4, 4, generator=generator())
    expected = copy.deepcopy(module)(inputs)
    names = [name for name, _ in net().named_parameters()]
    assert export(module) is module
    assert [type(part) for part in module] == [type(part) for part in net()]
    assert sorted(name for name, _ in module.named_parameters()) == sorted(names)
    assert torch.equal(module(inputs), expected)


def test_export_leaves_other_parametrizations():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    export(module)
    assert parametrize.is_parametrized(module, "weight")


def test_only_the_named_weights():
    module = reparametrize(net(), 1.5, ["4.weight"])
    assert isinstance(module[4].parametrizations.weight[0], PowerParametrization)
    assert repr(module[4].parametrizations.weight[0]) == "PowerParametrization(beta=1.5)"
    assert not parametrize.is_parametrized(module[0])


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    return module


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PowerParametrization(0.5), "beta=0.5; expected a number of at least 1"),
        (lambda: PowerParametrization(math.nan), "beta=nan"),
        (lambda: reparametrize(net(), 1.25, ["9.weight"]), "no parameter '9.weight'"),
        (lambda: reparametrize(tied(), 1.25), "'0.weight' is shared between modules"),
        (lambda: reparametrize(reparametrize(net(), 1.25), 1.25), "re-parametrised already"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("shape", [(64, 64, 5, 5), (300, 400)])
@pytest.mark.parametrize("beta", [1.0, 1.25])
def test_initialisation_preserves_variance(shape, beta):
    fan_in = math.prod(shape[1:])
    before = torch.get_rng_state()
    drawn = truncated_normal_(torch.empty(shape), generator())
    assert torch.equal(torch.get_rng_state(), before)
    theta = power(inverse_power(drawn, beta), beta)
    assert float(theta.std()) * math.sqrt(fan_in) == pytest.approx(1, abs=0.01)
    assert float(drawn.abs().max()) <= 2 / math.sqrt(fan_in) / 0.87962566
    assert torch.equal(drawn, truncated_normal_(torch.empty(shape), generator()))


def test_spectral_betas():
    rank_one = -torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0, 6.0]))  # norm sqrt(5) * 7, mean 5.5
    added = 5.5 / (7 * math.sqrt(5))
    assert spectral_beta(rank_one, generator()) == round(1 + added, 8)
    assert spectral_beta(rank_one.reshape(2, 3, 1, 1), generator(1)) == round(1 + added, 8)
    assert spectral_beta(torch.zeros(2, 3), generator()) == 1
    sparse = rank_one.clone()
    sparse[1] = 0  # mean over non-zeros 11/3, norm 7
    expected = 1 + (added + 11 / 21 + 0) / 3
    assert spectral_network_beta([rank_one, sparse, torch.zeros(2, 2)], generator()) == pytest.approx(
        expected, abs=5e-5
    )
    full = torch.randn(30, 40, generator=generator(3))
    assert spectral_beta(full, generator(1)) == spectral_beta(full, generator(1))
    exact = 1 + float(full.abs().mean() / torch.linalg.matrix_norm(full.abs(), 2))
    assert spectral_beta(full, generator(1)) == pytest.approx(exact, rel=0.05)
