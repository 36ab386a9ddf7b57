"""AMS sketches of long vectors: linear maps to l x m numbers from which a squared norm can be read.

    sk(v)[i, b] = sum over j with h_i(j) = b of s_i(j) v_j           M2(X) = median over i of ||X[i, :]||^2

Alon, Matias and Szegedy (1996), in the count-sketch layout of Charikar, Chen and Farach-Colton (2002). Two layouts of
the bucket hash h:

``count``
    h_i(j) is uniform for every coordinate on its own, as FDA's authors have it.
``block``
    The vector is cut into blocks of m coordinates; row i rotates block c by a random r_i(c):
    h_i(j) = (j + r_i(c)) mod m. Two coordinates of one block never share a bucket, so the variance is never above that
    of ``count``, and whole blocks are added at memory bandwidth, without an index per parameter.

Signs are independent per coordinate and row in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsync.errors import UsageError

Layout = Literal["block", "count"]

_MATRIX_LIMIT = 1 << 20  # parameters up to which the sketch is held as a sparse matrix: 8 bytes per parameter and row


class Sketch:
    """A linear map from (k, d) to (k, l, m), the same in every process that draws it from the same generator.

    Parameters
    ----------
    d : int
        Length of the vectors.
    depth, width : int
        l rows (odd, so that the median is one of them) of m buckets.
    rng : numpy Generator
        Where buckets and signs come from: shared by all workers, or the mean of their sketches means nothing.
    layout : {"block", "count"}
        See above.
    device, dtype
        Of the vectors.

    Raises
    ------
    UsageError
        If the depth is even.
    """

    def __init__(
        self,
        d: int,
        depth: int,
        width: int,
        rng: np.random.Generator,
        layout: Layout = "block",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if depth % 2 == 0:
            raise UsageError(f"sketch: depth {depth} is even; take an odd one, whose median is one of the rows")
        self.d, self.depth, self.width = d, depth, width
        self._apply: Callable[[Tensor], Tensor]
        device = torch.device(device)
        blocks = -(-d // width)
        if layout == "block":
            rotations = rng.integers(width, size=(depth, blocks))
            signs = _signs(rng, depth, blocks * width)
            if device.type == "cpu" and d <= _MATRIX_LIMIT and _has_mkl():
                j = np.arange(d)
                buckets = (j + rotations[:, j // width]) % width
                self._apply = _Matrix(buckets, signs[:, :d], width, device, dtype)
            else:
                self._apply = _Blocks(d, rotations, signs, width, device, dtype)
        else:
            self._apply = _Matrix(rng.integers(width, size=(depth, d)), _signs(rng, depth, d), width, device, dtype)

    def __call__(self, v: Tensor) -> Tensor:
        """Sketches of vectors (k, d): (k, l, m)."""
        return torch.stack([self._apply(row) for row in v])

    @staticmethod
    def squared_norm(sketch: Tensor) -> float:
        """M2: estimate of the squared norm of a vector from its sketch (l, m)."""
        return float(sketch.double().square().sum(1).median())


def _has_mkl() -> bool:
    """Whether sparse products run on MKL; without it torch has none on the CPU."""
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def _signs(rng: np.random.Generator, depth: int, n: int) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """Independent -1 and +1, (depth, n), from one random bit each."""
    bits = np.frombuffer(rng.bytes(depth * -(-n // 8)), np.uint8).reshape(depth, -1)
    return (np.unpackbits(bits, axis=1, count=n).astype(np.int8) << 1) - 1


class _Matrix:
    """A sketch as a sparse matrix (l m, d), with l entries per column: the fast kernel for small d."""

    def __init__(
        self,
        buckets: np.ndarray[tuple[int, int], np.dtype[np.int64]],
        signs: np.ndarray[tuple[int, int], np.dtype[np.int8]],
        width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        depth, d = buckets.shape
        self.shape = (depth, width)
        rows = (buckets + np.arange(depth)[:, None] * width).reshape(-1)
        order = np.argsort(rows, kind="stable")
        starts = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=depth * width))))
        with warnings.catch_warnings():  # "CSR support is in beta", and no word on what that would mean for a product
            warnings.simplefilter("ignore", UserWarning)
            self.matrix = torch.sparse_csr_tensor(
                torch.from_numpy(starts.astype(np.int32)),
                torch.from_numpy((order % d).astype(np.int32)),
                torch.from_numpy(signs.reshape(-1)[order]).to(dtype),
                (depth * width, d),
                check_invariants=True,
            ).to(device)

    def __call__(self, v: Tensor) -> Tensor:
        return (self.matrix @ v).view(self.shape)


class _Blocks:
    """The block layout for any d: one byte per parameter and row, one index per block and row.

    Blocks are summed by rotation, X[r] = sum of the blocks that row i rotates by r; then X[r, p] belongs to bucket
    (p + r) mod m. Rows of X are padded to m + 1 numbers, so its flat index is r (m + 1) + p, which is r + p modulo m:
    the padded matrix (m, m + 1), read as (m + 1, m) and summed over rows, is the sketch.
    """

    def __init__(
        self,
        d: int,
        rotations: np.ndarray[tuple[int, int], np.dtype[np.int64]],
        signs: np.ndarray[tuple[int, int], np.dtype[np.int8]],
        width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        depth, blocks = rotations.shape
        self.d, self.width = d, width
        padded = np.zeros((depth, blocks, width + 1), np.int8)
        padded[..., :width] = signs.reshape(depth, blocks, width)
        self.signs = torch.from_numpy(padded).to(device)
        order = np.argsort(rotations, axis=1, kind="stable")  # a fixed order of summation: the same bits every time
        self.order = torch.from_numpy(order).to(device)
        starts = [np.searchsorted(np.sort(row), np.arange(width)) for row in rotations]
        self.starts = torch.from_numpy(np.stack(starts)).to(device)
        self.vector = torch.zeros(blocks, width + 1, device=device, dtype=dtype)

    def __call__(self, v: Tensor) -> Tensor:
        m, whole = self.width, self.d // self.width
        self.vector[:whole, :m] = v[: whole * m].view(whole, m)
        if whole < len(self.vector):
            self.vector[whole, : self.d - whole * m] = v[whole * m :]
        rows = []
        for signs, order, starts in zip(self.signs, self.order, self.starts, strict=True):
            x = functional.embedding_bag(order, self.vector * signs, starts, mode="sum")  # (m, m + 1)
            rows.append(x.view(m + 1, m).sum(0))
        return torch.stack(rows)
