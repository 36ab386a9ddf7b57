"""The loop of federated strategies: select, send, train, return, aggregate, and now and then a look at the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from sparsync.engines.clients import Envelope, FederatedClients
from sparsync.engines.evaluation import Budget, Progress, emit_pieces, evaluate, overall
from sparsync.engines.pace import PaceAction
from sparsync.errors import SparsyncError
from sparsync.federated import FederatedServer, ServerContext, TooFewUploads, Upload
from sparsync.system import Clock, Profile, System
from sparsync.task import Task, counts
from sparsync.wire import Ledger, kinds_of, values_of
from sparsync.workers import SCHEDULES, Arena, ClientRuntime
from sparsync.workers.group import gather


@dataclass
class RoundCounter:
    """Where a federation stands."""

    round: int = 0  # complete ones
    exchange: int = 0  # complete ones of the current round
    attempt: int = 0  # cohorts of the current round that have failed


class RoundLoop:
    """One federated strategy's run, in the processes of one machine or several.

    All processes hold the server's state and compute the same; each trains its share of the cohort, client by client.

    Parameters
    ----------
    context : ServerContext
        What the server knows of the federation.
    strategy : FederatedServer
        The server's half of the strategy.
    clients : FederatedClients
        Those that this process plays, or reaches.
    runtime : ClientRuntime
        Where the global model is evaluated.
    task : Task
        For the evaluation of the global model on the test set, which is a read-out: it costs no bytes and no time.
    budget : Budget
        How long: its steps count rounds.
    profile : Profile
        Devices and links, for the virtual clock.
    emit : callable
        Gets every line of the history, a dict; same lines in all processes.
    """

    counts = "rounds"
    attempts, attempted = 3, "cohorts"  # how often a round may be tried, and with what

    def __init__(
        self,
        context: ServerContext,
        strategy: FederatedServer,
        clients: FederatedClients,
        runtime: ClientRuntime,
        task: Task,
        budget: Budget,
        profile: Profile,
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        self.context, self.strategy, self.clients, self.runtime = context, strategy, clients, runtime
        self.task, self.budget, self.emit = task, budget, emit
        self.group = context.group
        self.schedule = SCHEDULES.build(context.settings.schedule)
        self.ledger = Ledger(context.clients)
        self.clock = Clock(System.of(profile, context.clients, context.seed))
        self.progress = Progress()
        self.rounds = RoundCounter()
        self.losses = [0.0, 0]  # sum and number, of the batches since the last evaluation

    @property
    def arena(self) -> Arena:
        """Whose layout names a model's tensors."""
        return self.runtime.arena

    @property
    def syncs(self) -> int:
        """Complete rounds."""
        return self.rounds.round

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or the target reached and that is enough."""
        return self._spent or self.progress.hit(self.budget)

    @property
    def _spent(self) -> bool:
        return self.budget.spent(self.rounds.round, self.clock.now)

    def rehearse(self) -> None:
        """Select the first cohort, and make what it receives."""
        self.strategy.select(0, self.context.generator("select", 0, 0))
        self.strategy.downlink(0)

    def run(self, pace: Callable[[int], PaceAction], save: Callable[[], None]) -> bool:
        """Go through rounds to the end of the budget. Return whether it got there, or was asked to stop."""
        while not self.done:
            steps = self._round(save)
            action = pace(steps)
            if action is not PaceAction.GO_ON and not self.done:
                save()
                if action is PaceAction.STOP:
                    return False
        return True

    def _round(self, save: Callable[[], None]) -> int:
        """One exchange, with further cohorts if too few of the first send something valid; return its local steps."""
        for _ in range(self.attempts):
            try:
                return self._exchange()
            except TooFewUploads as failure:
                self.rounds.attempt += 1
                why = str(failure)
        save()
        raise SparsyncError(
            f"round {self.rounds.round + 1}: {self.attempts} {self.attempted} in a row sent too little; "
            f"the last: {why}; "
            "the run is saved: mend the clients, or lower the learning rate, and resume"
        )

    def _exchange(self) -> int:
        now, context = self.rounds.round, self.context
        context.journal.clear()
        context.rejected = {}
        rng = context.generator("select", now, self.rounds.attempt)
        cohort = [int(client) for client in self.strategy.select(now, rng)]
        payload = self._downlink(now)
        reports: dict[int, dict[str, Any]] = {}
        failure: TooFewUploads | None = None
        complete: bool | None = False
        try:
            complete = self.strategy.aggregate(now, self._uploads(cohort, payload, reports))
        except TooFewUploads as few:  # what was sent has been sent
            failure = few
        everyone = gather(self.group, reports)
        steps = self._book(cohort, payload, everyone)
        for number, reason in context.rejected.items():
            self._emit("rejection", client=number, reason=reason)
        self.clients.settle(set() if failure else everyone.keys() - context.rejected.keys())
        if failure:
            raise failure
        self._note([everyone[number]["notes"] for number in cohort])
        if complete is False:
            self.rounds.exchange += 1
        else:
            self._complete()
        return steps

    def _downlink(self, round_: int) -> bytes:
        """Return what clients receive: the strategy's message, and with a model what is exact of it."""
        return self.context.exact.join(self.strategy.downlink(round_), self.context.exact.values)

    def _uploads(self, cohort: Sequence[int], payload: bytes, reports: dict[int, dict[str, Any]]) -> Iterator[Upload]:
        """Train the clients of this process, one after the other, each when its upload is asked for.

        What they report is entered.
        """
        now, size = self.rounds.round, self.group.size
        for i, number in enumerate(cohort):
            # Clients that remember something stay where they are.
            if (number if self.clients.stateful else i) % size != self.group.rank:
                continue
            envelope = Envelope(number, now, self.schedule(now), self.rounds.exchange)
            upload, reports[number] = self.clients.update(envelope, payload)
            yield Upload(number, upload)

    def _book(self, cohort: Sequence[int], payload: bytes, reports: Mapping[int, dict[str, Any]]) -> int:
        """Book an exchange's bytes and time; return the local steps of the client that took most."""
        self._book_downlink(cohort, payload)
        for number in cohort:
            self._book_uplink(number, reports[number])
        steps: list[int] = [reports[number]["steps"] for number in cohort]
        up = np.array([sum(reports[number]["bytes"].values()) for number in cohort], np.int64)
        self.clock.visit(cohort, steps, len(payload), up)
        self.losses[0] += sum(reports[number]["loss"] for number in cohort)
        self.losses[1] += sum(steps)
        self.progress.step += max(steps, default=0)
        return max([1, *steps])

    def _book_downlink(self, cohort: Sequence[int], payload: bytes) -> None:
        down, values = kinds_of(payload), values_of(payload)
        for number in cohort:
            for kind, nbytes in down.items():
                self.ledger.book_message(kind, number, down=nbytes)
            for kind, nbytes in values.items():
                self.ledger.book_paper(kind, nbytes)

    def _book_uplink(self, number: int, report: Mapping[str, Any]) -> None:
        for kind, nbytes in report["bytes"].items():
            self.ledger.book_message(kind, number, up=nbytes)
        for kind, nbytes in report["values"].items():
            self.ledger.book_paper(kind, nbytes)

    def _emit(self, kind: str, **numbers: Any) -> None:
        """One line of history about the current round."""
        self.emit({"kind": kind, "round": self.rounds.round + 1, "step": self.progress.step, **numbers})

    def _note(self, notes: Sequence[Mapping[str, float]]) -> None:
        """One line of history with what server and clients noted; of the clients' numbers the mean and range."""
        line: dict[str, Any] = dict(self.context.journal)
        for name in dict.fromkeys(name for numbers in notes for name in numbers):
            noted = [numbers[name] for numbers in notes if name in numbers]
            line[name] = float(np.mean(noted))
            line[f"{name}_min"], line[f"{name}_max"] = min(noted), max(noted)
        if line:
            self._emit("round", **line)

    def _complete(self) -> None:
        self.rounds = RoundCounter(self.rounds.round + 1)
        budget, now = self.budget, self.rounds.round
        if now % budget.eval_every == 0 or self._spent:
            self._evaluate()

    def _evaluate(self) -> None:
        context, progress = self.context, self.progress
        by_class, loss = evaluate(self.task, self.evaluated(), self.group)
        accuracy = overall(by_class)
        line: dict[str, Any] = {
            "kind": "evaluation",
            "step": progress.step,
            "accuracy": accuracy,
            "loss": loss,
            "train_loss": self.losses[0] / self.losses[1] if self.losses[1] else None,
            "bytes": self.ledger.total,
            "paper_bytes": self.ledger.paper_total,
            "rounds": self.rounds.round,
            "seconds": self.clock.now,
            "bytes_by_kind": dict(self.ledger.moved),
        }
        if context.settings.client_accuracy:
            line.update(self._of_clients(by_class))
        self.losses = [0.0, 0]
        progress.evaluated(line, self.budget)
        emit_pieces(self.emit, self.clock, progress.step, self.done)
        self.emit(line)

    @cached_property
    def _held(self) -> np.ndarray[Any, Any]:
        """How many samples of each class each client holds, (N, classes)."""
        dataset = self.task.dataset
        return counts(self.runtime.parts, dataset.train.labels.numpy(), dataset.classes).astype(np.float64)

    def _of_clients(self, by_class: np.ndarray[Any, Any]) -> dict[str, float]:
        """Accuracy that clients can expect on test examples of their own classes: mean and worst decile."""
        correct, tested = by_class.T
        mine = self._held @ (correct / np.maximum(tested, 1))
        known = self._held @ (tested > 0)  # samples of classes that are tested at all
        accuracies = np.sort(mine[known > 0] / known[known > 0])
        worst = accuracies[: max(1, len(accuracies) // 10)]
        return {"client_accuracy": float(accuracies.mean()), "client_accuracy_worst": float(worst.mean())}

    def evaluated(self) -> nn.Module:
        """Put the global model as it computes into the bound module, and return that."""
        self.runtime.vector.write(self.strategy.model())
        self.context.exact.write()
        return self.runtime.module

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run of the same experiment needs to go on with the same bits."""
        return {
            "strategy": self.strategy.state_dict(),
            "exact": self.context.exact.values,
            "memories": self.clients.state_dict(),
            "ledger": self.ledger.state_dict(),
            "clock": self.clock.state_dict(),
            "progress": asdict(self.progress),
            "rounds": asdict(self.rounds),
            "losses": list(self.losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.strategy.load_state_dict(state["strategy"])
        self.context.exact.values = list(state["exact"])
        self.clients.load_state_dict(state["memories"])
        self.ledger.load_state_dict(state["ledger"])
        self.clock.load_state_dict(state["clock"])
        self.progress = Progress(**state["progress"])
        self.rounds = RoundCounter(**state["rounds"])
        self.losses = list(state["losses"])
