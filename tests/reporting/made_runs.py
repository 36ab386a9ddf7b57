"""What made-up runs share: strategies written into a run's folder as the engine would, and what figures say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from sparsync.reporting import FIGURES, ComparisonRecord

Line = dict[str, Any]


def add_strategies(
    folder: Path,
    labels: Iterable[str],
    seeds: Iterable[int],
    lines: Callable[[str, int, random.Random], Iterable[Line]],
    workers: int,
    **experiment: Any,
) -> Path:
    """Add strategies to the run in a folder; their last evaluations are their results.

    ``lines`` returns the history of a label with a seed; ``experiment`` is added to the setting.
    """
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    summary["experiment"] |= experiment
    with (folder / "history.jsonl").open("a") as history:
        for label in labels:
            for seed in seeds:
                made = list(lines(label, seed, random.Random(f"{label} {seed}")))
                history.writelines(json.dumps({"label": label, "seed": seed, **line}) + "\n" for line in made)
                last = [line for line in made if line["kind"] == "evaluation"][-1]
                summary["results"].append(_result(label, seed, workers, last))
    file.write_text(json.dumps(summary))
    return folder


def _result(label: str, seed: int, workers: int, last: Line) -> Line:
    return {
        "label": label,
        "strategy": label.partition(":")[0],
        "spec": label,
        "seed": seed,
        "workers": workers,
        "steps": last["step"],
        **{unit: last[unit] for unit in ("rounds", "epochs") if unit in last},
        "accuracy": last["accuracy"],
        "best_accuracy": last["accuracy"],
        "bytes": {"total": last["bytes"], **last["bytes_by_kind"]},
        "paper_bytes": {"total": last["paper_bytes"]},
        "reached": False,
        "seconds": last["seconds"],
        "wall_seconds": 30.0,
        "error": None,
    }


def rewritten(run: ComparisonRecord, change: Callable[[Line], Any]) -> None:
    """Change what a run's summary says, in its folder."""
    file = run.folder / "summary.json"
    summary = json.loads(file.read_text())
    change(summary)
    file.write_text(json.dumps(summary))


def figure_of(name: str, run: ComparisonRecord) -> Figure | None:
    """Draw a figure of the report."""
    return next(plot for plot in FIGURES if plot.name == name).figure(run)


def texts(figure: Figure) -> list[str]:
    """Return all that a figure says."""
    return [text.get_text() for text in figure.findobj(Text)]
