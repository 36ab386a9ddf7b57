"""``history.jsonl`` read back, by label and seed: each kind of line has a reader, and ends as arrays."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparsync.reporting.fields import as_int, as_number, as_object, damaged, is_int, is_number, read_lines, show
from sparsync.reporting.history import (
    CycleRecords,
    Evaluations,
    Floats,
    History,
    Ints,
    LDSSchedules,
    Rejection,
    RoundRecords,
    SplitSteps,
    TimelineRecord,
    VarianceChecks,
)
from sparsync.system import ACTIVITIES

__all__ = ["histories"]

Row = tuple[float, ...]
_EVALUATION = tuple(column.name for column in fields(Evaluations))
_CHECK = tuple(column.name for column in fields(VarianceChecks))
_STEP = ("step", "epoch", "size", "deviation", "seconds", "slowest")
_SCHEDULE = ("step", "epoch", "alpha_0")  # and then pi
_NO_COLUMN = {"kind", "label", "seed", "round", "iou_history"}  # of a round


@dataclass
class _Found:
    """What the lines of one label and seed say, by step or round: where a resumed run repeats one, the later counts."""

    evaluations: dict[float, Row] = field(default_factory=dict)
    checks: dict[float, Row] = field(default_factory=dict)
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    agreement: dict[tuple[int, int], float] = field(default_factory=dict)  # (round, earlier round)
    rejections: list[Rejection] = field(default_factory=list)
    schedules: dict[float, Row] = field(default_factory=dict)  # of an epoch, which may be composed anew, the first
    steps: array[float] = field(default_factory=lambda: array("d"))  # by line: there may be hundreds of thousands
    late: array[int] = field(default_factory=lambda: array("q"))  # (line, client)
    asked: array[int] = field(default_factory=lambda: array("q"))  # (line, client, size)
    pieces: array[float] = field(default_factory=lambda: array("d"))  # (worker, activity, start, end)
    cycles: dict[int, Floats] = field(default_factory=dict)  # (6, K)
    rings: dict[int, tuple[float, float]] = field(default_factory=dict)  # when all had met, and had the mean
    merges: dict[int, Floats] = field(default_factory=dict)  # (m, 2): devices, and when

    def history(self) -> History:
        step, estimate, threshold, sync, variance = _columns(self.checks, len(_CHECK))
        return History(
            Evaluations(*_columns(self.evaluations, len(_EVALUATION))),
            VarianceChecks(step, estimate, threshold, sync > 0, variance),
            self._rounds(),
            self._steps(),
            self._schedules(),
            self._timeline(),
            self._cycles(),
            tuple(self.rejections),
        )

    def _rounds(self) -> RoundRecords:
        numbers = sorted(self.rounds)
        keys = dict.fromkeys(key for number in numbers for key in self.rounds[number])
        columns = {key: np.array([self.rounds[n].get(key, np.nan) for n in numbers], np.float64) for key in keys}
        agreement = tuple((*pair, self.agreement[pair]) for pair in sorted(self.agreement))
        return RoundRecords(np.array(numbers, np.float64), columns, agreement)

    def _steps(self) -> SplitSteps:
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
        return SplitSteps(step, epoch, size, deviation, seconds, slowest, late, asked)

    def _schedules(self) -> LDSSchedules:
        width = len(next(iter(self.schedules.values()), _SCHEDULE))
        step, epoch, alpha_0, *pi = _columns(self.schedules, width)
        return LDSSchedules(step, epoch, alpha_0, np.array(pi).reshape(width - len(_SCHEDULE), len(step)).T)

    def _timeline(self) -> TimelineRecord:
        pieces = np.array(self.pieces).reshape(-1, 4)
        pieces = pieces[np.lexsort((pieces[:, 2], pieces[:, 0]))]  # stable: of those that were written twice, the last
        last = np.r_[(np.diff(pieces[:, [0, 2]], axis=0) != 0).any(axis=1), np.ones(len(pieces[:1]), bool)]
        worker, activity, start, end = pieces[last].T.copy()
        return TimelineRecord(worker.astype(np.int64), activity.astype(np.int64), start, end)

    def _cycles(self) -> CycleRecords:
        numbers, devices = sorted(self.cycles), len(next(iter(self.cycles.values()), np.empty((6, 0)))[0])
        rows = np.array([self.cycles[number] for number in numbers]).reshape(len(numbers), 6, devices)
        units, selected, broadcasts, versions, predicted, expected = rows.transpose(1, 0, 2)
        broadcaster = np.nonzero(broadcasts)[1]
        met, averaged = np.array([self.rings[number] for number in numbers]).reshape(len(numbers), 2).T
        merges = np.concatenate([np.empty((0, 2)), *(self.merges[number] for number in numbers)])
        number = np.array(numbers, np.float64)
        forecasts = versions, predicted, expected
        return CycleRecords(number, units, selected > 0, broadcaster, *forecasts, met, averaged, merges)


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
    cut_off: tuple[str, Exception] | None = None
    for number, line in read_lines(file):
        if not line.strip():
            continue
        if cut_off is not None:  # but it was not the last one
            raise damaged(cut_off[0], "not JSON") from cut_off[1]
        where = f"{file.name}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as problem:
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


def _schedule(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    row, epoch, pi = _row(entry, _SCHEDULE, where), as_int(entry.get("epoch"), "epoch", where), entry.get("pi")
    if not (isinstance(pi, list) and pi and all(map(is_number, pi))):
        raise damaged(where, f"pi is {show(pi)}, expected a number for each client")
    known = next(iter(found.schedules.values()), (*row, *pi))
    if len(known) != len(row) + len(pi):
        raise damaged(where, f"pi has {len(pi)} numbers, before it had {len(known) - len(row)}")
    if epoch not in found.schedules or row[0] <= found.schedules[epoch][0]:
        found.schedules[epoch] = (*row, *pi)


def _rejection(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    number, client = (as_int(entry.get(key), key, where) for key in ("round", "client"))
    found.rejections.append(Rejection(number, client, str(entry.get("reason") or "no reason was recorded")))


def _lost(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    unit = "cycle" if "cycle" in entry else "epoch"
    number, client = (as_int(entry.get(key), key, where) for key in (unit, "client"))
    found.rejections.append(Rejection(number, client, str(entry.get("reason") or "no reason was recorded"), unit))


def _timeline(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    pieces = entry.get("pieces")
    for piece in pieces if isinstance(pieces, list) else [pieces]:
        if not (isinstance(piece, list) and len(piece) == 4 and _is_piece(*piece)):
            what = f"pieces holds {show(piece)}, expected worker, activity, start and end"
            raise damaged(where, what)
        worker, activity, start, end = piece
        found.pieces.extend((worker, ACTIVITIES.index(activity), start, end))


def _is_piece(worker: Any, activity: Any, start: Any, end: Any) -> bool:
    known = is_int(worker) and 0 <= worker < 2**31 and activity in ACTIVITIES
    return known and is_number(start) and is_number(end) and 0 <= start < end < np.inf


def _cycle(found: _Found, entry: Mapping[str, Any], where: str) -> None:
    number = as_int(entry.get("cycle"), "cycle", where)
    units, there, ring = (_wholes(entry, key, where) for key in ("units", "available", "ring"))
    devices = len(next(iter(found.cycles.values()), [units])[0])
    if len(units) != devices or not units:
        raise damaged(where, f"units is {show(units)}, expected a number for each device")
    broadcaster = as_int(entry.get("broadcaster"), "broadcaster", where)
    if broadcaster not in ring or not set(ring) <= set(there) <= set(range(devices)):
        raise damaged(where, f"available is {show(there)}, expected devices up to {devices - 1}, the ring among them")
    columns = np.full((6, devices), np.nan)
    columns[0], columns[1:3] = units, 0
    columns[1, ring], columns[2, broadcaster] = 1, 1
    for row, key in enumerate(("versions", "predicted", "expected"), 3):
        values = entry.get(key)
        if not (isinstance(values, list) and len(values) == len(there) and all(map(is_number, values))):
            raise damaged(where, f"{key} is {show(values)}, expected a number for each device that is available")
        columns[row, there] = values
    found.cycles[number] = columns
    found.rings[number], found.merges[number] = _ring_times(entry, where), _merges(entry, devices, where)


def _ring_times(entry: Mapping[str, Any], where: str) -> tuple[float, float]:
    """When the members had met, and when they had the mean: NaN if nobody noted it."""
    met, averaged = entry.get("met"), entry.get("averaged")
    if met is None and averaged is None:
        return np.nan, np.nan
    if not (is_number(met) and is_number(averaged) and 0 <= met <= averaged < np.inf):
        raise damaged(where, f"met and averaged are {show(met)} and {show(averaged)}, expected seconds in this order")
    return float(met), float(averaged)


def _merges(entry: Mapping[str, Any], devices: int, where: str) -> Floats:
    merges = entry.get("merges")
    if merges is None:
        merges = []
    for merge in merges if isinstance(merges, list) else [merges]:
        if not (isinstance(merge, list) and len(merge) == 2 and _is_merge(merge[0], merge[1], devices)):
            raise damaged(where, f"merges holds {show(merge)}, expected a device up to {devices - 1} and seconds")
    return np.array(merges, np.float64).reshape(-1, 2)


def _is_merge(device: Any, when: Any, devices: int) -> bool:
    return is_int(device) and 0 <= device < devices and is_number(when) and 0 <= when < np.inf


_READERS: dict[str, Callable[[_Found, Mapping[str, Any], str], None]] = {
    "evaluation": _evaluation,
    "check": _check,
    "round": _round,
    "step": _step,
    "schedule": _schedule,
    "timeline": _timeline,
    "cycle": _cycle,
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
