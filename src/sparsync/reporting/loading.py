"""A run's folder read back into one :class:`~sparsync.reporting.history.Run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsync.errors import UsageError
from sparsync.reporting.fields import as_number, as_object, counted, damaged, is_int, read_json, show
from sparsync.reporting.history import ComparisonRecord, Partition, Result
from sparsync.reporting.lines import histories

__all__ = ["load"]


def load(folder: str | Path) -> ComparisonRecord:
    """Read a run's folder.

    A last line of ``history.jsonl`` that was cut off (the run was killed while writing) is left out, and so are
    lines of a kind that this version does not know. Where a resumed run wrote a step twice, the later line counts.

    Parameters
    ----------
    folder : str or Path
        Where ``sparsync compare`` wrote, its ``--out``.

    Returns
    -------
    ComparisonRecord
        The whole run.

    Raises
    ------
    UsageError
        If the folder holds no finished run.
    DataError
        If one of the files is damaged.
    """
    folder = Path(folder)
    summary_file, history_file = folder / "summary.json", folder / "history.jsonl"
    partition_file = folder / "partition.json"
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name one that `sparsync compare --out FOLDER` has written.")
    if not summary_file.is_file():
        if history_file.is_file():
            raise UsageError(f"{folder} holds a run without summary.json; finish it with `sparsync resume {folder}`.")
        raise UsageError(
            f"{folder} holds no run (no summary.json); name a folder that `sparsync compare --out FOLDER` has written."
        )
    summary = as_object(read_json(summary_file), summary_file.name)
    entries = summary.get("results")
    if not isinstance(entries, list):
        raise damaged(summary_file.name, f"results is {show(entries)}, expected a list")
    version = summary.get("version")
    parameters = as_number(summary, "parameters", summary_file.name)
    results = tuple(_result(entry, f"{summary_file.name}, result {i}") for i, entry in enumerate(entries))
    seen: set[tuple[str, int]] = set()
    for result in results:
        key = (result.label, result.seed)
        if key in seen:
            raise damaged(summary_file.name, f"label {result.label!r} has two results for seed {result.seed}")
        seen.add(key)
    return ComparisonRecord(
        folder=folder,
        version=version if isinstance(version, str) else "unknown",
        experiment=as_object(summary.get("experiment", {}), f"{summary_file.name}, experiment"),
        parameters=None if parameters is None else int(parameters),
        results=results,
        histories=histories(history_file) if history_file.is_file() else {},
        partition=_partition(partition_file) if partition_file.is_file() else None,
        real=(folder / "devices.json").is_file(),
    )


def _result(entry: Any, where: str) -> Result:
    entry = as_object(entry, where)
    label, seed = entry.get("label"), entry.get("seed", 0)
    if not isinstance(label, str) or not label:
        raise damaged(where, f"label is {show(label)}, expected a name")
    if not is_int(seed):
        raise damaged(where, f"seed is {show(seed)}, expected an integer")
    reached, error = entry.get("reached"), entry.get("error")
    if reached is not None and not isinstance(reached, bool):
        raise damaged(where, f"reached is {show(reached)}, expected true, false or null")

    def count(key: str) -> int | None:
        value = as_number(entry, key, where)
        return None if value is None else int(value)

    unit = counted(entry)
    return Result(
        label=label,
        strategy=str(entry.get("strategy", label)),
        spec=str(entry.get("spec", label)),
        seed=seed,
        workers=count("workers"),
        steps=count("steps"),
        syncs=None if unit is None else count(unit),
        unit=unit,
        accuracy=as_number(entry, "accuracy", where),
        best_accuracy=as_number(entry, "best_accuracy", where),
        bytes=_kinds(entry, "bytes", where),
        paper_bytes=_kinds(entry, "paper_bytes", where),
        reached=reached,
        steps_to_target=as_number(entry, "steps_to_target", where),
        bytes_to_target=as_number(entry, "bytes_to_target", where),
        paper_bytes_to_target=as_number(entry, "paper_bytes_to_target", where),
        seconds_to_target=as_number(entry, "seconds_to_target", where),
        seconds=as_number(entry, "seconds", where),
        wall_seconds=as_number(entry, "wall_seconds", where),
        error=None if error is None else str(error),
    )


def _kinds(entry: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    kinds = as_object(entry.get(key) or {}, f"{where}, {key}")
    counts = {kind: as_number(kinds, kind, f"{where}, {key}") for kind in kinds}
    known = {kind: value for kind, value in counts.items() if value is not None}
    if known and "total" not in known:
        known["total"] = sum(known.values())
    return known


def _partition(file: Path) -> Partition:
    data = as_object(read_json(file), file.name)
    counts, names = data.get("counts"), data.get("class_names")
    rows = counts if isinstance(counts, list) else []
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
    if not width or not all(isinstance(row, list) and len(row) == width and all(map(is_int, row)) for row in rows):
        raise damaged(file.name, "counts is not a table with one row of whole numbers per worker")
    if not isinstance(names, list) or len(names) != width:
        names = [str(i) for i in range(width)]
    return Partition(np.array(rows, dtype=np.int64), tuple(map(str, names)))
