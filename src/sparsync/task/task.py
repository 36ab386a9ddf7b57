"""A task: the dataset, the model that learns it, its loss and its metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.randomness import torch_seed
from sparsync.task.data import Dataset
from sparsync.task.models import build_model


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
            Type of its parameters, default float32. The initial values are those of float32, converted.

        Raises
        ------
        UsageError
            If the model does not exist, has nothing to train, does not take the dataset's inputs, or does not give one
            output per class.
        """
        with _forked_rng():
            torch.default_generator.manual_seed(torch_seed(seed, "model"))
            module = build_model(self.model, self.dataset.shape, self.dataset.classes).to(dtype)
            if not any(parameter.requires_grad for parameter in module.parameters()):
                raise UsageError(f"model {self.model_name!r} has no parameter to train; expected at least one")
            module.train()
            self._check_outputs(module)
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
        with _mode(module, training=False), torch.no_grad():
            for low in range(start, stop, batch_size):
                index = torch.arange(low, min(low + batch_size, stop))
                inputs, labels = self.dataset.test.batch(index, dtype, device)
                outputs = module(inputs)
                right = labels[outputs.argmax(dim=1) == labels]
                correct += torch.bincount(right, minlength=self.dataset.classes)
                loss += F.cross_entropy(outputs, labels, reduction="sum")
        return correct.cpu(), float(loss)

    def stochastic(self, module: nn.Module) -> bool:
        """Whether a forward pass in training mode draws from torch's global generator, as dropout does.

        Tried on two examples; buffers, modes and the generator are left as they were.
        """
        dtype, device = _home(module)
        inputs, _ = self._two(dtype, device)
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        with _mode(module, training=True), torch.no_grad(), _forked_rng(device) as changed:
            module(inputs)
            drew = changed()
            for buffer, kept in buffers:
                buffer.copy_(kept)
        return drew

    def _two(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.dataset.train.batch(torch.arange(2) % len(self.dataset.train), dtype, device)

    def _check_outputs(self, module: nn.Module) -> None:
        inputs, _ = self._two(*_home(module))
        with _mode(module, training=False), torch.no_grad():
            try:
                outputs = module(inputs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise UsageError(
                    f"model {self.model_name!r} does not take inputs of shape {self.dataset.shape} as dataset "
                    f"{self.dataset.name!r} has them ({str(error).splitlines()[0]}); choose another model or dataset"
                ) from error
        expected = (2, self.dataset.classes)
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
            got = (
                f"of shape {tuple(outputs.shape)}"
                if isinstance(outputs, Tensor)
                else f"of type {type(outputs).__name__}"
            )
            raise UsageError(
                f"model {self.model_name!r} gives outputs {got} for 2 examples, dataset {self.dataset.name!r} has "
                f"{self.dataset.classes} classes; give the model's last layer one output per class, shape {expected}"
            )


def _home(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    parameter = next(module.parameters())
    return parameter.dtype, parameter.device


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Switch to training or evaluation mode, and every submodule back to its own afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _forked_rng(device: torch.device | None = None) -> Iterator[Callable[[], bool]]:
    """Put torch's global generators, of the CPU and of one GPU, back afterwards; yields "has one been used?"."""
    gpu = device if device is not None and device.type == "cuda" else None
    cpu_state = torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state(gpu) if gpu else None

    def changed() -> bool:
        if gpu_state is not None and gpu is not None and not torch.equal(gpu_state, torch.cuda.get_rng_state(gpu)):
            return True
        return not torch.equal(cpu_state, torch.get_rng_state())

    try:
        yield changed
    finally:
        torch.set_rng_state(cpu_state)
        if gpu_state is not None and gpu is not None:
            torch.cuda.set_rng_state(gpu_state, gpu)
