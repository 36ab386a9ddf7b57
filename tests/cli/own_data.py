"""Data of the user's own: functions that --data names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsync import Dataset, from_arrays


def blobs(root: Path | None) -> Dataset:
    """Two clouds in the plane."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400)
    x = (rng.normal(0, 0.3, (400, 2)) + 2 * y[:, None]).astype(np.float32)
    return from_arrays(x[:300], y[:300], x[300:], y[300:], name="blobs")


def nothing(root: Path | None) -> None:
    """No dataset."""
