"""The virtual clock: what a run would have taken on its profile's devices and links, not on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparsync.errors import SparsyncError
from sparsync.system.system import Floats, System
from sparsync.system.timeline import ACTIVITIES, Activity, Timeline

Who = npt.NDArray[np.int64] | Sequence[int] | slice
_ALL = slice(None)
_ROUNDING = 1e-9  # of a step: one that begins so shortly before a moment does not begin before it


class Clock:
    """Virtual seconds of every worker, each on its own.

    Whatever happens adds seconds to the workers that it concerns: local steps by the speed of each device, messages by
    the latency and the rate of each link, waiting up to whatever is waited for. So time never runs backwards, and what
    a worker has spent on all activities is the time that it has come to.

    Parameters
    ----------
    system : System
        The devices and links.

    Attributes
    ----------
    times : array of float64, (K,)
        When each worker is ready, in virtual seconds.
    free : array of float64, (K,)
        When its link has nothing left to send that it does not wait for.
    server : float, optional
        When a server is that waits for no worker in particular. Default: there is none.
    spent : dict of str to array of float64, (K,)
        On what: ``compute``, ``wait``, ``send``, ``receive``, ``exchange`` (both at once), ``away``.
    timeline : Timeline
        The same, piece by piece.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.times = np.zeros(system.workers, np.float64)
        self.free = np.zeros(system.workers, np.float64)
        self.server: float | None = None
        self.spent: dict[Activity, Floats] = {name: np.zeros(system.workers) for name in ACTIVITIES}
        self.timeline = Timeline(system.workers)

    @property
    def now(self) -> float:
        """When the last worker is ready, in virtual seconds; when the server is, where that is not the same."""
        return float(self.times.max()) if self.server is None else self.server

    # What workers do

    def spend(self, activity: Activity, seconds: float | Floats, who: Who = _ALL) -> None:
        """Workers do something for so long each."""
        self._until(activity, self.times[who] + seconds, who)

    def compute(self, steps: int | Sequence[int] | npt.NDArray[np.int64], who: Who = _ALL) -> None:
        """Workers take local steps, and rest while they are away."""
        seconds = np.asarray(steps, np.float64) * self.system.step_seconds[who]
        if self.system.outages is None:
            self.spend("compute", seconds, who)
            return
        for worker, own in zip(np.arange(self.system.workers)[who].tolist(), seconds.tolist(), strict=True):
            for activity, end in self.system.outages[worker].work(float(self.times[worker]), own):
                if math.isinf(end):
                    raise SparsyncError(
                        f"worker {worker} is away for good after {self.times[worker]:g} virtual seconds, and this "
                        "strategy waits for it; give its outage an end, or compare strategies that go on without it"
                    )
                self._until(activity, np.array([end]), [worker])

    def fit(self, until: float | Floats) -> npt.NDArray[np.int64]:
        """Local steps that each worker begins before a moment, (K,): all that it can complete before it goes away."""
        seconds = self.system.step_seconds
        steps = np.maximum(0, np.ceil((until - self.times) / seconds - _ROUNDING)).astype(np.int64)
        if self.system.outages is not None:
            for worker in np.flatnonzero(steps).tolist():
                own, moment = self.system.outages[worker], float(self.times[worker])
                stays = 0.0 if own.at(moment) is not None else own.next(moment) - moment
                steps[worker] = min(steps[worker], np.floor(stays / seconds[worker] + _ROUNDING))
        return steps

    def wait(self, until: float | Floats, who: Who = _ALL) -> None:
        """Workers wait for a moment, unless it has passed."""
        self._until("wait", np.maximum(self.times[who], until), who)

    def meet(self, who: Who = _ALL) -> float:
        """Workers wait for one another. Return when that is."""
        moment = float(self.times[who].max())
        self.wait(moment, who)
        return moment

    # What they say to each other

    def ring(self, messages: int, serial_bytes: int, who: Who = _ALL) -> None:
        """Members meet and go through a ring, in lock step: each of its steps takes as long as the slowest link."""
        self.meet(who)
        slowest = min(self.system.up[who].min(), self.system.down[who].min())
        self.spend("exchange", messages * self.system.latency + serial_bytes / slowest, who)

    def neighbours(self, links: npt.NDArray[np.bool_], nbytes: int) -> None:
        """Workers wait for their neighbours in a graph (K, K), and send each of them a message of so many bytes."""
        met = np.where(links, self.times[None, :], self.times[:, None]).max(1)
        self.wait(met)
        seconds = links.sum(0) * nbytes / np.minimum(self.system.up, self.system.down)
        slowest = np.where(links, seconds[None, :], seconds[:, None]).max(1)  # what I receive is as late as its sender
        self.spend("exchange", np.where(links.any(1), self.system.latency + slowest, 0.0))

    def pair(self, first: int, second: int, nbytes: int) -> None:
        """A worker exchanges messages with another one, which goes on meanwhile."""
        up, down = self.system.up, self.system.down
        rate = min(up[first], down[first], up[second], down[second])
        self.spend("exchange", np.array([self.system.latency + nbytes / rate]), [first])

    def gather(self, nbytes: int | npt.NDArray[np.int64], who: Who = _ALL) -> None:
        """Each sends its message to a server as soon as it is ready; all wait until the last has arrived."""
        through = self._through(nbytes, who)
        self.spend("send", self.system.latency + nbytes / self.system.up[who], who)
        self.wait(max(float(self.times[who].max()), through), who)

    def scatter(self, nbytes: int | npt.NDArray[np.int64], who: Who = _ALL) -> None:
        """Each receives its message from a server, which sends all of them at once."""
        together = np.broadcast_to(nbytes, self.times[who].shape).sum() / self.system.shared
        self.spend("receive", self.system.latency + np.maximum(nbytes / self.system.down[who], together), who)

    def visit(
        self, clients: Who, steps: Sequence[int], down: npt.NDArray[np.int64] | int, up: npt.NDArray[np.int64] | int
    ) -> None:
        """A server and its clients go through a round: each receives, trains and sends, and all wait for the last.

        Parameters
        ----------
        clients, steps : sequence of int, (P,)
            Who, and their local steps.
        down, up : int or array of int64, (P,)
            Bytes that each receives and sends.
        """
        if isinstance(clients, slice) or len(clients):
            self.wait(self.now, clients)  # the round begins when the one before has ended
            self.scatter(down, clients)
            self.compute(steps, clients)
            self.gather(up, clients)

    def transfer(self, sender: int, receiver: int, nbytes: int) -> float:
        """A worker sends without waiting. Return when the message has arrived.

        It is as fast as the slower link, and begins when the sender's earlier messages are through.
        """
        begins = max(float(self.times[sender]), float(self.free[sender]))
        self.free[sender] = begins + nbytes / min(self.system.up[sender], self.system.down[receiver])
        return float(self.free[sender]) + self.system.latency

    def advance(self, seconds: float) -> None:
        """All workers wait for one another, and spend so long together."""
        self.meet()
        self.spend("compute", seconds)

    def _through(self, nbytes: int | npt.NDArray[np.int64], who: Who) -> float:
        """When the last message has passed what they share, which takes them in the order in which they are ready."""
        ready = self.times[who]
        order = np.argsort(ready)
        from_here = np.broadcast_to(nbytes, ready.shape)[order][::-1].cumsum()[::-1]  # its bytes and those after it
        return self.system.latency + float((ready[order] + from_here / self.system.shared).max())

    def _until(self, activity: Activity, ends: Floats, who: Who) -> None:
        """Workers do something until a moment each."""
        starts = self.times[who].copy()  # a slice would be a view
        self.times[who] = ends
        self.spent[activity][who] += ends - starts
        self.timeline.add(who, activity, starts, ends)

    def state_dict(self) -> dict[str, Any]:
        """Return where everybody is, for a checkpoint."""
        return {
            "times": torch.from_numpy(self.times.copy()),
            "free": torch.from_numpy(self.free.copy()),
            "server": self.server,
            "spent": {name: torch.from_numpy(own.copy()) for name, own in self.spent.items()},
            "timeline": self.timeline.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.times, self.free = state["times"].numpy().copy(), state["free"].numpy().copy()
        self.server = state["server"]
        self.spent = {name: state["spent"][name].numpy().copy() for name in ACTIVITIES}
        self.timeline.load_state_dict(state["timeline"])
