"""ZeroFL: Qiu et al., ICLR 2022, as in ``AGuastella/fl_powerpropagation``.

Clients train with SWAT layers: at every forward pass each layer's weight is pruned, in place, to its largest entries,
and of the input that is saved for the backward pass only the largest entries stay. The weight's gradient is not masked,
so every entry moves in each step, but one that was dropped survives only if a single step lifts it over the threshold.
Before the upload the model is pruned globally.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.federated.context import FederationContext
from sparsync.federated.contract import Work
from sparsync.federated.top_k import TopK, TopKClient
from sparsync.shares import exact
from sparsync.sparsity import ActivationPruning, ParamView, top_k_mask
from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Client


@STRATEGIES.register("zerofl")
@config
class ZeroFL(TopK):
    """Train with the largest weights and activations of each layer only, then send the largest weights (ZeroFL).

    `sparsity`, `uplink` and `downlink` are those of top-k; the sparsity is also that of weights and activations.

    Attributes
    ----------
    mask_ratio : float
        How much denser than `sparsity` the upload is. Default: 0.
    act_threshold : {"cached_per_round", "per_batch"}
        As in sparsyfed. Default: chosen once per client and round.
    skip_first : bool
        Leave the first layer as it is. Default: yes.
    """

    mask_ratio: float = Field(default=0.0, ge=0, lt=1)
    act_threshold: Literal["cached_per_round", "per_batch"] = "cached_per_round"
    skip_first: bool = True

    @model_validator(mode="after")
    def _ratio(self) -> ZeroFL:
        if self.mask_ratio > self.sparsity:
            raise ValueError(f"mask_ratio={self.mask_ratio} exceeds sparsity={self.sparsity}: uploads would be dense")
        return self

    def sparsity_of(self, client: int | None = None) -> float:
        return float(exact(self.sparsity) - exact(self.mask_ratio))

    def make_client(self, context: FederationContext) -> ZeroFLClient:
        return ZeroFLClient(self, context)


class ZeroFLClient(TopKClient):
    """The client's half: it trains with SWAT layers."""

    def __init__(self, config: ZeroFL, context: FederationContext) -> None:
        super().__init__(config, context)
        names = context.view("feddip").names[1 if config.skip_first else 0 :]  # shortcuts stay ordinary layers
        if not names:
            raise UsageError("zerofl: skip_first leaves nothing of a model of one layer; try skip_first=no")
        self.swat = ParamView(context.vector.arena.layout.slots, names)
        self.sparsity = config.sparsity
        self.pruning = ActivationPruning(
            context.module, names, threshold=config.act_threshold, density=1 - exact(config.sparsity)
        )

    def work(self, client: Client, received: Tensor) -> Work:
        self.pruning.new_round()
        return Work(received, received, transform=SwatTransform(self.swat, self.sparsity))

    def notes(self) -> dict[str, float]:
        return {f"act_density/{name}": value for name, value in self.pruning.densities.items()}


class SwatTransform:
    """The transform of one client's round: each layer's weight keeps its largest entries, in place.

    A convolution's threshold is that of its first forward pass, a linear layer's is chosen anew at each.
    """

    def __init__(self, view: ParamView, sparsity: float) -> None:
        self.view = view
        self.keep = [math.ceil((1 - exact(sparsity)) * size) for size in view.sizes]
        self.cached: dict[int, Tensor] = {}

    def weights(self, raw: Tensor, out: Tensor) -> None:
        for layer, ((start, stop), keep) in enumerate(zip(self.view.spans, self.keep, strict=True)):
            weight = raw[start:stop]
            if layer in self.cached:
                stays = weight.abs() >= self.cached[layer]
            else:
                stays = top_k_mask(weight, keep)
                if len(self.view.shapes[layer]) > 2:
                    self.cached[layer] = weight[stays].abs().min()
            weight.mul_(stays)
        out.copy_(raw)

    def gradient(self, raw: Tensor, grad: Tensor) -> None:
        """The gradient of weights that were dropped is theirs as well."""
