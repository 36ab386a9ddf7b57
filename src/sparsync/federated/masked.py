"""What methods with a mask on the server share: a global model that is zero off it, and messages that know it.

The support of a message is the mask's, not the values': a weight that is kept may be exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsync.federated.fedavg import FedAvg, FedAvgState
from sparsync.federated.messages import ModelPacking, chain_of, only_values
from sparsync.federated.server import Server, Upload
from sparsync.federated.watching import SupportWatch, density_of, of_client
from sparsync.sparsity import ParamView
from sparsync.spec import config
from sparsync.wire import Kind, KnownSupport, MaskedSupport, SupportStage
from sparsync.workers import Client


@config
class MaskedConfig(FedAvg):
    """What the strategies with a mask have in common: codecs for the numbers on it."""

    def check_codecs(self) -> None:
        """Refuse codecs that choose what travels."""
        only_values(uplink=self.uplink, downlink=self.downlink)


class MaskedState(FedAvgState):
    """The global model, (D,), and the mask of its prunable entries, bool (M,). Clients train on the mask only.

    Parameters
    ----------
    config : FedAvg
        For the codecs of the numbers on the mask.
    server : Server
        The federation.
    sparsity : callable
        Fraction of zeros that is asked for, by round.
    rule : str
        What is prunable.
    """

    def __init__(
        self, config: FedAvg, server: Server, sparsity: Callable[[int], float], rule: str = "sparsyfed"
    ) -> None:
        super().__init__(config, server)
        self.sparsity = sparsity
        self.view = server.view(rule)
        self.up = ModelPacking(server.vector, chain_of(config.uplink), view=self.view)
        self.down = ModelPacking(server.vector, chain_of(config.downlink), view=self.view)
        self.mask = torch.ones(self.view.numel, dtype=torch.bool)
        self.watch = SupportWatch(server, self.view)

    def prunable(self, model: Tensor) -> Tensor:
        """Prunable entries, (M,), of a model (D,)."""
        return self.view.gather(model[: self.view.total])

    def pruned(self, model: Tensor, mask: Tensor) -> Tensor:
        """Return a model (D,) that is zero off a mask (M,)."""
        made = model.clone()
        self.view.scatter_(made[: self.view.total], self.prunable(model).where(mask, 0))
        return made

    def downlink(self, round_: int) -> bytes:
        """The mask, and the global model on it."""
        self.watch.sent(round_, self.mask)
        self.server.record(sparsity_target=self.sparsity(round_))
        return self.down.encode(
            self.weights, self.server.generator("downlink", round_), support=MaskedSupport(self.mask)
        )

    def local_update(self, client: Client, payload: bytes) -> bytes:
        """Load, train on the mask, send what is on it."""
        received, mask = self.down.decode_mask(payload)
        client.load(received)
        return self.send(client, received, self.train_on(client, mask))

    def train_on(self, client: Client, mask: Tensor) -> Tensor:
        """Train on a mask, and return that of what is sent."""
        freeze_off(self.view, mask, client)
        return mask

    def send(self, client: Client, received: Tensor, mask: Tensor) -> bytes:
        """Encode what was trained and is on a mask."""
        model, round_ = client.model(), client.round
        trained = self.prunable(model)
        lived = of_client(self.prunable(received), trained, trained.where(mask, 0))
        client.note({**lived, "up_density": density_of(mask)})
        self.watch.received(client.number, self.wish(round_, trained, mask))
        rng, support = client.generator("codec"), self.support(round_, mask)
        return self.up.encode(model, rng, support=support, extra=self.extra(round_))

    def wish(self, round_: int, trained: Tensor, mask: Tensor) -> Tensor:
        """Support (M,) by which a client is compared with others. Default: the mask of what it sends."""
        return mask

    def support(self, round_: int, mask: Tensor) -> SupportStage:
        """How an upload tells the mask. Default: not at all, since the server knows it."""
        return KnownSupport(mask)

    def extra(self, round_: int) -> Mapping[Kind, Tensor]:
        """What else an upload holds. Default: nothing."""
        return {}

    def decode(self, payload: bytes) -> Tensor:
        return self.up.decode(payload, KnownSupport(self.mask))

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        super().aggregate(round_, uploads)
        self.watch.agreement()
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mask": self.mask, "watch": self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.mask = torch.as_tensor(state["mask"])
        self.watch.load_state_dict(state["watch"])


def freeze_off(view: ParamView, mask: Tensor, client: Client, steps: range | None = None) -> None:
    """Train a client whose prunable entries off a mask (M,) are zero and stay so."""
    on = over_parameters(view, mask).to(client.params)
    client.train(steps, before_step=lambda: client.grad.mul_(on))


def over_parameters(view: ParamView, mask: Tensor) -> Tensor:
    """Return a mask of prunable entries (M,) as numbers for all parameters, (d,): 1 where nothing is pruned."""
    return view.scatter_(torch.ones(view.total), mask.to(torch.float32))
