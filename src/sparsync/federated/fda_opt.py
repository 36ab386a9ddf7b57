"""FDA-Opt: federated dynamic averaging with a server optimiser, after ``michaeltheologitis/FDA-Opt`` @ 9262222.

The clients of a cohort train epoch by epoch, all the same number of steps, and after each epoch send the squared norm
and a sketch of their drift u_k. The round ends once H = mean ||u_k||^2 - M2(mean sk(u_k)) / (1 + eps) exceeds Theta, or
after e_max epochs; then they send their models, and the server steps by the mean drift. Theta for the next round is
(e_max / 2) / e times the exact variance just seen: a controller that aims at e_max / 2 epochs per round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.federated.context import FederationContext, ServerContext, TooFewUploads, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.fedavg import FedAvg, FedAvgClient
from sparsync.federated.fedopt import FedOptServer
from sparsync.federated.messages import pack_numbers, unpack_numbers
from sparsync.federated.settings import Federation
from sparsync.sketch import Sketch
from sparsync.spec import Count, config
from sparsync.strategies import STRATEGIES
from sparsync.wire import kinds_of
from sparsync.workers import OPTIMIZERS, Client

_START, _GO_ON, _SEND = 0, 1, 2  # what the server asks the cohort to do
_WHERE = ("threshold", "groups", "cohort", "asked", "steps", "epochs")  # of the state, besides model and optimiser


@STRATEGIES.register("fda-opt")
@config
class FDAOpt(FedAvg):
    """End a round's local epochs when the clients' variance exceeds a threshold that adapts (FDA-Opt).

    Attributes
    ----------
    max_epochs : int, optional
        e_max, the most epochs of a round. Default: 2 E + 8 for the federation's E epochs, that code's mapping from
        FedOpt.
    threshold : float
        Theta of the first round, which ends after exactly one epoch whatever it is; of all rounds if not `adaptive`.
        Default: 0.
    adaptive : bool
        Whether Theta follows the variance. Default: yes.
    server : str
        Spec of the server's optimiser. Default: ``sgd:lr=1``, the mean of the models.
    depth, width : int
        The sketch: rows (odd) and buckets. Default: 5 x 250.
    """

    max_epochs: Count | None = None
    threshold: float = Field(default=0.0, ge=0)
    adaptive: bool = True
    server: str = "sgd:lr=1"
    depth: int = Field(default=5, ge=1, le=99)
    width: int = Field(default=250, ge=2, le=1 << 20)

    @model_validator(mode="after")
    def _checked(self) -> FDAOpt:
        if self.depth % 2 == 0:
            raise ValueError(f"depth={self.depth}: give an odd number, whose median is one of the rows")
        OPTIMIZERS.resolve(self.server)
        return self

    def check_codecs(self) -> None:
        """Refuse all codecs."""
        if self.uplink or self.downlink:
            raise ValueError("its variance is that of the models as they are; leave out uplink and downlink")

    def check(self, settings: Federation) -> None:
        """Refuse cohorts that are no groups of a permutation, and rounds whose epochs nobody has said."""
        if settings.sampling != "uniform":
            raise UsageError(
                f"fda-opt: clients take turns, so federation.sampling={settings.sampling} means nothing; leave it out"
            )
        if settings.steps is not None and self.max_epochs is None:
            raise UsageError(
                f"fda-opt: rounds are counted in epochs, but federation.steps={settings.steps}; give it max_epochs"
            )

    def most_epochs(self, settings: Federation) -> int:
        """Return e_max of a federation."""
        return self.max_epochs or 2 * (settings.epochs or 1) + 8

    def sketch(self, context: FederationContext) -> Sketch:
        """Return the sketch that server and clients share."""
        return Sketch(context.vector.d, self.depth, self.width, context.generator("sketch"))

    def make_server(self, context: ServerContext) -> FDAOptServer:
        self.check(context.settings)
        return FDAOptServer(self, context)

    def make_client(self, context: FederationContext) -> FDAOptClient:
        return FDAOptClient(self, context)


class FDAOptServer(FedOptServer):
    """Server's model and optimiser, the threshold, and where in its round the cohort is."""

    def __init__(self, config: FDAOpt, context: ServerContext) -> None:
        super().__init__(config, context, lambda w: OPTIMIZERS.build(config.server, [w]))
        self.adaptive = config.adaptive
        self.max_epochs = config.most_epochs(context.settings)
        self.depth, self.width = config.depth, config.width
        self.threshold = config.threshold
        self.groups = 0  # that have been selected
        self.cohort: list[int] = []
        self.asked = _START
        self.steps = 0  # per epoch of the current round, the same for all
        self.epochs = 0  # of the current round

    def select(self, round_: int, rng: np.random.Generator) -> Sequence[int]:
        """Return the next group of a random permutation of all clients; in the middle of a round, the same one."""
        if self.asked == _START:
            context = self.context
            passed, group = divmod(self.groups, context.clients // context.cohort)
            order = context.generator("groups", passed).permutation(context.clients)
            self.cohort = sorted(order[group * context.cohort : (group + 1) * context.cohort].tolist())
            self.steps = max(context.batches_of(client) for client in self.cohort)
            self.groups += 1
        return self.cohort

    def downlink(self, round_: int) -> bytes:
        """Return what to do, in how many steps, and at the start of a round the global model."""
        order = torch.tensor([self.asked, self.steps, self.epochs], dtype=torch.float32)
        if self.asked == _START:
            return self.down.encode(self.weights, extra={"control": order})
        return pack_numbers(order, "control")

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool:
        try:
            return self._finish(uploads) if self.asked == _SEND else self._look(round_, uploads)
        except TooFewUploads:
            self.asked, self.epochs = _START, 0  # begin the round again, with the next group
            raise

    def _look(self, round_: int, uploads: Iterator[Upload]) -> bool:
        """Estimate the variance after an epoch, and decide whether another follows. Who failed is out of the round."""
        depth, width = self.depth, self.width
        size = 1 + depth * width
        state = self.context.average(uploads, lambda payload: unpack_numbers(payload, size), size)
        self.cohort = [client for client in self.cohort if client not in self.context.rejected]
        self.epochs += 1
        of_mean = Sketch.squared_norm(state[1:].view(depth, width))
        estimate = float(state[0]) - of_mean / (1 + 1 / math.sqrt(width))  # H
        goes_on = estimate <= self.threshold and self.epochs < self.max_epochs and round_ > 0
        self.context.record(estimate=estimate, threshold=self.threshold, epochs=self.epochs)
        self.asked = _GO_ON if goes_on else _SEND
        return False

    def _finish(self, uploads: Iterator[Upload]) -> bool:
        """Step by the mean drift, and let Theta follow the exact variance: do-while, so e is at least 1."""
        d, numel = self.context.vector.d, self.context.vector.numel
        anchor = self.weights[:d].double()

        def decode(payload: bytes) -> Tensor:
            model = self.up.decode(payload)
            return torch.cat((model, (model[:d] - anchor).square().sum()[None]))

        mean, squared = self.context.average(uploads, decode, numel + 1).split_with_sizes((numel, 1))
        variance = max(0.0, float(squared) - float((mean[:d] - anchor).square().sum()))
        self.weights = self.step(mean.float())
        self.context.record(variance=variance, threshold=self.threshold, epochs=self.epochs)
        if self.adaptive:
            self.threshold = self.max_epochs / 2 / self.epochs * variance
        self.asked, self.epochs = _START, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **{name: getattr(self, name) for name in _WHERE}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in _WHERE:
            setattr(self, name, state[name])


class FDAOptClient(FedAvgClient):
    """The client's half: a client keeps its model until the round ends."""

    def __init__(self, config: FDAOpt, context: FederationContext) -> None:
        super().__init__(config, context)
        self.stateful = True
        self.sketch = config.sketch(context)

    def receive(self, client: Client, message: bytes) -> Work | Reply:
        d, numel, memory = self.context.vector.d, self.context.vector.numel, client.memory
        if "model" in kinds_of(message):  # a round begins
            received, order = self.down.decode(message, extra=[3]).split_with_sizes((numel, 3))
            memory.update(model=received, anchor=received[:d], momentum={})
        else:
            order = unpack_numbers(message, 3)
        asked, steps, epoch = (int(number) for number in order)
        client.others = memory.get("others", client.others)
        if asked == _SEND:
            client.load(memory["model"])
            memory.clear()
            return Reply(self.up.encode(client.model()))
        client.momentum = memory["momentum"]
        return Work(memory["model"], steps=range(epoch * steps, (epoch + 1) * steps))  # smaller data sets wrap around

    def reply(self, client: Client, work: Work) -> Work | Reply:
        """Send the squared norm and the sketch of the drift."""
        memory = client.memory
        memory.update(model=client.model(), others=client.others, momentum=client.momentum)
        drift = memory["model"][: self.context.vector.d] - memory["anchor"]  # u_k
        state = torch.cat((drift.double().square().sum()[None].float(), self.sketch(drift[None]).flatten()))
        return Reply(pack_numbers(state, "state"))
