"""What can be seen of a sparse federation: densities, agreement of masks, regrowth. Read-outs; they cost no bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsync.federated.context import ServerContext
from sparsync.sparsity import ParamView, deactivated, iou, regrown
from sparsync.workers.group import gather

_SNAPSHOTS = 12  # earlier supports that later ones are compared with
_PAIRED = 10  # clients of a round whose supports are compared pair by pair


class SupportWatch:
    """The support of the global model from round to round, and those of a round's clients.

    Parameters
    ----------
    context : ServerContext
        Where numbers are noted.
    view : ParamView
        The prunable entries.
    """

    def __init__(self, context: ServerContext, view: ParamView) -> None:
        self.context, self.view = context, view
        self.every = max(1, -(-context.rounds // _SNAPSHOTS))
        self.supports: dict[int, Tensor] = {}  # by round, held as bits: every so many, and the last two
        self.clients: dict[int, Tensor] = {}

    def sent(self, round_: int, support: Tensor) -> None:
        """Note the support (M,) of what the server sends in a round, counted from 0; what is sent last counts."""
        self.clients.clear()
        live = support != 0
        density = self.view.layer_density(live)
        self.context.record(
            down_density=density_of(live), **{f"layer_density/{name}": value for name, value in density.items()}
        )
        earlier = sorted(then for then in self.supports if then < round_)
        if earlier:
            self.context.record(iou_rounds=iou(live, self._unpack(self.supports[earlier[-1]])))
        if round_ % self.every == 0:
            compared = [then for then in earlier if then % self.every == 0]
            history = [[then + 1, iou(live, self._unpack(self.supports[then]))] for then in compared]
            self.context.record(iou_history=[*history, [round_ + 1, 1.0]])
        self.supports[round_] = self._pack(live)
        for then in earlier[:-1]:
            if then % self.every:
                del self.supports[then]

    def received(self, client: int, support: Tensor) -> None:
        """Remember the support (M,) of a client's upload until `agreement` is asked for."""
        if len(self.clients) < _PAIRED:
            self.clients[client] = self._pack(support != 0)

    def agreement(self) -> None:
        """Note how far the clients' supports agree: mean and minimum over pairs. All processes at once."""
        texts = gather(
            self.context.group, {client: bits.numpy().tobytes().hex() for client, bits in self.clients.items()}
        )
        self.clients.clear()
        masks = [
            self._unpack(torch.from_numpy(np.frombuffer(bytes.fromhex(text), np.uint8).copy()))
            for _, text in sorted(texts.items())[:_PAIRED]
        ]
        pairs = [iou(a, b) for i, a in enumerate(masks) for b in masks[:i]]
        if pairs:
            self.context.record(iou_clients=float(np.mean(pairs)), iou_clients_min=min(pairs))

    def _pack(self, live: Tensor) -> Tensor:
        return torch.from_numpy(np.packbits(live.numpy()))

    def _unpack(self, bits: Tensor) -> Tensor:
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=self.view.numel).astype(bool))

    def state_dict(self) -> dict[str, Any]:
        """Return the supports that later ones are compared with."""
        return {str(then): bits for then, bits in self.supports.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.supports = {int(then): bits for then, bits in state.items()}


def density_of(x: Tensor) -> float:
    """Fraction of non-zeros, of a mask or of values."""
    return int(x.count_nonzero()) / x.numel()


def of_client(received: Tensor, trained: Tensor, uploaded: Tensor) -> dict[str, float]:
    """Return what a client's round did to its support: prunable entries (M,) as received, trained and uploaded."""
    return {
        "up_density": density_of(uploaded),
        "regrown": regrown(received, trained),
        "deactivated": deactivated(received, trained, uploaded),
    }
