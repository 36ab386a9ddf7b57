"""CIFAR as torchvision keeps it: pickles that are read as data, whoever wrote them, and that run nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsync.errors import DataError
from sparsync.task import load_dataset
from sparsync.task.pickles import read_pickled


def pixels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def by_python_2(data: np.ndarray, labels: list[int]) -> bytes:
    """Return a batch as the authors' files hold it: protocol 2, texts that are bytes."""
    raw = data.tobytes()
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x05batchq\x03U\x06labelsq\x04]q\x05("
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
        + b"(K\x01"
        + b"".join(b"J" + struct.pack("<i", n) for n in data.shape)
        + b"\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tbU\x09filenamesq\x0c]q\x0dU\x05a.pngq\x0eau."
    )


def by_python_3(protocol: int, key: type = bytes) -> Any:
    def dump(data: np.ndarray, labels: list[int]) -> bytes:
        batch = {"batch_label": "batch", "labels": labels, "data": data, "filenames": ["a.png"]}
        return pickle.dumps({(k.encode() if key is bytes else k): v for k, v in batch.items()}, protocol)

    return dump


@pytest.mark.parametrize("dump", [by_python_2, *map(by_python_3, range(6)), by_python_3(4, str)])
@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar10", "."])
def test_cifar10(tmp_path: Path, place: str, dump: Any) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(dump(pixels(2, i), [i, 9]))
    (folder / "test_batch").write_bytes(dump(pixels(1), [3]))
    data = load_dataset("cifar10:mean=0,std=1", tmp_path)
    assert data.train.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert (data.shape, data.class_names[3]) == ((3, 32, 32), "cat")
    assert np.array_equal(data.test.inputs.numpy(), pixels(1).reshape(1, 3, 32, 32))  # type: ignore[union-attr]


def test_cifar100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part, labels in (("train", [99, 7]), ("test", [42, 0])):
        batch = {b"data": pixels(2), b"fine_labels": labels, b"coarse_labels": [1, 2]}
        (folder / part).write_bytes(pickle.dumps(batch, 2))
    data = load_dataset("cifar100", tmp_path)
    assert data.train.labels.tolist() == [99, 7]  # the fine ones
    assert data.class_names[42] == "42"
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}, 2))
    assert load_dataset("cifar100", tmp_path).class_names[42] == "c42"
    for content in (pickle.dumps({"fine_label_names": "c"}), pickle.dumps([]), b"junk"):
        (folder / "meta").write_bytes(content)
        with pytest.raises(DataError, match="meta: "):
            load_dataset("cifar100", tmp_path)


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.where),)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_that_a_pickle_asks_for_is_done(tmp_path: Path, protocol: int) -> None:
    path, trace = tmp_path / "batch", tmp_path / "trace"
    for batch in ({"data": Runs(trace), "labels": [0]}, {"data": pixels(1), "labels": Runs(trace)}, Runs(trace)):
        path.write_bytes(pickle.dumps(batch, protocol))
        with pytest.raises(DataError, match="batch: "):
            read_pickled(path, "labels")
    path.write_bytes(pickle.dumps({"data": pixels(1), "labels": [0], "more": Runs(trace)}, protocol))
    assert read_pickled(path, "labels")[1].tolist() == [0]
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # it would have been done


GOOD = by_python_2(pixels(1), [5])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        b".",
        b"N.",
        b"}.",
        b"\x80\x04]\x94.",
        GOOD[:-1],
        GOOD[:500],
        GOOD.replace(b"u1", b"O8"),
        GOOD.replace(b"J\0\x0c\0\0", b"J\0\x0d\0\0"),
        GOOD.replace(b"J\1\0\0\0", b"J\xff\xff\xff\xff"),
        GOOD.replace(b"K\5e", b"N\x65"),
        GOOD.replace(b"U\6labels", b"U\6Labels"),
        pickle.dumps({"data": pixels(1).astype(np.int64), "labels": [0]}),
        pickle.dumps({"data": pixels(1).tolist(), "labels": [0]}),
        GOOD.replace(b"T" + struct.pack("<i", 3072) + GOOD[-3072 - 30 : -30], b"X\2\0\0\0\xce\xb1"),
        pickle.dumps({"data": pixels(1), "labels": [-1]}),
        pickle.dumps({"data": pixels(1), "labels": [10**100]}),
        pickle.dumps({"data": np.asfortranarray(np.vstack([pixels(1)] * 2)), "labels": [0, 0]}, 2),
        pickle.dumps({(1, 2): 3}),
        b"}r\xff\xff\xff\x7f.",  # a place in the memo that lists would need gigabytes for
        b"Pperson\n.",
        b"\x82\x01.",
        b"(" * 1000 + b"t" * 1001 + b".",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "batch"
    path.write_bytes(content)
    with pytest.raises(DataError, match="batch: ") as caught:
        read_pickled(path, "labels")
    assert "\n" not in str(caught.value)


def test_a_pickle_of_endless_steps_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "batch"
    path.write_bytes(by_python_2(pixels(1), [5] * 100))
    monkeypatch.setattr("sparsync.task.pickles._MOST_STEPS", 100)
    with pytest.raises(DataError, match="batch: "):
        read_pickled(path, "labels")


def test_a_spoilt_byte_is_a_data_error_or_another_value(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    for at in [*range(240), *range(len(GOOD) - 60, len(GOOD))]:
        path.write_bytes(GOOD[:at] + bytes([GOOD[at] ^ (1 << at % 8)]) + GOOD[at + 1 :])
        with contextlib.suppress(DataError):
            read_pickled(path, "labels")
