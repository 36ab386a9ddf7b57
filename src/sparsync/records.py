"""What a comparison leaves in its folder.

experiment.toml   the experiment as resolved; `read` it back, or run it again
run.json          what made the folder: fingerprint, process count, versions
partition.json    who holds how many samples of which class (first seed)
history.jsonl     one line per evaluation and per check of a threshold
summary.json      one result per strategy and seed
models/           the final mean models, safetensors
checkpoint/       of the strategy that is running, if any
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsync.engines.checkpoint import Checkpoint, save_tensors
from sparsync.errors import DataError
from sparsync.experiment import Experiment
from sparsync.storage import (
    PARTIAL,
    appending,
    file_name,
    named,
    read_bytes,
    read_json,
    remove,
    subfolder,
    sync,
    write_json,
)
from sparsync.workers import Group


class Records:
    """What a comparison writes into its folder (rank 0), and what it knows of its earlier results (all ranks)."""

    def __init__(self, folder: Path, experiment: Experiment, group: Group) -> None:
        self.folder = folder
        self.experiment = experiment
        self.group = group
        self.parameters: int | None = None
        self.results: dict[tuple[str, int], dict[str, Any]] = {}
        self.checkpoint = Checkpoint(folder / "checkpoint", group)
        self.history = folder / "history.jsonl"
        self.length = 0  # of the history that is final, in bytes
        self.digest = ""  # of those bytes
        self._written = hashlib.sha256()  # of all that the file holds; rank 0's
        path = folder / "summary.json"
        if path.exists():
            summary = read_json(path)
            try:
                self.results = {(one["label"], one["seed"]): one for one in summary["results"]}
                self.parameters, self.length = summary["parameters"], _length(summary["history_bytes"])
                self.digest = str(summary["history_digest"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: not a summary of this version ({error}); compare in a new folder") from None
        self._check_history(self.length, self.digest, path)
        group.barrier()  # all have read before anyone writes
        if group.rank == 0:
            models = folder / "models"
            kept = (folder.glob(f"*{PARTIAL}"), models.glob(f"*{PARTIAL}"), models.glob(".tmp*"))  # those: safetensors'
            for unfinished in chain(*kept):  # of a process that was killed
                remove(unfinished)

    def rewind(self, length: int, digest: str) -> None:
        """Drop the history that follows what is final, or a checkpoint: it will be written again.

        Raises
        ------
        DataError
            If less of it is left, or what is left has been changed.
        """
        self._written = self._check_history(length, digest, self.checkpoint.folder)
        if self.group.rank == 0:
            with appending(self.history) as file:
                file.truncate(length)

    def _check_history(self, length: int, digest: str, where: Path) -> Any:
        """Return the running digest of the history's first bytes, if they are what was written."""
        try:
            written = read_bytes(self.history) if self.history.exists() else b""
        except OSError as error:
            raise DataError(
                f"{self.history}: cannot be read ({error.strerror}); restore it from a copy, or compare in a new folder"
            ) from None
        size = len(written)
        if size < length:
            raise DataError(
                f"{self.history}: it holds {size} bytes where {where} says {length}; lines of it are lost, so restore "
                "it from a copy, or compare in a new folder"
            )
        found = hashlib.sha256(written[:length])
        if digest and found.hexdigest() != digest:
            raise DataError(
                f"{self.history}: its first {length} bytes are not those that {where} tells of; it is damaged or was "
                "edited, so restore it from a copy, or compare in a new folder"
            )
        return found

    def append(self, lines: list[dict[str, Any]], *, durable: bool = False) -> tuple[int, str]:
        """Write lines of history, if need be so that a power cut leaves them; return its bytes, and their digest."""
        if self.group.rank != 0:
            return 0, ""
        with appending(self.history) as file:
            added = "".join(json.dumps(line) + "\n" for line in lines).encode()
            file.write(added)
            length = file.tell()
        self._written.update(added)
        if durable:
            with named(self.history):
                sync(self.history)
        return length, self._written.hexdigest()

    def save_model(self, label: str, seed: int, module: nn.Module) -> None:
        """Write a final model's ``state_dict()``: all names, each tensor in its own type."""
        if self.group.rank != 0:
            return
        tensors = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in module.state_dict().items()
        }
        models = subfolder(self.folder, "models")
        save_tensors(tensors, models / f"{file_name(label)}-seed{seed}.safetensors")

    def finish(self, result: dict[str, Any], length: int, digest: str) -> None:
        """Add a result; from now on it is final, and so are the first `length` bytes of the history."""
        self.length, self.digest = length, digest
        self.results[result["label"], result["seed"]] = result
        if self.group.rank == 0:
            write_json(
                self.folder / "summary.json",
                {
                    "version": version("sparsync"),
                    "experiment": self.experiment.model_dump(mode="json"),
                    "parameters": self.parameters,
                    "history_bytes": length,
                    "history_digest": digest,
                    "results": list(self.results.values()),
                },
            )
        self.checkpoint.clear()


def _length(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"history_bytes is {value!r:.40}")
    return value
