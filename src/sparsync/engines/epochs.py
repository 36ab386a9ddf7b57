"""The loop of split strategies: an epoch's schedule, its steps, and now and then a look at the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import nn

from sparsync.engines.evaluation import Budget, Progress, emit_pieces, evaluate, overall
from sparsync.engines.pace import PaceAction
from sparsync.randomness import SHARED, generator
from sparsync.split import BatchComposition, NoClientAnswered, Schedule, SplitState, SplitTrainer, deviations
from sparsync.system import Clock
from sparsync.wire import Ledger
from sparsync.workers import Arena, Group


class EpochLoop:
    """One split strategy's run.

    Parameters
    ----------
    trainer, strategy
        Where steps happen, and what they are.
    arena : Arena
        One row, whose layout names the whole model's tensors.
    group : Group
        The processes. All compute the same; they share evaluations.
    budget : Budget
        How long: its steps count epochs.
    emit : callable
        Gets every line of the history, a dict; same lines in all processes.
    """

    counts = "epochs"

    def __init__(
        self,
        trainer: SplitTrainer,
        strategy: SplitState,
        arena: Arena,
        group: Group,
        budget: Budget,
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        self.trainer, self.strategy, self.arena, self.group = trainer, strategy, arena, group
        self.budget, self.emit = budget, emit
        self.progress = Progress()
        self.schedule: Schedule | None = None  # of what is left of the epoch, from row `at`
        self.at = self.redrawn = 0
        self.losses = [0.0, 0]  # sum and number, of the batches since the last evaluation
        self._lost = 0  # clients that the schedule no longer counts on
        self._mix = trainer.histograms.sum(0) / trainer.samples.sum()  # q

    @property
    def ledger(self) -> Ledger:
        """What has been sent."""
        return self.trainer.ledger

    @property
    def clock(self) -> Clock:
        """What time it would be."""
        return self.trainer.clock

    @property
    def syncs(self) -> int:
        """Complete epochs."""
        return self.trainer.epoch

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or the target reached and that is enough."""
        return self._spent or self.progress.hit(self.budget)

    @property
    def _spent(self) -> bool:
        return self.budget.spent(self.trainer.epoch, self.clock.now)

    def rehearse(self) -> None:
        """Compose the first schedule."""
        self.trainer.begin_epoch()
        self._compose()

    def run(self, pace: Callable[[int], PaceAction], save: Callable[[], None]) -> bool:
        """Go through epochs to the end of the budget. Return whether it got there, or was asked to stop."""
        with self.trainer.training():
            while not self.done:
                self._step()
                action = pace(1)
                if action is not PaceAction.GO_ON and not self.done:
                    save()
                    if action is PaceAction.STOP:
                        return False
        return True

    def _step(self) -> None:
        trainer = self.trainer
        if self.schedule is None:
            trainer.begin_epoch()
            self.redrawn = 0
            self._compose()
        row = self._row()
        try:
            loss = self.strategy.step(row)
        except NoClientAnswered:
            gone = self._note_lost()
        else:
            trainer.clock.advance(trainer.times.total)
            self.losses[0] += loss
            self.losses[1] += 1
            self.at += 1
            self._note(row)
            gone = self._note_lost()
            trainer.step += 1
            self.progress.step += 1
        if not trainer.left.any():
            self._end_epoch()
        elif trainer.late.size or gone:  # the rest is not what it was when it was composed
            self.redrawn += 1
            self._compose()

    def _compose(self) -> None:
        trainer = self.trainer
        rng = generator(trainer.seed, "schedule", SHARED, trainer.epoch, self.redrawn)
        self.schedule, self.at = self.strategy.schedule(trainer.left, rng), 0
        if trainer.notes:
            self.emit({"kind": "schedule", "step": trainer.step, "epoch": trainer.epoch + 1, **trainer.notes})
            trainer.notes = {}

    def _row(self) -> BatchComposition:
        schedule = self.schedule
        assert schedule is not None
        own = slice(*schedule.indptr[self.at : self.at + 2])
        return BatchComposition(schedule.indices[own].astype(np.int64), schedule.data[own])

    def _note(self, asked: BatchComposition) -> None:
        """One line of history about the step."""
        trainer = self.trainer
        line: dict[str, Any] = {
            "kind": "step",
            "step": trainer.step + 1,
            "epoch": trainer.epoch + 1,
            "size": int(trainer.batch_classes.sum()),
            "deviation": float(deviations(trainer.batch_classes[None], self._mix)[0]),
            "seconds": trainer.times.total,
        }
        if len(trainer.times.up):
            in_time = asked.clients[~np.isin(asked.clients, trainer.late)]
            line["slowest"] = int(in_time[trainer.times.up.argmax()])
        if trainer.late.size:
            line["late"] = trainer.late.tolist()
        if trainer.epoch == 0:  # one epoch shows how batches are composed
            line["clients"], line["sizes"] = asked.clients.tolist(), asked.sizes.tolist()
        self.emit(line)

    def _note_lost(self) -> bool:
        """One line for each client that was lost since the last step; whether there is one."""
        trainer = self.trainer
        lost = list(trainer.lost.items())[self._lost :]
        for client, reason in lost:
            line = {
                "kind": "lost",
                "step": trainer.step + 1,
                "epoch": trainer.epoch + 1,
                "client": client,
                "reason": reason,
            }
            self.emit(line)
        self._lost += len(lost)
        return bool(lost)

    def _end_epoch(self) -> None:
        self.strategy.epoch_over()
        self.schedule = None
        self.trainer.epoch += 1
        if self.trainer.epoch % self.budget.eval_every == 0 or self._spent:
            self._evaluate()

    def _evaluate(self) -> None:
        trainer, progress = self.trainer, self.progress
        by_class, loss = evaluate(trainer.task, self.evaluated(), self.group)
        per_class = by_class[:, 0] / np.maximum(by_class[:, 1], 1)
        line = {
            "kind": "evaluation",
            "step": progress.step,
            "accuracy": overall(by_class),
            "macro_accuracy": float(per_class[by_class[:, 1] > 0].mean()),
            "loss": loss,
            "train_loss": self.losses[0] / self.losses[1] if self.losses[1] else None,
            "bytes": trainer.ledger.total,
            "paper_bytes": trainer.ledger.paper_total,
            "epochs": trainer.epoch,
            "seconds": trainer.clock.now,
            "bytes_by_kind": dict(trainer.ledger.moved),
        }
        self.losses = [0.0, 0]
        progress.evaluated(line, self.budget)
        emit_pieces(self.emit, self.clock, progress.step, self.done)
        self.emit(line)

    def evaluated(self) -> nn.Module:
        """Return the whole model."""
        return self.trainer.whole()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run of the same experiment needs to go on with the same bits."""
        rest = self.schedule
        return {
            "trainer": self.trainer.state_dict(),
            "strategy": self.strategy.state_dict(),
            "progress": asdict(self.progress),
            "losses": list(self.losses),
            "at": self.at,
            "redrawn": self.redrawn,
            "schedule": None
            if rest is None
            else [torch.from_numpy(part.astype(np.int64)) for part in (rest.data, rest.indices, rest.indptr)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.trainer.load_state_dict(state["trainer"])
        self.strategy.load_state_dict(state["strategy"])
        self.progress = Progress(**state["progress"])
        self.losses = list(state["losses"])
        self.at, self.redrawn = state["at"], state["redrawn"]
        if state["schedule"] is not None:
            parts = tuple(part.numpy().copy() for part in state["schedule"])
            self.schedule = csr_array(parts, shape=(len(parts[2]) - 1, self.trainer.clients))
            self.trainer.resume(self.schedule[self.at :])
