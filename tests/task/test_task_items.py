"""Odd items of a user's own dataset, and odd inputs: one line that names the item and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparsync.errors import DataError
from sparsync.task import Dataset, from_arrays, from_torch

ONE = np.ones((1, 2, 2), np.float32)


class Made(torch.utils.data.Dataset):
    """Items that a function makes."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


class Endless(torch.utils.data.Dataset):
    """No length."""

    def __getitem__(self, i: int) -> Any:
        return ONE, i % 2


def made(item: Callable[[int], Any]) -> Dataset:
    return from_torch(Made(item), Made(item), 2)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda i: {"image": ONE, "label": i % 2}, "item 0 is a dict with keys image, label.*pairs"),
        (lambda i: None, "item 0 is a NoneType.*pairs"),
        (lambda i: "ab", "item 0 is a str.*pairs"),
        (lambda i: ONE, "item 0 is a ndarray.*pairs"),
        (lambda i: torch.ones(2, 2), "item 0 is a Tensor.*pairs"),
        (lambda i: (ONE,), "item 0 is a tuple of 1.*pairs"),
        (lambda i: (ONE, 1.0, i % 2), "item 0 is a tuple of 3.*pairs"),
        (lambda i: (ONE, i % 2) if i < 2 else None, "item 2 is a NoneType"),
        (lambda i: {}["image"], "item 0 cannot be read .*KeyError"),
        (lambda i: 1 / 0, "item 0 cannot be read .*ZeroDivisionError"),
        (lambda i: (None, i % 2), "input 0 is a NoneType"),
        (lambda i: ([[1.0, 2.0]], i % 2), "input 0 is a list"),
        (lambda i: ({"x": ONE}, i % 2), "input 0 is a dict"),
        (lambda i: (np.array(["text"]), i % 2), "input 0: expected an array of numbers, got <U4"),
        (lambda i: (np.array([None]), i % 2), "input 0: expected an array of numbers, got object"),
        (lambda i: (np.float32(1), i % 2), "input 0 is a float32"),
        (lambda i: (torch.tensor(1.0), i % 2), r"one input of shape \(\)"),
        (lambda i: (torch.ones(2, dtype=torch.complex64), i % 2), "inputs are complex64"),
    ],
)
def test_odd_items(item: Callable[[int], Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        made(item)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda i: (ONE if i < 3 else ONE[0], i % 2), r"input 3 is float32 of shape \(2, 2\)"),
        (lambda i: (ONE if i < 3 else ONE.astype(np.float64), i % 2), "input 3 is float64"),
        (lambda i: (torch.full((2,), i, dtype=torch.uint8 if i < 3 else torch.float32), i % 2), "input 3 is float32"),
        (lambda i: (ONE if i < 3 else None, i % 2), "input 3 is a NoneType"),
    ],
)
def test_an_item_unlike_the_first_is_found_in_any_batch(item: Callable[[int], Any], message: str) -> None:
    examples = made(item).train
    examples.batch(np.array([0, 2]))
    with pytest.raises(DataError, match=message):
        examples.batch(np.array([3]))


@pytest.mark.parametrize("source", [Endless(), None, 5, iter([(ONE, 0)])])
def test_what_has_no_length_is_no_dataset(source: Any) -> None:
    with pytest.raises(DataError, match=f"a {type(source).__name__} has no length"):
        from_torch(source, source, 2)


def test_a_list_of_pairs_is_a_dataset_and_gradients_stay_out() -> None:
    pairs = [(torch.ones(3, requires_grad=True), torch.tensor(i % 2)) for i in range(4)]
    inputs, labels = from_torch(pairs, pairs).train.batch(np.arange(4))  # type: ignore[arg-type]
    assert not inputs.requires_grad
    assert labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "inputs",
    [
        torch.ones(2, 3, requires_grad=True),
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3).to_sparse(),
        torch.ones(3, 2).T,
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    ],
)
def test_inputs_of_any_make_are_copied(inputs: Any) -> None:
    train = from_arrays(inputs, [0, 1], inputs, [0, 1]).train
    if isinstance(inputs, torch.Tensor) and not inputs.is_sparse:
        inputs.detach().zero_()
    got, _ = train.batch(np.arange(2))
    assert torch.equal(got, torch.ones(2, 3))
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1.0], [1.0, 2.0]], "train inputs: expected an array of numbers"),
        ([{"x": 1}, {"x": 2}], "train inputs: expected an array of numbers, got object"),
        (None, "train inputs: expected an array of numbers, got object"),
        (np.ones((2, 3), dtype=bool), "got bool"),
        (np.ones((2, 3), dtype=complex), "got complex128"),
        (np.array(1.0), "got one number"),
        (torch.ones(2, 3, device="meta"), "train inputs: expected an array of numbers"),
        (torch.ones(2, 3).to(torch.float8_e5m2), "inputs are float8_e5m2"),
        (torch.ones(2, 3, dtype=torch.bool), "inputs are bool"),
    ],
)
def test_odd_inputs(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(inputs, [0, 1], np.ones((2, 3), np.float32), [0, 1])


@pytest.mark.parametrize("value", ["grey", None, [[1.0], [2.0, 3.0]], {}])
def test_a_mean_that_is_no_number(value: Any) -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(DataError, match=r"mean is .*expected one number"):
        from_arrays(x, [0, 1], x, [0, 1], mean=value)
