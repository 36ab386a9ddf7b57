"""Sums and entries over the processes that host a fleet or a federation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sparsync.engines.processes import run
from sparsync.workers import Group, SingleProcess
from sparsync.workers.group import gather, share, total
from tolerance import rounding

AWKWARD = {"text": 'Zürich "\n\0"', "numbers": [1, 2.5, None, True], "nested": {"a": {"b": 0.1 + 0.2}}, "huge": 1e308}


def test_alone_nothing_is_copied_or_lost():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert total(SingleProcess(), x) is x
    mine = {3: AWKWARD}
    assert gather(SingleProcess(), mine) == mine
    assert gather(SingleProcess(), mine) is not mine


@pytest.mark.parametrize(("items", "size"), [(10, 3), (2, 3), (0, 2), (7, 1)])
def test_shares_are_near_equal_and_everything(items, size):
    shares = [share(items, size, rank) for rank in range(size)]
    assert [i for own in shares for i in own] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def job(group: Group, folder: Path) -> None:
    """Add up and gather, as one of several processes, and write down what came."""
    mine = {number: {**AWKWARD, "from": group.rank} for number in range(10) if number % 3 == group.rank}
    everything = gather(group, mine)
    lopsided = gather(group, {7: "x" * 100_000} if group.rank == 1 else {})
    nobody = gather(group, {})
    sums = total(group, torch.tensor([2.0**-group.rank, math.inf if group.rank == 1 else 1.0], dtype=torch.float64))
    tiny = total(group, torch.full((3,), 1e-300 * (group.rank + 1), dtype=torch.float64))
    seen = [sorted(everything.items()), list(lopsided.items()), nobody, sums[0].item(), sums[1].item(), tiny.tolist()]
    (folder / f"{group.rank}.json").write_text(json.dumps(seen))


def test_several_processes_have_all_entries_and_sums(tmp_path):
    run(job, tmp_path, 2)
    for rank in range(2):
        entries, lopsided, nobody, half, infinite, tiny = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [number for number, _ in entries] == [0, 1, 3, 4, 6, 7, 9]
        assert all(value == {**AWKWARD, "from": number % 3} for number, value in entries)
        assert lopsided == [[7, "x" * 100_000]]
        assert nobody == {}
        assert (half, infinite) == (1.5, math.inf)
        assert tiny == pytest.approx([3e-300] * 3, rel=rounding(2))
