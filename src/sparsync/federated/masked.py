"""What methods with a mask on the server share: a global model that is zero off it, and messages that know it.

The support of a message is the mask's, not the values': a weight that is kept may be exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsync.federated.context import FederationContext, ServerContext, Upload
from sparsync.federated.contract import Reply, Work
from sparsync.federated.fedavg import FedAvg, FedAvgClient, FedAvgServer
from sparsync.federated.messages import only_values, packings, unpack_mask
from sparsync.federated.watching import SupportWatch, density_of, of_client
from sparsync.sparsity import ParamView
from sparsync.spec import config
from sparsync.wire import Kind, KnownSupport, MaskedSupport, SupportStage
from sparsync.workers import Client, StepHook


@config
class MaskedConfig(FedAvg):
    """What the strategies with a mask have in common: codecs for the numbers on it."""

    def check_codecs(self) -> None:
        """Refuse codecs that choose what travels."""
        only_values(uplink=self.uplink, downlink=self.downlink)


class MaskedServer(FedAvgServer):
    """The global model, (D,), and the mask of its prunable entries, bool (M,). Clients train on the mask only.

    Parameters
    ----------
    config : FedAvg
        For the codecs of the numbers on the mask.
    context : ServerContext
        The federation.
    sparsity : callable
        Fraction of zeros that is asked for, by round.
    rule : str
        What is prunable.
    """

    def __init__(
        self, config: FedAvg, context: ServerContext, sparsity: Callable[[int], float], rule: str = "sparsyfed"
    ) -> None:
        super().__init__(config, context)
        self.sparsity = sparsity
        self.view = context.view(rule)
        self.up, self.down = packings(context.vector, config, self.view)
        self.mask = torch.ones(self.view.numel, dtype=torch.bool)
        self.watch = SupportWatch(context, self.view)

    def prunable(self, model: Tensor) -> Tensor:
        """Return prunable entries, (M,), of a model (D,)."""
        return self.view.gather(model[: self.view.total])

    def pruned(self, model: Tensor, mask: Tensor) -> Tensor:
        """Return a model (D,) that is zero off a mask (M,)."""
        made = model.clone()
        self.view.scatter_(made[: self.view.total], self.prunable(model).where(mask, 0))
        return made

    def downlink(self, round_: int) -> bytes:
        """Return the message of the mask, and the global model on it."""
        self.watch.sent(round_, self.mask)
        self.context.record(sparsity_target=self.sparsity(round_))
        rng = self.context.generator("downlink", round_)
        return self.down.encode(self.weights, rng, support=MaskedSupport(self.mask))

    def decode(self, payload: bytes) -> Tensor:
        return self.up.decode(payload, KnownSupport(self.mask))

    def mean(
        self,
        uploads: Iterator[Upload],
        decode: Callable[[bytes], Tensor],
        numel: int,
        support: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Take the mean of uploads, and note how far their supports agree.

        Parameters
        ----------
        uploads, decode, numel
            As of `ServerContext.average`.
        support : callable, optional
            From a decoded vector (numel,) to its support (M,). Default: the mask, which is the same for all.
        """

        def observe(upload: Upload, decoded: Tensor) -> None:
            self.watch.received(upload.client, self.mask if support is None else support(decoded))

        mean = self.context.average(uploads, decode, numel, observe=observe)
        self.watch.agreement()
        return mean

    def aggregate(self, round_: int, uploads: Iterator[Upload]) -> bool | None:
        self.weights = self.mean(uploads, self.decode, len(self.weights)).float()
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mask": self.mask, "watch": self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.mask = torch.as_tensor(state["mask"])
        self.watch.load_state_dict(state["watch"])


@dataclass
class MaskedWork(Work):
    """Work on a sparse model.

    Attributes
    ----------
    mask : Tensor, (M,)
        Mask that is trained.
    """

    mask: Tensor = field(kw_only=True)


class MaskedClient(FedAvgClient):
    """The client's half: it trains on the mask that came with the model, and sends what is on it."""

    def __init__(self, config: FedAvg, context: FederationContext, rule: str = "sparsyfed") -> None:
        super().__init__(config, context)
        self.view = context.view(rule)
        self.up, self.down = packings(context.vector, config, self.view)

    def prunable(self, model: Tensor) -> Tensor:
        """Return prunable entries, (M,), of a model (D,)."""
        return self.view.gather(model[: self.view.total])

    def receive(self, client: Client, message: bytes) -> Work | Reply:
        received, mask = self.down.decode_mask(message)
        return self.work_on(client, received, mask)

    def work_on(self, client: Client, received: Tensor, mask: Tensor) -> Work:
        """Return what is trained of a model (D,) on its mask (M,). Default: what is on the mask."""
        return MaskedWork(received, received, before_step=freezing(self.view, mask, client), mask=mask)

    def reply(self, client: Client, work: Work) -> Work | Reply:
        assert isinstance(work, MaskedWork)
        return self.send(client, work, KnownSupport(work.mask), work.mask)

    def send(
        self,
        client: Client,
        work: Work,
        support: SupportStage,
        mask: Tensor,
        extra: Mapping[Kind, Tensor] | None = None,
        notes: Mapping[str, float] | None = None,
    ) -> Reply:
        """Encode what was trained and is on a mask (M,).

        Parameters
        ----------
        client, work
            Who trained, and what.
        support : SupportStage
            How the message tells the mask; `KnownSupport` does not, since the server has it.
        mask : Tensor, (M,)
            What is sent.
        extra : mapping of kind to vector, optional
            What else the message holds.
        notes : mapping of str to float, optional
            Further numbers for the history.
        """
        assert work.received is not None
        model = client.model()
        trained = self.prunable(model)
        lived = of_client(self.prunable(work.received), trained, trained.where(mask, 0))
        payload = self.up.encode(model, client.generator("codec"), support=support, extra=extra)
        return Reply(payload, {**(notes or {}), **lived, "up_density": density_of(mask)})


def freezing(view: ParamView, mask: Tensor, client: Client) -> StepHook:
    """Return the hook under which prunable entries off a mask (M,) stay as they are."""
    on = over_parameters(view, mask).to(client.params)
    return lambda _, grad: grad.mul_(on)


def over_parameters(view: ParamView, mask: Tensor) -> Tensor:
    """Return a mask of prunable entries (M,) as numbers for all parameters, (d,): 1 where nothing is pruned."""
    return view.scatter_(torch.ones(view.total), mask.to(torch.float32))


def voted(context: ServerContext, uploads: Iterator[Upload], numel: int) -> Tensor:
    """Return the mask (M,) that a client was asked for before the first round."""
    return context.average(uploads, lambda payload: unpack_mask(payload, numel).float(), numel, minimum=1) > 0
