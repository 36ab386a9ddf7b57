from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparsync.errors import UsageError
from sparsync.workers import OPTIMIZERS, SCHEDULES
from tolerance import rounding


@pytest.mark.parametrize(
    ("spec", "at"),
    [
        ("constant", {0: 1.0, 1: 1.0, 10**6: 1.0}),
        ("constant:warmup=4", {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0}),
        ("constant:warmup=1", {0: 1.0, 1: 1.0}),
        ("cosine:steps=10", {0: 1.0, 5: 0.5, 9: 0.5 * (1 + math.cos(0.9 * math.pi)), 10: 0.0, 11: 0.0, 99: 0.0}),
        ("cosine:steps=10,final=0.2", {0: 1.0, 5: 0.6, 10: 0.2, 99: 0.2}),
        ("cosine:steps=10,warmup=2", {0: 0.5, 1: 0.5 * (1 + math.cos(0.1 * math.pi)), 10: 0.0}),
        ("step:every=3", {0: 1.0, 2: 1.0, 3: 0.1, 5: 0.1, 6: 0.01}),
        ("step:every=3,factor=0.5,warmup=2", {0: 0.5, 1: 1.0, 3: 0.5, 9: 0.125}),
        ("step:every=1,factor=0", {0: 1.0, 1: 0.0}),
        ("exponential", {0: 1.0, 1: 0.998, 500: 0.998**500}),
        ("exponential:factor=0.5,warmup=2", {0: 0.5, 1: 0.5, 2: 0.25}),
    ],
)
def test_first_and_last_values(spec: str, at: dict[int, float]) -> None:
    schedule = SCHEDULES.build(spec)
    assert {step: schedule(step) for step in at} == pytest.approx(at)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cosine", "schedule 'cosine': steps: Field required"),
        ("cosine:steps=0", "steps: Input should be greater than or equal to 1, got '0'"),
        ("cosine:steps=5,final=2", "final: Input should be less than or equal to 1, got '2'"),
        ("step:every=3,factor=-1", "factor: Input should be greater than or equal to 0, got '-1'"),
        ("exponential:factor=nan", "factor: Input should be"),
        ("constant:warmup=-1", "warmup: Input should be greater than or equal to 0, got '-1'"),
        ("constant:steps=3", "schedule 'constant' has no parameter 'steps': its parameters are warmup"),
        (
            "cosin",
            "unknown schedule 'cosin': did you mean 'cosine'? choose one of constant, cosine, exponential, geometric, "
            "step",
        ),
    ],
)
def test_bad_schedules(spec: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        SCHEDULES.build(spec)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sgd:lr=-1", "optimizer 'sgd': lr: Input should be greater than or equal to 0, got '-1'"),
        ("sgd:lr=inf", "lr: Input should be a finite number, got 'inf'"),
        ("sgd:lr=fast", "lr: Input should be a valid number"),
        ("sgd:momentum=1", "momentum: Input should be less than 1, got '1'"),
        ("sgd:momentum=nan", "momentum: Input should be"),
        (
            "sgd:nesterov=true",
            "optimizer 'sgd' has no parameter 'nesterov': its parameters are lr, momentum, weight_de",
        ),
        ("nesterov:momentum=0", "momentum: Input should be greater than 0, got '0'"),
        ("adam:beta1=1", "beta1: Input should be less than 1, got '1'"),
        ("adamw:eps=0", "eps: Input should be greater than 0, got '0'"),
        ("adagrad", "unknown optimizer 'adagrad': "),
    ],
)
def test_bad_optimizers(spec: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        OPTIMIZERS.build(spec, [nn.Parameter(torch.zeros(2))])
    assert says in str(caught.value)


def test_geometric_meets_the_rates_of_sparsyfed() -> None:
    rate = SCHEDULES.build("geometric:final=0.02,steps=700")
    assert 0.5 * rate(0) == pytest.approx(0.497213, abs=5e-7)  # its first round is t = 1
    assert 0.5 * rate(699) == pytest.approx(0.01, rel=rounding(700))  # a power
    assert rate(700) < 0.02
