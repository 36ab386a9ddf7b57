"""The share that top-k keeps is the decimal number that was typed."""

from __future__ import annotations

import pytest

from sparsync.wire.supports import TopKSupport


@pytest.mark.parametrize(
    ("fraction", "numel", "kept"), [(0.35, 90, 32), (0.05, 400, 20), (0.35, 90 + 180 * 2**20, 32 + 63 * 2**20)]
)
def test_halves_go_to_the_even_number(fraction, numel, kept):
    assert TopKSupport(fraction).count(numel) == kept
