"""From an experiment, one strategy and one seed to the loop that runs it: where families become loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsync.engines import Action, Budget, EpochLoop, PeerLoop, Progress, RoundLoop
from sparsync.errors import UsageError
from sparsync.experiment import Experiment
from sparsync.federated import FederatedStrategy, Server
from sparsync.peers import PeerStrategy
from sparsync.split import Site, SplitStrategy, default_cut, split_at
from sparsync.system import Clock
from sparsync.task import Task
from sparsync.wire import TOPOLOGIES, Ledger
from sparsync.workers import Arena, Bench, Fleet, Group, LocalTraining
from sparsync.workers.batches import Batches, Indices
from sparsync.workers.group import share

Emit = Callable[[dict[str, Any]], None]


class Loop(Protocol):
    """What every family's loop can do."""

    progress: Progress
    counts: str
    """What `syncs` are called in history and summary: ``syncs``, ``rounds`` or ``epochs``."""

    @property
    def arena(self) -> Arena:
        """Whose layout names a model's tensors."""

    @property
    def ledger(self) -> Ledger:
        """What has been sent."""

    @property
    def clock(self) -> Clock:
        """What time it would be."""

    @property
    def syncs(self) -> int:
        """How often models have been averaged; rounds, or epochs."""

    def run(self, pace: Callable[[int], Action], save: Callable[[], None]) -> bool:
        """Train to the end of the budget. Return whether it got there, or was asked to stop."""

    def final(self) -> tuple[Tensor, Tensor]:
        """Parameters (d,) and buffers (b,) of the model that was evaluated."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run of the same experiment needs to go on with the same bits."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""


@dataclass(frozen=True)
class Setting:
    """What the strategies of a comparison share with one seed: they all meet the same task, data and first model."""

    experiment: Experiment
    task: Task
    parts: list[Indices]
    seed: int
    group: Group
    kind: Callable[..., Site] = Site  # where split strategies take place

    @property
    def dtype(self) -> torch.dtype:
        """Of models and their arithmetic."""
        return torch.float64 if self.experiment.dtype == "float64" else torch.float32

    def assemble(self, strategy: object, emit: Emit) -> Loop:
        """Return the loop of a strategy, by its family.

        Raises
        ------
        UsageError
            If it belongs to none.
        """
        if isinstance(strategy, FederatedStrategy):
            return self._rounds(strategy, emit)
        if isinstance(strategy, PeerStrategy):
            return self._peers(strategy, emit)
        if isinstance(strategy, SplitStrategy):
            return self._epochs(strategy, emit)
        name = type(strategy).__name__
        raise UsageError(f"{name}: a strategy has a method start(fleet), serve(server) or split(site); add one")

    def _peers(self, strategy: PeerStrategy, emit: Emit) -> PeerLoop:
        said, seed, group = self.experiment, self.seed, self.group
        module = self.task.module(seed, self.dtype).to(said.device)
        rows = share(said.workers, group.size, group.rank)
        fleet = Fleet(
            Arena(module, len(rows), torch.device(said.device), self.dtype),
            said.workers,
            seed=seed,
            group=group,
            topology=TOPOLOGIES[said.topology],
            precision=said.precision,
            profile=said.profile,
            buffers=said.buffers,
            samples=[len(part) for part in self.parts],
        )
        fleet.journal = []
        fleet.readouts = True
        batches = [Batches(self.parts[worker], said.batch_size, said.batches, seed, worker) for worker in rows]
        training = LocalTraining(fleet, self.task, module, batches, said.optimizer, said.schedule)
        fleet.start()
        budget = Budget(said.steps, said.eval_every, said.target, said.stop_at_target)
        return PeerLoop(fleet, training, strategy.start(fleet), self.task, budget, emit)

    def _rounds(self, strategy: FederatedStrategy, emit: Emit) -> RoundLoop:
        said, seed, group = self.experiment, self.seed, self.group
        settings = said.federation
        module = self.task.module(seed, self.dtype).to(said.device)
        arena = Arena(module, 1, torch.device(said.device), self.dtype)
        bench = Bench(arena, self.task, module, self.parts, settings.local_work(said.batch_size), seed)
        samples = [len(part) for part in self.parts]
        server = Server(
            bench.vector,
            module,
            samples,
            settings,
            batch_size=said.batch_size,
            classes=self.task.dataset.classes,
            seed=seed,
            group=group,
        )
        budget = Budget(settings.rounds, settings.eval_every, said.target, said.stop_at_target)
        return RoundLoop(server, bench, strategy.serve(server), self.task, budget, said.profile, emit)

    def _epochs(self, strategy: SplitStrategy, emit: Emit) -> EpochLoop:
        said, settings = self.experiment, self.experiment.split
        site = self.site(strategy.rows(said.workers))
        arena = Arena(site.module, 1, torch.device(said.device), self.dtype, gradients=False)
        budget = Budget(settings.epochs, settings.eval_every, said.target, said.stop_at_target)
        return EpochLoop(site, strategy.split(site), arena, self.group, budget, emit)

    def site(self, rows: tuple[int, int]) -> Site:
        """Return the place of a split strategy, with so many different bottoms and tops."""
        said, settings = self.experiment, self.experiment.split
        module = self.task.module(self.seed, self.dtype).to(said.device)
        cut = split_at(module, settings.cut or default_cut(module), bottom_norm=settings.bottom_norm)
        return self.kind(
            self.task,
            module,
            cut,
            self.parts,
            settings,
            rows=rows,
            seed=self.seed,
            profile=said.profile,
            batch_size=said.batch_size,
            device=said.device,
            dtype=self.dtype,
        )
