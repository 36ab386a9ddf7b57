"""Simulator speed: 30 workers of LeNet-5 under LinearFDA against bare forward and backward passes.

    python benchmarks/simulator.py [--data-root DIR] [--seconds 8]

Both are measured in one run, in the same single-threaded processes (one per core), in turns, so that whatever else the
machine does hits both alike. The bare pass is the same model and batch size on one batch held in memory: no data, no
optimiser, no communication. The simulator takes MNIST's real batches (random pictures of the same shape without
--data-root: speed does not depend on them), Adam steps, drifts, states, the all-reduce between the processes, and the
averages when they are due.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from sparsync.engines.processes import cores, run
from sparsync.peers import FDA
from sparsync.task import Task, from_arrays, load_dataset, partition
from sparsync.workers import Arena, Fleet, Group, LocalTraining
from sparsync.workers.batches import Batches
from sparsync.workers.group import share

WORKERS, BATCH, TURNS = 30, 32, 5


def job(group: Group, argument: tuple[str | None, float]) -> None:
    """Measure in turns, as one of the processes; rank 0 prints."""
    torch.set_num_threads(1)
    root, seconds = argument
    if root:
        dataset = load_dataset("mnist", root)
    else:
        rng = np.random.default_rng(0)
        pictures, labels = rng.integers(256, size=(60_000, 1, 28, 28), dtype=np.uint8), np.arange(60_000) % 10
        dataset = from_arrays(pictures, labels, pictures[:1000], labels[:1000])
    task = Task(dataset, "lenet5")
    module = task.module(0)
    rows = share(WORKERS, group.size, group.rank)
    parts = partition("iid", dataset.train.labels.numpy(), WORKERS, 0)
    fleet = Fleet(Arena(module, len(rows), torch.device("cpu"), torch.float32), WORKERS, group=group)
    batches = [Batches(parts[worker], BATCH, "draws", 0, worker) for worker in rows]
    training = LocalTraining(fleet, task, module, batches, "adam")
    fleet.start()
    strategy = FDA(threshold=2.0).start(fleet)
    bare_model = task.module(0)
    inputs, targets = dataset.train.batch(parts[0][:BATCH])

    def bare() -> None:
        for _ in rows:
            bare_model.zero_grad(set_to_none=True)
            task.loss(bare_model(inputs), targets).backward()

    def simulated() -> None:
        training.train(strategy.local_steps(fleet))
        strategy.exchange(fleet)

    def rate(step: object, n: int) -> float:
        """Local steps per second of all processes together: from the same start to the last one's end."""
        group.barrier()
        begin = time.perf_counter()
        for _ in range(n):
            step()  # type: ignore[operator]
        group.barrier()
        return n * WORKERS / (time.perf_counter() - begin)

    n = max(1, int(seconds * rate(bare, 3) / WORKERS / (2 * TURNS)))
    n = -group.minimum(-n)  # the same everywhere
    rate(simulated, 3)
    pairs = [(rate(bare, n), rate(simulated, n)) for _ in range(TURNS)]
    if group.rank == 0:
        ratio = statistics.median(simulated / bare for bare, simulated in pairs)
        fastest_bare, fastest = max(bare for bare, _ in pairs), max(simulated for _, simulated in pairs)
        print(f"{WORKERS} LeNet-5 workers, batch {BATCH}, {group.size} single-threaded processes, {fleet.syncs} syncs")
        print(f"bare forward and backward   {fastest_bare:8.0f} local steps/s")
        print(f"LinearFDA with Adam         {fastest:8.0f} local steps/s")
        print(f"ratio                       {ratio:8.1%}   (median of {TURNS} turns; at least 85 % is wanted)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Simulator speed against bare forward and backward passes.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0)
    said = parser.parse_args()
    run(job, (str(said.data_root) if said.data_root else None, said.seconds), min(cores(), WORKERS))
