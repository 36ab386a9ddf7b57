"""Processes of a test: a coordinator and its devices, forked from one that has imported everything already."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing import Plot, play
from torch import Tensor

from processes import FORKED, GIVEN_UP
from sparsync.hetero import ring_mean

EXPERIMENT = """
data = "digits"
model = "mlp:hidden=4"
workers = {workers}
batch_size = 8
optimizer = "sgd:lr=0.05"
steps = {steps}
{more}
[strategies]
hadfl = "hadfl:{hadfl}"
"""


class Field:
    """One run on real processes, and what is left of it."""

    def __init__(self, folder: Path, hadfl: str, *, workers: int = 4, steps: int = 28, more: str = "") -> None:
        self.folder, self.out, self.workers = folder, folder / "run", workers
        self.file = folder / "experiment.toml"
        self.file.write_text(EXPERIMENT.format(workers=workers, steps=steps, more=more, hadfl=hadfl))
        self.processes: dict[str, BaseProcess] = {}
        self.slower = 1.0
        self.meeting = GIVEN_UP  # seconds that a ring waits before it asks who lives: a hang-up or a message ends it

    def start(self, name: str, *arguments: object, plot: Plot | None = None) -> None:
        said = [str(argument) for argument in arguments]
        process = FORKED.Process(target=play, args=(self.folder, name, said, plot, self.slower, self.meeting))
        process.start()
        self.processes[name] = process

    def coordinate(self, *options: object, plot: Plot | None = None) -> None:
        options = ("--heartbeat-timeout", GIVEN_UP, "--patience", GIVEN_UP, *options)
        self.start("coordinator", "coordinate", self.file, "--out", self.out, "--no-report", *options, plot=plot)
        self.wait(lambda: (self.out / "devices.json").exists() or self.ended("coordinator"), "a coordinator")
        assert not self.ended("coordinator"), self.said()

    def resume(self) -> None:
        self.start("coordinator", "resume", self.out, "--no-report")

    @property
    def port(self) -> int:
        return int(json.loads((self.out / "devices.json").read_text())["port"])

    def device(
        self, number: int, *options: object, name: str = "", file: Path | None = None, plot: Plot | None = None
    ) -> None:
        address = ("--coordinator", f"localhost:{self.port}", "--token", self.out / "token")
        self.start(
            name or f"device{number}", "device", file or self.file, *address, "--number", number, *options, plot=plot
        )

    def devices(self, *options: object, plot: Plot | None = None) -> None:
        for number in range(self.workers):
            self.device(number, *options, plot=plot)

    # While it runs

    def wait(self, ready: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + GIVEN_UP
        while not ready():
            assert time.monotonic() < end, f"waited too long for {what}: {self.said()}"
            time.sleep(0.02)

    def signal(self, name: str, what: str) -> None:
        pid = self.processes[name].pid
        assert pid is not None
        os.kill(pid, signal.Signals[what])

    def ended(self, name: str) -> bool:
        return self.processes[name].exitcode is not None

    def enough(self) -> None:
        """Let the coordinator end."""
        (self.folder / "enough").touch()

    def end(self) -> dict[str, int | None]:
        """Wait for all processes, and return how each ended."""
        end = time.monotonic() + GIVEN_UP
        for process in self.processes.values():
            process.join(max(0.0, end - time.monotonic()))
        codes = {name: process.exitcode for name, process in self.processes.items()}
        assert None not in codes.values(), f"still there: {codes}: {self.said()}"
        assert not any(alive(process.pid) for process in self.processes.values())
        return codes

    def close(self) -> None:
        for pid in self.others():
            os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            if process.is_alive() and process.pid is not None:
                process.kill()
                process.join()
            process.close()

    def others(self) -> set[int]:
        """Devices that the coordinator has started itself."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                said = path.read_bytes().split(b"\0")
                if b"device" in said and str(self.out / "token").encode() in said:
                    found.add(int(path.parent.name))
        return found

    # What it has left

    def said(self) -> dict[str, str]:
        """The end of what each process has printed."""
        return {path.stem: path.read_text()[-1500:] for path in sorted(self.folder.glob("*.out"))}

    def history(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in lines(self.out / "history.jsonl") if line["kind"] == kind]

    def lost(self) -> dict[int, str]:
        return {line["client"]: line["reason"] for line in self.history("lost")}

    def log(self, number: int, event: str) -> list[dict[str, Any]]:
        """What a device has noted."""
        return [line for line in lines(self.folder / f"device{number}.jsonl") if line["event"] == event]

    def rings(self) -> dict[tuple[int, int], dict[int, Tensor]]:
        """Members' models before every ring, in its order, by cycle and attempt; a member may be missing."""
        found: dict[tuple[int, int], dict[int, Tensor]] = {}
        for number in range(self.workers):
            for line in self.log(number, "before"):
                found.setdefault(tuple(line["tag"]), dict.fromkeys(line["ring"]))[number] = vector(line)  # type: ignore[arg-type]
        return found

    def adopted(self) -> dict[tuple[int, int], dict[int, str]]:
        """The mean that devices hold after a ring, by cycle and attempt, and whose it is."""
        found: dict[tuple[int, int], dict[int, str]] = {}
        for number in range(self.workers):
            for line in self.log(number, "adopted"):
                found.setdefault(tuple(line["tag"]), {})[number] = line["vector"]  # type: ignore[arg-type]
        return found

    def check(self) -> None:
        """What must hold in any case: all agree, on the mean of the survivors' own models, and no cycle comes twice."""
        rings, adopted = self.rings(), self.adopted()
        weights = None
        if "weights=samples" in self.file.read_text():
            weights = np.sum(json.loads((self.out / "partition.json").read_text())["counts"], axis=1)
        assert adopted
        for tag, means in adopted.items():
            assert len(set(means.values())) == 1
            before = rings[tag]
            assert None not in before.values()
            counts = None if weights is None else [weights[number] for number in before]
            assert told(ring_mean(list(before.values()), counts)) == next(iter(means.values()))
        for (cycle, attempt), before in rings.items():  # survivors begin again with what they had
            for number, own in before.items():
                first = rings.get((cycle, attempt - 1), {}).get(number)
                assert own is None or first is None or torch.equal(own, first)
        for number in range(self.workers):
            begun = [tuple(line["tag"]) for line in self.log(number, "before")]
            assert begun == sorted(set(begun))
            for line in self.log(number, "merged"):
                assert line["vector"] in adopted[tuple(line["tag"])].values()  # type: ignore[index]
        cycles = [line["cycle"] for line in self.history("cycle")]
        assert cycles == sorted(set(cycles))
        for line in self.history("cycle"):
            assert list(rings[line["cycle"], line["attempts"] - 1]) == line["ring"]
            assert line["broadcaster"] in line["ring"]


def told(values: Tensor) -> str:
    return values.numpy().tobytes().hex()


def vector(line: dict[str, Any]) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(line["vector"]), dtype=torch.float32)


def lines(path: Path) -> list[dict[str, Any]]:
    """Those that are complete."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Callable[..., Field]]:
    """Make a field; whatever is still running in it in the end is killed."""
    made: list[Field] = []

    def make(*arguments: Any, **options: Any) -> Field:
        made.append(Field(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
