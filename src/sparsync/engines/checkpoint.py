"""Checkpoints: nested dicts and lists of tensors and plain values, as safetensors with a JSON skeleton. No pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sparsync.errors import DataError
from sparsync.workers import Group

_TENSOR = "tensor:"


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
    safetensors.torch.save_file(tensors, path, metadata={"tree": json.dumps(shape)})


def load_tree(path: Path) -> Any:
    """Read what `save_tree` wrote.

    Raises
    ------
    DataError
        If the file is missing, truncated or no such file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shape = json.loads(file.metadata()["tree"])

            def fill(node: Any) -> Any:
                if isinstance(node, str):
                    return file.get_tensor(node.removeprefix(_TENSOR)) if node.startswith(_TENSOR) else node[5:]
                if isinstance(node, dict):
                    return {key: fill(value) for key, value in node.items()}
                return [fill(value) for value in node] if isinstance(node, list) else node

            return fill(shape)
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"checkpoint {path}: cannot be read ({error}); delete its folder to start that run anew"
        ) from None


class Checkpoint:
    """The one checkpoint of a running strategy: a folder with one file per process, replaced as a whole.

    A process that is killed at any moment leaves either the old folder or the new one.
    """

    def __init__(self, folder: Path, group: Group) -> None:
        self.folder = folder
        self.group = group
        self._new = folder.with_name(folder.name + ".new")
        self._old = folder.with_name(folder.name + ".old")

    def save(self, tree: Any) -> None:
        """Write this process's part; returns when all parts are in place."""
        if self.group.rank == 0:
            shutil.rmtree(self._new, ignore_errors=True)
            self._new.mkdir(parents=True)
        self.group.barrier()
        save_tree(tree, self._new / f"rank-{self.group.rank}.safetensors")
        self.group.barrier()
        if self.group.rank == 0:
            shutil.rmtree(self._old, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(self._old)
            self._new.rename(self.folder)
            shutil.rmtree(self._old, ignore_errors=True)
        self.group.barrier()

    def load(self) -> Any | None:
        """Return this process's part of the newest complete checkpoint, or None if there is none."""
        for folder in (self.folder, self._old):
            if folder.exists():
                return load_tree(folder / f"rank-{self.group.rank}.safetensors")
        return None

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
        shutil.rmtree(gone, ignore_errors=True)
        if folder.exists():
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
