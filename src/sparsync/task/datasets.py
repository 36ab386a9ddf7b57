"""Datasets: scikit-learn's embedded digits, and checked readers of the usual files on disk.

Nothing is downloaded. A file that is missing, truncated or corrupt is a `DataError` that names it and says what was
expected; nothing is unpickled.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BeforeValidator

from sparsync.errors import DataError, UsageError
from sparsync.randomness import generator
from sparsync.spec import Registry, imported
from sparsync.task.data import Dataset, Examples, MapDataset

Bytes = npt.NDArray[np.uint8]

DATASETS: Registry[Dataset] = Registry("dataset")
"""Functions (root, *, options) -> Dataset; call them through `load_dataset`."""


def load_dataset(spec: str, root: Path | str | None = None) -> Dataset:
    """Load a dataset.

    Parameters
    ----------
    spec : str
        Name and parameters of a registered dataset, e.g. ``"mnist"`` or ``"cifar10:mean=0.5,std=0.5"``; or
        ``"package.module:function"``, a function of the root that returns a `Dataset` (see `from_arrays`,
        `from_torch`).
    root : Path or str, optional
        Folder of its files, ``--data-root`` on the command line; ``"digits"`` needs none.

    Raises
    ------
    UsageError
        If the spec is not valid, or the root is missing.
    DataError
        If a file is missing, truncated or corrupt.
    """
    where = None if root is None else Path(root)
    function = imported(spec, DATASETS)
    if function is None:
        return DATASETS.build(spec, where)
    made = function(where)
    if not isinstance(made, Dataset):
        raise UsageError(f"dataset {spec!r}: it returned a {type(made).__name__}; expected a sparsync.Dataset")
    return made


def from_arrays(
    x_train: npt.ArrayLike,
    y_train: npt.ArrayLike,
    x_test: npt.ArrayLike,
    y_test: npt.ArrayLike,
    *,
    classes: int | None = None,
    class_names: Sequence[str] = (),
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    name: str = "arrays",
) -> Dataset:
    """Make a dataset of NumPy arrays (or anything that NumPy makes arrays of), which are copied.

    Parameters
    ----------
    x_train, x_test : array
        Inputs, (n, ...), uint8 or floating; pictures as (n, channels, height, width).
    y_train, y_test : array of int
        Labels, (n,), from 0.
    classes : int, optional
        Number of classes; default: the number of names, else the highest label plus one.
    class_names : sequence of str, optional
        One per class.
    mean, std : float or sequence of float
        Normalisation as in `Examples`.
    name : str
        What messages and reports call the dataset.

    Raises
    ------
    DataError
        If the arrays are not as above; see `Examples` and `Dataset`.
    """
    parts = [
        Examples(
            _tensor(x, f"{name}, {part} inputs"),
            _tensor(y, f"{name}, {part} labels"),
            mean=mean,
            std=std,
            name=f"{name}, {part}",
        )
        for x, y, part in ((x_train, y_train, "train"), (x_test, y_test, "test"))
    ]
    if classes is None:
        classes = len(class_names) or max(int(part.labels.max()) for part in parts) + 1
    return Dataset(name, parts[0], parts[1], classes, tuple(class_names))


def from_torch(
    train: MapDataset,
    test: MapDataset,
    classes: int,
    *,
    class_names: Sequence[str] = (),
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    name: str = "torch",
) -> Dataset:
    """Make a dataset of two map-style ``torch.utils.data.Dataset``, such as torchvision's, read as they are needed.

    Parameters
    ----------
    train, test : Dataset
        Items are (input, label); see `Examples.from_map`.
    classes : int
        Number of classes.
    class_names, mean, std, name
        As in `from_arrays`.
    """
    return Dataset(
        name,
        Examples.from_map(train, mean=mean, std=std, name=f"{name}, train"),
        Examples.from_map(test, mean=mean, std=std, name=f"{name}, test"),
        classes,
        tuple(class_names),
    )


def _numbers(value: object) -> object:
    """Read ``0.5`` or ``(0.5,0.4,0.3)`` as a tuple of numbers."""
    return value.strip("()").split(",") if isinstance(value, str) else value


Channels = Annotated[tuple[float, ...], BeforeValidator(_numbers)]
"""One number for all channels, or one for each: ``mean=0.5`` or ``mean=(0.5,0.4,0.3)`` in a spec."""


@DATASETS.register("digits")
def digits(_root: Path | None) -> Dataset:
    """Scikit-learn's 1797 embedded digits, 8x8 grey in [0, 1]; 80 % to train, 20 % of each class to test. No files."""
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    pictures, labels = load_digits(return_X_y=True)
    rng = generator(0, "digits")  # fixed: everyone has the same split, whatever the seed of the run
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(0.2 * len(members))]] = True
    inputs = (pictures / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return from_arrays(
        inputs[~held_out], labels[~held_out], inputs[held_out], labels[held_out], classes=10, name="digits"
    )


@DATASETS.register("mnist")
def mnist(root: Path | None, *, normalise: bool = False) -> Dataset:
    """MNIST, 28x28 grey in [0, 1], from its four IDX files, gzipped or not.

    Parameters
    ----------
    root : Path
        Folder that holds the files itself, or in ``MNIST/raw`` or ``mnist``.
    normalise : bool
        Whether to subtract the mean 0.1307 and divide by the standard deviation 0.3081. Default: FDA's plain x / 255.
    """
    mean, std = (0.1307, 0.3081) if normalise else (0.0, 1.0)
    return _idx_dataset("mnist", root, "MNIST/raw", mean, std, tuple("0123456789"))


@DATASETS.register("fashion-mnist")
def fashion_mnist(root: Path | None, *, normalise: bool = False) -> Dataset:
    """Fashion-MNIST, 28x28 grey in [0, 1], from its four IDX files, gzipped or not.

    Parameters
    ----------
    root : Path
        Folder that holds the files itself, or in ``FashionMNIST/raw`` or ``fashion-mnist``.
    normalise : bool
        Whether to subtract the mean 0.2860 and divide by the standard deviation 0.3530. Default: plain x / 255.
    """
    names = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    mean, std = (0.2860, 0.3530) if normalise else (0.0, 1.0)
    return _idx_dataset("fashion-mnist", root, "FashionMNIST/raw", mean, std, names)


@DATASETS.register("cifar10")
def cifar10(
    root: Path | None, *, mean: Channels = (0.4914, 0.4822, 0.4465), std: Channels = (0.2470, 0.2435, 0.2616)
) -> Dataset:
    """CIFAR-10, 32x32 colour, from its binary version: ``data_batch_1.bin`` to ``5`` and ``test_batch.bin``.

    Parameters
    ----------
    root : Path
        Folder that holds the files itself, or in ``cifar-10-batches-bin`` (or in ``cifar10``, the same).
    mean, std : tuple of float
        Normalisation per channel, on the scale 0 to 1; default: of the training set.
    """
    folder = _folder("cifar10", root, "cifar-10-batches-bin", "test_batch.bin")
    train = [_records(folder / f"data_batch_{i}.bin", label_bytes=1) for i in range(1, 6)]
    pictures, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return from_arrays(
        pictures,
        labels,
        *_records(folder / "test_batch.bin", label_bytes=1),
        class_names=names,
        mean=mean,
        std=std,
        name="cifar10",
    )


@DATASETS.register("cifar100")
def cifar100(
    root: Path | None, *, mean: Channels = (0.5071, 0.4865, 0.4409), std: Channels = (0.2673, 0.2564, 0.2762)
) -> Dataset:
    """CIFAR-100, 32x32 colour, fine labels, from its binary version: ``train.bin`` and ``test.bin``.

    Parameters
    ----------
    root : Path
        Folder that holds the files itself, or in ``cifar-100-binary`` (or in ``cifar100``, the same). Class names come
        from ``fine_label_names.txt`` where it is there too.
    mean, std : tuple of float
        Normalisation per channel, on the scale 0 to 1; default: of the training set.
    """
    folder = _folder("cifar100", root, "cifar-100-binary", "test.bin")
    listed = folder / "fine_label_names.txt"
    return from_arrays(
        *_records(folder / "train.bin", label_bytes=2),
        *_records(folder / "test.bin", label_bytes=2),
        classes=100,
        class_names=listed.read_text().split() if listed.is_file() else (),
        mean=mean,
        std=std,
        name="cifar100",
    )


@DATASETS.register("folder")
def folder(root: Path | None, *, size: int | None = None, mean: Channels = (0.0,), std: Channels = (1.0,)) -> Dataset:
    """Pictures in folders: ``train/<class>/*.png`` and ``test/<class>/*.png``, or jpg; grey or colour.

    Parameters
    ----------
    root : Path
        Folder that holds ``train`` and ``test``. The folders in ``train`` name the classes, in alphabetical order.
    size : int, optional
        Height and width in pixels to which every picture is resized. Default: none is, and all must be of one size.
    mean, std : tuple of float
        Normalisation, on the scale 0 to 1; default: none.
    """
    at = _required("folder", root)
    if size is not None and size < 1:
        raise UsageError(f"dataset 'folder': size={size}; expected at least 1 pixel")
    names = _subfolders(at / "train")
    if strange := sorted(set(_subfolders(at / "test")) - set(names)):
        raise DataError(
            f"{at / 'test' / strange[0]}: no such class in {at / 'train'}; expected one of {', '.join(names)}"
        )
    x_train, y_train = _pictures(at / "train", names, size)
    x_test, y_test = _pictures(at / "test", names, size)
    colour = max(x_train.shape[1], x_test.shape[1])
    x_train, x_test = (np.broadcast_to(x, (len(x), colour, *x.shape[2:])) for x in (x_train, x_test))
    return from_arrays(x_train, y_train, x_test, y_test, class_names=names, mean=mean, std=std, name=at.name)


@DATASETS.register("npz")
def npz(
    root: Path | None,
    *,
    layout: Literal["chw", "hwc", "hw"] = "chw",
    mean: Channels = (0.0,),
    std: Channels = (1.0,),
) -> Dataset:
    """NumPy arrays ``x_train, y_train, x_test, y_test`` in one ``.npz`` file.

    Parameters
    ----------
    root : Path
        The file, or a folder that holds it as ``data.npz``.
    layout : {"chw", "hwc", "hw"}
        How one input is stored: as it is used (channels first; or no picture at all), channels last, or without any
        channel dimension, which is then added.
    mean, std : tuple of float
        Normalisation as in `Examples`; default: none, but uint8 is always divided by 255.
    """
    path = _required("npz", root)
    path = path / "data.npz" if path.is_dir() else path
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if missing := [key for key in keys if key not in archive]:
                raise DataError(f"{path}: no array {missing[0]!r}; expected {', '.join(keys)}")
            x_train, y_train, x_test, y_test = (archive[key] for key in keys)
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
    x_train, x_test = (_channels_first(x, layout, path) for x in (x_train, x_test))
    y_train, y_test = (y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y for y in (y_train, y_test))
    return from_arrays(x_train, y_train, x_test, y_test, mean=mean, std=std, name=path.stem)


def _channels_first(x: npt.NDArray[Any], layout: str, path: Path) -> npt.NDArray[Any]:
    if layout == "chw":
        return x
    if x.ndim != 1 + len(layout):
        raise DataError(
            f"{path}: inputs of shape {x.shape} are not of layout {layout}; expected (n, {', '.join(layout)})"
        )
    return x[:, None] if layout == "hw" else x.transpose(0, 3, 1, 2)


def _tensor(value: npt.ArrayLike, name: str) -> torch.Tensor:
    array = np.array(value)  # a copy: what torch shares must be writable, and not change behind its back
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8 or array.ndim == 0:
        raise DataError(f"{name}: expected an array of numbers, got {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _required(name: str, root: Path | None) -> Path:
    if root is None:
        raise UsageError(f"dataset {name!r} is read from disk; say where with --data-root DIR")
    return root


def _folder(name: str, root: Path | None, usual: str, *anyof: str) -> Path:
    """Return the first of the folders where a dataset may lie that has one of the files."""
    top = _required(name, root)
    places = [top, top / usual, top / name, top / name / usual]
    for place in places:
        if any((place / file).is_file() for file in anyof):
            return place
    raise DataError(
        f"dataset {name!r}: no file {' or '.join(anyof)} in {', '.join(map(str, places))}; "
        "point --data-root at the folder that holds it"
    )


def _idx_dataset(
    name: str, root: Path | None, usual: str, mean: float, std: float, class_names: tuple[str, ...]
) -> Dataset:
    arrays: list[Bytes] = []
    for part in ("train", "t10k"):
        for what, dims in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
            file = f"{part}-{what}"
            place = _folder(name, root, usual, file, f"{file}.gz")
            path = place / file
            arrays.append(read_idx(path if path.is_file() else place / f"{file}.gz", dims))
        if len(arrays[-2]) != len(arrays[-1]):
            raise DataError(f"{path}: {len(arrays[-1])} labels for {len(arrays[-2])} images; expected equal numbers")
    x_train, y_train, x_test, y_test = arrays
    return from_arrays(
        x_train[:, None], y_train, x_test[:, None], y_test, class_names=class_names, mean=mean, std=std, name=name
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


def _records(path: Path, label_bytes: int) -> tuple[Bytes, Bytes]:
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


def _subfolders(at: Path) -> list[str]:
    if not at.is_dir():
        raise DataError(f"{at}: there is no such folder; --data-root needs train/<class>/ and test/<class>/")
    names = sorted(path.name for path in at.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{at}: holds no folders; expected one per class")
    return names


def _pictures(at: Path, names: Sequence[str], size: int | None) -> tuple[Bytes, npt.NDArray[np.int64]]:
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
