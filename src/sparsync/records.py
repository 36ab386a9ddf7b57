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

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from sparsync.engines.checkpoint import Checkpoint
from sparsync.errors import DataError
from sparsync.experiment import Experiment
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
        path = folder / "summary.json"
        if path.exists():
            try:
                summary = json.loads(path.read_text())
                self.results = {(one["label"], one["seed"]): one for one in summary["results"]}
                self.parameters, self.length = summary["parameters"], summary["history_bytes"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: not a summary of this version ({error}); compare in a new folder") from None
        group.barrier()  # all have read before anyone writes
        if group.rank == 0:
            for unfinished in (folder / "models").glob(".tmp*"):  # safetensors' own, of a process that was killed
                unfinished.unlink()

    def rewind(self, length: int) -> None:
        """Drop the history that follows what is final, or a checkpoint: it will be written again."""
        if self.group.rank == 0:
            with self.history.open("ab") as file:
                file.truncate(length)

    def append(self, lines: list[dict[str, Any]]) -> int:
        """Write lines of history; return its length in bytes."""
        if self.group.rank != 0:
            return 0
        with self.history.open("ab") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            return file.tell()

    def save_model(self, label: str, seed: int, module: nn.Module) -> None:
        """Write a final model's ``state_dict()``: all names, each tensor in its own type."""
        if self.group.rank != 0:
            return
        tensors = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in module.state_dict().items()
        }
        path = self.folder / "models" / f"{slug(label)}-seed{seed}.safetensors"
        path.parent.mkdir(exist_ok=True)
        safetensors.torch.save_file(tensors, path)

    def finish(self, result: dict[str, Any], length: int) -> None:
        """Add a result; from now on it is final, and so are the first `length` bytes of the history."""
        self.length = length
        self.results[result["label"], result["seed"]] = result
        if self.group.rank == 0:
            write_json(
                self.folder / "summary.json",
                {
                    "version": version("sparsync"),
                    "experiment": self.experiment.model_dump(mode="json"),
                    "parameters": self.parameters,
                    "history_bytes": length,
                    "results": list(self.results.values()),
                },
            )
        self.checkpoint.clear()


def slug(label: str) -> str:
    """Return a label as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", label).strip("-")


def write_json(path: Path, value: Any) -> None:
    """Write as a whole: a reader, or a resumed run, sees the old file or the new one."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)
