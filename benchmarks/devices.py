"""HADFL on real processes against the virtual clock: how long does it take, and how long was it predicted to?

    python benchmarks/devices.py [--data-root DIR] [--out FOLDER] [--slowdown 3] [--seeds 1]

The same experiment twice: on four processes of this machine, started by `sparsync coordinate --here`, each slowed
down as powers 4:2:2:1 say by sleeping after every step; and in simulation, on a profile whose step times are the mean
of those measured just before and just after, in four processes that are slowed down in the same way. Every device
computes in one thread. A device that is slowed down f times keeps a core busy for 1/f of the time: at --slowdown 3
the four together 1/3 + 1/6 + 1/6 + 1/12 or 0.75 cores, and the coordinator, which tests every other cycle's mean, at
times another one. So on two cores no process waits for one, and the clock accounts for what they share (caches,
memory, a physical core's two threads) through the measured steps. With --data-root (CIFAR-10's binary files) the task
is that of examples/cifar10-hadfl.toml with shorter cycles, else the embedded digits. Time to accuracy is read off the
line between the two evaluations around it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsync import comparison, deployment
from sparsync.engines.processes import run
from sparsync.experiment import Experiment, build
from sparsync.task import Task, load_dataset
from sparsync.workers import Arena, Fleet, Group, LocalTraining
from sparsync.workers.batches import Batches
from sparsync.workers.group import gather

POWERS = [4.0, 2.0, 2.0, 1.0]
CALIBRATION = 20.0  # seconds
EVERY = 2  # cycles between two tests of the mean
LINK = {"bandwidth": 1e9, "latency": 1e-4}  # loopback: next to nothing beside a cycle
DIGITS = {"optimizer": "sgd:lr=0.05,momentum=0.9", "batch_size": 256, "model": "mlp:hidden=2000", "steps": 300}
CIFAR = {
    "data": "cifar10",
    "model": "resnet10:width=16,stride=2",
    "batch_size": 64,
    "optimizer": "sgd:lr=0.05,momentum=0.9",
    "steps": 500,
}


def calibrate(group: Group, argument: tuple[Experiment, float, Path]) -> None:
    """Measure a slowed-down step of every device, as one of them; rank 0 writes down what it takes each."""
    torch.set_num_threads(1)
    experiment, fastest, path = argument
    task = Task(load_dataset(experiment.data, experiment.data_root), experiment.model)
    module = task.module(0)
    fleet = Fleet(Arena(module, 1, torch.device("cpu"), torch.float32), 1)
    batches = Batches(np.arange(len(task.dataset.train)), experiment.batch_size, "epochs", 0, 0)
    training = LocalTraining(fleet, task, module, [batches], experiment.optimizer)
    slowdown = fastest * max(POWERS) / POWERS[group.rank]
    computing: list[float] = []
    steps: list[float] = []
    group.barrier()
    end = time.perf_counter() + CALIBRATION
    while time.perf_counter() < end:
        begun = time.perf_counter()
        training.train(1)
        computing.append(time.perf_counter() - begun)
        time.sleep((slowdown - 1) * statistics.median(computing[-50:]))
        steps.append(time.perf_counter() - begun)
    took = gather(group, {group.rank: statistics.mean(steps[3:])})
    if group.rank == 0:
        path.write_text(json.dumps([took[device] for device in range(len(POWERS))]))


def calibrated(experiment: Experiment, slowdown: float) -> list[float]:
    """Seconds that a slowed-down step takes each device now."""
    with tempfile.NamedTemporaryFile() as file:
        run(calibrate, (experiment, slowdown, Path(file.name)), len(POWERS))
        steps: list[float] = json.loads(Path(file.name).read_text())
        return steps


def curve(folder: Path) -> tuple[list[float], list[float]]:
    """Seconds and accuracies of the means of every other cycle, which both runs have tested."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    first: dict[int, tuple[float, float]] = {}
    for line in lines:
        if line["kind"] == "evaluation" and line["syncs"] and line["syncs"] % EVERY == 0:
            first.setdefault(line["syncs"], (line["seconds"], line["accuracy"]))
    seconds, accuracies = zip(*first.values(), strict=True)
    return list(seconds), list(accuracies)


def cycles(folder: Path) -> int:
    """How many cycles a run has had."""
    return sum(json.loads(line)["kind"] == "cycle" for line in (folder / "history.jsonl").read_text().splitlines())


def time_to(accuracy: float, seconds: list[float], accuracies: list[float]) -> float:
    """When an accuracy was first exceeded."""
    after = next(i for i, own in enumerate(accuracies) if own > accuracy)
    if after == 0:
        return seconds[0]
    pair = slice(after - 1, after + 1)
    return float(np.interp(accuracy, accuracies[pair], seconds[pair]))


def measure(settings: dict[str, Any], folder: Path, seed: int, slowdown: float) -> list[float]:
    """One seed: calibrate, predict, run, and print the ratios; return those of the times to accuracy."""
    base = {**settings, "workers": 4, "seeds": [seed], "processes": 1, "eval_every": 1}
    real = build({**base, "profile": {"power": POWERS, **LINK}})
    before = calibrated(real, slowdown)
    deployment.coordinate(
        real, folder / f"measured-{seed}", deployment.DeploymentSettings(here=True, slowdown=slowdown)
    )
    steps = [statistics.mean(both) for both in zip(before, calibrated(real, slowdown), strict=True)]
    predicted = {"step_seconds": 1.0, "power": [1 / step for step in steps], **LINK}
    comparison.compare(build({**base, "profile": predicted}), folder / f"predicted-{seed}")
    (when, reached), (real_when, real_reached) = (
        curve(folder / f"{name}-{seed}") for name in ("predicted", "measured")
    )
    print(f"\nseed {seed}: a step takes the devices {', '.join(f'{1e3 * step:.0f}' for step in steps)} ms")
    print(f"{'':28}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    best = min(max(reached), max(real_reached))
    rows = [(f"to accuracy {share * best:.3f}, s", share * best) for share in (0.8, 0.9, 0.95)]
    found = [(title, time_to(goal, when, reached), time_to(goal, real_when, real_reached)) for title, goal in rows]
    per_cycle = [times[-1] / (EVERY * len(times)) for times in (when, real_when)]
    for title, predicted, real in [*found, ("per cycle, s", *per_cycle)]:
        print(f"{title:28}{predicted:12.2f}{real:12.2f}{real / predicted:8.3f}")
    print(f"{'cycles':28}{cycles(folder / f'predicted-{seed}'):12}{cycles(folder / f'measured-{seed}'):12}")
    return [real / predicted for _, predicted, real in found]


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--slowdown", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--unit", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = {**CIFAR, "data_root": given.data_root} if given.data_root else DIGITS
    settings = {**task, "strategies": {"hadfl": f"hadfl:unit={given.unit},backup_every={EVERY}"}}
    folder = given.out or Path(tempfile.mkdtemp())
    ratios = [measure(settings, folder, seed, given.slowdown) for seed in range(given.seeds)]
    spread = f"{np.min(ratios):.3f} to {np.max(ratios):.3f}"
    print(f"\nmeasured over predicted time to accuracy: mean {np.mean(ratios):.3f}, {spread}")


if __name__ == "__main__":
    main()
