"""What a monitor costs per local step of LeNet-5 (d = 61,706, batch 32), single-threaded, and a sketch per byte.

    python benchmarks/monitors.py

The local step is forward, backward and Adam. Monitor and local step are measured in turns. The last lines set the block
kernel, which serves models of any size, beside a plain copy of the vector: the limit that memory sets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from sparsync.peers import FDA
from sparsync.peers.sketch import Sketch, _Blocks, _signs
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


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(256, size=(2000, 1, 28, 28), dtype=np.uint8), np.arange(2000) % 10
    task = Task(from_arrays(pictures, labels, pictures[:100], labels[:100]), "lenet5")
    module = task.module(0)
    fleet = Fleet(Arena(module, 1, torch.device("cpu"), torch.float32), 1)
    training = LocalTraining(fleet, task, module, [Batches(np.arange(2000), 32, "draws", 0, 0)], "adam")
    anchor = fleet.params[0].clone()
    monitors = {name: FDA(threshold=1.0, monitor=name)._monitor(fleet) for name in ("naive", "linear", "sketch")}
    rotations = rng.integers(250, size=(5, -(-fleet.d // 250)))
    blocks = _Blocks(fleet.d, rotations, _signs(rng, 5, rotations.shape[1] * 250), 250, anchor.device, anchor.dtype)

    def local_step() -> None:
        training.train(1)

    calls: dict[str, Callable[[], object]] = {
        name: lambda monitor=monitor: monitor.variance(fleet, anchor)  # type: ignore[misc]
        for name, monitor in monitors.items()
    }
    seconds(local_step, 20)
    shares: dict[str, list[float]] = {name: [] for name in calls}
    steps, costs = [], {name: [] for name in calls}
    for _ in range(TURNS):
        steps.append(seconds(local_step, 20))
        for name, call in calls.items():
            costs[name].append(seconds(call, 20))
            shares[name].append(costs[name][-1] / steps[-1])
    print(f"local step of LeNet-5, batch 32, Adam: {min(steps) * 1e6:.0f} us")
    for name in calls:
        share = statistics.median(shares[name])
        print(f"{name:8} {min(costs[name]) * 1e6:6.0f} us per check   {share:6.1%} of the step (at most 5 % is wanted)")

    d = 4_000_000
    v = torch.randn(d)
    big = Sketch(d, 5, 250, rng)
    out = torch.empty_like(v)
    copies = min(seconds(lambda: out.copy_(v), 5) for _ in range(5))
    kernel = min(seconds(lambda: big(v[None]), 1) for _ in range(5))
    small = min(seconds(lambda: blocks(anchor), 20) for _ in range(5))
    print(f"block kernel at d = {fleet.d:,}: {small * 1e6:.0f} us")
    print(
        f"block kernel at d = {d:,}: {kernel * 1e3:.1f} ms for 5 rows, {kernel / 5 / copies:.1f} copies of the vector "
        f"per row ({4 * d / copies / 1e9:.1f} GB/s)"
    )


if __name__ == "__main__":
    main()
