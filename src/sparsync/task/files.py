"""Checked readers of the usual files: IDX, CIFAR's records, ``.npz``, folders of pictures.

A file that is missing, truncated or corrupt is a `DataError` that names it and says what was expected; nothing is
unpickled. No more is read than a header promises, and what would not fit into memory is refused before it is unpacked.
"""

from __future__ import annotations

import gzip
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from sparsync.errors import DataError, UsageError, described
from sparsync.storage import reading

Bytes = npt.NDArray[np.uint8]

_MOST_BYTES = 2**30
"""Of one file of MNIST's or CIFAR's kind: several times what the largest of theirs holds."""

_CLUTTER = ("__MACOSX", "@eaDir")
"""Folders that archives and file servers leave behind."""


def required(name: str, root: Path | None) -> Path:
    if root is None:
        raise UsageError(f"dataset {name!r} is read from disk; say where with --data-root DIR")
    return root


def find_file(name: str, root: Path | None, *usual: str) -> Path:
    """Return the first that exists of a dataset's usual files.

    Parameters
    ----------
    name : str
        The dataset's.
    root : Path
        Folder to search: for a file ``a/b/c``, as that, as ``b/c`` and as ``c``; and in a folder of the dataset's name.
    *usual : str
        Relative paths.
    """
    top = required(name, root)
    tails = [Path(*path.parts[start:]) for path in map(Path, usual) for start in reversed(range(len(path.parts)))]
    places = [folder / tail for folder in (top, top / name) for tail in tails]
    for place in places:
        if os.path.isfile(place):  # False, too, for what cannot be looked at
            return place
    files = dict.fromkeys(Path(path).name for path in usual)
    folders = dict.fromkeys(str(place.parent) for place in places)
    raise DataError(
        f"dataset {name!r}: no file {' or '.join(files)} in {', '.join(folders)}; "
        "point --data-root at the folder that holds it"
    )


def regular(path: Path) -> Path:
    """Return a path, unless something other than a regular file is there: a pipe or a device has no end."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise DataError(f"{path}: is no regular file; expected one, so replace or remove it")
    return path


def opened(path: Path) -> BinaryIO:
    """Open a regular file to read it, or say in one line why it cannot be."""
    try:
        return reading(regular(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({described(error)}); expected a file that can") from error


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
        with opened(path) as raw:
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
                length = math.prod(shape)
                if length > _MOST_BYTES:
                    raise DataError(f"{path}: its header says {shape}; expected at most {_MOST_BYTES} bytes of data")
                body = file.read(length + 1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read ({described(error)}); the file is corrupt, so fetch it again"
        ) from error
    if len(body) != length:
        got = f"more than {length}" if len(body) > length else len(body)
        raise DataError(f"{path}: {got} bytes of data; expected {length}, as its header says {shape}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def read_records(path: Path, label_bytes: int) -> tuple[Bytes, Bytes]:
    """Read CIFAR's records: label bytes (the last of them counts), then 3072 pixels as red, green and blue planes."""
    data = np.frombuffer(read_bytes(path), np.uint8)
    length = label_bytes + 3072
    if not len(data) or len(data) % length:
        raise DataError(
            f"{path}: {len(data)} bytes; expected a multiple of {length}, so fetch the binary version again"
        )
    records = data.reshape(-1, length)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def read_bytes(path: Path) -> bytes:
    """Read a whole file of a known kind, which is not large."""
    with opened(path) as file:
        if (length := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
            raise DataError(f"{path}: {length} bytes; expected at most {_MOST_BYTES}, so fetch it again")
        try:
            return file.read(length)
        except (OSError, MemoryError) as error:
            raise DataError(f"{path}: cannot be read ({described(error)}); fetch it again") from error


def read_words(path: Path) -> list[str]:
    """Read the words of a text file."""
    try:
        return read_bytes(path).decode().split()
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text in UTF-8; fetch it again, or remove it") from None


def read_arrays(path: Path, keys: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Read named arrays of a ``.npz`` file.

    Raises
    ------
    DataError
        If the file cannot be read, holds anything but plain arrays, lacks one, or unpacks to more than memory holds.
    """
    if not os.path.lexists(path):
        raise DataError(f"{path}: there is no such file; --data-root is the .npz file, or a folder with data.npz")
    wanted = f"write it with numpy.savez, as arrays of numbers (labels: or texts) {', '.join(keys)}"
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            held = archive.namelist()
            if missing := [key for key in keys if f"{key}.npy" not in held]:
                raise DataError(f"{path}: no array {missing[0]!r}; expected {', '.join(keys)}")
            members = [archive.getinfo(f"{key}.npy") for key in keys]
            _check_memory(path, sum(member.file_size for member in members))
            return [_read_array(archive, member, f"{path}, {key}") for member, key in zip(members, keys, strict=True)]
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken input
        raise DataError(f"{path}: not a readable .npz file; {wanted}") from error


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> npt.NDArray[Any]:
    """Read one array, exactly as long as its header says."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        length = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise DataError(f"{name}: holds Python objects, which are not unpickled; store numbers or texts")
        if not length or length != member.file_size - file.tell():
            raise DataError(f"{name}: its header says {dtype} of {shape}, which is not what follows; write it again")
    with archive.open(member) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # the end is also where zip compares checksums
            raise DataError(f"{name}: goes on after its end; write it again")
        return array


def _check_memory(path: Path, length: int) -> None:
    """Refuse what this machine could not hold twice, since it is copied once."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * length > memory:
        raise DataError(
            f"{path}: unpacks to {length / 1e9:.3g} GB; expected at most {memory / 2e9:.3g} GB, half of the memory here"
        )


def channels_first(x: npt.NDArray[Any], layout: str, path: Path) -> npt.NDArray[Any]:
    if layout == "chw":
        return x
    if x.ndim != 1 + len(layout):
        raise DataError(
            f"{path}: inputs of shape {x.shape} are not of layout {layout}; expected (n, {', '.join(layout)})"
        )
    return x[:, None] if layout == "hw" else x.transpose(0, 3, 1, 2)


def subfolders(at: Path) -> list[str]:
    """Return the names of the folders in a folder, which stand for classes; what systems leave there is none."""
    if not os.path.isdir(at):
        raise DataError(f"{at}: there is no such folder; --data-root needs train/<class>/ and test/<class>/")
    paths = [path for path in _listing(at) if path.name not in _CLUTTER]
    if lost := [path for path in paths if os.path.islink(path) and not os.path.exists(path)]:
        raise DataError(f"{lost[0]}: is a link that leads nowhere; replace or remove it")
    names = [path.name for path in paths if os.path.isdir(path)]
    if not names:
        raise DataError(f"{at}: holds no folders; expected one per class")
    return names


def read_pictures(at: Path, names: Sequence[str], size: int | None) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Read all pictures of the classes that have a folder: (n, channels, height, width), and labels."""
    pictures: list[Bytes] = []
    labels: list[int] = []
    held = 0
    for label, name in enumerate(names):
        if not os.path.isdir(at / name):
            continue
        files = [file for file in _listing(at / name) if file.suffix.lower() in (".png", ".jpg", ".jpeg")]
        for file in files:
            picture = _picture(file, size)
            if pictures and picture.shape[1:] != pictures[0].shape[1:]:
                (h, w), (height, width) = picture.shape[1:], pictures[0].shape[1:]
                raise DataError(
                    f"{file}: {h}x{w} pixels where the first picture has {height}x{width}; "
                    "make them equal, or resize all with folder:size=N"
                )
            held += picture.nbytes
            _check_memory(at, held)
            pictures.append(picture)
            labels.append(label)
        if not files:
            raise DataError(f"{at / name}: holds no pictures; expected .png or .jpg files")
    colour = max(len(picture) for picture in pictures)
    return np.stack([np.broadcast_to(p, (colour, *p.shape[1:])) for p in pictures]), np.array(labels)


def _listing(at: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden files such as macOS's ``._x.png``."""
    try:
        return sorted(path for path in at.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{at}: cannot be read ({described(error)}); expected a folder that can") from error


def _picture(file: Path, size: int | None) -> Bytes:
    """Read one picture, (1 or 3, height, width)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # as it does with twice as many pixels
            with Image.open(regular(file), formats=("PNG", "JPEG")) as stored:
                if stored.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{file}: has more than 8 bits per pixel; expected 8-bit grey or colour, so convert it"
                    )
                image = stored.convert("L" if stored.mode in ("1", "L", "LA") else "RGB")
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken input
        raise DataError(
            f"{file}: not a readable PNG or JPEG picture ({described(error)}); replace or remove it"
        ) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
