"""Labelled examples, gathered into normalised batches by index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from sparsync.errors import DataError

MapDataset = torch.utils.data.Dataset[Any]
"""Any map-style dataset: it has a length, and indexing yields (input, label)."""


class Examples:
    """n labelled examples, normalised per channel as they are gathered.

    A batch is ``(x - mean) / std``, and ``(x / 255 - mean) / std`` for uint8 inputs, so pictures stay one byte per
    pixel in memory.

    Parameters
    ----------
    inputs : Tensor or map-style dataset
        Inputs of shape (n, ...), uint8 or floating; or a ``torch.utils.data.Dataset`` of such inputs, whose items
        are stacked on demand (see :meth:`from_map`).
    labels : Tensor
        Labels of shape (n,), any integer type, at least 0.
    mean, std : float or sequence of float
        Of each channel (the first dimension of ``shape``), or one number for all; defaults 0 and 1.
    name : str
        What error messages call these examples.

    Attributes
    ----------
    inputs, labels
        As given; labels as int64 and tensors contiguous.
    shape : tuple of int
        Shape of one input.

    Raises
    ------
    DataError
        If there are no examples, inputs and labels differ in number, a type or shape is not as above, an input is not
        finite, or a standard deviation is not positive.
    """

    def __init__(
        self,
        inputs: Tensor | MapDataset,
        labels: Tensor,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        name: str = "examples",
    ) -> None:
        n = len(inputs)  # type: ignore[arg-type]  # torch's Dataset does not declare the length that map-style ones have
        if n == 0:
            raise DataError(f"{name}: there are no examples; at least one is needed")
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(
                f"{name}: expected integer labels of shape ({n},), got {_named(labels.dtype)} of {tuple(labels.shape)}"
            )
        if len(labels) != n:
            raise DataError(f"{name}: {n} inputs but {len(labels)} labels; every input needs exactly one label")
        if labels.min() < 0:
            raise DataError(f"{name}: label {int(labels.min())} is negative; labels count from 0")
        self.name = name
        self.inputs = inputs.contiguous() if isinstance(inputs, Tensor) else inputs
        self.labels = labels.long().contiguous()
        first = self._rows(torch.zeros(1, dtype=torch.int64))
        self.shape = tuple(first.shape[1:])
        if not self.shape or 0 in self.shape:
            raise DataError(f"{name}: expected inputs of shape (n, ...), got one input of shape {self.shape}")
        if first.dtype != torch.uint8 and not first.is_floating_point():
            raise DataError(
                f"{name}: inputs are {_named(first.dtype)}; expected uint8 or a floating type, so convert them"
            )
        if isinstance(inputs, Tensor) and inputs.is_floating_point() and not torch.isfinite(inputs).all():
            at = int((~torch.isfinite(inputs)).flatten(1).any(1).nonzero()[0])
            raise DataError(f"{name}: input {at} holds a value that is not finite; remove or repair it")
        self._mean, self._std = self._per_channel("mean", mean), self._per_channel("std", std)
        if not (self._std > 0).all():
            raise DataError(f"{name}: std is {std}; expected positive numbers")
        if first.dtype == torch.uint8:
            self._mean, self._std = self._mean * 255, self._std * 255
        self._placed: dict[tuple[torch.dtype, str], tuple[Tensor | None, Tensor | None]] = {}

    @classmethod
    def from_map(
        cls,
        source: MapDataset,
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        name: str = "examples",
    ) -> Examples:
        """Wrap a map-style ``torch.utils.data.Dataset`` whose items are (input, label), without loading its inputs.

        Labels are gathered once: from ``source.targets`` where it has that and no ``target_transform``, else by
        reading every item. Inputs must be tensors or arrays of one shape; their values are not checked. Whatever the
        dataset itself draws at random comes from the generators it chooses.
        """
        if isinstance(source, torch.utils.data.IterableDataset):
            raise DataError(f"{name}: a {type(source).__name__} cannot be indexed; expected a map-style dataset")
        targets = getattr(source, "targets", None)
        if targets is None or getattr(source, "target_transform", None) is not None:
            targets = [source[i][1] for i in range(len(source))]  # type: ignore[arg-type]  # as in __init__
        try:
            labels = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"{name}: expected one integer label per item") from None
        return cls(source, labels, mean=mean, std=std, name=name)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self,
        indices: np.ndarray[Any, np.dtype[np.integer[Any]]] | Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        """Gather examples.

        Parameters
        ----------
        indices : array or Tensor of int, shape (b,)
            Which examples, in this order; repetitions are fine.
        dtype : torch.dtype
            Floating type of the inputs returned, default float32.
        device : torch.device or str
            Where the batch is put, default the CPU. Pictures cross as bytes and are normalised there.

        Returns
        -------
        inputs : Tensor, shape (b, ...)
            Normalised inputs.
        labels : Tensor of int64, shape (b,)
            Their labels.
        """
        index = torch.as_tensor(indices)
        rows, labels = self._rows(index), self.labels.index_select(0, index)
        if device != "cpu":
            rows, labels = rows.to(device), labels.to(device)
        mean, std = self._placed.get((dtype, str(device))) or self._place(dtype, device)
        if mean is not None:
            rows = rows - mean
        if std is not None:
            rows = rows / std
        return rows.to(dtype), labels

    def _rows(self, index: Tensor) -> Tensor:
        """Inputs as stored, (b, *shape)."""
        if isinstance(self.inputs, Tensor):  # the flat view is what makes index_select fast
            n, *shape = self.inputs.shape
            return self.inputs.view(n, math.prod(shape)).index_select(0, index).view(len(index), *shape)
        items = []
        for i in index.tolist():
            item = self.inputs[i][0]
            if not isinstance(item, Tensor | np.ndarray):
                raise DataError(
                    f"{self.name}: input {i} is a {type(item).__name__}, expected a tensor or an array; "
                    "give the dataset a transform that makes one, such as torchvision's ToTensor"
                )
            items.append(item if isinstance(item, Tensor) else torch.from_numpy(np.array(item)))
        odd = next((i for i, item in zip(index.tolist(), items, strict=True) if item.shape != items[0].shape), None)
        if odd is not None:
            raise DataError(f"{self.name}: input {odd} differs in shape from the others; give all inputs one shape")
        return torch.stack(items) if items else torch.empty(0, *self.shape)

    def _per_channel(self, what: str, value: float | Sequence[float]) -> Tensor:
        """Return mean or std as float64, (channels, 1, ...)."""
        given = torch.as_tensor(value, dtype=torch.float64).flatten()
        if len(given) not in (1, self.shape[0]) or not torch.isfinite(given).all():
            raise DataError(
                f"{self.name}: {what} is {value}; expected one number, or one for each of {self.shape[0]} channels"
            )
        return given.view(-1, *[1] * (len(self.shape) - 1))

    def _place(self, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor | None, Tensor | None]:
        """Return mean and std where a batch is normalised; None where nothing is to do. Both are kept."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        mean = self._mean.to(device, exact) if (self._mean != 0).any() else None
        std = self._std.to(device, exact) if (self._std != 1).any() else None
        return self._placed.setdefault((dtype, str(device)), (mean, std))


@dataclass(frozen=True)
class Dataset:
    """Training and test examples of one classification problem.

    Attributes
    ----------
    name : str
        What messages and reports call it.
    train, test : Examples
        Of one shape.
    classes : int
        Number of classes, at least 2; labels are 0 to classes - 1.
    class_names : tuple of str
        One per class; the numbers themselves if left empty.

    Raises
    ------
    DataError
        If shapes differ, a label is out of range, or names and classes differ in number.
    """

    name: str
    train: Examples
    test: Examples
    classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise DataError(f"dataset {self.name!r}: {self.classes} classes; at least 2 are needed")
        if self.train.shape != self.test.shape:
            raise DataError(
                f"dataset {self.name!r}: training inputs have shape {self.train.shape}, test inputs {self.test.shape}; "
                "give both one shape"
            )
        for examples in (self.train, self.test):
            if (highest := int(examples.labels.max())) >= self.classes:
                raise DataError(f"{examples.name}: label {highest} is out of range; expected 0 to {self.classes - 1}")
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.classes))))
        if len(self.class_names) != self.classes:
            raise DataError(f"dataset {self.name!r}: {len(self.class_names)} class names for {self.classes} classes")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.shape


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
