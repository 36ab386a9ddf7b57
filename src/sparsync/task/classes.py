"""Labels of any kind as class numbers: which classes there are, what they are called, and which label is which."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsync.errors import DataError
from sparsync.spec import showable

Label = int | str
"""What one label says."""

MOST_CLASSES = 1_000_000
"""A model has an output for each, and a report a name."""


def listed(labels: Any, name: str) -> list[Label]:
    """Return labels as whole numbers and texts.

    Parameters
    ----------
    labels : array, Tensor or sequence, shape (n,) or (n, 1)
        Integers of any type, booleans, floating-point numbers without a fraction, texts, or bytes of UTF-8.
    name : str
        What error messages call them.

    Raises
    ------
    DataError
        If they are anything else.
    """
    check_masks(labels, name)
    if isinstance(labels, list | tuple):
        arrays = Tensor | np.ndarray | np.generic
        values = [
            label.item() if isinstance(label, arrays) and len(label.flatten()) == 1 else label for label in labels
        ]
    else:
        array = labels if isinstance(labels, Tensor) else np.asarray(labels)
        if array.ndim != 1 and array.shape[1:] != (1,):
            raise DataError(
                f"{name}: expected one label per input, in shape (n,), got shape {tuple(array.shape)}; "
                "of one-hot labels take the argmax"
            )
        values = array.flatten().tolist()
    return [_label(value, i, name) for i, value in enumerate(values)]


def _label(value: object, i: int, name: str) -> Label:
    match value:
        case str():
            return value
        case int() if value.bit_length() <= 64:
            return value
        case float() if value.is_integer() and abs(value) <= 2**53:  # beyond, neighbours are one number
            return int(value)
        case bytes():
            with suppress(UnicodeDecodeError):
                return value.decode()
    shown = repr(value) if isinstance(value, float | bytes | None) else f"of type {type(value).__name__}"
    raise DataError(
        f"{name}: label {i} is {shown:.60}; expected a text, or a whole number of at most 64 bits, for each input"
    )


def check_masks(values: object, name: str) -> None:
    """Refuse values that NumPy's masked arrays, also those in a list, say are missing.

    Raises
    ------
    DataError
        If there are any.
    """
    for part in values if isinstance(values, list | tuple) else (values,):
        if isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part):
            raise DataError(f"{name}: some values are missing (masked); remove their examples, or fill them in")


def class_count(classes: object, name: str) -> int:
    """Return a stated number of classes, if it can be one."""
    try:
        count = operator.index(classes)  # type: ignore[arg-type]  # which is what is being asked
    except TypeError:
        raise DataError(f"{name}: classes={classes!r}; expected a whole number") from None
    if not 2 <= count <= MOST_CLASSES:
        raise DataError(f"{name}: {count} classes; at least 2 are needed, and at most {MOST_CLASSES} possible")
    return count


@dataclass(frozen=True)
class ClassMapping:
    """The classes of a dataset.

    Attributes
    ----------
    names : tuple of str
        One per class.
    numbers : mapping of label to int
        Which class a label means.
    missing : str
        What to say of a label that means none.
    note : str
        What a user should be told of how labels were numbered; empty where they number the classes themselves.
    """

    names: tuple[str, ...]
    numbers: Mapping[Label, int]
    missing: str
    note: str = ""

    @classmethod
    def of(cls, train: Sequence[Label], classes: int | None, names: Sequence[object], name: str) -> ClassMapping:
        """Find the classes of a dataset.

        Parameters
        ----------
        train : sequence of int or str
            The training labels.
        classes : int, optional
            Number of classes, if that is stated: labels are then 0 to classes - 1, whether all occur or not.
        names : sequence of str
            Names of the classes, if they are stated: labels are then 0 to len(names) - 1, or the names.
        name : str
            What error messages call the dataset.

        Raises
        ------
        DataError
            If training labels are numbers and texts, or what is stated does not fit them.
        """
        present = set(train)
        texts = [label for label in present if isinstance(label, str)]
        if texts and len(texts) < len(present):
            raise DataError(f"{name}: some labels are numbers and some texts; expected either")
        said = tuple(map(str, names))
        if classes is not None:
            classes = class_count(classes, name)
        if said and classes not in (None, len(said)):
            raise DataError(f"{name}: {len(said)} class names for {classes} classes; expected one for each")
        if not texts and (said or classes):
            count = classes or len(said)
            numbers: dict[Label, int] = {number: number for number in range(count)}
            return cls(said or tuple(map(str, numbers)), numbers, f"is out of range; expected 0 to {count - 1}")
        known = said if said else tuple(sorted(present))
        if classes not in (None, len(known)):
            raise DataError(
                f"{name}: {len(known)} different labels for {classes} classes; state the names of all classes"
            )
        order = {label: number for number, label in enumerate(known)}
        if len(order) < len(known):
            raise DataError(f"{name}: two classes have one name; give each class a name of its own")
        if len(known) == 1:
            raise DataError(
                f"{name}: all training labels are {_shown(known)}; with one class there is nothing to learn"
            )
        if said:
            return cls(said, order, f"is none of the class names {_shown(known)}")
        missing = "is no label of the training set; remove its examples, or state the number of classes"
        own = list(order) == list(range(len(order)))
        note = "" if own else f"{name}: labels {_shown(known)} are classes 0 to {len(known) - 1}, in this order"
        shown = tuple(text if showable(text) else ascii(text) for text in map(str, known))
        return cls(shown, order, missing, note)

    def tensor(self, labels: Sequence[Label], name: str) -> Tensor:
        """Return the numbers of labels, int64.

        Raises
        ------
        DataError
            If one of them means no class.
        """
        strange = next((label for label in labels if label not in self.numbers), None)
        if strange is not None:
            raise DataError(f"{name}: label {strange!r:.60} {self.missing}")
        return torch.tensor([self.numbers[label] for label in labels], dtype=torch.int64)


def _shown(labels: Sequence[Label]) -> str:
    return ", ".join(f"{label!r:.30}" for label in labels[:12]) + (", ..." if len(labels) > 12 else "")
