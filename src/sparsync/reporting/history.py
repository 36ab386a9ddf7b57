"""What a run left behind, read back: ``summary.json``, ``history.jsonl`` and ``partition.json``.

:func:`load` turns a run's folder into one :class:`Run`; tables, figures and the report need nothing else. Curves
are kept as arrays, one :class:`History` per label and seed, since an FDA run can hold tens of thousands of checks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from sparsync.errors import DataError, UsageError

__all__ = ["Checks", "Evaluations", "History", "Partition", "Result", "Run", "load"]

Floats = NDArray[np.float64]
_EVALUATION = ("step", "accuracy", "loss", "train_loss", "bytes", "paper_bytes", "syncs", "seconds")
_CHECK = ("step", "estimate", "threshold", "sync", "variance")


@dataclass(frozen=True)
class Result:
    """How one strategy ended with one seed: an entry of ``summary.json``.

    Attributes
    ----------
    label : str
        Name of the strategy in tables and figures, unique within a run.
    syncs : int or None
        Model averagings, or rounds of a federation (then ``in_rounds``).
    bytes, paper_bytes : mapping of str to float
        Bytes by kind and their ``total``: what the topology moves, and what the method's authors would count.
    reached : bool or None
        Whether the target accuracy was reached; None without a target.
    error : str or None
        Why the run ended early; None if it did not.
    """

    label: str
    strategy: str
    spec: str
    seed: int
    workers: int | None
    steps: int | None
    syncs: int | None
    in_rounds: bool
    accuracy: float | None
    best_accuracy: float | None
    bytes: Mapping[str, float]
    paper_bytes: Mapping[str, float]
    reached: bool | None
    steps_to_target: float | None
    bytes_to_target: float | None
    paper_bytes_to_target: float | None
    seconds_to_target: float | None
    seconds: float | None
    wall_seconds: float | None
    error: str | None


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run, by increasing step: arrays of one length, (n,); NaN where nothing was recorded."""

    step: Floats
    accuracy: Floats
    loss: Floats
    train_loss: Floats
    bytes: Floats
    paper_bytes: Floats
    syncs: Floats
    seconds: Floats

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class Checks:
    """FDA's variance checks, by increasing step: arrays of one length, (n,).

    ``variance`` is the exact one, known at syncs only: NaN elsewhere.
    """

    step: Floats
    estimate: Floats
    threshold: Floats
    sync: NDArray[np.bool_]
    variance: Floats

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class History:
    """What one label recorded with one seed while it trained."""

    evaluations: Evaluations
    checks: Checks


@dataclass(frozen=True)
class Partition:
    """Who holds what.

    Attributes
    ----------
    counts : array of int, (workers, classes)
        Samples of each class that each worker holds.
    class_names : tuple of str
        Names of the columns.
    """

    counts: NDArray[np.int64]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One comparison: its setting, its results in order, and the histories by (label, seed)."""

    folder: Path
    version: str
    experiment: Mapping[str, Any]
    parameters: int | None
    results: tuple[Result, ...]
    histories: Mapping[tuple[str, int], History] = field(default_factory=dict)
    partition: Partition | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label once, in the order of the results; figures give out colours in this order."""
        return tuple(dict.fromkeys([*(r.label for r in self.results), *(label for label, _ in self.histories)]))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that the experiment asked for or that has a result."""
        listed = self.experiment.get("seeds")
        asked = [s for s in listed if _is_int(s)] if isinstance(listed, (list, tuple)) else []
        return tuple(dict.fromkeys([*asked, *(r.seed for r in self.results)]))

    @property
    def target(self) -> float | None:
        """The target accuracy, a fraction, or None."""
        target = self.experiment.get("target")
        return float(target) if _is_number(target) else None

    def of(self, label: str) -> tuple[Result, ...]:
        """Return the results of one label, one per seed."""
        return tuple(r for r in self.results if r.label == label)

    def histories_of(self, label: str) -> tuple[History, ...]:
        """Return the histories of one label, by seed."""
        return tuple(self.histories[key] for key in sorted(k for k in self.histories if k[0] == label))


def load(folder: str | Path) -> Run:
    """Read a run's folder.

    A last line of ``history.jsonl`` that was cut off (the run was killed while writing) is left out, and so are
    lines of a kind that this version does not know. Where a resumed run wrote a step twice, the later line counts.

    Parameters
    ----------
    folder : str or Path
        Where ``sparsync compare`` wrote, its ``--out``.

    Returns
    -------
    Run
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
    summary = _object(_json(summary_file), summary_file.name)
    entries = summary.get("results")
    if not isinstance(entries, list):
        raise _damaged(summary_file.name, f"results is {_show(entries)}, expected a list")
    version = summary.get("version")
    parameters = _number(summary, "parameters", summary_file.name)
    results = tuple(_result(entry, f"{summary_file.name}, result {i}") for i, entry in enumerate(entries))
    seen: set[tuple[str, int]] = set()
    for result in results:
        key = (result.label, result.seed)
        if key in seen:
            raise _damaged(summary_file.name, f"label {result.label!r} has two results for seed {result.seed}")
        seen.add(key)
    return Run(
        folder=folder,
        version=version if isinstance(version, str) else "unknown",
        experiment=_object(summary.get("experiment", {}), f"{summary_file.name}, experiment"),
        parameters=None if parameters is None else int(parameters),
        results=results,
        histories=_histories(history_file) if history_file.is_file() else {},
        partition=_partition(partition_file) if partition_file.is_file() else None,
    )


def _result(entry: Any, where: str) -> Result:
    entry = _object(entry, where)
    label, seed = entry.get("label"), entry.get("seed", 0)
    if not isinstance(label, str) or not label:
        raise _damaged(where, f"label is {_show(label)}, expected a name")
    if not _is_int(seed):
        raise _damaged(where, f"seed is {_show(seed)}, expected an integer")
    reached, error = entry.get("reached"), entry.get("error")
    if reached is not None and not isinstance(reached, bool):
        raise _damaged(where, f"reached is {_show(reached)}, expected true, false or null")

    def count(key: str) -> int | None:
        value = _number(entry, key, where)
        return None if value is None else int(value)

    in_rounds = entry.get("syncs") is None and entry.get("rounds") is not None
    return Result(
        label=label,
        strategy=str(entry.get("strategy", label)),
        spec=str(entry.get("spec", label)),
        seed=seed,
        workers=count("workers"),
        steps=count("steps"),
        syncs=count("rounds" if in_rounds else "syncs"),
        in_rounds=in_rounds,
        accuracy=_number(entry, "accuracy", where),
        best_accuracy=_number(entry, "best_accuracy", where),
        bytes=_kinds(entry, "bytes", where),
        paper_bytes=_kinds(entry, "paper_bytes", where),
        reached=reached,
        steps_to_target=_number(entry, "steps_to_target", where),
        bytes_to_target=_number(entry, "bytes_to_target", where),
        paper_bytes_to_target=_number(entry, "paper_bytes_to_target", where),
        seconds_to_target=_number(entry, "seconds_to_target", where),
        seconds=_number(entry, "seconds", where),
        wall_seconds=_number(entry, "wall_seconds", where),
        error=None if error is None else str(error),
    )


def _kinds(entry: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    kinds = _object(entry.get(key) or {}, f"{where}, {key}")
    counts = {kind: _number(kinds, kind, f"{where}, {key}") for kind in kinds}
    known = {kind: value for kind, value in counts.items() if value is not None}
    if known and "total" not in known:
        known["total"] = sum(known.values())
    return known


def _histories(file: Path) -> dict[tuple[str, int], History]:
    evaluations: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    checks: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    lines = _read(file).split(b"\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{file.name}, line {i + 1}"
        try:
            entry = json.loads(line)
        except ValueError as problem:
            if i == last:
                break  # killed while writing: the rest of the file counts
            raise _damaged(where, "not JSON") from problem
        entry = _object(entry, where)
        kind = entry.get("kind")
        if kind not in ("evaluation", "check"):
            continue
        key = (str(entry.get("label")), entry.get("seed", 0))
        if not _is_int(key[1]):
            raise _damaged(where, f"seed is {_show(key[1])}, expected an integer")
        if kind == "evaluation":
            if entry.get("syncs") is None and "rounds" in entry:
                entry["syncs"] = entry["rounds"]
            evaluations.setdefault(key, []).append(_row(entry, _EVALUATION, where))
        else:
            checks.setdefault(key, []).append(_row({**entry, "sync": float(bool(entry.get("sync")))}, _CHECK, where))
    return {
        key: History(_evaluations(evaluations.get(key, [])), _checks(checks.get(key, [])))
        for key in dict.fromkeys([*evaluations, *checks])
    }


def _row(entry: Mapping[str, Any], columns: tuple[str, ...], where: str) -> tuple[float, ...]:
    if not _is_number(entry.get("step")):
        raise _damaged(where, f"step is {_show(entry.get('step'))}, expected a number")
    values = (_number(entry, column, where) for column in columns)
    return tuple(np.nan if value is None else value for value in values)


def _evaluations(rows: list[tuple[float, ...]]) -> Evaluations:
    return Evaluations(*_columns(rows, len(_EVALUATION)))


def _checks(rows: list[tuple[float, ...]]) -> Checks:
    step, estimate, threshold, sync, variance = _columns(rows, len(_CHECK))
    return Checks(step, estimate, threshold, sync > 0, variance)


def _columns(rows: list[tuple[float, ...]], width: int) -> list[Floats]:
    latest = {row[0]: row for row in rows}  # a resumed run may repeat steps: the later line counts
    table = np.array([latest[step] for step in sorted(latest)], dtype=np.float64).reshape(-1, width)
    return list(table.T)


def _partition(file: Path) -> Partition:
    data = _object(_json(file), file.name)
    counts, names = data.get("counts"), data.get("class_names")
    rows = counts if isinstance(counts, list) else []
    width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
    if not width or not all(isinstance(row, list) and len(row) == width and all(map(_is_int, row)) for row in rows):
        raise _damaged(file.name, "counts is not a table with one row of whole numbers per worker")
    if not isinstance(names, list) or len(names) != width:
        names = [str(i) for i in range(width)]
    return Partition(np.array(rows, dtype=np.int64), tuple(map(str, names)))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as problem:
        raise DataError(f"{file} cannot be read ({problem.strerror}); check that it is yours to read.") from problem


def _json(file: Path) -> Any:
    try:
        return json.loads(_read(file))
    except ValueError as problem:
        raise _damaged(file.name, "not JSON") from problem


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _damaged(where, f"{_show(value)} where an object was expected")
    return value


def _number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if not _is_number(value):
        raise _damaged(where, f"{key} is {_show(value)}, expected a number")
    return float(value)


def _damaged(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what}; the file is damaged or was edited, so run `sparsync compare` again.")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
