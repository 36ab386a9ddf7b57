"""A federation whose exchanges a test can look into: what was sent, what was trained, what came back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsync.engines import LocalFederatedClients
from sparsync.federated import Federation, FederationContext, ServerContext, Upload
from sparsync.randomness import generator
from sparsync.strategies import STRATEGIES
from sparsync.task import Dataset, Task, from_arrays
from sparsync.wire import kinds_of, unpack_parcel
from sparsync.workers import SCHEDULES, Arena, Client, ClientRuntime

Model = str | Callable[..., nn.Module]


def pictures(examples: int = 60, classes: int = 3, shape: tuple[int, ...] = (1, 8, 8)) -> Dataset:
    """Noisy pictures of a pattern per class; a third more of them for the test."""
    rng = np.random.default_rng(5)
    patterns = rng.normal(size=(classes, *shape))
    labels = np.arange(examples + examples // 3) % classes
    inputs = (patterns[labels] + 0.5 * rng.normal(size=(len(labels), *shape))).astype(np.float32)
    return from_arrays(inputs[:examples], labels[:examples], inputs[examples:], labels[examples:])


def small_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two convolutions, of 36 and 216 weights, a linear layer of 288; normalisation and biases."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, classes),
    )


class Springs(Task):
    """Loss 1/2 ||w - a||^2 of a linear layer's weight w, on inputs of one 1: its gradient is w - a."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * (outputs - self.rest()).square().sum(1).mean()

    def rest(self) -> Tensor:
        """The point a, (2,), that weights are pulled to."""
        return torch.tensor([3.0, 5.0])


def springs() -> Springs:
    """The weight (w1, w2), pulled to (3, 5)."""
    labels = np.arange(8) % 2
    ones = np.ones((8, 1), np.float32)
    return Springs(from_arrays(ones, labels, ones, labels), lambda shape, classes: nn.Linear(1, 2, bias=False))


@dataclass
class Exchange:
    """What crossed between server and clients, and what was noted on the way."""

    round: int
    payload: bytes
    received: Tensor
    uploads: dict[int, bytes] = field(default_factory=dict)
    trained: dict[int, Tensor] = field(default_factory=dict)  # the model that a client held in the end, (D,)
    counters: dict[int, list[Tensor]] = field(default_factory=dict)  # what was exact of it
    notes: dict[int, dict[str, float]] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    journal: dict[str, Any] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)
    over: bool = True


class Small:
    """A strategy on four clients, with unequal shares of a few pictures."""

    def __init__(
        self,
        strategy: Any,
        *,
        task: Task | None = None,
        model: Model = small_net,
        dataset: Dataset | None = None,
        shares: Sequence[int] = (20, 10, 15, 15),
        batch_size: int = 5,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> None:
        self.task = task or Task(dataset or pictures(), model)
        said = Federation(**{"rounds": 12, **settings})
        self.module = self.task.module(seed, dtype)
        self.parts = np.split(np.arange(sum(shares)), np.cumsum(shares)[:-1])
        arena = Arena(self.module, 1, torch.device("cpu"), dtype)
        self.runtime = ClientRuntime(arena, self.task, self.module, self.parts, said.local_work(batch_size), seed)
        self.server = ServerContext(
            self.runtime.vector,
            self.module,
            shares,
            said,
            batch_size=batch_size,
            classes=self.task.dataset.classes,
            seed=seed,
        )
        self.schedule = SCHEDULES.build(said.schedule)
        self.config = STRATEGIES.build(strategy) if isinstance(strategy, str) else strategy
        self.state = self.config.make_server(self.server)
        site = FederationContext(self.runtime.vector, self.module, said, classes=self.task.dataset.classes, seed=seed)
        self.clients = LocalFederatedClients(self.config.make_client(site), site, self.runtime)
        self.exchanges = 0
        self.within = 0  # exchanges of the current round

    @property
    def view(self):
        """Prunable entries."""
        return self.state.view

    def prunable(self, model: Tensor) -> Tensor:
        """Prunable entries, (M,), of a model (D,)."""
        return self.view.gather(model[: self.view.total])

    def rest(self, model: Tensor) -> Tensor:
        """Everything else of a model, buffers too."""
        return torch.cat((self.view.gather_rest(model[: self.view.total]), model[self.view.total :]))

    def client(self, number: int = 0, round_: int = 0) -> Client:
        return Client(number, round_, self.schedule(round_), self.runtime, self.within)

    def send(self, round_: int, cohort: Sequence[int] | None = None) -> Exchange:
        """All of an exchange but the server's last word."""
        self.server.journal.clear()
        rng = generator(self.server.seed, "select", -1, round_, self.exchanges)
        chosen = self.state.select(round_, rng) if cohort is None else cohort
        before = self.state.weights.clone()
        made = Exchange(round_, self.state.downlink(round_), before)
        for number in chosen:
            client = self.client(number, round_)
            reply = self.clients.respond(client, made.payload)
            made.uploads[number] = reply.payload
            made.trained[number] = client.model()
            made.counters[number] = self.server.exact.read()
            made.notes[number], made.steps[number] = dict(reply.notes), client.steps
        return made

    def finish(self, made: Exchange) -> Exchange:
        """The server's last word."""
        exact = self.server.exact
        uploads = iter(
            [Upload(n, exact.join(payload, made.counters.get(n, exact.values))) for n, payload in made.uploads.items()]
        )
        made.over = self.state.aggregate(made.round, uploads) is not False
        made.journal, made.refused = dict(self.server.journal), list(self.server.rejected)
        self.exchanges += 1
        self.within = 0 if made.over else self.within + 1
        return made

    def exchange(self, round_: int, cohort: Sequence[int] | None = None) -> Exchange:
        return self.finish(self.send(round_, cohort))

    def run(self, rounds: int, start: int = 0) -> list[Exchange]:
        """Complete rounds; all their exchanges."""
        made = []
        for round_ in range(start, start + rounds):
            made.append(self.exchange(round_))
            while not made[-1].over:
                made.append(self.exchange(round_))
        return made


def weighted_mean(models: dict[int, Tensor], weights: Sequence[float]) -> Tensor:
    """The mean by its definition, in float64."""
    total = sum(weights[number] for number in models)
    return sum(model.double() * (weights[number] / total) for number, model in models.items())


def lengths(payload: bytes) -> dict[str, int]:
    """Bytes of the sections of a message by kind, without header and table: of the numbers, the first is weights."""
    found: dict[str, int] = {}
    for section in unpack_parcel(payload, len(payload)):
        name = "rest" if section.kind in found else section.kind
        found[name] = found.get(name, 0) + len(section.body)
    assert sum(kinds_of(payload).values()) == len(payload)
    return found


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two vectors are the same, bit by bit."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
