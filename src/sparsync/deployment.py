"""HADFL on real machines, from an experiment file: the coordinator of a run, and each of its devices.

All processes are given the same file. The coordinator keeps a run's folder, as every comparison does, and beside it

devices.json   where it listens, and how devices were started, if it has started them
token          what devices must know; bring it to their machines by a way that you trust
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sparsync import comparison
from sparsync.assembly import SeedSetting
from sparsync.engines.devices import Membership
from sparsync.errors import UsageError
from sparsync.experiment import Experiment, to_toml
from sparsync.peers import HADFL
from sparsync.storage import read_bytes, write_json, write_text
from sparsync.system import System
from sparsync.task import Task, load_dataset, partition
from sparsync.transport import TOKEN_BYTES
from sparsync.workers import SingleProcess

_FILE, _TOKEN = "devices.json", "token"
_GRACE = 10.0  # seconds that devices have to end by themselves
_RETURN = 5.0  # seconds in which devices that still live call a coordinator that has been started again


@dataclass(frozen=True)
class DeploymentSettings:
    """Where a coordinator listens, and what it expects.

    Attributes
    ----------
    port : int
        0 for any that is free.
    begin_with : int, optional
        Devices that must be there at first. Default: all.
    heartbeat_timeout : float
        Seconds after which a device that does not answer is given up.
    patience : float
        Seconds to wait for devices.
    here : bool
        Whether to start all devices on this machine, each slowed down as the profile says.
    slowdown : float
        Of the fastest of them.
    """

    port: int = 0
    begin_with: int | None = None
    heartbeat_timeout: float = 10.0
    patience: float = 600.0
    here: bool = False
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        _check_seconds("heartbeat_timeout", self.heartbeat_timeout)
        _check_seconds("patience", self.patience)
        _check_slowdown(self.slowdown)


def only(experiment: Experiment, label: str | None = None) -> tuple[Experiment, HADFL]:
    """Leave an experiment with one strategy, HADFL, and its first seed.

    Raises
    ------
    UsageError
        If it has none, or several and no label says which.
    """
    found = {name: own for name in experiment.strategies if isinstance(own := experiment.strategy(name), HADFL)}
    if label is None and len(found) == 1:
        (label,) = found
    if label not in found:
        known = ", ".join(found) or "none"
        raise UsageError(f"strategy {label or '?'}: name one that is HADFL; the experiment has {known}")
    changed = {"strategies": {label: experiment.strategies[label]}, "seeds": experiment.seeds[:1], "processes": 1}
    return experiment.model_copy(update=changed), found[label]


def coordinate(
    experiment: Experiment,
    folder: Path,
    settings: DeploymentSettings,
    *,
    watch: Callable[[Experiment], Any] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Coordinate a new run, and return its summary. `tell` gets the command by which devices are started.

    Raises
    ------
    UsageError
        If the folder already holds a run, or the port is taken.
    Interrupted
        If the user stopped it; devices train on, and `resume` takes over.
    """
    with closing(_membership(experiment, settings)) as membership:

        @contextmanager
        def devices() -> Iterator[None]:
            write_text(folder / _TOKEN, membership.token.hex() + "\n", mode=0o600)
            write_json(folder / _FILE, {**asdict(settings), "port": membership.port})
            write_text(folder / "experiment.toml", to_toml(experiment))  # for devices, which may be faster
            with _devices(experiment, folder, settings, membership.port, range(experiment.workers), tell):
                yield

        return comparison.compare(experiment, folder, watch, membership=membership, around=devices())


def resume(
    folder: Path,
    *,
    watch: Callable[[Experiment], Any] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Take over a run whose coordinator has stopped, or died, at its old address.

    Raises
    ------
    UsageError
        If the folder holds no run on real machines that can be gone on with, or the port is taken.
    """
    experiment, _ = comparison.opened(folder)
    try:
        settings = DeploymentSettings(**json.loads(read_bytes(folder / _FILE)))
        if not 0 < settings.port < 2**16:
            raise ValueError
    except (OSError, RecursionError, TypeError, ValueError):
        raise UsageError(f"{folder / _FILE}: does not say where the coordinator listened; begin a new run") from None
    with closing(_membership(experiment, settings, read_token(folder / _TOKEN))) as membership:

        @contextmanager
        def devices() -> Iterator[None]:
            missing = set(range(experiment.workers))
            until = time.monotonic() + _RETURN
            while settings.here and missing and time.monotonic() < until:
                time.sleep(0.1)
                missing -= membership.connected()
            with _devices(experiment, folder, settings, membership.port, sorted(missing), tell):
                yield

        return comparison.resume(folder, watch, membership=membership, around=devices())


def is_coordinated(folder: Path) -> bool:
    """Whether a folder holds a run on real machines."""
    return (folder / _FILE).exists()


def _membership(experiment: Experiment, settings: DeploymentSettings, token: bytes | None = None) -> Membership:
    if settings.begin_with is not None and not 1 <= settings.begin_with <= experiment.workers:
        raise UsageError(f"begin with {settings.begin_with} of {experiment.workers} devices; name 1 to all of them")
    return Membership(
        experiment.workers,
        token=token,
        port=settings.port,
        heartbeat_timeout=settings.heartbeat_timeout,
        quorum=settings.begin_with,
        join_timeout=settings.patience,
    )


def read_token(path: Path) -> bytes:
    """Return what a coordinator has written for its devices.

    Raises
    ------
    UsageError
        If there is no such file, or it is none.
    """
    try:
        token = bytes.fromhex(read_bytes(path).decode().strip())
    except (OSError, ValueError):
        token = b""
    if len(token) != TOKEN_BYTES:
        raise UsageError(f"{path}: no token; give the file `token` of the coordinator's folder")
    return token


def serve(
    experiment: Experiment,
    strategy: HADFL,
    number: int,
    coordinator: tuple[str, int],
    token: bytes,
    *,
    slowdown: float = 1.0,
    patience: float = 600.0,
    threads: int | None = None,
) -> None:
    """Be a device, until training is over.

    Raises
    ------
    UsageError
        If the experiment has no device of that number, or it cannot be slowed down so.
    SparsyncError
        If its coordinator is gone for too long, or has no use for it.
    """
    if not 0 <= number < experiment.workers:
        raise UsageError(f"device {number}: the experiment has {experiment.workers}, numbered from 0; name one of them")
    _check_slowdown(slowdown)
    _check_seconds("patience", patience)
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: give 1 or more")
    if not 0 < coordinator[1] < 2**16:
        raise UsageError(f"coordinator {coordinator[0]}:{coordinator[1]}: no such port; it says its own when it starts")
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = load_dataset(experiment.data, experiment.data_root)
    seed = experiment.seeds[0]
    parts = partition(experiment.partition, dataset.train.labels.numpy(), experiment.workers, seed)
    setting = SeedSetting(experiment, Task(dataset, experiment.model), parts, seed, SingleProcess())
    setting.device(strategy, number, coordinator, token, slowdown=slowdown, patience=patience).run()


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise UsageError(f"{name} {seconds:g}: give a number of seconds above 0")


def _check_slowdown(slowdown: float) -> None:
    if not 1 <= slowdown < math.inf:
        raise UsageError(f"slowdown {slowdown:g}: a step cannot take less time than it does; give 1 or more")


@contextmanager
def _devices(
    experiment: Experiment,
    folder: Path,
    settings: DeploymentSettings,
    port: int,
    numbers: Iterable[int],
    tell: Callable[[str], None],
) -> Iterator[None]:
    """Start devices on this machine, if that is asked for; else say how to start them."""
    last = experiment.workers - 1
    command = ["device", str(folder / "experiment.toml"), "--coordinator", f"localhost:{port}"]
    command += ["--token", str(folder / _TOKEN)]
    if not settings.here:
        tell(
            f"waiting for devices 0 to {last} at port {port}; on each machine, with this one's address, a copy of the "
            f"token and --number 0 to {last}:\n  sparsync {shlex.join(command)} --number 0"
        )
        yield
        return
    speeds = System.of(experiment.profile, experiment.workers, experiment.seeds[0]).speeds
    slowdowns = settings.slowdown * speeds.max() / speeds
    own = [sys.executable, "-m", "sparsync", *command, "--threads", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    running = [
        subprocess.Popen(
            [*own, "--number", str(number), "--slowdown", repr(float(slowdowns[number]))],
            env=environment,
            start_new_session=True,  # Ctrl-C is for the coordinator
        )
        for number in numbers
    ]
    try:
        yield
        for process in running:
            process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in running:
            process.terminate()
            process.wait()
