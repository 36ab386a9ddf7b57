"""Datasets by name: scikit-learn's embedded digits, and those that are read from disk. Nothing is downloaded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, Field

from sparsync.errors import DataError, UsageError
from sparsync.randomness import generator
from sparsync.spec import Registry, foreign, imported
from sparsync.task.classes import ClassMapping, listed
from sparsync.task.data import Dataset, Examples, MapDataset, as_tensor, item_labels
from sparsync.task.files import (
    Bytes,
    channels_first,
    find_file,
    read_arrays,
    read_idx,
    read_pictures,
    read_records,
    read_words,
    required,
    subfolders,
)
from sparsync.task.pickles import read_pickled, read_pickled_names

DATASETS: Registry[Dataset] = Registry("dataset", Dataset)
"""Functions (root, *, options) -> Dataset; call them through `load_dataset`."""


def load_dataset(spec: str, root: Path | str | None = None) -> Dataset:
    """Load a dataset.

    Parameters
    ----------
    spec : str
        Name and parameters of a registered dataset, e.g. ``"mnist"`` or ``"cifar10:mean=0.5,std=0.5"``; or
        ``"package.module:function:key=value"``, a function of the root, or of nothing, that returns a `Dataset` (see
        `from_arrays`, `from_torch`), and what else it is given by name. A parameter with a default is given the root
        only if there is one.
    root : Path or str, optional
        Folder of its files, ``--data-root`` on the command line; ``"digits"`` needs none.

    Raises
    ------
    UsageError
        If the spec is not valid, the root is missing, or the function raises anything.
    DataError
        If a file is missing, truncated or corrupt.
    """
    where = None if root is None else Path(root)
    function = imported(spec, DATASETS, context=1)
    if function is None:
        return DATASETS.build(spec, where)
    arguments = _taken(function, where, spec)
    with foreign(f"dataset {spec!r}: it cannot be made", "mend the function"):
        made = function(*arguments)
    if not isinstance(made, Dataset):
        raise UsageError(f"dataset {spec!r}: it returned a {type(made).__name__}; expected a sparsync.Dataset")
    return made


def _taken(function: Callable[..., object], root: Path | None, spec: str) -> tuple[Path | None, ...]:
    """Return what a user's function is called with: the root if it is given or required, and nothing otherwise."""
    ways: list[tuple[Path | None, ...]] = [(), (root,)] if root is None else [(root,), ()]
    for way in ways:
        try:
            inspect.signature(function).bind(*way)
        except (TypeError, ValueError):
            continue
        return way
    raise UsageError(f"dataset {spec!r}: expected a function of the data root, or of nothing")


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
    y_train, y_test : array
        Labels, (n,): whole numbers or texts. The classes are the training labels in sorted order, each with its label
        as its name: {7, 57} are two classes, "7" and "57". If that does not leave labels as they are, the dataset's
        ``note`` says so.
    classes : int, optional
        Number of classes. If it is stated, number labels are class numbers, from 0, and need not all occur.
    class_names : sequence of str, optional
        One per class, which states their number as well; text labels are then these names.
    mean, std : float or sequence of float
        Normalisation as in `Examples`.
    name : str
        What messages and reports call the dataset.

    Raises
    ------
    DataError
        If the arrays are not as above; see `Examples` and `Dataset`.
    """
    parts = ((x_train, y_train, "train"), (x_test, y_test, "test"))
    arrays = [
        (as_tensor(x.clone() if isinstance(x, torch.Tensor) else x, f"{name}, {part} inputs"), y)
        for x, y, part in parts
    ]
    return _dataset(name, arrays, classes, class_names, mean, std)


def from_torch(
    train: MapDataset,
    test: MapDataset,
    classes: int | None = None,
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
        Items are pairs (input, label); see `Examples`. Labels are gathered once: from ``targets`` where a dataset has
        that and no ``target_transform``, else by reading every item.
    classes, class_names, mean, std, name
        As in `from_arrays`.

    Raises
    ------
    DataError
        If the datasets are not as above; see `Examples` and `Dataset`.
    """
    sources = [(source, item_labels(source, f"{name}, {part}")) for source, part in ((train, "train"), (test, "test"))]
    return _dataset(name, sources, classes, class_names, mean, std)


def _dataset(
    name: str,
    parts: Sequence[tuple[torch.Tensor | MapDataset, object]],
    classes: int | None,
    class_names: Sequence[str],
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> Dataset:
    """Make a dataset of the inputs and labels to train and to test with."""
    titles = f"{name}, train", f"{name}, test"
    labels = [listed(said, title) for (_, said), title in zip(parts, titles, strict=True)]
    kinds = ClassMapping.of(labels[0], classes, class_names, name)
    train, test = (
        Examples(inputs, kinds.tensor(said, title), mean=mean, std=std, name=title)
        for (inputs, _), said, title in zip(parts, labels, titles, strict=True)
    )
    return Dataset(name, train, test, len(kinds.names), kinds.names, kinds.note)


def _numbers(value: object) -> object:
    """Read ``0.5`` or ``(0.5,0.4,0.3)`` as a tuple of numbers."""
    return value.strip("()").split(",") if isinstance(value, str) else value


Channels = Annotated[tuple[float, ...], BeforeValidator(_numbers)]
"""One number for all channels, or one for each: ``mean=0.5`` or ``mean=(0.5,0.4,0.3)`` in a spec."""

Pixels = Annotated[int, Field(ge=1, le=4096)]


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
    """CIFAR-10, 32x32 colour, from ``data_batch_1`` to ``5`` and ``test_batch`` of its binary or Python version.

    Parameters
    ----------
    root : Path
        Folder that holds the files itself, or in ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, which torchvision
        has (or in ``cifar10``, the same). The Python version's pickles are read as data, and nothing in them is run.
    mean, std : tuple of float
        Normalisation per channel, on the scale 0 to 1; default: of the training set.
    """
    test = find_file("cifar10", root, "cifar-10-batches-bin/test_batch.bin", "cifar-10-batches-py/test_batch")
    read = partial(read_records, label_bytes=1) if test.suffix else partial(read_pickled, labels="labels")
    train = [read(test.with_name(f"data_batch_{i}{test.suffix}")) for i in range(1, 6)]
    pictures, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return from_arrays(
        pictures,
        labels,
        *read(test),
        class_names=names,
        mean=mean,
        std=std,
        name="cifar10",
    )


@DATASETS.register("cifar100")
def cifar100(
    root: Path | None, *, mean: Channels = (0.5071, 0.4865, 0.4409), std: Channels = (0.2673, 0.2564, 0.2762)
) -> Dataset:
    """CIFAR-100, 32x32 colour, fine labels, from ``train`` and ``test`` of its binary or Python version.

    Parameters
    ----------
    root : Path
        Folder that holds the files itself, or in ``cifar-100-binary`` or ``cifar-100-python``, as in `cifar10` (or in
        ``cifar100``, the same). Class names come from ``fine_label_names.txt`` or ``meta`` where it is there too.
    mean, std : tuple of float
        Normalisation per channel, on the scale 0 to 1; default: of the training set.
    """
    test = find_file("cifar100", root, "cifar-100-binary/test.bin", "cifar-100-python/test")
    if test.suffix:
        read, names, read_names = partial(read_records, label_bytes=2), "fine_label_names.txt", read_words
    else:
        read, names, read_names = partial(read_pickled, labels="fine_labels"), "meta", read_pickled_names
    path = test.with_name(names)
    return from_arrays(
        *read(test.with_name(f"train{test.suffix}")),
        *read(test),
        classes=100,
        class_names=read_names(path) if os.path.isfile(path) else (),
        mean=mean,
        std=std,
        name="cifar100",
    )


@DATASETS.register("folder")
def folder(
    root: Path | None, *, size: Pixels | None = None, mean: Channels = (0.0,), std: Channels = (1.0,)
) -> Dataset:
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
    at = required("folder", root)
    names = subfolders(at / "train")
    if strange := sorted(set(subfolders(at / "test")) - set(names)):
        raise DataError(
            f"{at / 'test' / strange[0]}: no such class in {at / 'train'}; expected one of {', '.join(names)}"
        )
    x_train, y_train = read_pictures(at / "train", names, size)
    x_test, y_test = read_pictures(at / "test", names, size)
    colour = max(x_train.shape[1], x_test.shape[1])
    x_train, x_test = (np.broadcast_to(x, (len(x), colour, *x.shape[2:])) for x in (x_train, x_test))
    return from_arrays(x_train, y_train, x_test, y_test, class_names=names, mean=mean, std=std, name=at.name)


@DATASETS.register("npz")
def npz(
    root: Path | None,
    *,
    layout: Literal["chw", "hwc", "hw"] = "chw",
    classes: int | None = None,
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
    classes : int, optional
        Number of classes, as in `from_arrays`.
    mean, std : tuple of float
        Normalisation as in `Examples`; default: none, but uint8 is always divided by 255.
    """
    path = required("npz", root)
    path = path / "data.npz" if os.path.isdir(path) else path
    x_train, y_train, x_test, y_test = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
    x_train, x_test = (channels_first(x, layout, path) for x in (x_train, x_test))
    return from_arrays(x_train, y_train, x_test, y_test, classes=classes, mean=mean, std=std, name=path.stem)


def _idx_dataset(
    name: str, root: Path | None, usual: str, mean: float, std: float, class_names: tuple[str, ...]
) -> Dataset:
    arrays: list[Bytes] = []
    for part in ("train", "t10k"):
        for what, dims in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
            file = f"{part}-{what}"
            path = find_file(name, root, f"{usual}/{file}", f"{usual}/{file}.gz")
            arrays.append(read_idx(path, dims))
        if len(arrays[-2]) != len(arrays[-1]):
            raise DataError(f"{path}: {len(arrays[-1])} labels for {len(arrays[-2])} images; expected equal numbers")
    x_train, y_train, x_test, y_test = arrays
    return from_arrays(
        x_train[:, None], y_train, x_test[:, None], y_test, class_names=class_names, mean=mean, std=std, name=name
    )
