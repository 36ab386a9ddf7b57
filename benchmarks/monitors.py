"""What a monitor costs per local step of LeNet-5 (d = 61,706, batch 32), single-threaded, and a sketch per byte.

    python benchmarks/monitors.py

The local step is forward, backward and Adam of one worker; monitor and local step are measured in turns. Once in a
process that simulates 15 workers (half of 30, on two cores), per worker, and once in one that hosts a single worker,
which also bears what a check costs once per process. The last lines set the block kernel, which serves models of any
size, beside a plain copy of the vector: the limit that memory sets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from sparsync.peers import FDA
from sparsync.sketch import Sketch
from sparsync.task import Task, from_arrays
from sparsync.workers import Arena, Fleet, LocalTraining
from sparsync.workers.batches import Batches

TURNS = 15


def seconds(call: Callable[[], object], n: int) -> float:
    """Seconds per call, over n."""
    begin = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - begin) / n


def measure(rows: int) -> None:
    """Print each monitor's share of a local step, per worker, in a process that hosts `rows` of them."""
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(256, size=(3000, 1, 28, 28), dtype=np.uint8), np.arange(3000) % 10
    task = Task(from_arrays(pictures, labels, pictures[:100], labels[:100]), "lenet5")
    module = task.module(0)
    fleet = Fleet(Arena(module, rows, torch.device("cpu"), torch.float32), rows)
    batches = [Batches(np.arange(3000), 32, "draws", 0, worker) for worker in range(rows)]
    training = LocalTraining(fleet, task, module, batches, "adam")
    anchor = fleet.params[0].clone()
    calls: dict[str, Callable[[], object]] = {}
    for name in ("naive", "linear", "sketch"):
        monitor = FDA(threshold=1.0, monitor=name).start(fleet).monitor
        calls[name] = partial(monitor.variance, fleet, anchor)
    n = max(2, 20 // rows)
    seconds(partial(training.train, 1), n)
    steps: list[float] = []
    costs: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        steps.append(seconds(partial(training.train, 1), n) / rows)
        for name, call in calls.items():
            costs[name].append(seconds(call, n) / rows)
    print(f"{rows} workers in the process: local step {min(steps) * 1e6:.0f} us")
    for name, cost in costs.items():
        share = statistics.median(c / s for c, s in zip(cost, steps, strict=True))
        print(f"  {name:8} {min(cost) * 1e6:6.0f} us per check and worker   {share:6.1%} of the step")


def main() -> None:
    torch.set_num_threads(1)
    print("LeNet-5, batch 32, Adam; at most 5 % of the step is wanted for a monitor")
    measure(15)
    measure(1)
    rng = np.random.default_rng(0)
    d = 4_000_000
    v = torch.randn(d)
    big = Sketch(d, 5, 250, rng)
    out = torch.empty_like(v)
    copies = min(seconds(lambda: out.copy_(v), 5) for _ in range(5))
    kernel = min(seconds(lambda: big(v[None]), 1) for _ in range(5))
    print(
        f"block kernel at d = {d:,}: {kernel * 1e3:.1f} ms for 5 rows, {kernel / 5 / copies:.1f} copies of the vector "
        f"per row ({4 * d / copies / 1e9:.1f} GB/s)"
    )


if __name__ == "__main__":
    main()
