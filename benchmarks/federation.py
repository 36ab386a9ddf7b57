"""Federations: memory by the number of clients, and clients trained per second against bare training.

    python benchmarks/federation.py [--cohort 1000]

Memory: the peak resident growth of a process in five rounds of FedAvg, once the data and the clients' index lists are
there, for 1,000, 10,000 and 100,000 clients of a logistic model of digits' size. Nothing but a few numbers per client
(samples, bytes sent and received, virtual time) may grow. Every size has a process of its own.

Speed: cohorts of clients with a few batches each against a plain loop of forward, backward and torch.optim.SGD over
the very same batches, single-threaded and in turns, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sparsync.engines import Budget, LocalFederatedClients, PaceAction, RoundLoop
from sparsync.federated import FedAvg, Federation, FederationContext, ServerContext
from sparsync.system import Profile
from sparsync.task import Task, from_arrays, partition
from sparsync.workers import Arena, ClientRuntime
from sparsync.workers.batches import Indices, LocalPasses

SAMPLES, TURNS = 200_000, 5


def data(shape: tuple[int, ...], model: str, samples: int = SAMPLES) -> Task:
    """Random pictures: neither memory nor speed depends on what they show."""
    rng = np.random.default_rng(0)
    pictures, labels = rng.integers(256, size=(samples, *shape), dtype=np.uint8), np.arange(samples) % 10
    return Task(from_arrays(pictures, labels, pictures[:100], labels[:100]), model)


def federation(task: Task, parts: list[Indices], **settings: object) -> tuple[RoundLoop, ClientRuntime]:
    """FedAvg over these clients."""
    said = Federation(**settings)  # type: ignore[arg-type]
    module = task.module(0)
    runtime = ClientRuntime(
        Arena(module, 1, torch.device("cpu"), torch.float32), task, module, parts, said.local_work(32), 0
    )
    context = ServerContext(runtime.vector, module, [len(part) for part in parts], said)
    site = FederationContext(runtime.vector, module, said)
    clients = LocalFederatedClients(FedAvg().make_client(site), site, runtime)
    budget = Budget(said.rounds, said.eval_every)
    server = FedAvg().make_server(context)
    return RoundLoop(context, server, clients, runtime, task, budget, Profile(), lambda _: None), runtime


def resident(which: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def measure(clients: int, cohort: int) -> None:
    """Run in this process, and print how its memory grew."""
    torch.set_num_threads(1)
    task = data((1, 8, 8), "logistic")
    federation(task, [np.arange(10)], rounds=1)[0].run(lambda _: PaceAction.GO_ON, lambda: None)  # what torch loads
    before = resident("VmRSS")
    parts = partition("iid", task.dataset.train.labels.numpy(), clients, 0)
    lists = resident("VmRSS") - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    loop, _ = federation(task, parts, rounds=5, cohort=cohort, steps=1, client_accuracy=True)
    loop.run(lambda _: PaceAction.GO_ON, lambda: None)
    print(json.dumps({"lists": lists, "growth": resident("VmHWM") - before}))


def child(clients: int, cohort: int) -> dict[str, int]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(clients), "--cohort", str(cohort)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def speed(name: str, task: Task, clients: int) -> None:
    """Print clients per second, of a federation and of the bare loop."""
    parts = partition("iid", task.dataset.train.labels.numpy(), clients, 0)
    loop, _ = federation(task, parts, rounds=10**6, eval_every=10**6)
    module = task.module(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def bare(round_: int) -> None:
        for client, part in enumerate(parts):
            passes = LocalPasses(part, 32, epochs=1, seed=0, client=client, round_=round_)
            for step in range(len(passes)):
                inputs, labels = task.dataset.train.batch(passes[step])
                optimizer.zero_grad()
                task.loss(module(inputs), labels).backward()
                optimizer.step()

    def simulated(_: int) -> None:
        end = loop.rounds.round + 1
        loop.run(lambda _: PaceAction.STOP if loop.rounds.round >= end else PaceAction.GO_ON, lambda: None)

    def rate(step: object, turn: int) -> float:
        begin = time.perf_counter()
        step(turn)  # type: ignore[operator]
        return clients / (time.perf_counter() - begin)

    rate(bare, 0), rate(simulated, 0)
    pairs = [(rate(bare, turn), rate(simulated, turn)) for turn in range(1, TURNS + 1)]
    ratio = statistics.median(simulated / bare for bare, simulated in pairs)
    fastest, fastest_bare = max(simulated for _, simulated in pairs), max(bare for bare, _ in pairs)
    print(f"{name:44} {fastest:7.0f} clients/s, bare {fastest_bare:7.0f}, ratio {ratio:6.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Memory and speed of federations.")
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.measure:
        measure(said.measure, said.cohort)
    else:
        sizes = (1_000, 10_000, 100_000)
        grown = {}
        for clients in sizes:
            found = child(clients, said.cohort)
            grown[clients] = found["growth"]
            print(
                f"{clients:7,} clients, cohort {said.cohort:,}: peak growth {found['growth'] / 1e6:5.1f} MB "
                f"beside {found['lists'] / 1e6:5.1f} MB of index lists"
            )
        each = (grown[sizes[-1]] - grown[sizes[0]]) / (sizes[-1] - sizes[0])
        print(f"growth per client {each:6.0f} bytes (at most 200 are wanted)")
        torch.set_num_threads(1)
        speed("logistic, 2 samples each", data((1, 8, 8), "logistic", 2000), 1000)
        speed("lenet5, 2 batches of 32 each", data((1, 28, 28), "lenet5", 64 * 100), 100)
        speed("lenet5, 4 batches of 32 each", data((1, 28, 28), "lenet5", 128 * 50), 50)
