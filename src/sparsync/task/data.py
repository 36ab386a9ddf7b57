"""Labelled examples, gathered into normalised batches by index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data
from torch import Tensor

from sparsync.errors import DataError, UsageError, described
from sparsync.spec import check_labels
from sparsync.task.classes import check_masks, class_count

MapDataset = torch.utils.data.Dataset[Any]
"""Any map-style dataset: it has a length, and indexing yields (input, label)."""

_MAP = "expected a map-style dataset whose items are pairs (input, label)"

_STORED = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Examples:
    """n labelled examples, normalised per channel as they are gathered.

    A batch is ``(x - mean) / std``, and ``(x / 255 - mean) / std`` for uint8 inputs, so pictures stay one byte per
    pixel in memory.

    Parameters
    ----------
    inputs : Tensor or map-style dataset
        Inputs of shape (n, ...), uint8 or floating; or a ``torch.utils.data.Dataset`` whose items are pairs of such an
        input, as a tensor or array, and its label. Items are read when they are needed and stacked, so they must be of
        one shape and type; their values are not checked, and what they draw at random is the dataset's own affair.
    labels : Tensor
        Class numbers of shape (n,), any integer type, at least 0.
    mean, std : float or sequence of float
        Of each channel (the first dimension of ``shape``), or one number for all; defaults 0 and 1.
    name : str
        What error messages call these examples.

    Attributes
    ----------
    inputs, labels
        As given; labels as int64, tensors contiguous and without a gradient.
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
        if isinstance(inputs, Tensor) and inputs.dim() == 0:
            raise DataError(f"{name}: expected inputs of shape (n, ...), got one number")
        n = length(inputs, name)
        if n == 0:
            raise DataError(f"{name}: there are no examples; at least one is needed")
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(
                f"{name}: expected integer labels of shape ({n},), got {_named(labels.dtype)} of {tuple(labels.shape)}"
            )
        if len(labels) != n:
            raise DataError(f"{name}: {n} inputs but {len(labels)} labels; every input needs exactly one label")
        self.name = name
        self.inputs = inputs.detach().contiguous() if isinstance(inputs, Tensor) else inputs
        self.labels = labels.long().contiguous()
        if (lowest := int(self.labels.min())) < 0:
            raise DataError(f"{name}: label {lowest} is negative; labels count from 0")
        first = self.inputs[0] if isinstance(self.inputs, Tensor) else self._item(0)
        self.shape, self._dtype = tuple(first.shape), first.dtype
        if not self.shape or 0 in self.shape:
            raise DataError(f"{name}: expected inputs of shape (n, ...), got one input of shape {self.shape}")
        if first.dtype not in _STORED:
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
        items = [self._item(i) for i in index.tolist()]
        for i, item in zip(index.tolist(), items, strict=True):
            if item.shape != self.shape or item.dtype != self._dtype:
                raise DataError(
                    f"{self.name}: input {i} is {_named(item.dtype)} of shape {tuple(item.shape)}, the first is "
                    f"{_named(self._dtype)} of {self.shape}; give all inputs one shape and type"
                )
        return torch.stack(items) if items else torch.empty(0, *self.shape)

    def _item(self, i: int) -> Tensor:
        """Return input i of a map-style dataset."""
        value, _ = pair(cast(MapDataset, self.inputs), i, self.name)
        if not isinstance(value, Tensor | np.ndarray):
            raise DataError(
                f"{self.name}: input {i} is a {type(value).__name__}, expected a tensor or an array; "
                "give the dataset a transform that makes one, such as torchvision's ToTensor"
            )
        return as_tensor(value, f"{self.name}, input {i}")

    def _per_channel(self, what: str, value: float | Sequence[float]) -> Tensor:
        """Return mean or std as float64, (channels, 1, ...)."""
        try:
            given = torch.as_tensor(value, dtype=torch.float64).flatten()
        except (TypeError, ValueError, RuntimeError):
            given = torch.empty(0)
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
    note : str
        What a user should be told when training begins, such as how labels were numbered.

    Raises
    ------
    DataError
        If shapes differ, a label is out of range, names and classes differ in number, or names cannot be shown or told
        apart.
    """

    name: str
    train: Examples
    test: Examples
    classes: int
    class_names: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", class_count(self.classes, f"dataset {self.name!r}"))
        if self.train.shape != self.test.shape:
            raise DataError(
                f"dataset {self.name!r}: training inputs have shape {self.train.shape}, test inputs {self.test.shape}; "
                "give both one shape"
            )
        for examples in (self.train, self.test):
            if (highest := int(examples.labels.max())) >= self.classes:
                raise DataError(f"{examples.name}: label {highest} is out of range; expected 0 to {self.classes - 1}")
        names = tuple(map(str, self.class_names or range(self.classes)))
        if len(names) != self.classes:
            raise DataError(f"dataset {self.name!r}: {len(names)} class names for {self.classes} classes")
        try:
            check_labels(names if self.class_names else (), "class name")
        except UsageError as error:
            raise DataError(f"dataset {self.name!r}: {error}") from None
        object.__setattr__(self, "class_names", names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.shape


def length(source: Tensor | MapDataset, name: str) -> int:
    """Return how many examples there are.

    Raises
    ------
    DataError
        If they cannot be counted, and so not be indexed.
    """
    if not isinstance(source, torch.utils.data.IterableDataset):
        try:
            return len(source)  # type: ignore[arg-type]  # torch's Dataset does not declare what map-style ones have
        except Exception as error:  # it is the user's own code
            raise DataError(f"{name}: a {type(source).__name__} has no length ({described(error)}); {_MAP}") from error
    raise DataError(f"{name}: a {type(source).__name__} cannot be indexed; {_MAP}")


def pair(source: MapDataset, i: int, name: str) -> tuple[object, object]:
    """Return input and label of item i.

    Raises
    ------
    DataError
        If the item cannot be read, or is anything but a pair.
    """
    try:
        item = source[i]
    except Exception as error:  # it is the user's own code
        raise DataError(f"{name}: item {i} cannot be read ({described(error)}); {_MAP}") from error
    if not isinstance(item, tuple | list) or len(item) != 2:
        said = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        keys = f" with keys {', '.join(map(str, item))}" if isinstance(item, dict) else ""
        raise DataError(f"{name}: item {i} is a {type(item).__name__}{said}{keys:.100}; {_MAP}")
    return item[0], item[1]


def item_labels(source: MapDataset, name: str) -> object:
    """Return all labels: ``source.targets``, if it has that and no ``target_transform``; else each item is read."""
    targets = getattr(source, "targets", None)
    if targets is None or getattr(source, "target_transform", None) is not None:
        return [pair(source, i, name)[1] for i in range(length(source, name))]
    return targets


def as_tensor(value: npt.ArrayLike | Tensor, name: str) -> Tensor:
    """Return numbers as a tensor on the CPU without a gradient; arrays are copied.

    Raises
    ------
    DataError
        If they are no numbers, no array, or masked.
    """
    check_masks(value, name)
    try:
        if isinstance(value, Tensor):
            return value.detach().cpu().to_dense()
        array = np.array(value)  # a copy: what torch shares must be writable, and not change behind its back
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: expected an array of numbers ({described(error)})") from error
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise DataError(f"{name}: expected an array of numbers, got {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
