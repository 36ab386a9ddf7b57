"""Files that are not what they seem: clutter is passed over, and what lies is refused in bounded memory."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsync.errors import DataError
from sparsync.task import load_dataset
from sparsync.task.files import read_arrays, read_idx, read_records


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        for level, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (6, 4), level).save(tmp_path / part / name / "x.png")
    return tmp_path


def test_what_systems_leave_among_pictures_is_passed_over(pictures: Path) -> None:
    for part in ("train", "test"):
        for name in ("._x.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"):
            (pictures / part / "cat" / name).write_bytes(b"\0\5\x16\7 Mac OS X")
        (pictures / part / "._cat").write_bytes(b"\0\5\x16\7")
        for name in (".git", "__MACOSX", "@eaDir"):
            (pictures / part / name / "cat").mkdir(parents=True)
            (pictures / part / name / "._x.png").write_bytes(b"\0\5\x16\7")
    data = load_dataset("folder", pictures)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) == len(data.test) == 2


def bind(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's whole path may have but 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


NO_FILES: list[Callable[[Path], object]] = [
    os.mkfifo,
    bind,
    os.mkdir,
    lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("nowhere"),
    lambda path: path.symlink_to("/dev/zero"),
]


@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(pictures: Path, make: Callable[[Path], object]) -> None:
    make(pictures / "train" / "cat" / "y.png")
    with pytest.raises(DataError, match=r"y\.png: is no regular file"):
        load_dataset("folder", pictures)
    make(pictures / "data_batch_1.bin")
    (pictures / "test_batch.bin").touch()
    with pytest.raises(DataError, match=r"data_batch_1\.bin: is no regular file"):
        load_dataset("cifar10", pictures)
    make(pictures / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="no file train-images-idx3-ubyte"):
        load_dataset("mnist", pictures)
    make(pictures / "data.npz")
    with pytest.raises(DataError, match=r"data\.npz: is no regular file"):
        load_dataset("npz", pictures)


def test_a_class_whose_link_leads_nowhere_is_not_left_out(pictures: Path) -> None:
    (pictures / "train" / "emu").symlink_to("nowhere")
    with pytest.raises(DataError, match="emu: is a link that leads nowhere"):
        load_dataset("folder", pictures)


@pytest.mark.parametrize("root", ["x" * 5000, "a\0b", "/dev/null"])
@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "folder", "npz"])
def test_impossible_roots(name: str, root: str) -> None:
    with pytest.raises(DataError):
        load_dataset(name, root)


def claimed(width: int, height: int) -> bytes:
    """Return a PNG that says it had that size."""
    chunks = [
        b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(bytes(100)),
        b"IEND",
    ]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(("width", "height"), [(12_000, 8_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("spec", ["folder", "folder:size=8"])
def test_pictures_of_absurd_size_are_refused_before_they_are_unpacked(
    pictures: Path, spec: str, width: int, height: int
) -> None:
    (pictures / "test" / "dog" / "bomb.png").write_bytes(claimed(width, height))
    with pytest.raises(DataError, match=r"bomb\.png: not a readable PNG or JPEG picture .*DecompressionBomb"):
        load_dataset(spec, pictures)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 pages of 100 bytes."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 64}.__getitem__)


@pytest.mark.usefixtures("small_memory")
def test_more_than_half_of_the_memory_is_refused(pictures: Path) -> None:
    assert load_dataset("folder", pictures).shape == (1, 4, 6)
    with pytest.raises(DataError, match="train: unpacks to"):
        load_dataset("folder:size=50", pictures)
    path, y = pictures / "data.npz", np.array([0, 1], np.uint8)
    for size in (600, 700):
        x = np.zeros((2, size), np.uint8)
        np.savez_compressed(path, x_train=x, y_train=y, x_test=x, y_test=y)
        if size == 600:
            assert load_dataset("npz", path).shape == (600,)
        else:
            with pytest.raises(DataError, match=r"data\.npz: unpacks to"):
                load_dataset("npz", path)


def peak(read: Callable[[], object]) -> int:
    """Return the most bytes that were held while a file was read, which must fail."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMB = gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">I", 1000) + bytes(2**25), mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        gzip.compress(bytes((0, 0, 8, 1)) + b"\xff\xff\xff\xff" + bytes(2**25), mtime=0),
        bytes((0, 0, 8, 1)) + b"\xff\xff\xff\xff",
    ],
)
def test_no_more_is_unpacked_than_a_header_promises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    assert peak(lambda: read_idx(path, 1)) < 2**20


def test_headers_whose_product_is_beyond_any_memory(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    for dims in ((2**32 - 1,) * 3, (2**31, 2**31, 4), (2**32 - 1, 28, 28)):
        path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *dims))
        with pytest.raises(DataError, match=rf"its header says \({dims[0]}, {dims[1]}"):
            read_idx(path, 3)


def test_a_file_of_holes_is_not_read_as_records(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    with path.open("wb") as file:
        file.truncate(3073 * 10**6)
    with pytest.raises(DataError, match="3073000000 bytes; expected at most"):
        read_records(path, 1)


def array(values: object) -> bytes:
    made = BytesIO()
    np.save(made, values)  # type: ignore[arg-type]
    return made.getvalue()


def header(shape: str, descr: str = "'|u1'") -> bytes:
    """Return the header of an array, whatever follows it."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        header("(1000000000000,)") + bytes(10),
        header("(4294967296, 4294967296, 4294967296)") + bytes(10),
        header("(10,)") + bytes(2**25),
        header("(10,)") + bytes(9),
        header("(-10,)") + bytes(10),
        header("(1000000000000, 0)"),
        header("(1000000000000,)", "'<U0'"),
        header("(2,)", "'|O'") + b"\x80\4K\0.",
        header("(2,)", "[('a', '|O')]") + b"\x80\4K\0.",
        header("(2,") + bytes(2),
        b"\x93NUMPY\1\0\xff\xff",
        b"\x80\4K\0.",
        b"1,2,3\n4,5,6\n",
        b"",
    ],
)
def test_a_member_that_is_not_as_long_as_it_says_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    assert peak(lambda: read_arrays(path, ["x"])) < 2**20


def test_a_member_whose_length_the_archive_understates(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", array(np.zeros(2**20, np.uint8)))
    whole = path.read_bytes()
    size = struct.pack("<I", 2**20 + 128)
    assert whole.count(size) == 2
    path.write_bytes(whole.replace(size, struct.pack("<I", 500)))
    with pytest.raises(DataError, match=r"data\.npz"):
        read_arrays(path, ["x"])


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"\x80\4K\0.", b"\x93NUMPY\1\0", b"PK\3\4", b"", array(np.zeros(3)), BOMB[:1000]]
)
def test_what_is_no_archive_is_refused_without_advice_to_unpickle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"table\.csv: not a readable \.npz file.*numpy\.savez") as caught:
        load_dataset("npz", path)
    assert "pickle" not in str(caught.value)


def test_texts_are_labels_in_an_archive_too(tmp_path: Path) -> None:
    x = np.zeros((2, 3), np.float32)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=["ham", "spam"], x_test=x, y_test=["spam", "ham"])
    data = load_dataset("npz", tmp_path)
    assert (data.class_names, data.test.labels.tolist()) == (("ham", "spam"), [1, 0])
    np.savez(tmp_path / "data.npz", x_train=x, y_train=[1, 2], x_test=x, y_test=[0, 2])
    assert load_dataset("npz:classes=3", tmp_path).class_names == ("0", "1", "2")
