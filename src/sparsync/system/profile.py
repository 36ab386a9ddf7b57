"""How fast devices compute and how thin their links are."""

from __future__ import annotations

from pydantic import Field

from sparsync.spec import config


@config
class Profile:
    """Devices and links that are all alike.

    Attributes
    ----------
    step_seconds : float
        Time of one local step on one worker, in seconds.
    bandwidth : float
        What a worker's link carries in each direction, in bytes per second. Default: 100 Mbit/s.
    latency : float
        Time before the first byte of a message arrives, in seconds.
    """

    step_seconds: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    bandwidth: float = Field(default=12.5e6, gt=0)
    latency: float = Field(default=0.005, ge=0, allow_inf_nan=False)
