from __future__ import annotations

import gzip
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsync.errors import DataError, UsageError
from sparsync.task import DATASETS, load_dataset
from sparsync.task.files import read_idx

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_idx(folder: Path, zipped: bool = False, labels: tuple[int, ...] = (0, 9, 5)) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (3, 4, 5)), np.array(labels), rng.integers(0, 256, (2, 4, 5)), np.array([1, 2])]
    for name, array in zip(FILES, arrays, strict=True):
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


def test_digits() -> None:
    data = load_dataset("digits")
    assert (len(data.train), len(data.test), data.shape, data.classes) == (1438, 359, (1, 8, 8), 10)
    inputs, labels = data.train.batch(np.arange(len(data.train)))
    assert (float(inputs.min()), float(inputs.max())) == (0, 1)
    whole = torch.bincount(labels) + torch.bincount(data.test.labels)
    assert torch.equal(torch.bincount(data.test.labels), torch.round(0.2 * whole).long())  # stratified
    assert torch.equal(load_dataset("digits").train.labels, data.train.labels)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "."),
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files(tmp_path: Path, name: str, place: str, zipped: bool) -> None:
    arrays = write_idx(tmp_path / place, zipped)
    data = load_dataset(name, tmp_path)
    assert (data.name, data.shape, data.classes, len(data.class_names)) == (name, (1, 4, 5), 10, 10)
    inputs, labels = data.train.batch(np.arange(3))
    assert np.array_equal(inputs[:, 0].numpy(), arrays[0].astype(np.float32) / 255)
    assert labels.tolist() == [0, 9, 5]
    assert data.test.labels.tolist() == [1, 2]


def test_mnist_normalised(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path)
    inputs, _ = load_dataset("mnist:normalise=true", str(tmp_path)).train.batch(np.arange(3))
    torch.testing.assert_close(inputs[:, 0], torch.tensor((arrays[0] / 255 - 0.1307) / 0.3081, dtype=torch.float32))


GOOD = idx(np.zeros((3, 4, 5)))
ZIPPED = gzip.compress(idx(np.random.default_rng(0).integers(0, 50, (3, 20, 30))), mtime=0)
BAD_IDX: list[tuple[bytes, str]] = [
    (b"", "begins with nothing; expected 00 00 08 03"),
    (b"PK\3\4 rest", "begins with 50 4b 03 04; expected 00 00 08 03"),
    (idx(np.zeros(3)), "begins with 00 00 08 01; expected 00 00 08 03, an IDX file of unsigned bytes in 3 dimensions"),
    (GOOD[:9], "ends within its header"),
    (GOOD[:-1], "59 bytes of data; expected 60, as its header says (3, 4, 5)"),
    (GOOD + b"\0", "more than 60 bytes of data; expected 60"),
    (b"\0\0\x08\3" + b"\xff" * 12, "its header says (4294967295, 4294967295, 4294967295)"),
    (gzip.compress(GOOD, mtime=0)[:-9], "cannot be read"),
    (gzip.compress(GOOD, mtime=0)[:5], "cannot be read"),
    (ZIPPED[:300] + b"spoilt" + ZIPPED[306:], ""),  # it depends on zlib whether this unpacks, and to how much
    (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "cannot be read"),
    (gzip.compress(GOOD[:-1], mtime=0), "59 bytes of data; expected 60"),
]


@pytest.mark.parametrize(("content", "message"), BAD_IDX)
def test_bad_idx_file(tmp_path: Path, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / FILES[0]).write_bytes(content)
    with pytest.raises(DataError, match=f"{FILES[0]}: .*{re.escape(message)}"):
        load_dataset("mnist", tmp_path)


def test_bad_idx_sets(tmp_path: Path) -> None:
    write_idx(tmp_path, labels=(0, 1))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: 2 labels for 3 images"):
        load_dataset("mnist", tmp_path)
    write_idx(tmp_path, labels=(0, 1, 10))
    with pytest.raises(DataError, match="mnist, train: label 10 is out of range; expected 0 to 9"):
        load_dataset("mnist", tmp_path)
    (tmp_path / FILES[3]).unlink()
    with pytest.raises(
        DataError, match=r"no file t10k-labels-idx1-ubyte or .*gz in .* point --data-root at the folder"
    ):
        load_dataset("mnist", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "nowhere", 1)


@pytest.mark.parametrize("name", sorted(set(DATASETS.entries) - {"digits"}))
def test_the_root_is_asked_for_by_its_flag(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"dataset '{name}' is read from disk; say where with --data-root DIR"):
        load_dataset(name)
    with pytest.raises(DataError, match="--data-root"):
        load_dataset(name, tmp_path)


def records(labels: list[list[int]]) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    return b"".join(bytes(label) + p.tobytes() for label, p in zip(labels, pixels, strict=True)), pixels


def write_cifar10(folder: Path) -> np.ndarray:
    folder.mkdir(parents=True)
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(records([[i], [9]])[0])
    data, pixels = records([[3]])
    (folder / "test_batch.bin").write_bytes(data)
    return pixels


@pytest.mark.parametrize("place", ["cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_cifar10(tmp_path: Path, place: str) -> None:
    pixels = write_cifar10(tmp_path / place)
    data = load_dataset("cifar10:mean=0.5,std=(0.5,0.25,1)", tmp_path)
    assert data.train.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert (data.shape, data.class_names[3]) == ((3, 32, 32), "cat")
    expected = (torch.tensor(pixels) / 255 - 0.5) / torch.tensor([0.5, 0.25, 1]).view(3, 1, 1)
    torch.testing.assert_close(data.test.batch(np.array([0]))[0], expected)


def test_bad_cifar10(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar10")
    file = tmp_path / "cifar10" / "data_batch_2.bin"
    for content, message in [
        (file.read_bytes()[:-1], "6145 bytes; expected a multiple of 3073"),
        (b"", "0 bytes; expected a multiple of 3073"),
        (records([[10]])[0], "cifar10, train: label 10 is out of range"),
    ]:
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_dataset("cifar10", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin: cannot be read"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(UsageError, match=r"dataset 'cifar10': mean\.0: Input should be a valid number"):
        load_dataset("cifar10:mean=red", tmp_path)


def test_cifar100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "train.bin").write_bytes(records([[0, 99], [19, 7]])[0])
    (folder / "test.bin").write_bytes(records([[3, 42]])[0])
    data = load_dataset("cifar100", tmp_path)
    assert data.train.labels.tolist() == [99, 7]  # the fine ones
    assert (data.classes, data.class_names[42]) == (100, "42")
    (folder / "fine_label_names.txt").write_text("\n".join(f"c{i}" for i in range(100)) + "\n")
    assert load_dataset("cifar100", tmp_path).class_names[42] == "c42"


def write_pictures(root: Path, mode: str = "L") -> None:
    for part, n in (("train", 2), ("test", 1)):
        for level, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                colour = 10 * level + i if mode == "L" else (10 * level + i, 0, 255)
                Image.new(mode, (6, 4), colour).save(root / part / name / f"{i}.png")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder(tmp_path: Path, mode: str, channels: int) -> None:
    write_pictures(tmp_path, mode)
    data = load_dataset("folder", tmp_path)
    assert (data.shape, data.class_names, data.train.labels.tolist()) == (
        (channels, 4, 6),
        ("cat", "dog"),
        [0, 0, 1, 1],
    )
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 10, 11]
    assert load_dataset("folder:size=8", tmp_path).shape == (channels, 8, 8)


def test_grey_among_colour_becomes_colour(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "test" / "dog" / "odd.jpg")
    data = load_dataset("folder", tmp_path)
    assert data.shape == (3, 4, 6)
    assert data.train.inputs[3, :, 0, 0].tolist() == [11, 11, 11]


def spoil_truncated(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(root / "train" / "cat" / "bad.png")
    (root / "train" / "cat" / "bad.png").write_bytes((root / "train" / "cat" / "bad.png").read_bytes()[:900])


def spoil_missing(root: Path) -> None:
    (root / "test" / "dog" / "0.png").unlink()


BAD_FOLDERS: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / "train/cat/bad.png").write_bytes(b"no picture"), "bad.png: not a readable PNG or JPEG"),
    (spoil_truncated, "bad.png: not a readable PNG or JPEG"),
    (
        lambda root: Image.new("L", (5, 4)).save(root / "train/dog/bad.png"),
        "bad.png: 4x5 pixels where the first .* 4x6",
    ),
    (lambda root: Image.new("I;16", (6, 4)).save(root / "train/dog/bad.png"), "bad.png: has more than 8 bits"),
    (lambda root: (root / "train/emu").mkdir(), "emu: holds no pictures"),
    (lambda root: (root / "test/emu").mkdir(), "test/emu: no such class in .*train; expected one of cat, dog"),
    (spoil_missing, "test/dog: holds no pictures"),
    (lambda root: (root / "test").rename(root / "val"), "test: there is no such folder; --data-root needs"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS)
def test_bad_folders(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    write_pictures(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load_dataset("folder", tmp_path)


def test_npz(tmp_path: Path) -> None:
    x, y = np.arange(48, dtype=np.uint8).reshape(2, 4, 6), np.array([[0], [3]], dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    data = load_dataset("npz:layout=hw,mean=0.5", tmp_path)
    assert (data.name, data.shape, data.classes) == ("data", (1, 4, 6), 2)
    assert torch.equal(data.test.batch(np.array([1]))[0][0, 0], (torch.tensor(x[1]) - 127.5) / 255)
    assert load_dataset("npz", tmp_path / "data.npz").shape == (4, 6)
    with pytest.raises(DataError, match=r"inputs of shape \(2, 4, 6\) are not of layout hwc; expected \(n, h, w, c\)"):
        load_dataset("npz:layout=hwc", tmp_path)
    x = np.zeros((2, 4, 6, 3), dtype=np.float32)
    np.savez_compressed(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert load_dataset("npz:layout=hwc", tmp_path).shape == (3, 4, 6)


def test_bad_npz(tmp_path: Path) -> None:
    path, x, y = tmp_path / "data.npz", np.zeros((2, 3)), np.array([0, 1])
    np.savez(path, x_train=x, y_train=y, x_test=x)
    with pytest.raises(DataError, match=r"data\.npz: no array 'y_test'; expected x_train"):
        load_dataset("npz", path)
    np.savez(path, x_train=np.array([{}, {}]), y_train=y, x_test=x, y_test=y, allow_pickle=True)
    with pytest.raises(DataError, match=r"x_train: holds Python objects, which are not unpickled"):
        load_dataset("npz", path)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-30], whole[:150] + b"spoilt" + whole[156:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.npz: not a readable .npz file"):
            load_dataset("npz", path)
    with path.open("wb") as file:
        np.save(file, x)
    with pytest.raises(DataError, match=r"data\.npz: not a readable .npz file"):
        load_dataset("npz", path)


@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion-mnist", 0.2860)])
def test_real_files(name: str, mean: float) -> None:
    root = os.environ.get("SPARSYNC_DATA")
    if root is None:
        pytest.skip("SPARSYNC_DATA is not set: no folder with mnist/ and fashion-mnist/ to read")
    data = load_dataset(name, root)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (60_000, 10_000, (1, 28, 28), 10)
    assert torch.bincount(data.test.labels).sum() == 10_000
    inputs, _ = data.train.batch(np.arange(60_000))
    assert abs(float(inputs.mean()) - mean) < 1e-4
