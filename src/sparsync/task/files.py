"""Checked readers of the usual files: IDX, CIFAR's records, ``.npz``, folders of pictures.

A file that is missing, truncated or corrupt is a `DataError` that names it and says what was expected; nothing is
unpickled.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from sparsync.errors import DataError, UsageError

Bytes = npt.NDArray[np.uint8]


def required(name: str, root: Path | None) -> Path:
    if root is None:
        raise UsageError(f"dataset {name!r} is read from disk; say where with --data-root DIR")
    return root


def find_folder(name: str, root: Path | None, usual: str, *anyof: str) -> Path:
    """Return the first of the folders where a dataset may lie that has one of the files."""
    top = required(name, root)
    places = [top, top / usual, top / name, top / name / usual]
    for place in places:
        if any((place / file).is_file() for file in anyof):
            return place
    raise DataError(
        f"dataset {name!r}: no file {' or '.join(anyof)} in {', '.join(map(str, places))}; "
        "point --data-root at the folder that holds it"
    )


def read_idx(path: Path, dims: int) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The layout: two zero bytes, the type 8 (unsigned byte), the number of dimensions; each dimension as a big-endian
    32-bit number; then the data, row-major, and nothing after it.

    Raises
    ------
    DataError
        If the file cannot be read, is of another layout or number of dimensions, or not of the length that its header
        says.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw as file:
                magic, wanted = file.read(4), bytes((0, 0, 8, dims))
                if magic != wanted:
                    raise DataError(
                        f"{path}: begins with {magic.hex(' ') or 'nothing'}; expected {wanted.hex(' ')}, an IDX file "
                        f"of unsigned bytes in {dims} dimension{'s' * (dims > 1)}"
                    )
                header = file.read(4 * dims)
                if len(header) != 4 * dims:
                    raise DataError(f"{path}: ends within its header; it is truncated, so fetch it again")
                shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
                body = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); the file is missing or corrupt, so fetch it again"
        ) from error
    if len(body) != math.prod(shape):
        raise DataError(f"{path}: {len(body)} bytes of data; expected {math.prod(shape)}, as its header says {shape}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_records(path: Path, label_bytes: int) -> tuple[Bytes, Bytes]:
    """Read CIFAR's records: label bytes (the last of them counts), then 3072 pixels as red, green and blue planes."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch the binary version again") from None
    length = label_bytes + 3072
    if not len(data) or len(data) % length:
        raise DataError(
            f"{path}: {len(data)} bytes; expected a multiple of {length}, so fetch the binary version again"
        )
    records = data.reshape(-1, length)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def read_arrays(path: Path, keys: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Read named arrays of a ``.npz`` file.

    Raises
    ------
    DataError
        If the file cannot be read, holds anything but plain arrays, or lacks one.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if missing := [key for key in keys if key not in archive]:
                raise DataError(f"{path}: no array {missing[0]!r}; expected {', '.join(keys)}")
            return [archive[key] for key in keys]
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file; --data-root is the .npz file, or a folder with data.npz"
        ) from None
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path}: not a readable .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from error


def channels_first(x: npt.NDArray[Any], layout: str, path: Path) -> npt.NDArray[Any]:
    if layout == "chw":
        return x
    if x.ndim != 1 + len(layout):
        raise DataError(
            f"{path}: inputs of shape {x.shape} are not of layout {layout}; expected (n, {', '.join(layout)})"
        )
    return x[:, None] if layout == "hw" else x.transpose(0, 3, 1, 2)


def subfolders(at: Path) -> list[str]:
    if not at.is_dir():
        raise DataError(f"{at}: there is no such folder; --data-root needs train/<class>/ and test/<class>/")
    names = sorted(path.name for path in at.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{at}: holds no folders; expected one per class")
    return names


def read_pictures(at: Path, names: Sequence[str], size: int | None) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Read all pictures of the classes that have a folder: (n, channels, height, width), and labels."""
    pictures: list[Bytes] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(f for f in (at / name).glob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg"))
        for file in files:
            picture = _picture(file, size)
            if pictures and picture.shape[1:] != pictures[0].shape[1:]:
                (h, w), (height, width) = picture.shape[1:], pictures[0].shape[1:]
                raise DataError(
                    f"{file}: {h}x{w} pixels where the first picture has {height}x{width}; "
                    "make them equal, or resize all with folder:size=N"
                )
            pictures.append(picture)
            labels.append(label)
        if not files and (at / name).is_dir():
            raise DataError(f"{at / name}: holds no pictures; expected .png or .jpg files")
    colour = max(len(picture) for picture in pictures)
    return np.stack([np.broadcast_to(p, (colour, *p.shape[1:])) for p in pictures]), np.array(labels)


def _picture(file: Path, size: int | None) -> Bytes:
    """Read one picture, (1 or 3, height, width)."""
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as stored:
            if stored.mode.startswith(("I", "F")):
                raise DataError(f"{file}: has more than 8 bits per pixel; expected 8-bit grey or colour, so convert it")
            image = stored.convert("L" if stored.mode in ("1", "L", "LA") else "RGB")
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken input
        raise DataError(f"{file}: not a readable PNG or JPEG picture ({error}); replace or remove it") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
