from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from sparsync.errors import DataError
from sparsync.task import Dataset, Examples, from_arrays, from_torch


def pictures(n: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.arange(n * channels * 4 * 5).remainder(256).to(torch.uint8).view(n, channels, 4, 5)


def test_uint8_batch_is_exactly_x_over_255() -> None:
    x, y = pictures(), torch.tensor([0, 1, 2, 0, 1, 2])
    inputs, labels = Examples(x, y).batch(np.array([4, 0, 4]))
    assert torch.equal(inputs, x[[4, 0, 4]].float() / 255)
    assert inputs.dtype == torch.float32
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_channels_are_normalised(dtype: torch.dtype) -> None:
    x, mean, std = pictures(), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    inputs, _ = Examples(x, torch.zeros(6, dtype=torch.int32), mean=mean, std=std).batch(torch.arange(6), dtype)
    expected = (x.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
    assert inputs.dtype == dtype
    torch.testing.assert_close(inputs, expected.to(dtype))


def test_floats_pass_unchanged_and_batches_do_not_share_memory() -> None:
    x = torch.linspace(0, 1, 12).view(4, 3)
    examples = Examples(x, torch.arange(4))
    inputs, _ = examples.batch(np.arange(4))
    inputs.zero_()
    assert torch.equal(examples.batch(np.arange(4))[0], torch.linspace(0, 1, 12).view(4, 3))
    assert examples.shape == (3,)


def test_empty_batch() -> None:
    inputs, labels = Examples(pictures(), torch.zeros(6, dtype=torch.int64)).batch(np.array([], dtype=np.int64))
    assert inputs.shape == (0, 3, 4, 5)
    assert labels.shape == (0,)


class Items(torch.utils.data.Dataset):
    """Items made on demand; counts how often."""

    def __init__(self, targets: object = None) -> None:
        self.made = 0
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        self.made += 1
        return np.full((1, 2, 2), i, dtype=np.float32), i % 2


def test_map_datasets_are_read_on_demand() -> None:
    source = Items(targets=[0, 1, 0, 1, 0])
    examples = from_torch(source, Items(), 2, mean=1.0).train
    assert source.made == 1  # one item tells the shape
    inputs, labels = examples.batch(np.array([3, 2]))
    assert inputs[:, 0, 0, 0].tolist() == [2.0, 1.0]
    assert labels.tolist() == [1, 0]
    assert (len(examples), examples.shape) == (5, (1, 2, 2))
    assert torch.equal(from_torch(Items(), Items(), 2).train.labels, examples.labels)  # no targets: every item is read


def test_map_and_tensor_agree() -> None:
    x, y = pictures(), torch.tensor([0, 1, 2, 0, 1, 2])
    made = from_torch(TensorDataset(x, y), TensorDataset(x, y), 3, std=0.5, class_names=("a", "b", "c"))
    expected = Examples(x, y, std=0.5).batch(np.array([5, 1]))
    for got, want in zip(made.test.batch(np.array([5, 1])), expected, strict=True):
        assert torch.equal(got, want)
    empty, _ = made.test.batch(np.array([], dtype=np.int64))
    assert empty.shape == (0, 3, 4, 5)


def test_foreign_items_are_refused() -> None:
    class Texts(Items):
        def __getitem__(self, i: int) -> tuple[str, int]:
            return "text", 0

    class Ragged(Items):
        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return torch.zeros(1 + i), 0

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[object]:
            return iter(())

    zeros = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(DataError, match="input 0 is a str, expected a tensor or an array"):
        Examples(Texts(), zeros)
    with pytest.raises(DataError, match=r"input 1 is float32 of shape \(2,\), the first is float32 of \(1,\)"):
        Examples(Ragged(), zeros).batch(np.array([1]))
    with pytest.raises(DataError, match="cannot be indexed"):
        from_torch(Stream(), Stream(), 2)


INT = torch.int64
BAD_EXAMPLES = [
    (torch.zeros(0, 2), torch.zeros(0, dtype=INT), {}, "toys: there are no examples"),
    (torch.zeros(3, 2), torch.zeros(2, dtype=INT), {}, "toys: 3 inputs but 2 labels"),
    (torch.zeros(3, 2), torch.zeros(3), {}, "toys: expected integer labels of shape (3,), got float32"),
    (torch.zeros(3, 2), torch.zeros(3, 1, dtype=INT), {}, "got int64 of (3, 1)"),
    (torch.zeros(3, 2), torch.tensor([0, -1, 2]), {}, "toys: label -1 is negative"),
    (torch.zeros(3, 2, dtype=INT), torch.zeros(3, dtype=INT), {}, "toys: inputs are int64; expected uint8"),
    (torch.zeros(3), torch.zeros(3, dtype=INT), {}, "expected inputs of shape (n, ...), got one input of shape ()"),
    (torch.zeros(3, 0), torch.zeros(3, dtype=INT), {}, "got one input of shape (0,)"),
    (
        torch.tensor([[0.0], [torch.nan]]),
        torch.zeros(2, dtype=INT),
        {},
        "toys: input 1 holds a value that is not finite",
    ),
    (
        torch.tensor([[torch.inf], [0.0]]),
        torch.zeros(2, dtype=INT),
        {},
        "toys: input 0 holds a value that is not finite",
    ),
    (torch.zeros(3, 2), torch.zeros(3, dtype=INT), {"std": 0.0}, "toys: std is 0.0; expected positive numbers"),
    (torch.zeros(3, 2), torch.zeros(3, dtype=INT), {"mean": (1.0, 2.0, 3.0)}, "one for each of 2 channels"),
    (torch.zeros(3, 2), torch.zeros(3, dtype=INT), {"mean": float("nan")}, "toys: mean is nan"),
]


@pytest.mark.parametrize(("inputs", "labels", "options", "message"), BAD_EXAMPLES)
def test_bad_examples(inputs: torch.Tensor, labels: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        Examples(inputs, labels, name="toys", **options)


def test_bad_datasets() -> None:
    two = Examples(torch.zeros(2, 3), torch.tensor([0, 1]), name="two")
    other = Examples(torch.zeros(2, 4), torch.tensor([0, 1]))
    for args, message in [
        ((two, other, 2), "training inputs have shape (3,), test inputs (4,)"),
        ((two, two, 1), "1 classes; at least 2 are needed"),
        ((two, two, 2, ("a",)), "1 class names for 2 classes"),
        ((Examples(torch.zeros(2, 3), torch.tensor([0, 7]), name="odd"), two, 5), "odd: label 7 is out of range"),
    ]:
        with pytest.raises(DataError, match=re.escape(message)):
            Dataset("toys", *args)
    assert Dataset("toys", two, two, 2).class_names == ("0", "1")


def test_arrays_are_copied_whatever_their_layout() -> None:
    x = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    y = np.frombuffer(b"\0\1\1", np.uint8)  # not writable
    made = from_arrays(x, y, x, y)
    x[:] = -1
    assert made.train.batch(np.arange(3))[0].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert (made.classes, made.shape) == (2, (2,))
    with pytest.raises(DataError, match="arrays, train inputs: expected an array of numbers, got <U1"):
        from_arrays(np.array(["a", "b"]), y, x, y)
