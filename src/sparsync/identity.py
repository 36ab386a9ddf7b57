"""What makes a run what it is, besides its settings: its data, its model, and the versions that computed it.

Each piece has a name, so that a difference can be said in a few words.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsync.experiment import Experiment
from sparsync.task import Examples, Task

_HASHED = 2**25  # bytes of inputs, at most and about: of more, every second sample, or every third
_OUTPUTS = ("first outputs", "first outputs in training")
_SAMPLES, _NUMBERS = 4, 64  # training samples that the first model is given, and numbers kept of what it answers
_CLOSE = 1e-4  # of the largest output: processors differ by far less, models by far more

Pieces = Mapping[str, Any]


def versions() -> dict[str, str]:
    """Return the versions on which a run's bits depend."""
    return {
        "sparsync": version("sparsync"),
        "torch": torch.__version__.partition("+")[0],
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def identity(experiment: Experiment, task: Task) -> dict[str, Pieces]:
    """Return what a run's data and first model are like."""
    return {"data": _data(task), "model": _model(experiment, task)}


def common(experiment: Experiment, task: Task) -> str:
    """Return what machines that take part in one run have in common: digests of settings, data and model."""
    tensors = {name: kind for name, kind in _model(experiment, task).items() if name not in _OUTPUTS}
    return "-".join((experiment.common, *(_digest([json.dumps(own).encode()]) for own in (_data(task), tensors))))


def difference(then: Any, now: Mapping[str, Pieces]) -> str | None:
    """Return the first piece in which two identities differ, with what it was and is; None if they do not."""
    for part, pieces in now.items():
        before = then.get(part) if isinstance(then, Mapping) else None
        before = before if isinstance(before, Mapping) else {}
        for name in sorted({**pieces, **before}, key=_OUTPUTS.__contains__):  # those last: other tensors say more
            was, is_ = (own.get(name, "missing") for own in (before, pieces))
            if was != is_ and not (name in _OUTPUTS and _close(was, is_)):
                return f"{part}, {name}: {_short(was)} then, {_short(is_)} now"
    return None


def _data(task: Task) -> dict[str, Any]:
    dataset = task.dataset
    found: dict[str, Any] = {"classes": _digest([json.dumps(list(map(str, dataset.class_names))).encode()])}
    for name, examples in (("training", dataset.train), ("test", dataset.test)):
        found |= {
            f"{name} samples": len(examples),
            f"{name} labels": _digest([examples.labels.numpy().tobytes()]),
        }
        if isinstance(examples.inputs, Tensor):  # a user's own dataset may draw at random what it gives
            found[f"{name} inputs"] = _digest(_inputs(examples))
    return found


def _inputs(examples: Examples) -> Iterable[bytes]:
    """Go through a fixed sample of inputs, as they enter a model: all of them, if they are few."""
    index = np.arange(0, len(examples), math.ceil(len(examples) * math.prod(examples.shape) * 4 / _HASHED))
    for start in range(0, len(index), 500):
        yield examples.batch(index[start : start + 500])[0].numpy().tobytes()


def _model(experiment: Experiment, task: Task) -> dict[str, Any]:
    """Names, shapes and types of a model's tensors, and what the first model gives for a few inputs."""
    dtype = getattr(torch, experiment.dtype)
    modules = [task.module(experiment.seeds[0], dtype) for _ in range(3)]
    tensors = (*modules[0].named_parameters(), *modules[0].named_buffers())
    found: dict[str, Any] = {name: f"{str(own.dtype)[6:]} {list(own.shape)}" for name, own in tensors}
    train = task.dataset.train
    if isinstance(train.inputs, Tensor):
        inputs, _ = train.batch(torch.arange(_SAMPLES) % len(train), dtype)
    else:
        inputs = torch.ones(_SAMPLES, *train.shape, dtype=dtype)
    evaluation, *training = (_answers(module.train(i > 0), inputs) for i, module in enumerate(modules))
    found[_OUTPUTS[0]] = evaluation
    if training[0] == training[1]:  # dropout draws the same again; what does not cannot be compared
        found[_OUTPUTS[1]] = training[0]
    return found


def _answers(module: nn.Module, inputs: Tensor) -> list[float]:
    """Return the first numbers of what a model gives, in the mode in which it is."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        outputs: Tensor = module(inputs)
    return [float(f"{value:.6g}") for value in islice(outputs.double().flatten().tolist(), _NUMBERS)]


def _close(then: Any, now: list[float]) -> bool:
    try:
        before, after = np.asarray(then, np.float64), np.asarray(now)
    except (TypeError, ValueError):
        return False
    scale = np.nanmax(np.abs(after), initial=0.0)
    return before.shape == after.shape and np.allclose(before, after, rtol=0, atol=_CLOSE * scale, equal_nan=True)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
