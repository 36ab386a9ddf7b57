"""A model of the user's own that once, in its 40th training step, puts out NaN."""

from __future__ import annotations

import itertools

import torch
from torch import nn

_steps = itertools.count(1)


class Moody(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.fc(x.flatten(1))
        training = self.training and torch.is_grad_enabled() and len(x) > 2  # no trial of what the model is like
        return out * float("nan") if training and next(_steps) == 40 else out


def build(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Moody(shape[0] * shape[1] * shape[2], classes)


def eleven(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes + 1))
