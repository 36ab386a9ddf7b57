"""What remains of a client's labels, in whole numbers: equal rests go to those that come first."""

from __future__ import annotations

import numpy as np
import pytest

from sparsync.split.trainer import _portion


@pytest.mark.parametrize(
    ("held", "left", "portion"),
    [([20, 17, 8], 15, [7, 6, 2]), ([27, 2, 21], 36, [20, 1, 15]), ([4, 0, 4], 8, [4, 0, 4])],
)
def test_a_portion_by_hand(held, left, portion):
    assert _portion(np.array(held), left).tolist() == portion
