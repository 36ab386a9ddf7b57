from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsync.errors import UsageError
from sparsync.task import PARTITIONS, counts, partition
from sparsync.task.partitions import sorted_fraction

RANDOM = {"iid", "dirichlet", "balanced-dirichlet", "pathological", "extended-dirichlet"}
TEN = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Labels, possibly with gaps and rare classes, and a number of workers that they suffice for."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=2, max_size=6))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    assume(len(labels) > 0)
    order = np.random.default_rng(draw(st.integers(0, 9))).permutation(len(labels))
    return labels[order], draw(st.integers(1, min(12, len(labels))))


@pytest.mark.parametrize("name", sorted(PARTITIONS.entries))
@given(problem=problems(), seed=st.integers(0, 1000))
def test_every_index_exactly_once_and_nobody_empty(name: str, problem: tuple[np.ndarray, int], seed: int) -> None:
    labels, workers = problem
    spec = f"label-first:label={labels[0]}" if name == "label-first" else name
    try:
        parts = partition(spec, labels, workers, seed)
    except UsageError:
        assert name in ("pathological", "extended-dirichlet")  # these may ask for more than there is
        return
    assert len(parts) == workers
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(len(part) and part.dtype == np.int64 for part in parts)
    again = partition(spec, labels, workers, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    if name in ("iid", "balanced-dirichlet", "sorted", "label-first"):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("name", sorted(PARTITIONS.entries))
def test_another_seed_is_another_partition_where_anything_is_drawn(name: str) -> None:
    a, b = partition(name, TEN, 7, 0), partition(name, TEN, 7, 1)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) == (name not in RANDOM)


def test_global_generators_are_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # it is the global state that is looked at
    for name in PARTITIONS.entries:
        partition(name, TEN, 5, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_iid_as_stored() -> None:
    parts = partition("iid:shuffle=false", np.zeros(7, dtype=np.int64), 3, 0)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]


def test_fda_sorted_by_hand() -> None:
    # The first 4 of 8, sorted by label, are 1 3 0 2; worker k holds block k of them, and of the rest 4 5 6 7.
    labels = np.array([1, 0, 1, 0, 1, 1, 0, 0])
    assert [part.tolist() for part in partition("sorted:fraction=0.5", labels, 2, 0)] == [[1, 3, 4, 5], [0, 2, 6, 7]]


def test_fda_sorted_limits() -> None:
    whole = partition("sorted:fraction=1", TEN, 10, 0)
    assert (np.count_nonzero(counts(whole, TEN, 10), axis=1) == 1).all()
    none = partition("sorted:fraction=0", TEN, 10, 0)
    assert np.array_equal(np.concatenate(none), np.arange(600))  # the contiguous split


def test_fda_label_first() -> None:
    parts = partition("label-first:label=3", TEN, 20, 0)  # 60 of 600 examples: the first two workers see only label 3
    table = counts(parts, TEN, 10)
    assert table[:2, 3].tolist() == [30, 30]
    assert table[2:, 3].sum() == 0
    rest = np.concatenate(parts[2:])
    assert (np.diff(rest) > 0).all()  # the others keep their order


def test_dirichlet_skew_follows_alpha() -> None:
    def skew(alpha: float) -> float:
        table = counts(partition(f"dirichlet:alpha={alpha}", TEN, 5, 0), TEN, 10)
        return float((table.max(axis=0) / table.sum(axis=0)).mean())

    assert skew(0.01) > 0.9 > skew(1.0) > skew(1000) > 0.2


def test_dirichlet_min_size() -> None:
    parts = partition("dirichlet:alpha=0.01,min_size=60", TEN, 10, 0)
    assert [len(part) for part in parts] == [60] * 10
    assert min(map(len, partition("dirichlet:alpha=0.05,min_size=20", TEN, 10, 3))) >= 20


def test_balanced_dirichlet_skew_follows_alpha() -> None:
    def skew(alpha: float) -> float:
        table = counts(partition(f"balanced-dirichlet:alpha={alpha}", TEN, 6, 0), TEN, 10)
        return float((table.max(axis=1) / table.sum(axis=1)).mean())

    assert skew(0.05) > 0.5 > skew(1000)


@given(workers=st.integers(5, 30), classes=st.integers(2, 10), seed=st.integers(0, 99))
def test_pathological_holds_exactly_its_classes(workers: int, classes: int, seed: int) -> None:
    table = counts(partition(f"pathological:classes={classes}", TEN, workers, seed), TEN, 10)
    assert (np.count_nonzero(table, axis=1) == classes).all()
    holders = np.count_nonzero(table, axis=0)
    assert holders.max() - holders.min() <= 1
    for column in table.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


@given(workers=st.integers(5, 30), classes=st.integers(2, 10), seed=st.integers(0, 99))
def test_extended_dirichlet_holds_at_most_its_classes(workers: int, classes: int, seed: int) -> None:
    table = counts(partition(f"extended-dirichlet:classes={classes},alpha=0.1", TEN, workers, seed), TEN, 10)
    held = np.count_nonzero(table, axis=1)
    assert held.min() >= 1
    assert held.max() <= classes


def test_counts() -> None:
    parts = [np.array([0, 2]), np.array([1])]
    assert counts(parts, [0, 2, 0], 4).tolist() == [[2, 0, 0, 0], [0, 0, 1, 0]]


BAD = [
    ("iid", 601, "601 workers for 600 examples; expected 1 to 600 workers"),
    ("dirichlet", 601, "601 workers for 600 examples"),
    ("sorted", 0, "0 workers for 600 examples"),
    ("label-first", 601, "601 workers for 600 examples"),
    ("pathological", 601, "601 workers for 600 examples"),
    ("extended-dirichlet", 601, "601 workers for 600 examples"),
    ("balanced-dirichlet", 601, "601 workers for 600 examples"),
    ("dirichlet:alpha=0", 5, "partition 'dirichlet': alpha=0; expected a number above 0"),
    ("dirichlet:alpha=nan", 5, "alpha=nan"),
    ("dirichlet:alpha=inf", 5, "alpha=inf"),
    ("dirichlet:min_size=121", 5, "min_size=121 is not possible for 5 workers and 600 examples; expected 1 to 120"),
    ("dirichlet:min_size=0", 5, "min_size=0"),
    ("balanced-dirichlet:alpha=-1", 5, "partition 'balanced-dirichlet': alpha=-1"),
    ("extended-dirichlet:alpha=-1", 5, "partition 'extended-dirichlet': alpha=-1"),
    ("sorted:fraction=1.1", 5, "partition 'sorted': fraction=1.1; expected 0 to 1"),
    ("sorted:fraction=nan", 5, "fraction=nan"),
    ("label-first:label=10", 5, "no example has label 10; the labels are 0, 1, 2, 3"),
    ("pathological:classes=11", 5, "classes=11; expected 1 to 10"),
    ("pathological:classes=0", 5, "classes=0; expected 1 to 10"),
    ("pathological:classes=2", 4, "4 workers with 2 classes each cannot hold all 10 classes; use classes=3 or more"),
    ("pathological:classes=10", 61, "label 0 has 60 examples for 61 workers; use fewer workers or classes"),
    ("extended-dirichlet:classes=11", 5, "classes=11"),
    ("extended-dirichlet:classes=1", 9, "cannot hold all 10 classes; use classes=2 or more"),
    ("extended-dirichlet:classes=1", 600, None),
    ("shards", 5, "unknown partition 'shards'"),
    ("iid:alpha=1", 5, "partition 'iid' has no parameter 'alpha': its parameters are shuffle"),
]


@pytest.mark.parametrize(("spec", "workers", "message"), BAD)
def test_bad_values(spec: str, workers: int, message: str | None) -> None:
    if message is None:  # one example each: just enough
        assert {len(part) for part in partition(spec, TEN, workers, 0)} == {1}
        return
    with pytest.raises(UsageError, match=re.escape(message)):
        partition(spec, TEN, workers, 0)


def test_too_few_of_a_class_for_its_owners() -> None:
    with pytest.raises(UsageError, match="too few examples for every one of 4 workers"):
        partition("extended-dirichlet:classes=1", np.array([0] + [1] * 9), 4, 0)


def test_a_partition_of_ones_own_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARTITIONS, "entries", dict(PARTITIONS.entries))
    PARTITIONS.register("twice")(lambda labels, workers, rng: [np.arange(len(labels))] * workers)
    with pytest.raises(UsageError, match="'twice' does not give 2 workers every index exactly once"):
        partition("twice", TEN, 2, 0)


def test_functions_take_python_values() -> None:
    parts = sorted_fraction(TEN, 3, np.random.default_rng(0), fraction=0.25)
    assert sum(map(len, parts)) == 600
