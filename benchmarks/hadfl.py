"""HADFL with 1,000 devices for 20 virtual minutes: how long that takes here, and how much of it is not training.

    python benchmarks/hadfl.py [--preset iot] [--devices 1000] [--minutes 20]

The embedded digits, whose 1,437 samples leave one or two to a device, an MLP, Adam, and the preset's devices, links and
outages: `iot` is one step per second and 250 kbit/s, at which a model takes 0.6 s and a ring of 500 takes 21 s. A unit
of work is 20 steps, so that a cycle lasts longer than a ring; a local epoch, the default, would be a single step. The
time begins when all devices have the first model, which takes another 10 minutes from one device to the next. Other
presets are other amounts of work: `phones-4g`, whose devices come and go, takes ten times as many steps in a minute.

Bare forward and backward passes, of the same model on the same numbers of samples held in memory, are measured in the
same single-threaded processes (one per core), between slices of the simulation, so that whatever else the machine does
hits both alike.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import Any

import torch

from sparsync.engines import Budget, PaceAction, PeerLoop
from sparsync.engines.processes import cores, run
from sparsync.peers import HADFL
from sparsync.system import PRESETS, Profile
from sparsync.task import Task, load_dataset, partition
from sparsync.workers import Arena, Fleet, Group, LocalTraining
from sparsync.workers.batches import Batches
from sparsync.workers.group import share, total

BATCH, TURNS, PASSES = 32, 8, 5


def job(group: Group, said: argparse.Namespace) -> None:
    """Simulate, as one of the processes; rank 0 prints."""
    torch.set_num_threads(1)
    task = Task(load_dataset("digits", None), "mlp")
    parts = partition("iid", task.dataset.train.labels.numpy(), said.devices, 0)
    module, bare_module = task.module(0), task.module(0)
    rows = share(said.devices, group.size, group.rank)
    arena = Arena(module, len(rows), torch.device("cpu"), torch.float32)
    fleet = Fleet(arena, said.devices, group=group, profile=Profile(preset=said.preset))
    batches = [Batches(parts[device], BATCH, "epochs", 0, device) for device in rows]
    training = LocalTraining(fleet, task, module, batches, "adam")
    fleet.start()
    first, last = fleet.clock.now, fleet.clock.now + 60 * said.minutes
    strategy = HADFL(unit=said.unit).start(fleet)
    lines: list[dict[str, Any]] = []
    loop = PeerLoop(fleet, training, strategy, task, Budget(10**9, 100, seconds=last), lines.append)
    held = [task.dataset.train.batch(parts[device][:BATCH]) for device in rows]

    def bare() -> float:
        """Local steps per second of all processes together: from the same start to the last one's end."""
        group.barrier()
        begin = time.perf_counter()
        for _ in range(PASSES):
            for inputs, targets in held:
                bare_module.zero_grad(set_to_none=True)
                task.loss(bare_module(inputs), targets).backward()
        group.barrier()
        return PASSES * said.devices / (time.perf_counter() - begin)

    bare()
    rates, took = [bare()], 0.0
    for turn in range(1, TURNS + 1):
        begin = time.perf_counter()
        until = first + (last - first) * turn / TURNS
        loop.run(lambda _, until=until: PaceAction.STOP if loop.clock.now >= until else PaceAction.GO_ON, lambda: None)
        group.barrier()
        took += time.perf_counter() - begin
        rates.append(bare())

    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = float(total(group, torch.tensor([peak], dtype=torch.float64))[0])
    if group.rank == 0:
        steps, rate = loop.progress.total, statistics.median(rates)
        accuracy = max(line["accuracy"] for line in lines if line["kind"] == "evaluation")
        print(f"{said.devices:,} devices of preset {said.preset}, unit={said.unit}, {group.size} processes")
        print(f"real time                   {took:10,.1f} s   (at most 300 s are wanted, of 20 minutes on two cores)")
        print(f"virtual time                {loop.clock.now - first:10,.1f} s")
        print(f"cycles                      {strategy.planner.cycle:10,d}   (best test accuracy {accuracy:.2%})")
        print(f"device steps                {steps:10,d}")
        print(f"per real second             {steps / took:10,.0f}   (bare forward and backward {rate:,.0f})")
        print(f"time of the bare passes     {took * rate / steps:10.2f} times")
        print(f"peak memory                 {memory / 1e6:10,.0f} MB of all processes, Python and torch included")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="HADFL with a thousand devices on the virtual clock.")
    parser.add_argument("--preset", choices=PRESETS, default="iot")
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--unit", type=int, default=20)
    arguments = parser.parse_args()
    run(job, arguments, min(cores(), arguments.devices))
