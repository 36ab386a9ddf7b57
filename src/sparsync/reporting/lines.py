"""``history.jsonl`` read back: evaluations, checks, rounds, steps and refused uploads, by label and seed."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparsync.reporting.fields import as_int, as_number, as_object, damaged, is_int, is_number, read_lines, show
from sparsync.reporting.history import Checks, Evaluations, Floats, History, Ints, Rejection, Rounds, Steps

__all__ = ["histories"]

Row = tuple[float, ...]
_EVALUATION = tuple(column.name for column in fields(Evaluations))
_CHECK = tuple(column.name for column in fields(Checks))
_STEP = ("step", "epoch", "size", "deviation", "seconds", "slowest")
_NO_COLUMN = {"kind", "label", "seed", "round", "iou_history"}  # of a round


@dataclass
class _Found:
    """What the lines of one label and seed say, by step or round: where a resumed run repeats one, the later counts."""

    evaluations: dict[float, Row] = field(default_factory=dict)
    checks: dict[float, Row] = field(default_factory=dict)
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    agreement: dict[tuple[int, int], float] = field(default_factory=dict)  # (round, earlier round)
    rejections: list[Rejection] = field(default_factory=list)
    steps: array[float] = field(default_factory=lambda: array("d"))  # by line: there may be hundreds of thousands
    late: array[int] = field(default_factory=lambda: array("q"))  # (line, client)
    asked: array[int] = field(default_factory=lambda: array("q"))  # (line, client, size)

    def history(self) -> History:
        step, estimate, threshold, sync, variance = _columns(self.checks, len(_CHECK))
        return History(
            Evaluations(*_columns(self.evaluations, len(_EVALUATION))),
            Checks(step, estimate, threshold, sync > 0, variance),
            self._rounds(),
            self._steps(),
            tuple(self.rejections),
        )

    def _rounds(self) -> Rounds:
        numbers = sorted(self.rounds)
        keys = dict.fromkeys(key for number in numbers for key in self.rounds[number])
        columns = {key: np.array([self.rounds[n].get(key, np.nan) for n in numbers], np.float64) for key in keys}
        agreement = tuple((*pair, self.agreement[pair]) for pair in sorted(self.agreement))
        return Rounds(np.array(numbers, np.float64), columns, agreement)

    def _steps(self) -> Steps:
        lines = np.array(self.steps).reshape(-1, len(_STEP))
        _, from_end = np.unique(lines[::-1, 0], return_index=True)
        kept = len(lines) - 1 - from_end
        index = np.full(len(lines), -1)
        index[kept] = np.arange(len(kept))

        def indexed(entries: array[int], width: int) -> Ints:
            table = np.array(entries).reshape(-1, width)
            table[:, 0] = index[table[:, 0]]
            return table[table[:, 0] >= 0]

        step, epoch, size, deviation, seconds, slowest = lines[kept].T.copy()
        late, asked = indexed(self.late, 2), indexed(self.asked, 3)
        return Steps(step, epoch, size, deviation, seconds, slowest, late, asked)


def histories(file: Path) -> dict[tuple[str, int], History]:
    """Read ``history.jsonl``.

    A last line that was cut off (the run was killed while writing) is left out, and so are lines of a kind that this
    version does not know.

    Returns
    -------
    dict
        From (label, seed) to the history.

    Raises
    ------
    DataError
        If a line is damaged.
    """
    found: dict[tuple[str, int], _Found] = {}
    cut_off: tuple[str, ValueError] | None = None
    for number, line in read_lines(file):
        if not line.strip():
            continue
        if cut_off is not None:  # but it was not the last one
            raise damaged(cut_off[0], "not JSON") from cut_off[1]
        where = f"{file.name}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as problem:
            cut_off = where, problem  # killed while writing: the rest of the file counts
            continue
        entry = as_object(entry, where)
        reader = _READERS.get(str(entry.get("kind")))
        if reader is not None:
            key = str(entry.get("label")), as_int(entry.get("seed", 0), "seed", where)
            reader(found.setdefault(key, _Found()), entry, where)
    return {key: lines_of.history() for key, lines_of in found.items()}


def _evaluation(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    if entry.get("syncs") is None:  # a round is a sync of its cohort
        entry = {**entry, "syncs": entry.get("rounds")}
    row = _row(entry, _EVALUATION, where)
    found.evaluations[row[0]] = row


def _check(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    row = _row({**entry, "sync": float(bool(entry.get("sync")))}, _CHECK, where)
    found.checks[row[0]] = row


def _round(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    number = as_int(entry.get("round"), "round", where)
    noted = found.rounds.setdefault(number, {})
    for key, value in entry.items():
        if key in _NO_COLUMN or isinstance(value, (dict, list)):  # structure that this version does not know
            continue
        known = as_number(entry, key, where)
        if known is not None:
            noted[key] = known
    pairs = entry.get("iou_history") or []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2 and is_int(pair[0]) and is_number(pair[1])):
            raise damaged(where, f"iou_history holds {show(pair)}, expected pairs of a round and a number")
        found.agreement[number, pair[0]] = float(pair[1])


def _step(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    number = len(found.steps) // len(_STEP)
    found.steps.extend(_row(entry, _STEP, where))
    for client in _wholes(entry, "late", where):
        found.late.extend((number, client))
    clients, sizes = _wholes(entry, "clients", where), _wholes(entry, "sizes", where)
    if len(clients) != len(sizes):
        raise damaged(where, f"{len(clients)} clients and {len(sizes)} sizes, expected as many")
    for client, size in zip(clients, sizes, strict=True):
        found.asked.extend((number, client, size))


def _rejection(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    number, client = (as_int(entry.get(key), key, where) for key in ("round", "client"))
    found.rejections.append(Rejection(number, client, str(entry.get("reason") or "no reason was recorded")))


def _lost(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    number, client = (as_int(entry.get(key), key, where) for key in ("epoch", "client"))
    found.rejections.append(Rejection(number, client, str(entry.get("reason") or "no reason was recorded"), "epoch"))


_READERS: dict[str, Callable[[_Found, Mapping[str, Any], str], None]] = {
    "evaluation": _evaluation,
    "check": _check,
    "round": _round,
    "step": _step,
    "rejection": _rejection,
    "lost": _lost,
}


def _row(entry: Mapping[str, Any], columns: Sequence[str], where: str) -> Row:
    if not is_number(entry.get("step")):
        raise damaged(where, f"step is {show(entry.get('step'))}, expected a number")
    values = (as_number(entry, column, where) for column in columns)
    return tuple(np.nan if value is None else value for value in values)


def _wholes(entry: Mapping[str, Any], key: str, where: str) -> list[int]:
    found = entry.get(key) or []
    if not (isinstance(found, list) and all(is_int(one) and 0 <= one < 2**31 for one in found)):
        raise damaged(where, f"{key} is {show(found)}, expected whole numbers from 0")
    return found


def _columns(rows: Mapping[float, Row], width: int) -> list[Floats]:
    table = np.array([rows[step] for step in sorted(rows)], dtype=np.float64).reshape(-1, width)
    return list(table.T)
