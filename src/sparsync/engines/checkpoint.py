"""Checkpoints: nested dicts and lists of tensors and plain values, as safetensors with a JSON skeleton. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sparsync.errors import DataError, SparsyncError
from sparsync.storage import named, read_json, reading, remove, replacing, subfolder, sync, write_json
from sparsync.workers import Group
from sparsync.workers.group import gather

_TENSOR = "tensor:"
_MANIFEST = "manifest.json"


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a file, as a whole."""
    with replacing(path) as partial:
        try:
            safetensors.torch.save_file(dict(tensors), partial, metadata=metadata)
        except safetensors.SafetensorError as error:  # a full disk, too
            raise SparsyncError(f"{path}: cannot be written ({error}); mend that and resume") from None


def save_tree(tree: Any, path: Path) -> None:
    """Write a nested structure to a file."""
    tensors: dict[str, Tensor] = {}

    def skeleton(node: Any) -> Any:
        if isinstance(node, Tensor):
            key = str(len(tensors))
            tensors[key] = node.detach().contiguous()
            return _TENSOR + key
        if isinstance(node, Mapping):
            return {str(key): skeleton(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [skeleton(value) for value in node]
        if isinstance(node, str):
            return "text:" + node
        return node

    shape = skeleton(tree)
    save_tensors(tensors, path, {"tree": json.dumps(shape)})


def load_tree(path: Path) -> Any:
    """Read what `save_tree` wrote.

    Raises
    ------
    DataError
        If the file is missing, truncated or no such file.
    """
    try:
        reading(path).close()  # what is no regular file might have no end
        with safetensors.safe_open(path, framework="pt") as file:
            shape = json.loads(file.metadata()["tree"])

            def fill(node: Any) -> Any:
                if isinstance(node, str):
                    return file.get_tensor(node.removeprefix(_TENSOR)) if node.startswith(_TENSOR) else node[5:]
                if isinstance(node, dict):
                    return {key: fill(value) for key, value in node.items()}
                return [fill(value) for value in node] if isinstance(node, list) else node

            return fill(shape)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read ({error})") from None


def check_like(saved: Any, live: Any, where: str = "state") -> None:
    """Refuse a state that no run with this live one can have left: another shape or type, or no number.

    What a live state does not have yet, and lists of another length, are not looked into.

    Raises
    ------
    DataError
        If so; it names the place.
    """
    fits = True
    match live:
        case Tensor():
            fits = isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (live.shape, live.dtype)
        case Mapping() if isinstance(saved, Mapping):
            for key, value in live.items():
                if str(key) in saved:
                    check_like(saved[str(key)], value, f"{where}.{key}")
        case list() | tuple() if isinstance(saved, list):
            if len(saved) == len(live):
                for i, (one, other) in enumerate(zip(saved, live, strict=True)):
                    check_like(one, other, f"{where}.{i}")
        case Mapping() | list() | tuple():
            fits = False
        case bool() | str():
            fits = type(saved) is type(live)
        case int():  # never nan
            fits = type(saved) is int
        case float():
            fits = type(saved) in (int, float)
    if not fits:
        raise DataError(f"{where} holds {_kind(saved)}, expected {_kind(live)}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{value!r:.40}" if isinstance(value, bool | int | float | None) else f"a {type(value).__name__}"


class Checkpoint:
    """The one checkpoint of a running strategy: a folder with one file per process, replaced as a whole.

    A process that is killed at any moment, and a machine that loses its power, leave either the old folder or the new
    one. A manifest holds every file's digest.
    """

    def __init__(self, folder: Path, group: Group) -> None:
        self.folder = folder
        self.group = group
        self._new = folder.with_name(folder.name + ".new")
        self._old = folder.with_name(folder.name + ".old")

    def save(self, tree: Any) -> None:
        """Write this process's part; returns when all parts are in place."""
        rank, name = self.group.rank, self._part(self.group.rank)
        if rank == 0:
            remove(self._new)
            subfolder(self._new.parent, self._new.name)
        self.group.barrier()
        save_tree(tree, self._new / name)
        digests = gather(self.group, {rank: _digest(self._new / name)})
        if rank == 0:
            write_json(self._new / _MANIFEST, {self._part(i): digests[i] for i in range(self.group.size)})
            remove(self._old)
            with named(self.folder):
                if self.folder.exists():
                    self.folder.rename(self._old)
                self._new.rename(self.folder)
                sync(self.folder.parent)
            remove(self._old)
        self.group.barrier()

    def load(self) -> Any | None:
        """Return this process's part of the newest complete checkpoint, or None if there is none.

        Raises
        ------
        DataError
            If it is not as it was written.
        """
        for folder in (self.folder, self._old):
            if folder.exists():
                self._check(folder)
                return load_tree(folder / self._part(self.group.rank))
        return None

    def _part(self, rank: int) -> str:
        return f"rank-{rank}.safetensors"

    def _check(self, folder: Path) -> None:
        digests, mine = read_json(folder / _MANIFEST), self._part(self.group.rank)
        parts = {self._part(rank) for rank in range(self.group.size)}
        there = {path.name for path in folder.iterdir()}
        for names, of in ((set(digests) if isinstance(digests, dict) else set(), _MANIFEST), (there - {_MANIFEST}, "")):
            if odd := sorted(names ^ parts):
                fault = "is missing" if odd[0] in parts else "does not belong there"
                raise damaged(folder / of, f"{odd[0]} {fault}")
        if digests[mine] != _digest(folder / mine):
            raise damaged(folder / mine, "its digest is not that of the manifest")

    def clear(self) -> None:
        """Remove it: the run is complete."""
        self.group.barrier()
        if self.group.rank == 0:
            for folder in (self._old, self._new, self.folder):
                self._discard(folder)
        self.group.barrier()

    def _discard(self, folder: Path) -> None:
        """Remove a folder that nobody may find half removed."""
        gone = folder.with_name(self.folder.name + ".gone")
        remove(gone)
        if folder.exists():
            with named(folder):
                folder.rename(gone)
            remove(gone)


def damaged(path: Path, what: str) -> DataError:
    """Return the error for a checkpoint that is not as it was written."""
    return DataError(f"checkpoint {path}: {what}; it is damaged, so delete {_folder(path)} to start that run anew")


def _folder(path: Path) -> Path:
    """Return the checkpoint's folder, of which a path is that or a file in it."""
    return path.parent if path.suffix in (".json", ".safetensors") else path


def _digest(path: Path) -> str:
    try:
        with reading(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror or error})") from None
