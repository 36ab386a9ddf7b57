"""Numbers as people read them: bytes, seconds and fractions, alone or as mean and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

__all__ = ["Spread", "human_bytes", "human_count", "human_percent", "human_seconds", "spread_of"]

_BYTES = tuple((unit, Decimal(1000) ** i) for i, unit in enumerate(("B", "kB", "MB", "GB", "TB", "PB", "EB")))
_SECONDS = (("s", Decimal(1)), ("min", Decimal(60)), ("h", Decimal(3600)), ("d", Decimal(86400)))
NOTHING = "–"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over those seeds that have a value.

    Attributes
    ----------
    mean : float
        Mean over ``count`` seeds.
    deviation : float or None
        Sample standard deviation (n - 1); None for a single seed.
    count, of : int
        How many seeds have a value, of how many that the experiment asked for.
    """

    mean: float
    deviation: float | None
    count: int
    of: int

    @property
    def complete(self) -> bool:
        """Whether every seed counts: if not, this is a mean over survivors, and must say so."""
        return self.count >= self.of


def spread_of(values: Sequence[float | None], of: int) -> Spread | None:
    """Return mean and spread of the values that are finite, or None if there are none."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    if len(known) > 1 and min(known) == max(known):
        return Spread(known[0], 0.0, len(known), of)  # exactly: a mean may differ in its last bit
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)) if len(known) > 1 else None
    return Spread(mean, deviation, len(known), of)


def human_bytes(count: float) -> str:
    """Write a number of bytes with three digits and a decimal unit.

    Rounding is exact (half up, never through binary fractions), and moves on to the next unit where it must.

    Examples
    --------
    >>> human_bytes(999), human_bytes(999_499), human_bytes(999_500), human_bytes(1_234_567_890)
    ('999 B', '999 kB', '1.00 MB', '1.23 GB')
    """
    return _human(count, None, _BYTES)


def human_seconds(seconds: float) -> str:
    """Write a duration with three digits, in s, min (from 2 min), h (from 2 h) or d (from 2 d)."""
    return _human(seconds, None, _SECONDS)


def human_percent(fraction: float) -> str:
    """Write a fraction as a percentage with two decimals."""
    return f"{100 * fraction:.2f} %"


def human_count(value: float) -> str:
    """Write a count; thousands are set apart, and only small means keep a decimal."""
    if not math.isfinite(value):
        return NOTHING
    if value == round(value) or value >= 100:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.1f}"


def plain(spread: Spread | None, kind: str, separator: str = " ± ") -> str:
    """Write mean and spread in one unit, as in ``1.23 ± 0.04 GB``; ``kind``: bytes, seconds, percent, number or
    count.

    A spread of exactly zero, seeds that all agree, is left out.
    """
    if spread is None:
        return NOTHING
    if spread.deviation == 0:
        spread = Spread(spread.mean, None, spread.count, spread.of)
    if kind in ("bytes", "seconds"):
        units = _BYTES if kind == "bytes" else _SECONDS
        return _human(spread.mean, spread.deviation, units, separator)
    if kind == "percent":
        if spread.deviation is None:
            return human_percent(spread.mean)
        return f"{100 * spread.mean:.2f}{separator}{100 * spread.deviation:.2f} %"
    if kind == "number":
        return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f"{separator}{spread.deviation:.3f}")
    if spread.deviation is None:
        return human_count(spread.mean)
    return f"{human_count(spread.mean)}{separator}{human_count(spread.deviation)}"


def _human(value: float, deviation: float | None, units: Sequence[tuple[str, Decimal]], separator: str = " ± ") -> str:
    if not math.isfinite(value):
        return NOTHING
    exact, sign = abs(Decimal(value)), "-" if value < 0 else ""
    for i, (unit, size) in enumerate(units):
        last = i == len(units) - 1
        number = _three_digits(exact / size, whole=unit == "B")
        # Bytes move on when three digits no longer do; durations only from twice the next unit: 90 s, not 1.50 min.
        limit = Decimal(1000) if units is _BYTES else 2 * units[min(i + 1, len(units) - 1)][1] / size
        if last or number < limit:
            break
    if deviation is None:
        return f"{sign}{number} {unit}"
    spread = (Decimal(deviation) / size).quantize(number, ROUND_HALF_UP)  # as many decimals as the number
    return f"{sign}{number}{separator}{spread} {unit}"


def _three_digits(value: Decimal, whole: bool) -> Decimal:
    for decimals in (0,) if whole else (2, 1, 0):
        number = value.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
        if number < Decimal(10) ** (3 - decimals):
            break
    return number
