"""Timelines in Chrome's Trace Event Format, for chrome://tracing or ui.perfetto.dev: zoom in, and see who waits.

A strategy with a seed is a process, a worker a thread of it; a microsecond is one of virtual time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparsync.reporting.history import ComparisonRecord
from sparsync.storage import replacing
from sparsync.system import ACTIVITIES

__all__ = ["write_trace"]

Event = dict[str, Any]


def write_trace(run: ComparisonRecord, folder: str | Path) -> Path | None:
    """Write ``trace.json`` into a run's folder.

    Parameters
    ----------
    run : ComparisonRecord
        What :func:`sparsync.reporting.load` read.
    folder : str or Path
        The run's folder.

    Returns
    -------
    Path or None
        The file; None if the run recorded no timeline.
    """
    if not any(len(history.timeline) for history in run.histories.values()):
        return None
    file = Path(folder) / "trace.json"
    with replacing(file) as partial, partial.open("w", encoding="utf-8") as out:
        out.write('{"displayTimeUnit": "ms", "traceEvents": [')
        separator = "\n"
        for event in _events(run):
            out.write(separator + json.dumps(event, allow_nan=False, separators=(",", ":")))
            separator = ",\n"
        out.write("\n]}\n")
    return file


def _events(run: ComparisonRecord) -> Iterator[Event]:
    """Go through a run's pieces, event by event: hundreds of thousands need not be in memory at once."""
    places = {label: place for place, label in enumerate(run.labels)}
    keys = sorted(run.histories, key=lambda key: (places[key[0]], key[1]))
    for pid, (label, seed) in enumerate(keys, 1):
        timeline = run.histories[label, seed].timeline
        if not len(timeline):
            continue
        yield _named(pid, "process_name", f"{label} (seed {seed})")
        yield _sorted(pid, "process_sort_index", pid)
        for worker in np.unique(timeline.worker).tolist():
            yield _named(pid, "thread_name", f"worker {worker}", worker)
            yield _sorted(pid, "thread_sort_index", worker, worker)
        pieces = zip(timeline.worker, timeline.activity, timeline.start, timeline.end, strict=True)
        for worker, activity, start, end in pieces:
            at, until = round(1e6 * float(start), 3), round(1e6 * float(end), 3)  # to the nanosecond, without a gap
            name, lasts = ACTIVITIES[activity], round(until - at, 3)
            yield {"name": name, "ph": "X", "pid": pid, "tid": int(worker), "ts": at, "dur": lasts}


def _named(pid: int, what: str, name: str, tid: int = 0) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _sorted(pid: int, what: str, place: int, tid: int = 0) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"sort_index": place}}
