"""From an experiment, one strategy and one seed to the loop that runs it: where families become loops."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from sparsync.engines import (
    AsyncRoundLoop,
    Budget,
    EpochLoop,
    FederatedClients,
    LocalFederatedClients,
    PaceAction,
    PeerLoop,
    Progress,
    RoundLoop,
)
from sparsync.engines.devices import Coordinator, Device, DeviceConnections, Membership, chunk_limit
from sparsync.errors import UsageError
from sparsync.experiment import Experiment
from sparsync.federated import AsynchronousServer, FederatedStrategy, FederationContext, ServerContext
from sparsync.identity import common
from sparsync.peers import HADFL, PeerStrategy
from sparsync.split import LocalSplitClients, SplitClients, SplitStrategy, SplitTrainer, default_cut, split_at
from sparsync.system import System
from sparsync.task import Task, total_flops
from sparsync.wire import TOPOLOGIES, Dense, Ledger
from sparsync.workers import Arena, ClientRuntime, Fleet, Group, Learner, LocalTraining, SeparateProcess
from sparsync.workers.batches import Batches, Indices
from sparsync.workers.group import share

Emit = Callable[[dict[str, Any]], None]

_WARM_UP, _REPETITIONS = 3, 15  # steps of a measurement


class ReadableClock(Protocol):
    """A clock that can be read."""

    @property
    def now(self) -> float:
        """Seconds since training began."""


class TrainLoop(Protocol):
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
    def clock(self) -> ReadableClock:
        """What time it is, or would be."""

    @property
    def syncs(self) -> int:
        """How often models have been averaged; rounds, or epochs."""

    def rehearse(self) -> None:
        """Plan what comes first, to learn whether it is refused; another loop then trains."""

    def run(self, pace: Callable[[int], PaceAction], save: Callable[[], None]) -> bool:
        """Train to the end of the budget. Return whether it got there, or was asked to stop."""

    def evaluated(self) -> nn.Module:
        """Return a module that holds the model which is evaluated, and in the end saved; all processes at once."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run of the same experiment needs to go on with the same bits."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""


@dataclass(frozen=True)
class SeedSetting:
    """What the strategies of a comparison share with one seed: they all meet the same task, data and first model."""

    experiment: Experiment
    task: Task
    parts: list[Indices]
    seed: int
    group: Group
    split_clients: Callable[[SplitTrainer], SplitClients] = LocalSplitClients
    membership: Membership | None = None  # where devices call, if HADFL's are other processes

    @property
    def dtype(self) -> torch.dtype:
        """Of models and their arithmetic."""
        return _dtype(self.experiment)

    def assemble(self, strategy: object, emit: Emit) -> TrainLoop:
        """Return the loop of a strategy, by its family.

        Raises
        ------
        UsageError
            If it belongs to none.
        """
        if self.membership is not None and isinstance(strategy, HADFL):
            return self._devices(strategy, self.membership, emit)
        if isinstance(strategy, FederatedStrategy):
            return self._rounds(strategy, emit)
        if isinstance(strategy, PeerStrategy):
            return self._peers(strategy, emit)
        if isinstance(strategy, SplitStrategy):
            return self._epochs(strategy, emit)
        name = type(strategy).__name__
        raise UsageError(
            f"{name}: a strategy has start(fleet) or split(trainer), or is a FederatedStrategy; make it one"
        )

    def _peers(self, strategy: PeerStrategy, emit: Emit) -> PeerLoop:
        fleet, training = self._fleet(self.group)
        fleet.journal = []
        fleet.readouts = True
        fleet.start()
        return PeerLoop(fleet, training, strategy.start(fleet), self.task, self._budget, emit)

    @property
    def _budget(self) -> Budget:
        said = self.experiment
        return Budget(said.steps, said.eval_every, said.target, said.stop_at_target, said.seconds)

    def _fleet(self, group: Group) -> tuple[Fleet, LocalTraining]:
        """The workers that this one of the group's processes hosts, and how they train."""
        said, seed = self.experiment, self.seed
        module = self.task.module(seed, self.dtype).to(said.device)
        rows = share(said.workers, group.size, group.rank)
        _make_room(len(rows), module)
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
            epoch_steps=self._epoch_steps,
        )
        batches = [Batches(self.parts[worker], said.batch_size, said.batches, seed, worker) for worker in rows]
        training = LocalTraining(fleet, self.task, module, batches, said.optimizer, said.schedule)
        training.learner.behaviour.check_batches("worker", [len(part) for part in self.parts], said.batch_size)
        return fleet, training

    @property
    def _epoch_steps(self) -> int:
        return math.ceil(min(len(part) for part in self.parts) / self.experiment.batch_size)

    def _devices(self, strategy: HADFL, membership: Membership, emit: Emit) -> Coordinator:
        said = self.experiment
        module = self.task.module(self.seed, self.dtype).to(said.device)
        arena = Arena(module, 1, torch.device(said.device), self.dtype, gradients=False)
        return Coordinator(
            strategy,
            membership,
            arena,
            Learner(self.task, module, arena),
            [len(part) for part in self.parts],
            epoch_steps=self._epoch_steps,
            buffers=said.buffers == "average",
            seed=self.seed,
            system=System.of(said.profile, said.workers, self.seed),
            fingerprint=common(said, self.task),
            task=self.task,
            budget=self._budget,
            emit=emit,
        )

    def device(
        self, strategy: HADFL, number: int, coordinator: tuple[str, int], token: bytes, **options: Any
    ) -> Device:
        """Return one of HADFL's devices, which is alone in this process; `options` are those of `Device`."""
        fleet, training = self._fleet(SeparateProcess(number, self.experiment.workers))
        dense = Dense.of(self.dtype)
        limit = chunk_limit(dense, fleet.model_bytes // fleet.params.itemsize)
        connections = DeviceConnections(number, coordinator, token, limit=limit)
        return Device(
            fleet, training, connections, common(self.experiment, self.task), mixing=strategy.mixing, **options
        )

    def _rounds(self, strategy: FederatedStrategy, emit: Emit) -> RoundLoop:
        runtime = self.client_runtime()
        return self.rounds(strategy, self.clients(strategy, runtime), runtime, emit)

    def client_runtime(self) -> ClientRuntime:
        """Return a place where clients train, and models are evaluated."""
        said, seed = self.experiment, self.seed
        module = self.task.module(seed, self.dtype).to(said.device)
        arena = Arena(module, 1, torch.device(said.device), self.dtype)
        work = said.federation.local_work(said.batch_size)
        return ClientRuntime(arena, self.task, module, self.parts, work, seed)

    def clients(self, strategy: FederatedStrategy, runtime: ClientRuntime) -> LocalFederatedClients:
        """Return the clients of a federated strategy, who train in this process."""
        settings, classes = self.experiment.federation, self.task.dataset.classes
        module = runtime.learner.bound.module
        context = FederationContext(runtime.vector, module, settings, classes=classes, seed=self.seed)
        return LocalFederatedClients(strategy.make_client(context), context, runtime)

    def rounds(
        self, strategy: FederatedStrategy, clients: FederatedClients, runtime: ClientRuntime, emit: Emit
    ) -> RoundLoop:
        """Return the loop of a federated strategy's server, whose clients may be anywhere."""
        said, settings = self.experiment, self.experiment.federation
        context = ServerContext(
            runtime.vector,
            runtime.learner.bound.module,
            [len(part) for part in self.parts],
            settings,
            batch_size=said.batch_size,
            classes=self.task.dataset.classes,
            seed=self.seed,
            joined=runtime.learner.behaviour.lonely is not None,
            group=self.group,
        )
        budget = Budget(settings.rounds, settings.eval_every, said.target, said.stop_at_target, said.seconds)
        server, rest = strategy.make_server(context), (clients, runtime, self.task, budget, said.profile, emit)
        if isinstance(server, AsynchronousServer):
            return AsyncRoundLoop(context, server, *rest)
        return RoundLoop(context, server, *rest)

    def _epochs(self, strategy: SplitStrategy, emit: Emit) -> EpochLoop:
        said, settings = self.experiment, self.experiment.split
        trainer = self.trainer(strategy.rows(said.workers))
        arena = Arena(trainer.module, 1, torch.device(said.device), self.dtype, gradients=False)
        budget = Budget(settings.epochs, settings.eval_every, said.target, said.stop_at_target, said.seconds)
        return EpochLoop(trainer, strategy.split(trainer), arena, self.group, budget, emit)

    def trainer(self, rows: tuple[int, int]) -> SplitTrainer:
        """Return the place of a split strategy, with so many different bottoms and tops."""
        said, settings = self.experiment, self.experiment.split
        module = self.task.module(self.seed, self.dtype).to(said.device)
        cut = split_at(module, settings.cut or default_cut(module), bottom_norm=settings.bottom_norm)
        return SplitTrainer(
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
            clients=self.split_clients,
        )


def step_seconds(experiment: Experiment, task: Task) -> float:
    """Time of one local step on a device of power 1, from where the profile says.

    Measured: the median of some steps that a worker takes here, in one thread. By operations: three times those of the
    forward pass, since the backward pass takes about twice as many; 0 for a model that has nothing to count.
    """
    profile, seed = experiment.profile, experiment.seeds[0]
    if profile.compute == "stated":
        return profile.step_seconds
    dtype, device = _dtype(experiment), torch.device(experiment.device)
    module = task.module(seed, dtype).to(device)
    if profile.compute == "flops":
        return 3 * total_flops(module, task.dataset.shape) * experiment.batch_size / profile.flops
    fleet = Fleet(Arena(module, 1, device, dtype), 1, seed=seed)
    batches = Batches(np.arange(len(task.dataset.train)), experiment.batch_size, experiment.batches, seed, 0)
    training = LocalTraining(fleet, task, module, [batches], experiment.optimizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        took = [_seconds(training, device) for _ in range(_WARM_UP + _REPETITIONS)]
    finally:
        torch.set_num_threads(threads)
    return median(took[_WARM_UP:])


def _make_room(workers: int, module: nn.Module) -> None:
    """Refuse models and gradients of so many workers that this machine cannot hold."""
    parameter = next(module.parameters())
    needed = 2 * workers * sum(one.numel() * one.element_size() for one in module.parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if parameter.device.type == "cpu" and needed > there:
        raise UsageError(
            f"workers: models and gradients of {workers} workers take {needed / 1e9:.1f} GB, this machine has "
            f"{there / 1e9:.1f} GB; take fewer workers, or a smaller model"
        )


def _dtype(experiment: Experiment) -> torch.dtype:
    return torch.float64 if experiment.dtype == "float64" else torch.float32


def _seconds(training: LocalTraining, device: torch.device) -> float:
    start = time.perf_counter()
    training.train(1)
    torch.get_device_module(device).synchronize()
    return time.perf_counter() - start
