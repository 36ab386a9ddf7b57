"""Models that cannot be trained on one sample: it joins the batch before it, or the split is refused at the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from sparsync.errors import UsageError
from sparsync.split.schedule import joined


def dense(schedule: csr_array) -> list[list[int]]:
    return schedule.toarray().tolist()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([[3, 0], [1, 2], [0, 1]], [[3, 0], [1, 3]]),
        ([[0, 1], [3, 0], [1, 0]], [[4, 1]]),
        ([[3, 1], [1, 0], [1, 0], [1, 0]], [[3, 1], [3, 0]]),
        ([[2, 0], [0, 2]], [[2, 0], [0, 2]]),
        ([[0, 1]], [[0, 1]]),
    ],
)
def test_a_single_sample_joins_the_batch_before_it(before: list[list[int]], after: list[list[int]]) -> None:
    assert dense(joined(csr_array(np.array(before, np.int64)))) == after


def test_a_clients_own_single_sample_joins_its_own_batch_before_it() -> None:
    schedule = csr_array(np.array([[2, 3, 2], [1, 3, 2], [0, 1, 0]], np.int64))
    assert dense(joined(schedule, apart=True)) == [[3, 3, 2], [0, 4, 2]]


def alone(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A BatchNorm above the cut, which is before fc2."""
    row = nn.Sequential()
    for name, layer in {"fc1": nn.Linear(shape[0], 4), "fc2": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)}.items():
        row.add_module(name, layer)
    row.add_module("fc", nn.Linear(4, classes))
    return row


@pytest.mark.parametrize(
    ("strategy", "batch_size", "sizes"),
    [
        ("psl:sampler=fls", 4, [5]),
        ("splitfed", 4, [5]),
        ("centralised", 2, [2, 3]),
        ("psl:sampler=lds,sample_size=2", 4, [5]),
    ],
)
def test_every_sample_is_trained_on(make_split, strategy: str, batch_size: int, sizes: list[int]) -> None:
    made = make_split(strategy, model=alone, sizes=(2, 3), batch_size=batch_size, epochs=1)
    made.run()
    assert [line["size"] for line in made.lines if line["kind"] == "step"] == sizes


@pytest.mark.parametrize(
    ("strategy", "batch_size", "sizes"), [("psl", 1, (2, 3)), ("splitfed", 2, (2, 3)), ("splitfed", 5, (1, 4))]
)
def test_what_could_only_be_single_samples_is_refused_at_the_start(make_split, strategy, batch_size, sizes) -> None:
    with pytest.raises(UsageError, match="single sample"):
        make_split(strategy, model=alone, sizes=sizes, batch_size=batch_size)


def test_nobody_is_left_alone_by_a_deadline(make_split) -> None:
    """Client 1, with one sample of each batch, would be late; without it the other would be alone, or it ever after."""
    delays = {"delays": "constant:seconds=9", "deadline": 0.5}
    made = make_split("psl:sampler=ugs", model=alone, sizes=(2, 1), batch_size=3, epochs=1, **delays)
    made.run()
    assert [line["size"] for line in made.lines if line["kind"] == "step"] == [3]


class Pooled(nn.Module):
    """Normalises by its batch: of one sample nothing is left."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            raise ValueError("one sample")
        return x - x.mean(0)


def below(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 4), Pooled(), nn.Linear(4, classes))


def test_a_bottom_that_cannot_take_one_sample_is_refused_where_clients_run_it_alone(make_split) -> None:
    with pytest.raises(UsageError, match=r"bottom.*one sample"):
        make_split("psl:copies=true", model=below, sizes=(4, 4), cut="2")
    make_split("psl", model=below, sizes=(4, 4), cut="2").run()  # one bottom stands for all, and has them all


class Sequence(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inside, nn.Embedding):
            return self.inside(x.abs().long().clamp(max=3)).flatten(1)
        return self.inside(x[:, None])[0][:, 0]


@pytest.mark.parametrize(
    "bottom",
    [
        Sequence(nn.Embedding(4, 3)),
        Sequence(nn.LSTM(6, 18, batch_first=True)),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 18)),
        nn.Bilinear(6, 6, 18),
    ],
    ids=["embedding", "lstm", "weight_norm", "no layer that is pruned"],
)
def test_a_bottom_without_anything_to_prune(make_split, bottom: nn.Module) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = bottom

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x, x)

    def model(shape: tuple[int, ...], classes: int) -> nn.Module:
        first = Twice() if isinstance(bottom, nn.Bilinear) else bottom
        return nn.Sequential(first, nn.Tanh(), nn.Linear(18, classes))

    made = make_split("psl", model=model, sizes=(8, 8), cut="2", epochs=1)
    before = torch.cat([one.detach().flatten().clone() for one in made.trainer.cut.bottom.parameters()])
    made.run()
    assert not torch.equal(
        before, torch.cat([one.flatten() for one in made.trainer.whole().get_submodule("0").parameters()])
    )
