"""The loop of asynchronous federated strategies: clients come and go one by one, and the server waits for none of them.

It follows the virtual clock from one event to the next: a client has finished its local steps, or its upload has
arrived. How long those steps take is known when they begin, so a client trains only when its upload is about to be
sent, together with all others that have begun meanwhile: that is what several processes share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsync.engines.clients import Envelope, FederatedClients
from sparsync.engines.evaluation import Budget
from sparsync.engines.rounds import RoundLoop
from sparsync.errors import UsageError
from sparsync.federated import AsynchronousServer, ServerContext, Upload
from sparsync.system import Profile
from sparsync.task import Task
from sparsync.workers import ClientRuntime
from sparsync.workers.group import gather


@dataclass
class Participation:
    """A client's way from the server and back."""

    client: int
    wave: int  # of those that were sent a model at the same moment
    version: int  # updates that the model had seen
    home: int  # rank of the process that trains it
    message: bytes  # there: what it has received; once it has trained, what it sends
    report: dict[str, Any] | None = None  # once it has trained
    sent: bool = False


class AsyncRoundLoop(RoundLoop):
    """One asynchronous strategy's run. A round is one update of the model.

    So many clients as the strategy's `concurrency` says train at once, each the model of the moment when it was sent
    out, at its own device's pace. Whenever an upload arrives, another client, drawn among those not under way, is sent
    the model of that moment; of several uploads at one moment, all are taken in before. After `buffer` uploads the
    strategy updates the model. If it refuses one, further arrivals take its place.

    A step of the history is the mean over the clients that train at once. Messages through a link that all share
    follow one another, in the order in which they begin.

    Parameters are those of `RoundLoop`.
    """

    attempted = "arrivals"
    strategy: AsynchronousServer

    def __init__(
        self,
        context: ServerContext,
        strategy: AsynchronousServer,
        clients: FederatedClients,
        runtime: ClientRuntime,
        task: Task,
        budget: Budget,
        profile: Profile,
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        super().__init__(context, strategy, clients, runtime, task, budget, profile, emit)
        self.clock.system.need_time("asynchronous clients")
        if strategy.concurrency > context.clients:
            raise UsageError(
                f"asynchronous clients: concurrency={strategy.concurrency} of {context.clients}; ask for at most all"
            )
        self.attempts = RoundLoop.attempts * strategy.concurrency
        self.clock.server = 0.0
        self.busy = {"down": 0.0, "up": 0.0}  # until when messages occupy what all links share
        self.waves = 0
        self.away: list[Participation] = []  # in the order in which they were sent out
        self.arrived: list[Participation] = []  # since the last update

    def rehearse(self) -> None:
        """Make what the first clients receive."""
        self.strategy.downlink(0)

    def _exchange(self) -> int:
        """Let uploads arrive until there are enough, and update the model."""
        now, context = self.rounds.round, self.context
        context.journal.clear()
        context.rejected = {}
        while len(self.arrived) < self.strategy.buffer:
            self.arrived.append(self._next())
        try:
            self.strategy.aggregate(now, self._arrivals())
        finally:
            for number, reason in context.rejected.items():
                self._emit("rejection", client=number, reason=reason)
            # By client: one that is known to send rubbish is not heard twice in one update.
            self.arrived = [visit for visit in self.arrived if visit.client not in context.rejected]
        self._note([{"staleness": now - visit.version, **_report_of(visit)["notes"]} for visit in self.arrived])
        steps: list[int] = [_report_of(visit)["steps"] for visit in self.arrived]
        self.arrived = []
        self._complete()
        return max([1, *steps])

    def _arrivals(self) -> Iterator[Upload]:
        """What clients of this process have sent."""
        for visit in self.arrived:
            if visit.home == self.group.rank:
                yield Upload(visit.client, visit.message, self.rounds.round - visit.version)

    def _next(self) -> Participation:
        """Let time pass until another upload has arrived."""
        times = self.clock.times
        while True:
            visit = min(self.away, key=lambda visit: float(times[visit.client]), default=None)
            missing = self.strategy.concurrency - len(self.away)
            if visit is None or (missing and times[visit.client] > self.clock.now):
                self._send_out(missing)
            elif visit.report is None:
                self._train()
            elif not visit.sent:
                self._send_back(visit)
            else:
                self._arrive(visit)
                return visit

    def _send_out(self, number: int) -> None:
        """Send the model to so many clients, and let them begin."""
        context, clock, version = self.context, self.clock, self.rounds.round
        rng = context.generator("select", self.waves, 0)
        clients = context.sample(rng, number, [visit.client for visit in self.away])
        payload = self._downlink(version)
        self._book_downlink(clients, payload)
        for i, client in enumerate(clients):
            home = (self.waves + i) % self.group.size
            clock.wait(clock.now, [client])
            self._queue("down", client, len(payload))
            clock.scatter(len(payload), [client])
            clock.compute([context.steps_of(client)], [client])
            message = payload if home == self.group.rank else b""
            self.away.append(Participation(client, self.waves, version, home, message))
        self.waves += 1

    def _train(self) -> None:
        """Train all clients that are under way and have not, each in its process."""
        untrained = [visit for visit in self.away if visit.report is None]
        reports: dict[int, dict[str, Any]] = {}
        for i, visit in enumerate(untrained):
            if visit.home == self.group.rank:
                # The wave stands for the round: a client may take part in several between two updates.
                envelope = Envelope(visit.client, visit.wave, self.schedule(visit.version))
                visit.message, reports[i] = self.clients.update(envelope, visit.message)
        for i, report in gather(self.group, reports).items():
            untrained[i].report = report

    def _send_back(self, visit: Participation) -> None:
        nbytes = sum(_report_of(visit)["bytes"].values())
        self._queue("up", visit.client, nbytes)
        self.clock.gather(nbytes, [visit.client])
        visit.sent = True

    def _arrive(self, visit: Participation) -> None:
        report, progress = _report_of(visit), self.progress
        self.away.remove(visit)
        self.clock.server = float(self.clock.times[visit.client])
        self._book_uplink(visit.client, report)
        self.losses[0] += report["loss"]
        self.losses[1] += report["steps"]
        progress.total += report["steps"]
        progress.step = progress.total // self.strategy.concurrency

    def _queue(self, way: str, client: int, nbytes: int) -> None:
        """Let a message wait for those before it, where all share one link."""
        begins = max(float(self.clock.times[client]), self.busy[way])
        self.clock.wait(begins, [client])
        self.busy[way] = begins + nbytes / self.clock.system.shared

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "busy": dict(self.busy),
            "waves": self.waves,
            "away": [_packed(visit) for visit in self.away],
            "arrived": [_packed(visit) for visit in self.arrived],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.busy, self.waves = dict(state["busy"]), state["waves"]
        self.away = [_unpacked(visit) for visit in state["away"]]
        self.arrived = [_unpacked(visit) for visit in state["arrived"]]


def _report_of(visit: Participation) -> dict[str, Any]:
    assert visit.report is not None  # it has trained
    return visit.report


def _packed(visit: Participation) -> dict[str, Any]:
    return {**asdict(visit), "message": torch.from_numpy(np.frombuffer(visit.message, np.uint8).copy())}


def _unpacked(state: Mapping[str, Any]) -> Participation:
    message: Tensor = state["message"]
    return Participation(**{**state, "message": message.numpy().tobytes()})
