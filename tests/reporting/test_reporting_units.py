"""Human units at their edges."""

from __future__ import annotations

import pytest

from sparsync.reporting.units import Spread, human_bytes, human_percent, human_seconds, plain, spread_of


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (999.4, "999 B"),
        (999.5, "1.00 kB"),
        (1000, "1.00 kB"),
        (1004, "1.00 kB"),
        (1005, "1.01 kB"),  # half up; 1.005 has no exact binary fraction
        (9994, "9.99 kB"),
        (9995, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (10**6, "1.00 MB"),
        (1_234_567_890, "1.23 GB"),
        (10**12 - 1, "1.00 TB"),
        (10**15, "1.00 PB"),
        (10**18, "1.00 EB"),
        (10**22, "10000 EB"),
        (-1500, "-1.50 kB"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.1234, "0.12 s"),
        (12.34, "12.3 s"),
        (90, "90.0 s"),
        (119.4, "119 s"),
        (119.5, "1.99 min"),
        (120, "2.00 min"),
        (7199, "2.00 h"),
        (7200, "2.00 h"),
        (172_800, "2.00 d"),
        (8.64e7, "1000 d"),
    ],
)
def test_human_seconds(seconds, text):
    assert human_seconds(seconds) == text


def test_human_percent():
    assert human_percent(0.98604) == "98.60 %"


def test_spread_is_the_sample_standard_deviation_over_known_values():
    spread = spread_of([1.0, 2.0, None, 3.0, float("nan")], of=5)
    assert spread == Spread(mean=2.0, deviation=1.0, count=3, of=5)
    assert not spread.complete
    assert spread_of([4.0], of=1) == Spread(4.0, None, 1, 1)
    assert spread_of([0.1, 0.1, 0.1], of=3) == Spread(0.1, 0.0, 3, 3)
    assert spread_of([None], of=1) is None


def test_spreads_share_the_unit_and_the_decimals_of_their_mean():
    assert plain(Spread(1.234e9, 4.2e7, 3, 3), "bytes") == "1.23 ± 0.04 GB"
    assert plain(Spread(123_400_000, 5.6e6, 3, 3), "bytes") == "123 ± 6 MB"
    assert plain(Spread(0.98604, 0.0012, 3, 3), "percent") == "98.60 ± 0.12 %"
    assert plain(Spread(300.0, 30.0, 3, 3), "seconds") == "5.00 ± 0.50 min"
    assert plain(Spread(4000.0, 0.0, 3, 3), "count") == "4\u202f000"
    assert plain(Spread(0.21129, 0.0041, 3, 3), "number") == "0.211 ± 0.004"
    assert plain(None, "bytes") == "–"
