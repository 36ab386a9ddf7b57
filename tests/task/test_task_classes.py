"""Labels of any kind: numbered in sorted order with their own text as names, said once, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparsync.errors import DataError
from sparsync.task import Dataset, from_arrays, from_torch


def pictures(n: int) -> np.ndarray:
    return np.ones((n, 1, 2, 2), np.float32)


class Items(torch.utils.data.Dataset):
    """Pairs of a picture and a label, without ``targets``."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, object]:
        return pictures(1)[0], self.labels[i]


def by_arrays(train: Any, test: Any, **stated: Any) -> Dataset:
    return from_arrays(pictures(len(train)), train, pictures(len(test)), test, **stated)


def by_items(train: Any, test: Any, **stated: Any) -> Dataset:
    return from_torch(Items(train), Items(test), **stated)


both = pytest.mark.parametrize("make", [by_arrays, by_items])


@both
@pytest.mark.parametrize(
    ("train", "names", "numbers"),
    [
        ([57, 7, 57], ("7", "57"), [1, 0, 1]),
        ([2, 1], ("1", "2"), [1, 0]),
        (np.array([0, 255], np.uint8), ("0", "255"), [0, 1]),
        (np.array([3, 65535], np.uint16), ("3", "65535"), [0, 1]),
        (np.array([2**40, 0]), ("0", str(2**40)), [1, 0]),
        (np.array([2**64 - 1, 2**63], np.uint64), (str(2**63), str(2**64 - 1)), [1, 0]),
        ([2**64 - 1, -1], ("-1", str(2**64 - 1)), [1, 0]),  # of which numpy would make floating-point numbers
        (np.array([-1, 1]), ("-1", "1"), [0, 1]),
        (np.array([[4], [2]]), ("2", "4"), [1, 0]),
        (torch.tensor([9, 4]), ("4", "9"), [1, 0]),
        ([torch.tensor(9), np.int16(4), np.array([4])], ("4", "9"), [1, 0, 0]),
        (np.array([3.0, 1.0]), ("1", "3"), [1, 0]),
        (torch.tensor([3, 1], dtype=torch.bfloat16), ("1", "3"), [1, 0]),
        (["spam", "ham", "spam"], ("ham", "spam"), [1, 0, 1]),
        (np.array(["b", "a"]), ("a", "b"), [1, 0]),
        (np.array(["b", "α"], dtype=object), ("b", "α"), [0, 1]),
        (np.array([b"b", b"a"]), ("a", "b"), [1, 0]),
        (["10", "9"], ("10", "9"), [0, 1]),  # texts, and sorted as such
    ],
)
def test_labels_are_numbered_in_sorted_order_and_keep_their_text(
    make: Callable[..., Dataset], train: Any, names: tuple[str, ...], numbers: list[int]
) -> None:
    made = make(train, train[:1])
    assert (made.classes, made.class_names) == (len(names), names)
    assert made.train.labels.tolist() == numbers
    assert made.test.labels.tolist() == numbers[:1]
    assert all(name in made.note for name in names)


@both
@pytest.mark.parametrize(
    "train",
    [
        *(np.array([0, 2, 1], dtype) for dtype in ("u1", "u2", "u4", "u8", "i1", "i8", ">i4", "f4")),
        torch.tensor([0, 2, 1], dtype=torch.uint16),
        torch.tensor([0, 2, 1], dtype=torch.uint64),
        torch.tensor([0.0, 2.0, 1.0], requires_grad=True),
        (0, 2, 1),
    ],
)
def test_labels_that_number_their_classes_stay_as_they_are(make: Callable[..., Dataset], train: Any) -> None:
    made = make(train, train)
    assert (made.classes, made.class_names, made.note) == (3, ("0", "1", "2"), "")
    assert made.train.labels.tolist() == [0, 2, 1]
    assert made.train.labels.dtype == torch.int64


def test_truth_values_are_two_classes() -> None:
    made = by_arrays(np.array([True, False]), [False])
    assert (made.class_names, made.train.labels.tolist(), made.note) == (("False", "True"), [1, 0], "")


@both
def test_within_a_stated_number_of_classes_labels_may_have_gaps(make: Callable[..., Dataset]) -> None:
    made = make([7, 2], [0], classes=10)
    assert (made.classes, made.train.labels.tolist(), made.test.labels.tolist()) == (10, [7, 2], [0])
    assert (made.class_names[7], made.note) == ("7", "")
    assert make([1, 1], [0], classes=2).classes == 2
    assert make([2, 0], [1], class_names=("a", "b", "c")).train.labels.tolist() == [2, 0]
    named = make(["c", "a"], ["b"], class_names=("c", "b", "a"))  # texts are looked up among stated names
    assert (named.train.labels.tolist(), named.test.labels.tolist(), named.note) == ([0, 2], [1], "")


@both
@pytest.mark.parametrize(
    ("train", "test", "stated", "message"),
    [
        ([0.5, 1], [1], {}, "train: label 0 is 0.5"),
        ([1, float("nan")], [1], {}, "train: label 1 is nan"),
        ([0, 1], [float("inf")], {}, "test: label 0 is inf"),
        ([0.0, 2.0**53 + 2], [0], {}, "label 1 is 9007199254740994.0"),
        ([0, None], [0], {}, "label 1 is None"),
        ([0, 10**6000], [0], {}, "label 1 is of type int"),
        ([0, 1], [2**64], {}, "test: label 0 is of type int"),
        ([0, 1j], [0], {}, "label 1 is of type complex"),
        ([0, b"\xff"], [0], {}, r"label 1 is b'\\xff'"),
        ([[0, 1], [1, 0]], [[0, 1]], {}, "label 0 is of type list"),
        ([{"a": 1}, 0], [0], {}, "label 0 is of type dict"),
        ([torch.tensor([0, 1]), 0], [0], {}, "label 0 is of type Tensor"),
        ([0, "a"], [0], {}, "some labels are numbers and some texts"),
        ([0, 1], [2], {}, "test: label 2 is no label of the training set"),
        ([0, 1], ["1"], {}, "test: label '1' is no label of the training set"),
        (["a", "b"], ["c" * 10**5], {}, "test: label 'ccc"),
        ([3, 3], [3], {}, "all training labels are 3; with one class"),
        ([0, 0], [0], {}, "all training labels are 0; with one class"),
        (["a"], ["a"], {}, "all training labels are 'a'; with one class"),
        ([0, 57], [0], {"classes": 3}, "train: label 57 is out of range; expected 0 to 2"),
        ([0, -1], [0], {"classes": 3}, "train: label -1 is out of range"),
        ([0, 1], [2**63], {"classes": 3}, "test: label 9223372036854775808 is out of range"),
        ([0, 1], [0], {"classes": 1}, "1 classes; at least 2"),
        ([0, 1], [0], {"classes": 2**40}, "1099511627776 classes; at least 2 are needed, and at most 1000000"),
        ([0, 1], [0], {"classes": "2"}, "classes='2'; expected a whole number"),
        ([0, 1], [0], {"classes": 2.5}, "classes=2.5; expected a whole number"),
        ([0, 1], [0], {"classes": 2, "class_names": "abc"}, "3 class names for 2 classes"),
        (["a", "b"], ["a"], {"classes": 3}, "2 different labels for 3 classes; state the names"),
        (["a", "b"], ["a"], {"class_names": ("a", "c")}, "train: label 'b' is none of the class names 'a', 'c'"),
        (["a", "b"], ["a"], {"class_names": ("a", "b", "a")}, "two classes have one name"),
    ],
)
def test_labels_that_make_no_sense_are_refused_in_one_short_line(
    make: Callable[..., Dataset], train: Any, test: Any, stated: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make(train, test, **stated)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 300


def test_labels_of_several_dimensions_or_none_are_refused() -> None:
    for labels, message in (
        (np.eye(3), r"got shape \(3, 3\).*argmax"),
        (None, r"got shape \(\)"),
        (5, r"got shape \(\)"),
    ):
        with pytest.raises(DataError, match=message):
            from_arrays(pictures(3), labels, pictures(3), labels)


def test_many_classes_are_told_in_a_short_note() -> None:
    made = by_arrays(np.arange(1, 1001), [1])
    assert made.classes == 1000
    assert len(made.note) < 200


@both
@pytest.mark.parametrize(
    ("train", "stated", "says"),
    [
        ([0, 1], {"class_names": ("x", "x")}, "'x'"),
        ([0, 1], {"class_names": ("x", "x ")}, "'x '"),
        ([0, 1], {"class_names": ("x", "y\n")}, r"'y\\n'"),
        (["x", "x "], {}, "'x '"),
    ],
)
def test_names_that_cannot_be_told_apart_or_shown_are_refused(
    make: Callable[..., Dataset], train: Any, stated: Any, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        make(train, train, **stated)


def test_labels_that_cannot_be_shown_are_named_by_their_escapes() -> None:
    labels = ["\x1by", "x", "\u202ey"]
    assert by_arrays(labels, labels).class_names == (r"'\x1by'", "x", r"'\u202ey'")


def test_masked_values_are_missing() -> None:
    whole = np.ma.array([0, 1])
    assert by_arrays(whole, whole).classes == 2
    for labels in (np.ma.array([0, 1], mask=[False, True]), [0, np.ma.masked]):
        for make in (by_arrays, by_items):
            with pytest.raises(DataError, match=r"train.*missing"):
                make(labels, [0])
    holed = np.ma.array(pictures(2), mask=False)
    holed[1, 0, 0, 0] = np.ma.masked
    for inputs in (holed, list(holed)):
        with pytest.raises(DataError, match=r"test inputs.*missing"):
            from_arrays(pictures(2), [0, 1], inputs, [0, 1])
