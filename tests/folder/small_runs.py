"""A comparison that takes no time."""

from __future__ import annotations

from typing import Any

from sparsync.experiment import Experiment, build

SETTING: dict[str, Any] = {
    "model": "logistic",
    "workers": 2,
    "steps": 6,
    "eval_every": 2,
    "processes": 1,
    "strategies": ["local-sgd:period=2"],
    "federation": {"rounds": 4},
    "split": {"epochs": 1, "batch_size": 500},
}


def small(**more: Any) -> Experiment:
    return build({**SETTING, **more})
