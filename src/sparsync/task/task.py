"""A task: the dataset, the model that learns it, its loss and its metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.randomness import torch_seed
from sparsync.task.data import Dataset
from sparsync.task.models import build_model
from sparsync.task.state import (
    ModelBehaviour,
    TensorAlias,
    aliases,
    check_state,
    evaluating,
    failure,
    forked_rng,
    reason,
    try_out,
)


@dataclass(frozen=True)
class Task:
    """Classification of a dataset by a model, with mean cross-entropy as loss and accuracy as metric.

    Attributes
    ----------
    dataset : Dataset
        What is learnt.
    model : str or callable
        What learns it, as in `build_model`.
    """

    dataset: Dataset
    model: str | Callable[..., nn.Module]

    @property
    def model_name(self) -> str:
        """The model's spec, or the function's name."""
        return self.model if isinstance(self.model, str) else getattr(self.model, "__name__", repr(self.model))

    def module(self, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build the initial model, on the CPU and in training mode.

        Parameters
        ----------
        seed : int
            Seed of the run; the purpose is ``"model"``. The global generator is left as it was.
        dtype : torch.dtype
            Type of its parameters, default float32. What is float32 in the model is converted, all else keeps its type.

        Raises
        ------
        UsageError
            If the model does not exist, has nothing to train, holds what cannot be kept, does not take the dataset's
            inputs, or does not give one output per class.
        """
        with forked_rng():
            torch.default_generator.manual_seed(torch_seed(seed, "model"))
            module = build_model(self.model, self.dataset.shape, self.dataset.classes)
            check_state(module)
            left: list[TensorAlias] = []
            if dtype is not torch.float32:
                left = aliases(module)  # which are not converted
                module._apply(  # type: ignore[no-untyped-call]
                    lambda tensor: tensor.to(dtype) if tensor.dtype is torch.float32 else tensor
                )
            trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
            if not trained:
                raise UsageError(f"model {self.model_name!r} has no parameter to train; expected at least one")
            for name, parameter in trained.items():
                if parameter.dtype is not dtype:
                    raise UsageError(
                        f"parameter {name!r} is {parameter.dtype}, and training is in {dtype}; build it in float32, or "
                        "freeze it"
                    )
            module.train()
            self._check_inputs(module)
            for alias in left:
                alias.check(module)
        return module

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar, of outputs (b, classes) and labels (b,)."""
        return F.cross_entropy(outputs, labels)

    def evaluate(self, module: nn.Module, start: int, stop: int, batch_size: int = 500) -> tuple[Tensor, float]:
        """Test a model, in evaluation mode and without gradients; its modes are left as they were.

        Parameters
        ----------
        module : nn.Module
            Model to test, where and in what type its parameters are.
        start, stop : int
            Test examples to use: start, ..., stop - 1. Results of disjoint ranges add.
        batch_size : int
            Examples at a time, default 500.

        Returns
        -------
        correct : Tensor of int64, (classes,)
            By label, the number of examples whose largest output is their label's.
        loss : float
            Sum of their cross-entropies.
        """
        if not 0 <= start <= stop <= len(self.dataset.test) or batch_size < 1:
            raise UsageError(
                f"evaluate: examples {start} to {stop} in batches of {batch_size}; expected a range within "
                f"0 to {len(self.dataset.test)} and batches of at least 1"
            )
        dtype, device = _home(module)
        correct = torch.zeros(self.dataset.classes, dtype=torch.int64, device=device)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        with evaluating(module):
            for low in range(start, stop, batch_size):
                index = torch.arange(low, min(low + batch_size, stop))
                inputs, labels = self.dataset.test.batch(index, dtype, device)
                outputs = module(inputs)
                right = labels[outputs.argmax(dim=1) == labels]
                correct += torch.bincount(right, minlength=self.dataset.classes)
                loss += F.cross_entropy(outputs, labels, reduction="sum")
        return correct.cpu(), float(loss)

    def behaviour(self, module: nn.Module) -> ModelBehaviour:
        """Try how a model behaves in training mode; it and torch's generators are left as they were.

        Raises
        ------
        UsageError
            If it cannot be trained, gives other outputs than in evaluation mode, or its forward pass does what could
            not be kept for each worker.
        """
        dtype, device = _home(module)

        def learn(samples: int) -> None:
            inputs, labels = self._some(samples, dtype, device)
            try:
                outputs = module(inputs)
                self._check_outputs(outputs, samples, "in training mode ")
                self.loss(outputs, labels).backward()  # type: ignore[no-untyped-call]
            except UsageError:
                raise
            except Exception as error:  # the model's own code: anything may come of it
                raise UsageError(f"model {self.model_name!r} cannot be trained ({reason(error)})") from error

        return try_out(module, learn, device)

    def lonely(self, part: nn.Module) -> str | None:
        """Why a part of a model that takes inputs cannot take a single one in training mode; None: it can."""
        dtype, device = _home(part)
        return failure(part, lambda: part(self._some(1, dtype, device)[0]), device)

    def _some(self, samples: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.dataset.train.batch(torch.arange(samples) % len(self.dataset.train), dtype, device)

    def _check_inputs(self, module: nn.Module) -> None:
        inputs, _ = self._some(2, *_home(module))
        with evaluating(module):
            try:
                outputs = module(inputs)
            except Exception as error:  # the model's own code: anything may come of it
                if failure(module, lambda: module(inputs), inputs.device) is None:
                    raise UsageError(
                        f"model {self.model_name!r} fails in evaluation mode ({reason(error)}), though not in training "
                        "mode; mend its forward pass"
                    ) from error
                raise UsageError(
                    f"model {self.model_name!r} does not take inputs of shape {self.dataset.shape} as dataset "
                    f"{self.dataset.name!r} has them ({reason(error)}); choose another model or dataset"
                ) from error
        self._check_outputs(outputs, 2)

    def _check_outputs(self, outputs: object, samples: int, when: str = "") -> None:
        expected = (samples, self.dataset.classes)
        if isinstance(outputs, Tensor) and tuple(outputs.shape) == expected and outputs.is_floating_point():
            return
        got = f"of type {type(outputs).__name__}"
        if isinstance(outputs, Tensor):
            got = f"of shape {tuple(outputs.shape)}" if outputs.is_floating_point() else f"of {outputs.dtype}"
        raise UsageError(
            f"model {self.model_name!r} {when}gives outputs {got} for {samples} examples, dataset "
            f"{self.dataset.name!r} has {self.dataset.classes} classes; give the model's last layer one output per "
            f"class, real numbers of shape {expected}"
        )


def _home(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    parameter = next(parameter for parameter in module.parameters() if parameter.requires_grad)
    return parameter.dtype, parameter.device
