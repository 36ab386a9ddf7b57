"""How a model's density is shared out among its layers, and random masks of these densities."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.shares import Share, exact

Shape = Sequence[int]


def uniform(shapes: Sequence[Shape], density: Share) -> list[Fraction]:
    """Give every layer the same density, exactly.

    Raises
    ------
    UsageError
        If the density is not from 0 to 1.
    """
    if not 0 <= density <= 1:
        raise UsageError(f"density={float(density)!r}; expected a fraction of non-zeros from 0 to 1")
    return [exact(density)] * len(shapes)


def erk(shapes: Sequence[Shape], density: Share, power: float = 1.0, dense: Collection[int] = ()) -> list[Fraction]:
    """Erdos-Renyi-Kernel densities: narrow layers denser, so that as few as possible starve (RigL, arXiv:1911.11134).

    A layer's density is proportional to (sum of its dimensions / their product)^power. Layers that would exceed 1
    become dense, and the others share what is left. Densities are exact, so that a layer whose share is a whole number
    of entries gets that number.

    Parameters
    ----------
    shapes : sequence of shapes, (L,)
        Of the weights: (out, in, kernel...) or (out, in).
    density : float or Fraction
        Of all together, from 0 to 1.
    power : float
        0: uniform. Default: 1.
    dense : collection of int
        Indices of layers that are dense from the start.

    Raises
    ------
    UsageError
        If the density is not from 0 to 1, or the dense layers alone hold more.
    """
    uniform(shapes, density)  # refuses a density out of range
    density = exact(density)
    sizes = [math.prod(shape) for shape in shapes]
    narrow = [Fraction(sum(shape), size) for shape, size in zip(shapes, sizes, strict=True)]
    raw = narrow if power == 1 else [Fraction(float(one) ** power) for one in narrow]
    left = set(range(len(shapes))) - set(dense)
    if sum(sizes[i] for i in dense) > density * sum(sizes):
        raise UsageError(f"erk: density={float(density)!r} is less than the dense layers {sorted(dense)} hold alone")
    scale = Fraction(0)
    while left:
        budget = density * sum(sizes) - sum(size for i, size in enumerate(sizes) if i not in left)
        scale = budget / sum(raw[i] * sizes[i] for i in left)
        largest = max(raw[i] for i in left)
        if scale * largest <= 1:
            break
        left -= {i for i in left if raw[i] == largest}
    return [scale * raw[i] if i in left else Fraction(1) for i in range(len(shapes))]


def counts(shapes: Sequence[Shape], densities: Sequence[Share]) -> list[int]:
    """Entries that each layer keeps, floor(density * n): together up to one per layer less than the density asks."""
    return [math.floor(exact(density) * math.prod(shape)) for shape, density in zip(shapes, densities, strict=True)]


def random_mask(shapes: Sequence[Shape], counts: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Mask (M,) with that many ones per layer, at positions drawn uniformly.

    Parameters
    ----------
    shapes : sequence of shapes, (L,)
        Of the layers, in the order of the mask.
    counts : sequence of int, (L,)
        Ones of each.
    rng : numpy Generator
        Where positions come from.

    Raises
    ------
    UsageError
        If a layer is to keep more than it has.
    """
    parts = []
    for shape, count in zip(shapes, counts, strict=True):
        size = math.prod(shape)
        if not 0 <= count <= size:
            raise UsageError(f"random mask: {count} ones in a layer of {size} entries; expected from 0 to that")
        part = np.zeros(size, bool)
        part[rng.choice(size, count, replace=False, shuffle=False)] = True
        parts.append(part)
    return torch.from_numpy(np.concatenate(parts))
