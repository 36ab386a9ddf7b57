"""Who holds which training examples: every index exactly once, and the same for the same seed.

The label-skewed partitions first decide a table, (workers, classes), of how many examples of each class a worker
holds, and then hand out each class's shuffled examples by that table.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsync.errors import UsageError
from sparsync.randomness import generator
from sparsync.shares import exact
from sparsync.spec import Registry

Ints = npt.NDArray[np.int64]

PARTITIONS: Registry[list[Ints]] = Registry("partition")
"""Functions (labels, workers, rng, *, options) -> one index array per worker; call them through `partition`."""


def partition(spec: str, labels: npt.ArrayLike, workers: int, seed: int) -> list[Ints]:
    """Divide examples among workers.

    Parameters
    ----------
    spec : str
        Name and parameters of a registered partition, e.g. ``"dirichlet:alpha=0.1"``.
    labels : array of int, shape (n,)
        Label of every training example, at least 0.
    workers : int
        How many workers share them, 1 to n.
    seed : int
        Seed of the run; the purpose is ``"partition"``.

    Returns
    -------
    list of int64 arrays
        The indices that each worker holds, none empty: together, every index from 0 to n - 1 exactly once.

    Raises
    ------
    UsageError
        If the spec or a value in it is not valid, or there are more workers than examples.
    """
    known = np.asarray(labels, dtype=np.int64)
    parts = PARTITIONS.build(spec, known, workers, generator(seed, "partition"))
    held = np.concatenate(parts)
    if len(parts) != workers or not np.array_equal(np.sort(held), np.arange(len(known))) or min(map(len, parts)) == 0:
        raise UsageError(f"partition {spec!r} does not give {workers} workers every index exactly once, and each some")
    return parts


def counts(parts: Sequence[Ints], labels: npt.ArrayLike, classes: int) -> Ints:
    """Return how many examples of each class each worker holds, (workers, classes)."""
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    cells = owners * classes + np.asarray(labels, dtype=np.int64)[np.concatenate(parts)]
    return np.bincount(cells, minlength=len(parts) * classes).reshape(len(parts), classes)


@PARTITIONS.register("iid")
def iid(labels: Ints, workers: int, rng: np.random.Generator, *, shuffle: bool = True) -> list[Ints]:
    """Equal parts (sizes differ by at most 1), shuffled; without shuffle, consecutive as stored, as FDA's."""
    _check(labels, workers)
    order = rng.permutation(len(labels)) if shuffle else np.arange(len(labels))
    return np.array_split(order, workers)


@PARTITIONS.register("dirichlet")
def dirichlet(
    labels: Ints, workers: int, rng: np.random.Generator, *, alpha: float = 0.5, min_size: int = 1
) -> list[Ints]:
    """Each class is divided among the workers in Dirichlet(alpha) proportions; sizes vary.

    Parameters
    ----------
    labels, workers, rng
        As in `partition`, and the generator to draw from.
    alpha : float
        Above 0: near 0, a class belongs to one worker; 1000 is nearly IID.
    min_size : int
        Examples that each worker has at least. Who is short receives some from the largest worker of the time.
    """
    sizes = _class_sizes(labels, workers)
    _positive("dirichlet", alpha)
    if not 1 <= min_size <= len(labels) // workers:
        raise UsageError(
            f"partition 'dirichlet': min_size={min_size} is not possible for {workers} workers "
            f"and {len(labels)} examples; expected 1 to {len(labels) // workers}"
        )
    shares = rng.dirichlet(np.full(workers, alpha), size=len(sizes)).T  # (workers, classes)
    cuts = np.rint(np.cumsum(shares, axis=0) * sizes).astype(np.int64)
    cuts[-1] = sizes
    table = np.diff(cuts, axis=0, prepend=0)
    _top_up(table, min_size, np.ones_like(table, dtype=bool))
    return _hand_out(table, labels, rng)


@PARTITIONS.register("balanced-dirichlet")
def balanced_dirichlet(labels: Ints, workers: int, rng: np.random.Generator, *, alpha: float = 0.5) -> list[Ints]:
    """Each worker draws equally many examples (within 1) by its own Dirichlet(alpha) class vector, as SparsyFed.

    Workers draw in turn and without replacement; what an exhausted class would have given is drawn from the others,
    so the last workers take what is left.
    """
    sizes = _class_sizes(labels, workers)
    _positive("balanced-dirichlet", alpha)
    left = sizes.copy()
    table = np.zeros((workers, len(sizes)), dtype=np.int64)
    wanted = [len(part) for part in np.array_split(np.arange(len(labels)), workers)]
    for row, want in zip(table, wanted, strict=True):
        shares = rng.dirichlet(np.full(len(sizes), alpha)) + 1e-5  # SparsyFed's epsilon: no class is impossible
        while missing := want - int(row.sum()):
            open_shares = np.where(left > 0, shares, 0.0)
            drawn = np.minimum(rng.multinomial(missing, open_shares / open_shares.sum()), left)
            row += drawn
            left -= drawn
    return _hand_out(table, labels, rng)


@PARTITIONS.register("sorted")
def sorted_fraction(labels: Ints, workers: int, _rng: np.random.Generator, *, fraction: float = 0.6) -> list[Ints]:
    """The first ``fraction`` of the examples is sorted by label and cut into blocks, the rest split evenly.

    FDA's "Non-IID X %": worker k holds block k of both. Sizes differ by at most 1; nothing is drawn at random.
    """
    _check(labels, workers)
    if not 0 <= fraction <= 1:
        raise UsageError(f"partition 'sorted': fraction={fraction:g}; expected 0 to 1")
    everything = np.arange(len(labels))
    head, rest = np.split(everything, [round(exact(fraction) * len(labels))])
    blocks = np.array_split(head[np.argsort(labels[head], kind="stable")], workers)
    sizes = [len(part) for part in np.array_split(everything, workers)]
    spare = [size - len(block) for size, block in zip(sizes, blocks, strict=True)]
    others = np.split(rest, np.cumsum(spare)[:-1])
    return [np.concatenate(pair) for pair in zip(blocks, others, strict=True)]


@PARTITIONS.register("label-first")
def label_first(labels: Ints, workers: int, _rng: np.random.Generator, *, label: int = 0) -> list[Ints]:
    """Consecutive equal parts after all examples of one label are moved to the front: FDA's "Label Y"."""
    _check(labels, workers)
    chosen = labels == label
    if not chosen.any():
        raise UsageError(f"partition 'label-first': no example has label {label}; the labels are {_shown(labels)}")
    return np.array_split(np.argsort(~chosen, kind="stable"), workers)


@PARTITIONS.register("pathological")
def pathological(labels: Ints, workers: int, rng: np.random.Generator, *, classes: int = 2) -> list[Ints]:
    """Each worker holds exactly ``classes`` classes; a class is split evenly among the workers that hold it.

    Classes are dealt so that the numbers of their holders differ by at most 1. (FedDIP's own code gives two classes
    too, but random sizes.)
    """
    sizes = _class_sizes(labels, workers)
    owns = _deal("pathological", len(sizes), workers, classes, rng)
    holders = owns.sum(axis=0)
    if (short := np.flatnonzero(sizes < holders)).size:
        raise UsageError(
            f"partition 'pathological': label {np.unique(labels)[short[0]]} has {sizes[short[0]]} examples for "
            f"{holders[short[0]]} workers; use fewer workers or classes"
        )
    extra = owns & (np.cumsum(owns, axis=0) <= sizes % holders)
    return _hand_out(owns * (sizes // holders) + extra, labels, rng)


@PARTITIONS.register("extended-dirichlet")
def extended_dirichlet(
    labels: Ints, workers: int, rng: np.random.Generator, *, classes: int = 2, alpha: float = 3.0
) -> list[Ints]:
    """Each worker owns at most ``classes`` classes, which their owners share in Dirichlet(alpha) proportions, as PSL.

    In ``mohkoh19/gpsl`` workers pick, in turn, class c with probability proportional to exp(-M * times already
    picked), M classes in all; here the least picked come first and only ties are random, which is the same up to
    exp(-M). A worker that would hold nothing receives an example of a class it owns.
    """
    sizes = _class_sizes(labels, workers)
    _positive("extended-dirichlet", alpha)
    owns = _deal("extended-dirichlet", len(sizes), workers, classes, rng)
    table = np.zeros_like(owns, dtype=np.int64)
    for c, size in enumerate(sizes):
        owners = np.flatnonzero(owns[:, c])
        table[owners, c] = rng.multinomial(size, rng.dirichlet(np.full(len(owners), alpha)))
    if not _top_up(table, 1, owns):
        raise UsageError(
            f"partition 'extended-dirichlet': too few examples for every one of {workers} workers to hold one of its "
            f"{classes} classes; use fewer workers"
        )
    return _hand_out(table, labels, rng)


def _check(labels: Ints, workers: int) -> None:
    if not 1 <= workers <= len(labels):
        raise UsageError(
            f"partition: {workers} workers for {len(labels)} examples; expected 1 to {len(labels)} workers"
        )


def _class_sizes(labels: Ints, workers: int) -> Ints:
    """Return the number of examples of each label present, in the labels' order."""
    _check(labels, workers)
    return np.unique(labels, return_counts=True)[1].astype(np.int64)


def _positive(name: str, alpha: float) -> None:
    if not 0 < alpha <= 1e9:
        raise UsageError(f"partition {name!r}: alpha={alpha:g}; expected a number above 0 (1000 is nearly IID)")


def _shown(labels: Ints) -> str:
    present = np.unique(labels).tolist()
    return ", ".join(map(str, present[:12])) + (", ..." if len(present) > 12 else "")


def _deal(name: str, total: int, workers: int, each: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Deal distinct classes to workers, least held first and ties at random: who owns what, (workers, total)."""
    if not 1 <= each <= total:
        raise UsageError(f"partition {name!r}: classes={each}; expected 1 to {total}, the number of classes present")
    if workers * each < total:
        raise UsageError(
            f"partition {name!r}: {workers} workers with {each} classes each cannot hold all {total} classes; "
            f"use classes={math.ceil(total / workers)} or more"
        )
    owns = np.zeros((workers, total), dtype=bool)
    for row in owns:
        row[np.lexsort((rng.random(total), owns.sum(axis=0)))[:each]] = True
    return owns


def _top_up(table: Ints, least: int, allowed: npt.NDArray[np.bool_]) -> bool:
    """Move examples, in place, until every worker has ``least``; False if the allowed classes do not permit it.

    Who is short receives, of the classes allowed to it, from the worker with most examples in all.
    """
    held = table.sum(axis=1)
    donors = [(-int(held[worker]), int(worker)) for worker in np.flatnonzero(held > least)]  # most first
    heapq.heapify(donors)
    for worker in np.flatnonzero(held < least):
        useless = []  # to this worker
        for _ in range(least - int(held[worker])):
            while donors and not (table[donors[0][1]] * allowed[worker]).any():
                useless.append(heapq.heappop(donors))
            if not donors:
                return False
            size, donor = heapq.heappop(donors)
            given = int((table[donor] * allowed[worker]).argmax())
            table[donor, given] -= 1
            table[worker, given] += 1
            if -size - 1 > least:
                heapq.heappush(donors, (size + 1, donor))
        for one in useless:
            heapq.heappush(donors, one)
    return True


def _hand_out(table: npt.NDArray[Any], labels: Ints, rng: np.random.Generator) -> list[Ints]:
    """Give each worker as many examples of each class as the table says, chosen at random."""
    dealt = [
        np.split(rng.permutation(np.flatnonzero(labels == label)), np.cumsum(column)[:-1])
        for label, column in zip(np.unique(labels), table.T, strict=True)
    ]
    return [np.concatenate(pieces) for pieces in zip(*dealt, strict=True)]
