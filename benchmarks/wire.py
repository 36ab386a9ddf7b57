"""Sizes and speeds of sparse messages, and the decoders under fire.

    python benchmarks/wire.py [--numel 10000000]
    python benchmarks/wire.py --fuzz 1000000

Sizes: a vector's non-zeros as float32 values plus support, over the bound ``4 k + n H(k/n) / 8`` bytes, H being the
binary entropy; and the support alone over its share. *random*: every position alike. *layers*: the largest of normal
numbers in layers of very different widths and scales, as magnitude pruning of a network finds them; that mask's
entropy is below the bound. Speeds: dense float32 input (n numbers of 4 bytes) per second, single-threaded, best of 5.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsync.wire import Chain, NonZeroSupport, kinds_of, parse_chain, values_of

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01, 0.001)
TURNS = 5


def entropy(p: float) -> float:
    """Binary entropy in bits."""
    return float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def vector(kind: str, numel: int, density: float) -> Tensor:
    """Normal numbers, all but `density` of them zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(numel, np.float32)
    if kind == "random":
        return torch.from_numpy(x * (rng.random(numel, np.float32) < density))
    edges = (np.array([0.0002, 0.005, 0.02, 0.08, 0.3, 0.98]) * numel).astype(int)  # a ResNet's stages, and its head
    for part, scale in zip(np.split(x, edges), (0.27, 0.06, 0.06, 0.042, 0.029, 0.021, 0.06), strict=True):
        part *= scale
    chain = parse_chain(f"topk({density})")
    return chain.decode(chain.encode(torch.from_numpy(x)), numel)


def best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls."""
    took = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return min(took)


def report_sizes(numel: int) -> None:
    """Print each mask's size over the bound."""
    print(f"{numel:,} numbers; at most 1.05 is wanted of the message over its bound")
    chain = Chain((NonZeroSupport(),))
    for kind in ("random", "layers"):
        for density in DENSITIES:
            x = vector(kind, numel, density)
            count = int((x != 0).sum())
            payload = chain.encode(x)
            values, support = sum(values_of(payload).values()), kinds_of(payload)["mask"]
            ideal = numel * entropy(count / numel) / 8
            print(
                f"  {kind:6} density {density:<5}  message {len(payload):>10,} B   "
                f"ratio {len(payload) / (values + ideal):.4f}   support alone {support / ideal:.3f}"
            )


def report_speeds(numel: int) -> None:
    """Print how fast chains encode and decode."""
    print("MB/s of dense input; at least 200 are wanted of both directions at density 0.05")
    megabytes = 4 * numel / 1e6
    rng = np.random.default_rng(0)
    for kind, density, text in (
        ("random", 0.5, "sparse"),
        ("random", 0.05, "sparse"),
        ("layers", 0.05, "sparse"),
        ("random", 0.001, "sparse"),
        ("random", 0.05, "sparse+q8(block=1024)"),
        ("random", 1.0, "topk(0.05)+q4(stochastic)"),
        ("random", 1.0, "float32"),
        ("random", 1.0, "q8"),
    ):
        chain, x = parse_chain(text), vector(kind, numel, density)
        payload = chain.encode(x, rng)
        encoding = best(lambda chain=chain, x=x: chain.encode(x, rng))  # type: ignore[misc]
        decoding = best(lambda chain=chain, payload=payload: chain.decode(payload, numel))  # type: ignore[misc]
        print(
            f"  {text:26} {kind:6} density {density:<5}  "
            f"encode {megabytes / encoding:6.0f}   decode {megabytes / decoding:6.0f}"
        )


def fuzz(turns: int) -> None:
    """Decode bent messages: whatever is not refused with a PayloadError has to be a vector."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "wire"))
    from hostile import attack

    begin = time.perf_counter()
    passed, refused = attack(turns, seed=0)
    print(f"{turns:,} hostile messages: {refused:,} refused, {passed:,} passed, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sizes and speeds of sparse messages.")
    parser.add_argument("--numel", type=int, default=10_000_000)
    parser.add_argument("--fuzz", type=int, metavar="TURNS", help="decode so many hostile messages instead")
    said = parser.parse_args()
    torch.set_num_threads(1)
    if said.fuzz:
        fuzz(said.fuzz)
    else:
        report_sizes(said.numel)
        report_speeds(said.numel)
