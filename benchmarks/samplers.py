"""What the server pays per epoch to draw a schedule, for 10 million samples in global batches of 128.

    python benchmarks/samplers.py

UGS for 10,000 clients (at most 5 s are wanted), LDS for 1,000 clients and 10 classes (at most 10 s), each beside one
``rng.permutation`` of all samples' owners: about the work that no sampler of uniform batches is spared. LDS fits its
shares anew whenever a client runs dry, nearly once per client; *unequal*: sizes and labels are Dirichlet(0.5), where
many clients' prior is below 1 and EM is slow. Seconds of the processor, not of the clock, best of 2, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sparsync.split.lds import lds
from sparsync.split.ugs import ugs

SAMPLES, BATCH, CLASSES = 10_000_000, 128, 10
TURNS = 2


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def equal(clients: int) -> npt.NDArray[np.int64]:
    """Clients of one size and two neighbouring classes each, (clients, CLASSES)."""
    table = np.zeros((clients, CLASSES), dtype=np.int64)
    for shift in (0, 1):
        table[np.arange(clients), (np.arange(clients) + shift) % CLASSES] = SAMPLES // clients // 2
    return table


def unequal(clients: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Every class divided among the clients in Dirichlet(0.5) proportions, (clients, CLASSES)."""
    table = rng.multinomial(SAMPLES // CLASSES - clients, rng.dirichlet(np.full(clients, 0.5), CLASSES)).T
    return table + 1  # nobody is empty


def main() -> None:
    rng = np.random.default_rng(0)
    even, odd = equal(1000), unequal(1000, rng)
    delays = rng.lognormal(0, 0.25, 1000)
    delays[0] *= 10
    many = unequal(10_000, rng).sum(axis=1)

    def draw(table: npt.NDArray[np.int64], **options: object) -> Callable[[], object]:
        return lambda: lds(table.sum(axis=1), BATCH, rng, histograms=table, delays=delays, **options)

    owners = np.repeat(np.arange(len(many)), many)
    calls: dict[str, Callable[[], object]] = {
        "rng.permutation": lambda: rng.permutation(owners),
        "UGS    10,000 clients": lambda: ugs(many, BATCH, rng),
        "LDS     1,000 clients": draw(even),
        "LDS     1,000 clients, strength 0.5": draw(even, strength=0.5),
        "LDS     1,000 unequal clients": draw(odd),
        "LDS     1,000 unequal clients, strength 0.5": draw(odd, strength=0.5),
        "LDS     1,000 clients, exact limit": draw(even, exact_limit=True),
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(TURNS):
        for name, call in calls.items():
            best[name] = min(best[name], seconds(call))
    print(f"{SAMPLES:,} samples, B = {BATCH}; UGS may take 5 s, LDS 10 s")
    for name, took in best.items():
        print(f"  {name:44} {took:6.2f} s   {took / best['rng.permutation']:6.1f} permutations")


if __name__ == "__main__":
    main()
