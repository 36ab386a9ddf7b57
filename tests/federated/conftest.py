"""Small federations: tasks whose local steps can be followed by hand, and tiny real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from processes import GIVEN_UP
from sparsync.engines import AsyncRoundLoop, Budget, LocalFederatedClients, PaceAction, RoundLoop
from sparsync.engines.shared import SharedMemory
from sparsync.federated import AsynchronousServer, Federation, FederationContext, ServerContext
from sparsync.strategies import STRATEGIES
from sparsync.system import Profile
from sparsync.task import Dataset, Task, from_arrays
from sparsync.workers import Arena, ClientRuntime, Group
from tolerance import Nudge, exactly

Make = Callable[..., SimpleNamespace]
"""See `federation`."""


_BUILDING = threading.Lock()  # models are drawn from torch's global generator, which threads share


class Pull(nn.Module):
    """Parameters w, at first 0: the output is how far they are from the input."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


class Quadratic(Task):
    """Loss 1/2 ||w - x||^2: the gradient of a batch is w minus the mean of its inputs."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * outputs.square().sum(1).mean()


@pytest.fixture(scope="session")
def federation(blobs: Dataset) -> Make:
    """A strategy with its server, clients and loop, which is `run` for so many rounds; `lines` is its history.

    Clients hold `sizes` consecutive samples of the data; all sizes are 180 / 6 if nothing else is said.
    """

    def make(
        strategy: Any,
        *,
        task: Task | None = None,
        model: str | Callable[..., nn.Module] = "mlp:hidden=8",
        sizes: Sequence[int] = (30,) * 6,
        batch_size: int = 10,
        seed: int = 0,
        group: Group | None = None,
        profile: Profile | None = None,
        target: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        nudge: Nudge = exactly,
        **settings: Any,
    ) -> SimpleNamespace:
        task = task or Task(blobs, model)
        said = Federation(**settings)
        with _BUILDING:
            module = nudge(task.module(seed, dtype)).to(device)
            parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
            runtime = ClientRuntime(
                Arena(module, 1, torch.device(device), dtype), task, module, parts, said.local_work(batch_size), seed
            )
            server = ServerContext(
                runtime.vector,
                module,
                sizes,
                said,
                batch_size=batch_size,
                classes=task.dataset.classes,
                seed=seed,
                group=group,
            )
        if isinstance(strategy, str):
            strategy = STRATEGIES.build(strategy)
        lines: list[dict[str, Any]] = []
        state = strategy.make_server(server)
        site = FederationContext(runtime.vector, module, said, classes=task.dataset.classes, seed=seed)
        clients = LocalFederatedClients(strategy.make_client(site), site, runtime)
        budget = Budget(said.rounds, said.eval_every, target)
        kind = AsyncRoundLoop if isinstance(state, AsynchronousServer) else RoundLoop
        loop = kind(server, state, clients, runtime, task, budget, profile or Profile(), lines.append)
        saved: list[Any] = []

        def run(rounds: int) -> Tensor:
            """Complete so many more rounds, or stop before where the loop stops; return the global model."""
            end = loop.rounds.round + rounds

            def pace(steps: int) -> PaceAction:
                return PaceAction.STOP if loop.rounds.round >= end else PaceAction.GO_ON

            loop.run(pace, lambda: saved.append(loop.state_dict()))
            return state.model().clone()

        return SimpleNamespace(
            loop=loop,
            server=server,
            clients=clients,
            runtime=runtime,
            state=state,
            task=task,
            lines=lines,
            saved=saved,
            run=run,
        )

    return make


@pytest.fixture(scope="session")
def pulls(federation: Make) -> Make:
    """Clients that pull the model (2,), at first (0, 0), towards points of their own: `points` is a list for each."""

    def make(strategy: Any, points: Sequence[Sequence[tuple[float, float]]], **options: Any) -> SimpleNamespace:
        inputs = np.array([point for own in points for point in own], np.float32)
        dataset = from_arrays(inputs, np.arange(len(inputs)) % 2, inputs[:1], np.ones(1, np.int64), classes=2)
        task = Quadratic(dataset, lambda shape, classes: Pull(2))
        options = {"optimizer": "sgd:lr=0.5", **options}
        return federation(strategy, task=task, sizes=[len(own) for own in points], **options)

    return make


@pytest.fixture
def together(tmp_path: Path) -> Callable[[int, Callable[[Group], Any]], list[Any]]:
    """Do a job as several processes would, but in threads: what it returned, by rank."""

    def run(size: int, job: Callable[[Group], Any]) -> list[Any]:
        slots = tmp_path / "slots"
        with slots.open("wb") as file:
            file.truncate(SharedMemory.bytes(size))
        arrivals = [threading.Semaphore(0) for _ in range(size)]
        returned: list[Any] = [None] * size
        failed: list[BaseException] = []

        def work(rank: int) -> None:
            try:
                returned[rank] = job(SharedMemory(slots, rank, size, arrivals))  # type: ignore[arg-type]
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GIVEN_UP if not failed else 1)
        if failed:
            raise failed[0]
        assert not any(thread.is_alive() for thread in threads), "a process waits for another for ever"
        return returned

    return run
