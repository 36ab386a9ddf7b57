"""How long sparsync takes to start, in CPU time, beside what it cannot do without: Python itself, or torch.

    python benchmarks/startup.py

Every line is a process of its own, several times in turn; printed are medians, and their ratio to the limit.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

TURNS = 7
LIMITS = {"python": "pass", "torch": "import torch"}
COMMANDS = {
    "import sparsync": ("python", ["-c", "import sparsync"]),
    "--version": ("python", ["-m", "sparsync", "--version"]),
    "--help": ("python", ["-m", "sparsync", "--help"]),
    "list": ("python", ["-m", "sparsync", "list"]),
    "a typo": ("python", ["-m", "sparsync", "compare", "--strategy", "fdaa"]),
    "sparsync.attach": ("torch", ["-c", "import sparsync; sparsync.attach"]),
    "sparsync.Experiment()": ("torch", ["-c", "import sparsync; sparsync.Experiment()"]),
}


def seconds(arguments: list[str]) -> float:
    """CPU seconds of a Python process, user and system."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    """Print a line for each command."""
    processes = {name: ["-c", code] for name, code in LIMITS.items()}
    processes |= {name: arguments for name, (_, arguments) in COMMANDS.items()}
    took: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(TURNS):
        for name, arguments in processes.items():
            took[name].append(seconds(arguments))
    median = {name: statistics.median(values) for name, values in took.items()}
    for name in LIMITS:
        print(f"{name:24} {median[name]:6.2f} s")
    for name, (limit, _) in COMMANDS.items():
        ratio, beyond = median[name] / median[limit], median[name] - median[limit]
        print(f"{name:24} {median[name]:6.2f} s, {ratio:5.2f} times {limit}, {beyond:+.2f} s")


if __name__ == "__main__":
    main()
