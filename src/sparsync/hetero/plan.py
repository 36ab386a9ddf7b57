"""Who trains how much until all meet again: HADFL's hyperperiod. Cao et al., arXiv:2111.08274.

Devices of unequal speed train without waiting, each as many units of work as it completes in one hyperperiod. The
idea is the paper's, and so, as we understand it, is the least common multiple of the devices' times as hyperperiod.
That of measured times explodes (10.13, 20.09, 20.31 and 40.07 s have one of 1.7e11 s), so both rules here, which
quantise, are our choice; so is the cap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sparsync.errors import UsageError

Floats = npt.NDArray[np.float64]

_TICKS = 4  # of the fine rule, in one unit of the fastest device


@dataclass(frozen=True)
class HyperperiodPlan:
    """How much every device trains in one hyperperiod.

    Attributes
    ----------
    hyperperiod : float
        HE, in seconds.
    units : tuple of int, (K,)
        E_k, at least 1: units of work of each device. A unit is a number of local steps, the same for all.
    """

    hyperperiod: float
    units: tuple[int, ...]


def make_plan(
    seconds: npt.ArrayLike, *, rule: Literal["coarse", "fine"] = "coarse", max_units: int | None = None
) -> HyperperiodPlan:
    """Plan one hyperperiod from measured times.

    Parameters
    ----------
    seconds : array of float, shape (K,)
        T_k: what one unit of work takes each device, above 0.
    rule : {"coarse", "fine"}
        "coarse": HE = T_max and E_k = round(T_max / T_k). Small jitter changes nothing where ratios are near integers;
        near a ratio of 1.5, a third more or less is planned than the device can do. "fine": times are rounded to
        ticks of T_min / 4; HE is the least common multiple of the ticks, at most 2 T_max, and E_k = round(HE / T_k),
        with T_k in ticks. It plans 3 and 2 units at a ratio of 1.5, but follows the jitter. Halves are rounded to
        even. Default: "coarse".
    max_units : int
        Most units of any device, E_max: it bounds how far a fast one drifts, which then waits for the hyperperiod's
        end. None: no cap. Default: None.

    Raises
    ------
    UsageError
        If a time is not finite and above 0, the times lie too far apart for floating point, or the rule or the cap
        is out of range.
    """
    times = per_device("plan: seconds", seconds, above=0).tolist()
    if rule not in ("coarse", "fine"):
        raise UsageError(f"plan: rule={rule!r}; expected 'coarse' or 'fine'")
    if max_units is not None and (not isinstance(max_units, int | np.integer) or max_units < 1):
        raise UsageError(f"plan: max_units={max_units!r}; expected an integer of at least 1, or None for no cap")
    fastest, slowest = min(times), max(times)
    if not math.isfinite(2 * slowest) or not math.isfinite(2 * _TICKS * (slowest / fastest)):
        raise UsageError(f"plan: seconds from {fastest:g} to {slowest:g} lie beyond floating point; measure them again")
    if rule == "coarse":
        hyperperiod = slowest
        units = [round(slowest / time) for time in times]
    else:
        ticks = [round(_TICKS * (time / fastest)) for time in times]
        common, most = math.lcm(*ticks), 2 * _TICKS * (slowest / fastest)
        hyperperiod = 2 * slowest if common > most else min(common / _TICKS * fastest, 2 * slowest)
        units = [round(min(common, most) / t) for t in ticks]
    return HyperperiodPlan(hyperperiod, tuple(units if max_units is None else (min(u, int(max_units)) for u in units)))


def ideal_throughput(power: npt.ArrayLike) -> float:
    """Local steps of devices that never wait, over those of lock-step training: sum(power) / (K min(power)).

    Computing only, without any communication: 2.25 for power 4, 2, 2, 1 and 2 for 3, 3, 1, 1. It is no speed-up of
    time to accuracy, which is what the paper reports.

    Parameters
    ----------
    power : array of float, shape (K,)
        Local steps per second of each device, or anything proportional to it; above 0.

    Raises
    ------
    UsageError
        If one is not finite and above 0.
    """
    given = per_device("ideal_throughput: power", power, above=0)
    return float((given / given.min()).mean())


def per_device(name: str, given: npt.ArrayLike, size: int | None = None, *, above: float = -math.inf) -> Floats:
    """Return one finite number per device as a float64 array of its own, (K,).

    Parameters
    ----------
    name : str
        What it is, for the message.
    given : array of float, shape (K,)
        At least one.
    size : int
        K. Default: whatever is given.
    above : float
        Bound that every number must exceed. Default: none.

    Raises
    ------
    UsageError
        If it is of another shape, or a number is not finite or not above the bound.
    """
    values = np.asarray(given).astype(np.float64)  # a copy
    if values.ndim != 1 or not values.size or size not in (None, values.size):
        raise UsageError(f"{name} has shape {values.shape}; expected ({size or 'K'},), one number per device")
    if (bad := np.flatnonzero(~(np.isfinite(values) & (values > above)))).size:
        bound = f" above {above:g}" if math.isfinite(above) else ""
        raise UsageError(f"{name}[{bad[0]}] is {values[bad[0]]:g}; expected a finite number{bound}")
    return values
