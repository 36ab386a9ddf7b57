"""The loop of strategies among peers: local steps, exchange, and now and then a look at the mean model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsync.engines.pace import Action
from sparsync.peers import PeerState
from sparsync.task import Task
from sparsync.wire import Dense, Ring
from sparsync.workers import Fleet, LocalTraining
from sparsync.workers.group import share


@dataclass(frozen=True)
class Budget:
    """How long a run lasts.

    Attributes
    ----------
    steps : int
        Local steps per worker, at most.
    eval_every : int
        Steps between two evaluations.
    target : float, optional
        Test accuracy to reach: strictly above it, as FDA's authors count.
    stop_at_target : bool
        Whether the run ends there.
    """

    steps: int
    eval_every: int
    target: float | None = None
    stop_at_target: bool = True


@dataclass
class Progress:
    """What a run has come to."""

    step: int = 0
    accuracy: float = 0.0
    best_accuracy: float = 0.0
    reached: dict[str, Any] | None = None  # the evaluation at which the target was first exceeded
    remaining: int = 0  # local steps until the next exchange


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

    def run(self, pace: Callable[[int], Action], save: Callable[[], None]) -> bool:
        """Train to the end of the budget. Return whether it got there, or was asked to stop."""
        progress, budget = self.progress, self.budget
        gradients = getattr(self.strategy, "gradients", None)
        before_step = None if gradients is None else (lambda: gradients(self.fleet))
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
            taken = steps if isinstance(steps, int) else max(steps)
            due = progress.step // budget.eval_every != (progress.step + taken) // budget.eval_every
            self.training.train(steps, before_step)
            progress.step += taken
            progress.remaining -= taken
            if progress.remaining == 0:
                self.strategy.exchange(self.fleet)
            self._drain_journal()
            if due or progress.step >= budget.steps:
                self._evaluate()
            action = pace(taken)
            if action is not Action.GO_ON and not self.done:
                save()
                if action is Action.STOP:
                    return False
        return True

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or the target reached and that is enough."""
        hit = self.progress.reached is not None and self.budget.stop_at_target
        return hit or self.progress.step >= self.budget.steps

    def mean_model(self) -> tuple[Tensor, Tensor]:
        """Parameters (d,) and buffers (b,) of the workers' mean: a read-out."""
        fleet = self.fleet
        return fleet.mean(fleet.params, None), fleet.mean(fleet.arena.buffers, None)

    def load_mean(self) -> nn.Module:
        """Put the mean model into the seat's module, and return that."""
        params, buffers = self.mean_model()
        arena = self.fleet.arena
        views = [nn.Parameter(view) for view in arena.layout.views(params)]
        return self.training.seat.bind(views, [*arena.buffer_layout.views(buffers), *arena.other_views(0)])

    def _evaluate(self) -> None:
        module = self.load_mean()
        fleet, progress = self.fleet, self.progress
        count = len(self.task.dataset.test)
        mine = share(count, fleet.group.size, fleet.group.rank)
        correct, loss = self.task.evaluate(module, mine.start, mine.stop)
        sums = torch.tensor((correct, loss, *self.training.losses()), dtype=torch.float64)
        correct, loss, train_loss, batches = fleet.group.mean(sums, 1.0, Ring(), Dense("float64")).tolist()
        progress.accuracy = correct / count
        progress.best_accuracy = max(progress.best_accuracy, progress.accuracy)
        line = {
            "kind": "evaluation",
            "step": progress.step,
            "accuracy": progress.accuracy,
            "loss": loss / count if math.isfinite(loss) else None,
            "train_loss": train_loss / batches if batches else None,
            "bytes": fleet.ledger.total,
            "paper_bytes": fleet.ledger.paper_total,
            "syncs": fleet.syncs,
            "seconds": fleet.clock.now,
            "bytes_by_kind": dict(fleet.ledger.moved),
        }
        if self.budget.target is not None and progress.reached is None and progress.accuracy > self.budget.target:
            progress.reached = line
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
