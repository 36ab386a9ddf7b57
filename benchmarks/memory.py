"""Memory of a simulation of 1,000 LeNet-5 workers under LinearFDA with Adam, in arenas (1,000 models of float32).

    python benchmarks/memory.py [--workers 1000]

The peak resident memory of a process that trains and averages, less that of the same process with 2 workers (Python,
torch, data), less the optimisers' state, which is counted tensor by tensor. Parameters and gradients are 2 arenas.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from sparsync.peers import FDA
from sparsync.task import Task, from_arrays, partition
from sparsync.workers import Arena, Fleet, LocalTraining
from sparsync.workers.batches import Batches


def measure(workers: int) -> None:
    """Train in this process, and print its peak memory."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(256, size=(20_000, 1, 28, 28), dtype=np.uint8), np.arange(20_000) % 10
    task = Task(from_arrays(pictures, labels, pictures[:100], labels[:100]), "lenet5")
    module = task.module(0)
    fleet = Fleet(Arena(module, workers, torch.device("cpu"), torch.float32), workers)
    parts = partition("iid", labels, workers, 0)
    batches = [Batches(part, 8, "draws", 0, worker) for worker, part in enumerate(parts)]
    training = LocalTraining(fleet, task, module, batches, "adam")
    strategy = FDA(threshold=0.5).start(fleet)
    while fleet.syncs < 2:
        training.train(strategy.local_steps(fleet))
        strategy.exchange(fleet)
    states = [value for worker in training.workers for value in training.optimizer.state[worker.row].values()]
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    arena = fleet.params.numel() * fleet.params.itemsize
    print(json.dumps({"peak": peak, "arena": arena, "optimizer": sum(x.numel() * x.itemsize for x in states)}))


def child(workers: int) -> dict[str, int]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", "--workers", str(workers)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Memory of a simulation, in arenas.")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.measure:
        measure(said.workers)
    else:
        few, many = child(2), child(said.workers)
        arenas = (many["peak"] - few["peak"] - many["optimizer"]) / many["arena"]
        print(
            f"{said.workers} workers: peak {many['peak'] / 1e6:.0f} MB, of which 2 workers' {few['peak'] / 1e6:.0f} MB"
        )
        print(f"arena {many['arena'] / 1e6:.0f} MB, optimiser state {many['optimizer'] / 1e6:.0f} MB")
        print(f"ratio {arenas:.2f} arenas (at most 2.5 are wanted)")
