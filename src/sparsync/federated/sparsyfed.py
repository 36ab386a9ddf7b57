"""SparsyFed: Guastella et al., arXiv:2504.05153, and its code, ``DieRoche/sparsyfed_copy`` @ 489d8b8.

Clients train omega, layers compute with theta = sign(omega)|omega|^beta, so that small weights stay small and zeros
stay zero. At the end of its round a client prunes omega once, over all layers together, and sends it; the server
averages omega and prunes nothing. No mask is exchanged: clients come to agree on one, since with beta > 1 a pruned
weight cannot grow back. While a layer trains, the input it saves for the backward pass is pruned to the density of its
weight.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import PlainValidator, model_validator
from torch import Tensor

from sparsync.errors import UsageError
from sparsync.federated.fedavg import FedAvgState
from sparsync.federated.messages import chain_of
from sparsync.federated.server import Server
from sparsync.federated.top_k import TopK, TopKState
from sparsync.randomness import torch_generator
from sparsync.sparsity import (
    ActivationPruning,
    ParamView,
    inverse_power,
    kept,
    power,
    power_slope,
    spectral_beta,
    spectral_network_beta,
    top_k_mask,
)
from sparsync.spec import config
from sparsync.strategies import STRATEGIES
from sparsync.workers import Client


def _exponent(given: Any) -> Any:
    """Check beta in one message: pydantic would have one for each type."""
    if given in ("spectral", "spectral_network"):
        return given
    try:
        beta = float(given)
    except (TypeError, ValueError):
        beta = math.nan
    if not 1 <= beta < math.inf:
        raise ValueError(f"expected a number of at least 1, 'spectral' or 'spectral_network', got {given!r}")
    return beta


@STRATEGIES.register("sparsyfed")
@config
class SparsyFed(TopK):
    """Train sparse weights under a power re-parametrisation, pruned once per round by each client (SparsyFed).

    `sparsity`, `uplink` and `downlink` are those of top-k.

    Attributes
    ----------
    beta : float or {"spectral", "spectral_network"}
        Exponent, at least 1; or computed from the weights at the start of a client's round, per layer or for the
        network. Default: 1.25.
    reparametrize_shortcuts : bool
        Whether 1x1 shortcut convolutions are re-parametrised, too. False reproduces that code's runs, in which they
        stay plain, are pruned and grow back in every round. Default: yes.
    activation_pruning : bool
        Whether saved activations are pruned. Default: yes.
    act_threshold : {"per_batch", "cached_per_round"}
        Whether a convolution's threshold is chosen for each batch, or once per client and round (as that code does).
    payload : {"model", "delta"}
        What clients send: the pruned omega (as that code), or its difference from the download.
    client_sparsity : mapping of int to float, optional
        Sparsity of single clients instead of `sparsity`; they prune what they receive, too. From Python only.
    """

    beta: Annotated[float | Literal["spectral", "spectral_network"], PlainValidator(_exponent)] = 1.25
    reparametrize_shortcuts: bool = True
    activation_pruning: bool = True
    act_threshold: Literal["per_batch", "cached_per_round"] = "per_batch"
    payload: Literal["model", "delta"] = "model"
    client_sparsity: dict[int, float] | None = None

    @model_validator(mode="after")
    def _fractions(self) -> SparsyFed:
        for client, sparsity in (self.client_sparsity or {}).items():
            if not 0 <= sparsity < 1:
                raise ValueError(f"client_sparsity: {sparsity} for client {client}; give at least 0 and less than 1")
        return self

    def check_codecs(self) -> None:
        """Refuse codecs that choose what travels, and differences that arrive rounded."""
        super().check_codecs()
        if self.payload == "delta" and not chain_of(self.uplink).lossless:
            raise ValueError(
                f"payload=delta with uplink={self.uplink}: rounding would leave a rest of what was pruned; "
                "take payload=model, or float32"
            )

    def serve(self, server: Server) -> FedAvgState:
        """Begin a run."""
        return SparsyFedState(self, server)


class SparsyFedState(TopKState):
    """The global model's omega (D,); it computes as `model` gives it."""

    def __init__(self, config: SparsyFed, server: Server) -> None:
        super().__init__(config, server)
        for number in config.client_sparsity or {}:
            if not 0 <= number < server.clients:
                raise UsageError(f"sparsyfed: client_sparsity of client {number}; there are 0 to {server.clients - 1}")
        self.config = config
        self.powered = self.view if config.reparametrize_shortcuts else server.view("feddip")
        self.pruning: ActivationPruning | None = None
        d = self.view.total
        omega = inverse_power(self.powered.gather(self.weights[:d]), self.beta_of(self.weights))
        self.powered.scatter_(self.weights[:d], omega)  # the model starts as it was

    def beta_of(self, weights: Tensor, rng: torch.Generator | None = None) -> float | Tensor:
        """Exponent of every re-parametrised entry, for a model's omega; spectral ones draw from a generator."""
        if isinstance(self.config.beta, float):
            return self.config.beta
        flat = self.powered.split(self.powered.gather(weights[: self.view.total]))
        layers = [part.view(shape) for part, shape in zip(flat, self.powered.shapes, strict=True)]
        rng = rng or torch_generator(self.server.seed, "spectral")
        if self.config.beta == "spectral_network":
            return spectral_network_beta(layers, rng)
        return self.powered.expand(weights.new_tensor([spectral_beta(layer, rng) for layer in layers]))

    def sparsity_of(self, client: int) -> float:
        return (self.config.client_sparsity or {}).get(client, self.sparsity)

    def train(self, client: Client, received: Tensor) -> None:
        """Take the local steps on omega, in a model that computes with theta."""
        if self.config.activation_pruning and self.pruning is None:
            threshold = self.config.act_threshold
            self.pruning = ActivationPruning(client.module, self.powered.names, threshold=threshold)
        if self.pruning:
            self.pruning.new_round()
        if client.number in (self.config.client_sparsity or {}) and client.round > 0:
            self.prune(client)
        beta = self.beta_of(client.params, client.torch_generator("spectral"))
        client.train(transform=None if isinstance(beta, float) and beta == 1 else PowerTransform(self.powered, beta))
        if self.pruning:
            client.note({f"act_density/{name}": value for name, value in self.pruning.densities.items()})

    def prune(self, client: Client) -> None:
        """Prune what a client with a sparsity of its own has received."""
        omega = self.view.gather(client.params)
        mask = top_k_mask(omega, kept(self.view.numel, self.sparsity_of(client.number)))
        self.view.scatter_(client.params, omega.where(mask, 0))

    def encode(self, model: Tensor, client: Client, received: Tensor) -> bytes:
        d = self.view.total
        if self.config.payload == "delta":
            model[:d] -= received[:d]  # what was pruned just now goes as minus what it was
        return super().encode(model, client, received)

    def decode(self, payload: bytes) -> Tensor:
        model, d = super().decode(payload), self.view.total
        if self.config.payload == "delta":
            model[:d] += self.sent[:d]
        return model

    def model(self) -> Tensor:
        """Return the model with theta for omega, (D,)."""
        made, d = self.weights.clone(), self.view.total
        theta = power(self.powered.gather(made[:d]), self.beta_of(self.weights))
        self.powered.scatter_(made[:d], theta)
        return made


class PowerTransform:
    """The transform of local training: theta = p_beta(omega) on the re-parametrised entries of a row."""

    def __init__(self, view: ParamView, beta: float | Tensor) -> None:
        self.view, self.beta = view, beta
        self.slope: Tensor | None = None  # |omega|^(beta - 1) of the current step

    def weights(self, raw: Tensor, out: Tensor) -> None:
        omega = self.view.gather(raw)
        self.slope = power_slope(omega, self.beta)
        out.copy_(raw)
        self.view.scatter_(out, omega.mul_(self.slope))

    def gradient(self, raw: Tensor, grad: Tensor) -> None:
        assert self.slope is not None  # the forward pass came first
        self.view.scatter_(grad, self.slope.mul_(self.beta).mul_(self.view.gather(grad)))
