"""How sparse strategies really were: density on the way down, and weights that came back.

    python benchmarks/sparsity.py RUN [--after 20]

RUN is the folder of a comparison, or of a study. Of every strategy that recorded densities, over all seeds: the global
model's density on the downlink after the first rounds and at the end, against the target, and how many weights a
client's training brought back from zero per round (mean over clients and rounds after those). Nothing is trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sparsync.reporting import ComparisonRecord, load


def table(run: ComparisonRecord, after: int) -> list[str]:
    """Return the lines of one comparison's table."""
    lines = [
        f"| Strategy | Target | Density, round {after + 1} | Density, last round | Regrown per client and round |",
        "|---|---:|---:|---:|---:|",
    ]
    for label in run.labels:
        histories = [
            history.rounds
            for history in run.histories_of(label)
            if np.isfinite(history.rounds.of("down_density")).any()
        ]
        if not histories:
            continue
        late = [history.number > after for history in histories]
        down = [history.of("down_density")[keep] for history, keep in zip(histories, late, strict=True)]
        regrown = [
            float(np.nanmean(history.of("regrown")[keep])) for history, keep in zip(histories, late, strict=True)
        ]
        target = 1 - float(histories[0].of("sparsity_target")[-1])
        cells = [f"`{label}`", f"{target:.1%}", _spread([d[0] for d in down]), _spread([d[-1] for d in down])]
        lines.append("| " + " | ".join([*cells, f"{np.mean(regrown):,.1f}"]) + " |")
    return lines


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2%}" if f"{low:.2%}" == f"{high:.2%}" else f"{low:.2%} to {high:.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--after", type=int, default=20, help="rounds to leave out at the beginning")
    given = parser.parse_args()
    folders = (
        [given.run] if (given.run / "run.json").exists() else sorted(p.parent for p in given.run.glob("*/run.json"))
    )
    for folder in folders:
        if len(folders) > 1:
            print(f"\n### {folder.name}\n")
        print("\n".join(table(load(folder), given.after)))


if __name__ == "__main__":
    main()
