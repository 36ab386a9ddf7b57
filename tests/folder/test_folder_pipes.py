"""What is no regular file is refused where one is read, and never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsync import comparison, reporting, settings
from sparsync.deployment import read_token
from sparsync.errors import SparsyncError
from sparsync.reporting.fields import read_lines
from sparsync.storage import read_json

READERS = [settings.read, read_json, read_token, lambda path: list(read_lines(path)), reporting.fields.read_json]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_reader_refuses_it(tmp_path: Path, read: Callable[[Path], object], make: Callable[[Path], object]) -> None:
    make(tmp_path / "odd")
    with pytest.raises(SparsyncError, match="odd"):
        read(tmp_path / "odd")


@pytest.mark.parametrize("name", ["run.json", "checkpoint/rank-0.safetensors", "checkpoint/manifest.json"])
def test_a_resumed_run_refuses_it(stopped: Callable[..., Path], name: str) -> None:
    folder = stopped()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(SparsyncError, match="run"):
        comparison.resume(folder)
