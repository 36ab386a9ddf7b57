"""Sums through shared memory: the same as one process's, for vectors of any length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsync.engines.processes import run
from sparsync.engines.shared import _SLOT
from sparsync.wire import Dense, Ring
from sparsync.workers import Group

LENGTHS = [1, 7, _SLOT // 4, _SLOT // 4 + 1]  # the last is longer than a slot holds


def job(group: Group, folder: Path) -> None:
    """Exchange vectors that say who sent them, many times, and write down what came."""
    seen = []
    for turn in range(50):
        total = torch.full((3,), float((group.rank + 1) * 10**turn if turn < 6 else group.rank + turn))
        seen.append(group.mean(total, 1.0, Ring(), Dense())[0].item())
    for length in LENGTHS:
        x = torch.arange(length, dtype=torch.float32) * (group.rank + 1)
        mean = group.mean(x, group.size, Ring(), Dense())
        seen.append(bool(torch.equal(mean, torch.arange(length) * ((group.size + 1) / 2))))
        seen.append(bool((group.broadcast(torch.full((length,), float(group.rank))) == 0).all()))
    seen.append(group.minimum(5 - group.rank))
    group.barrier()
    (folder / f"{group.rank}.json").write_text(json.dumps(seen))


@pytest.mark.parametrize("size", [2, 3])
def test_all_processes_get_the_same_and_the_right_sums(tmp_path, size):
    run(job, tmp_path, size)
    expected = [sum((rank + 1) * 10**turn if turn < 6 else rank + turn for rank in range(size)) for turn in range(50)]
    for rank in range(size):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen == [*expected, *[True, True] * len(LENGTHS), 5 - (size - 1)]
