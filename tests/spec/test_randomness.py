from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sparsync.randomness import SHARED, generator, torch_generator, torch_seed


def test_same_coordinates_same_numbers() -> None:
    assert generator(3, "a", 2, 5).random(4).tolist() == generator(3, "a", 2, 5).random(4).tolist()
    assert torch_seed(3, "a") == torch_seed(3, "a", SHARED)
    one, two = (torch.rand(4, generator=torch_generator(3, "a", 2)) for _ in range(2))
    assert torch.equal(one, two)


def test_neighbours_share_nothing() -> None:
    """Neither seed + 1 nor worker + 1, nor an index in another place, meets a stream again."""
    coordinates = list(itertools.product((0, 1, 2), ("a", "b", "ab"), (SHARED, 0, 1), ((), (0,), (1,), (0, 1), (1, 0))))
    seeds = {torch_seed(seed, purpose, worker, *index) for seed, purpose, worker, index in coordinates}
    assert len(seeds) == len(coordinates)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_global_generators_are_not_touched() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    generator(0, "a").random()
    torch.rand(3, generator=torch_generator(0, "a"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    torch.manual_seed(2)
    assert torch_seed(5, "x") == torch_seed(5, "x")


def test_streams_are_those_of_earlier_runs() -> None:
    """A resumed run must meet its numbers again: these must never change."""
    assert [torch_seed(0, "model"), torch_seed(0, "forward", 3, 7)] == [4958885581738934126, 6153352307582803708]


@pytest.mark.parametrize("seed", [-1, -(2**40)])
def test_negative_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError):
        generator(seed, "a")
