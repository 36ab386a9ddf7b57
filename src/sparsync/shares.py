"""Shares of a whole in exact arithmetic: 5 % of 400 are 20, whatever rounding makes of the float 0.05.

What a user types is a decimal number; the nearest float is not that number, and its product with a count lands beside
the whole number it should be. `round`, `math.floor` and `math.ceil` of a fraction are right at any size.
"""

from __future__ import annotations

from fractions import Fraction

Share = float | Fraction


def exact(share: Share) -> Fraction:
    """Return the fraction that a share's shortest decimal text says: 1/20 of 0.05.

    Parameters
    ----------
    share : float or Fraction
        A finite number; fractions are returned as they are.
    """
    return share if isinstance(share, Fraction) else Fraction(repr(float(share)))
