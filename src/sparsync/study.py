"""Several comparisons from one file: a study varies settings, and each variant is a comparison in its own folder.

In an experiment file, ``[variants.NAME]`` holds what differs from the rest of the file: a setting replaces the one
above, and of the tables ``federation``, ``split`` and ``profile`` only the keys that are named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsync import comparison
from sparsync.errors import UsageError
from sparsync.experiment import Experiment, build
from sparsync.settings import variants
from sparsync.storage import file_name, locked, read_json, remove, write_text
from sparsync.task import Dataset, load_dataset

_FILE = "study.json"


def compare(
    settings: Mapping[str, Mapping[str, Any]], folder: Path, watch: Callable[[Experiment], Any] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run a study's comparisons one after the other; yields each one's folder and summary.

    Raises
    ------
    UsageError
        If one of them is wrong, before any has begun, or the folder already holds a study.
    """
    made = {name: build(dict(own), f"variant {name}") for name, own in settings.items()}
    with locked(folder, make=True):
        path = folder / _FILE
        if path.exists():
            raise UsageError(
                f"{folder} already holds a study; `sparsync resume {folder}` goes on with it, or name another"
            )
        _rehearse(made)
        write_text(path, json.dumps(settings, indent=1, default=str) + "\n")
        try:
            yield from _each(folder, watch)
        finally:
            if not parts(folder):  # refused before anything was saved
                remove(path)


def _rehearse(variants: Mapping[str, Experiment]) -> None:
    """Refuse all variants if one of them is refused; data that several have are loaded once."""
    datasets: dict[tuple[str, Path | None], Dataset] = {}
    for name, one in variants.items():
        place = one.data, one.data_root
        if place not in datasets:
            datasets[place] = load_dataset(*place)
        try:
            comparison.rehearse(one, datasets[place])
        except UsageError as error:
            raise UsageError(f"variant {name}: {error}") from None


def resume(folder: Path, watch: Callable[[Experiment], Any] | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Go on with a study: comparisons that are complete are only read."""
    with locked(folder):
        yield from _each(folder, watch)


def _each(folder: Path, watch: Callable[[Experiment], Any] | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    for name, own in read(folder).items():
        part = folder / file_name(name)
        if (part / "run.json").exists():
            yield part, comparison.resume(part, watch)
        else:
            yield part, comparison.compare(build(own, f"variant {name}"), part, watch)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a study's variants, from the file in its folder.

    Raises
    ------
    SparsyncError
        If it cannot be read, or is not as `compare` writes it.
    """
    settings = read_json(folder / _FILE)
    return variants({"variants": settings}, str(folder / _FILE)) or {}


def parts(folder: Path) -> list[Path] | None:
    """Folders of a study's comparisons that have begun; None if the folder holds no study."""
    if not (folder / _FILE).exists():
        return None
    found = [folder / file_name(name) for name in read(folder)]
    return [part for part in found if (part / "run.json").exists()]
