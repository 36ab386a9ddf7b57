"""The share of the examples that is sorted is the decimal number that was typed."""

from __future__ import annotations

import numpy as np

from sparsync.task import partition


def test_a_half_example_goes_to_the_even_number():
    labels = np.r_[np.ones(31, np.int64), 0, np.ones(58, np.int64)]
    first, second = partition("sorted:fraction=0.35", labels, 2, 0)
    assert first[0] == 31  # 31.5 examples are 32: the 0 is among those that are sorted, and comes first
    assert len(first) == len(second) == 45
