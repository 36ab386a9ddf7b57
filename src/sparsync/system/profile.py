"""How fast devices compute, how thin their links are, and when they are there: what a user says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from sparsync.errors import UsageError
from sparsync.spec import Natural, Registry, config

Rate = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Power = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_RADIO = 250e3 / 8
_AND_SO_ON = ":..."

PRESETS: Registry[Mapping[str, Any]] = Registry("preset", Mapping)
"""Functions () -> keys of a `Profile`; what is given beside its preset takes precedence over them."""


@PRESETS.register("datacenter")
def datacenter() -> Mapping[str, Any]:
    """10 Gbit/s Ethernet (IEEE 802.3ae) through one switch; equal machines."""
    return {"bandwidth": 1.25e9, "latency": 50e-6}


@PRESETS.register("cross-silo-wan")
def cross_silo_wan() -> Mapping[str, Any]:
    """Links between data centres: a fifteenth of 1 Gbit/s, and 50 ms.

    That is the mean bandwidth that Hsieh et al. measured among eleven regions of a cloud (Gaia, NSDI 2017, section
    2.2); light needs 0.05 s for 10,000 km of fibre.
    """
    return {"bandwidth": 125e6 / 15, "latency": 0.05}


@PRESETS.register("phones-4g")
def phones_4g() -> Mapping[str, Any]:
    """Phones on 4G: 0.75 MB/s down, 0.25 MB/s up, of unequal speed, away for a tenth of the time.

    The rates are those of Wang et al., A Field Guide to Federated Optimization (arXiv:2107.06917). The spread of the
    devices' speeds, the latency and the time spent elsewhere are our choice.
    """
    return {
        "down": 0.75e6,
        "up": 0.25e6,
        "latency": 0.05,
        "spread": 0.5,
        "step_seconds": 0.1,
        "mean_up": 540.0,
        "mean_down": 60.0,
    }


@PRESETS.register("iot")
def iot() -> Mapping[str, Any]:
    """Small processors of much the same make on one 250 kbit/s radio channel (IEEE 802.15.4) that all share."""
    return {"bandwidth": _RADIO, "shared": _RADIO, "latency": 0.02, "spread": 0.1, "step_seconds": 1.0}


def powers(text: str, workers: int) -> list[float]:
    """Read ``4:2:2:1``, or ``4:2:2:1:...``, which begins again for as many workers as there are.

    Raises
    ------
    ValueError
        If it is not a row of positive numbers.
    """
    row = text.removesuffix(_AND_SO_ON)
    try:
        read = [float(part) for part in row.split(":")]
    except ValueError:
        read = []
    if not read or not all(0 < one < math.inf for one in read):
        raise ValueError(f"power={text!r}: expected positive numbers, one per worker, such as 4:2:2:1")
    return read if row == text else [read[worker % len(read)] for worker in range(workers)]


@config
class Outage:
    """A device that crashes, or is switched off, at a known time.

    Attributes
    ----------
    worker : int
        Which one.
    at : float
        When, in virtual seconds.
    until : float
        When it is back. Default: never.
    """

    worker: Natural
    at: Seconds
    until: float = Field(default=math.inf)

    @model_validator(mode="after")
    def _checked(self) -> Outage:
        if not self.until > self.at:
            raise ValueError(f"until={self.until:g}: worker {self.worker} goes at {self.at:g}; give a later time")
        return self


@config
class Profile:
    """Devices and links.

    Attributes
    ----------
    preset : str, optional
        ``datacenter``, ``cross-silo-wan``, ``phones-4g``, ``iot`` or another that is registered: what else is not
        given comes from there.
    step_seconds : float
        Time of one local step on a device of power 1.
    compute : {"stated", "measured", "flops"}
        Where that time comes from: ``stated``, by `step_seconds`; ``measured``, on this machine when the comparison
        begins; or ``flops``, the model's floating-point operations at `flops` per second.
    flops : float
        What a device of power 1 does in a second, for ``compute = "flops"``.
    power : str or list of float, optional
        Relative speeds of the devices, one per worker: ``"4:2:2:1"``; ``"4:2:2:1:..."``: over and over, for any number
        of workers. Default: all 1.
    spread : float
        Without `power`: standard deviation of the logarithm of the speeds, drawn at random with the seed.
    bandwidth : float
        What a worker's link carries in each direction, in bytes per second (100 Mbit/s); ``inf``: no limit.
    up : float or list of float, optional
        The same from workers, for all or for each. Default: `bandwidth`.
    down : float or list of float, optional
        The same to workers, for all or for each. Default: `bandwidth`.
    shared : float, optional
        Bytes per second that all messages to or from a server share: its link, or a radio channel. Default: no
        limit.
    latency : float
        Time before the first byte of a message arrives, in seconds.
    mean_up : float, optional
        Seconds for which a device is there on average: exponential times, with the seed. Default: always there.
    mean_down : float, optional
        Seconds for which it is then away; give both, or neither.
    outages : list
        Devices that go at known times: tables of ``worker`` (from 0), ``at`` and ``until`` (``inf``: never back).
    """

    preset: str | None = None
    step_seconds: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    compute: Literal["stated", "measured", "flops"] = "stated"
    flops: float = Field(default=1e9, gt=0, allow_inf_nan=False)
    power: list[Power] | str | None = None
    spread: float = Field(default=0.0, ge=0, le=3)
    bandwidth: float = Field(default=12.5e6, gt=0)
    up: Rate | list[Rate] | None = None
    down: Rate | list[Rate] | None = None
    shared: Rate | None = None
    latency: float = Field(default=0.005, ge=0, allow_inf_nan=False)
    mean_up: float | None = Field(default=None, ge=1e-3, allow_inf_nan=False)
    mean_down: float | None = Field(default=None, ge=1e-3, allow_inf_nan=False)
    outages: list[Outage] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        keys = given.kwargs if isinstance(given, ArgsKwargs) else given
        if not isinstance(keys, dict):
            return given
        said = {key: value for key, value in keys.items() if value is not None}
        name = said.get("preset")
        if not isinstance(name, str):
            return given
        hidden = ("up", "down") if "bandwidth" in said else ()  # of the preset: they would take precedence over it
        return {**{key: value for key, value in PRESETS.build(name).items() if key not in hidden}, **said}

    @model_validator(mode="after")
    def _checked(self) -> Profile:
        if isinstance(self.power, str):
            powers(self.power, 1)
        if (self.mean_up is None) != (self.mean_down is None):
            raise ValueError("mean_up and mean_down describe one process; give both, or neither")
        return self

    def check(self, workers: int) -> None:
        """Refuse what describes another number of devices.

        Raises
        ------
        UsageError
            If the profile does.
        """
        rates = {"power": self.power, "up": self.up, "down": self.down}
        if isinstance(self.power, str) and not self.power.endswith(_AND_SO_ON):
            rates["power"] = powers(self.power, workers)
        for name, said in rates.items():
            if isinstance(said, list) and len(said) != workers:
                raise UsageError(f"profile: {name} has {len(said)} numbers for {workers} workers; give one for each")
        last = max((outage.worker for outage in self.outages), default=0)
        if last >= workers:
            raise UsageError(f"profile: outages name worker {last} of {workers}; the last is {workers - 1}")
