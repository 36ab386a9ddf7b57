"""The loop of strategies among peers: local steps, exchange, and now and then a look at the mean model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsync.engines.evaluation import Budget, Progress, emit_pieces, evaluate, overall
from sparsync.engines.pace import PaceAction
from sparsync.peers import ExchangesGradients, HasModel, PeerState
from sparsync.system import Clock
from sparsync.task import Task
from sparsync.wire import Ledger
from sparsync.workers import Arena, Fleet, LocalTraining
from sparsync.workers.group import total


class PeerLoop:
    """One strategy's run on one fleet.

    Parameters
    ----------
    fleet, training, strategy
        The workers, how they train, and what they say to each other.
    task : Task
        For the evaluation of the mean model on the test set, which is a read-out: it costs no bytes and no time.
    budget : Budget
        How long.
    emit : callable
        Gets every line of the history, a dict; same lines on all ranks.
    """

    counts = "syncs"

    def __init__(
        self,
        fleet: Fleet,
        training: LocalTraining,
        strategy: PeerState,
        task: Task,
        budget: Budget,
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        self.fleet = fleet
        self.training = training
        self.strategy = strategy
        self.task = task
        self.budget = budget
        self.emit = emit
        self.progress = Progress()

    def rehearse(self) -> None:
        """Ask how long workers train at first."""
        self.strategy.local_steps(self.fleet)

    def run(self, pace: Callable[[int], PaceAction], save: Callable[[], None]) -> bool:
        """Train to the end of the budget. Return whether it got there, or was asked to stop."""
        progress, budget = self.progress, self.budget
        strategy = self.strategy
        before_step = (lambda: strategy.gradients(self.fleet)) if isinstance(strategy, ExchangesGradients) else None
        while not self.done:
            steps: int | list[int]
            if progress.remaining == 0:
                wished = self.strategy.local_steps(self.fleet)
                steps = wished if isinstance(wished, int) else list(wished)
                progress.remaining = steps if isinstance(steps, int) else max(steps)
            else:
                steps = progress.remaining
            if isinstance(steps, int):  # cut short by what comes first; the exchange waits for the rest
                steps = min(steps, budget.steps - progress.step, budget.eval_every - progress.step % budget.eval_every)
            before = progress.step
            self.training.train(steps, before_step)
            progress.total += steps * self.fleet.workers if isinstance(steps, int) else sum(steps)
            progress.step = progress.total // self.fleet.workers
            progress.remaining -= steps if isinstance(steps, int) else max(steps)
            due = before // budget.eval_every != progress.step // budget.eval_every
            if progress.remaining == 0:
                self.strategy.exchange(self.fleet)
            self._drain_journal()
            if due or self._spent:
                self._evaluate()
            action = pace(progress.step - before)
            if action is not PaceAction.GO_ON and not self.done:
                save()
                if action is PaceAction.STOP:
                    return False
        return True

    @property
    def arena(self) -> Arena:
        """Whose layout names a model's tensors."""
        return self.fleet.arena

    @property
    def ledger(self) -> Ledger:
        """What has been sent."""
        return self.fleet.ledger

    @property
    def clock(self) -> Clock:
        """What time it would be."""
        return self.fleet.clock

    @property
    def syncs(self) -> int:
        """How often models have been averaged."""
        return self.fleet.syncs

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or the target reached and that is enough."""
        return self._spent or self.progress.hit(self.budget)

    @property
    def _spent(self) -> bool:
        return self.budget.spent(self.progress.step, self.clock.now)

    def final(self) -> tuple[Tensor, Tensor]:
        """Parameters (d,) and buffers (b,) of the model that counts: the strategy's, or else the workers' mean."""
        fleet = self.fleet
        model = self.strategy.model(fleet) if isinstance(self.strategy, HasModel) else None
        params = fleet.mean(fleet.params, None) if model is None else model.params
        buffers = fleet.mean(fleet.arena.buffers, None)
        if model is not None and len(model.buffers):
            buffers = model.buffers
        return params, buffers

    def evaluated(self) -> nn.Module:
        """Put the model that counts into the bound module, and return that; what is not averaged is worker 0's."""
        others = [rows[0].clone() for rows in self.arena.others]
        for own in others:
            self.fleet.group.broadcast(own.view(torch.uint8))
        return self.training.learner.load(*self.final(), others)

    def _evaluate(self) -> None:
        fleet, progress = self.fleet, self.progress
        by_class, loss = evaluate(self.task, self.evaluated(), fleet.group)
        seen = total(fleet.group, torch.tensor(self.training.losses(), dtype=torch.float64)).tolist()
        line = {
            "kind": "evaluation",
            "step": progress.step,
            "accuracy": overall(by_class),
            "loss": loss,
            "train_loss": seen[0] / seen[1] if seen[1] else None,
            "bytes": fleet.ledger.total,
            "paper_bytes": fleet.ledger.paper_total,
            "syncs": fleet.syncs,
            "seconds": fleet.clock.now,
            "bytes_by_kind": dict(fleet.ledger.moved),
        }
        progress.evaluated(line, self.budget)
        emit_pieces(self.emit, fleet.clock, progress.step, self.done)
        self.emit(line)

    def _drain_journal(self) -> None:
        if self.fleet.journal:
            for numbers in self.fleet.journal:
                self.emit({"kind": "check", "step": self.progress.step, **numbers})
            self.fleet.journal.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run of the same experiment needs to go on with the same bits."""
        return {
            "fleet": self.fleet.state_dict(),
            "training": self.training.state_dict(),
            "strategy": self.strategy.state_dict(),
            "progress": dict(vars(self.progress)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.fleet.load_state_dict(state["fleet"])
        self.training.load_state_dict(state["training"])
        self.strategy.load_state_dict(state["strategy"])
        self.progress = Progress(**state["progress"])
