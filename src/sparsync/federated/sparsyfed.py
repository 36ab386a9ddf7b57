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
from sparsync.federated.context import FederationContext, ServerContext
from sparsync.federated.contract import Work
from sparsync.federated.messages import chain_of
from sparsync.federated.top_k import TopK, TopKClient, TopKServer
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


def _exponent(value: Any) -> Any:
    """Check beta in one message: pydantic would have one for each type."""
    if value in ("spectral", "spectral_network"):
        return value
    try:
        beta = float(value)
    except (TypeError, ValueError):
        beta = math.nan
    if not 1 <= beta < math.inf:
        raise ValueError(f"expected a number of at least 1, 'spectral' or 'spectral_network', got {value!r}")
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

    def sparsity_of(self, client: int | None = None) -> float:
        return self.sparsity if client is None else (self.client_sparsity or {}).get(client, self.sparsity)

    def make_server(self, context: ServerContext) -> SparsyFedServer:
        return SparsyFedServer(self, context)

    def make_client(self, context: FederationContext) -> SparsyFedClient:
        return SparsyFedClient(self, context)


class PowerExponent:
    """The exponent of a model's re-parametrised entries.

    Parameters
    ----------
    config : SparsyFed
        A number, or how it is computed.
    context : FederationContext
        The model.

    Attributes
    ----------
    view : ParamView
        The re-parametrised entries.
    """

    def __init__(self, config: SparsyFed, context: FederationContext) -> None:
        self.beta = config.beta
        self.view = context.view("sparsyfed" if config.reparametrize_shortcuts else "feddip")

    def __call__(self, omega: Tensor, rng: torch.Generator) -> float | Tensor:
        """Return beta of a model's omega (d,), for all entries or each; spectral ones draw from a generator."""
        if isinstance(self.beta, float):
            return self.beta
        flat = self.view.split(self.view.gather(omega))
        layers = [part.view(shape) for part, shape in zip(flat, self.view.shapes, strict=True)]
        if self.beta == "spectral_network":
            return spectral_network_beta(layers, rng)
        return self.view.expand(omega.new_tensor([spectral_beta(layer, rng) for layer in layers]))


class SparsyFedServer(TopKServer):
    """The global model's omega (D,); it computes as `model` gives it."""

    def __init__(self, config: SparsyFed, context: ServerContext) -> None:
        super().__init__(config, context)
        for number in config.client_sparsity or {}:
            if not 0 <= number < context.clients:
                raise UsageError(f"sparsyfed: client_sparsity of client {number}; there are 0 to {context.clients - 1}")
        self.delta = config.payload == "delta"
        self.exponent = PowerExponent(config, context)
        parameters, view = self.weights[: self.view.total], self.exponent.view
        view.scatter_(parameters, inverse_power(view.gather(parameters), self.beta()))  # the model starts as it was

    def beta(self) -> float | Tensor:
        """Return the exponent of the global model."""
        return self.exponent(self.weights[: self.view.total], torch_generator(self.context.seed, "spectral"))

    def decode(self, payload: bytes) -> Tensor:
        model, d = super().decode(payload), self.view.total
        if self.delta:
            model[:d] += self.sent[:d]
        return model

    def model(self) -> Tensor:
        """Return the model with theta for omega, (D,)."""
        made, d, view = self.weights.clone(), self.view.total, self.exponent.view
        view.scatter_(made[:d], power(view.gather(made[:d]), self.beta()))
        return made


class SparsyFedClient(TopKClient):
    """The client's half: it trains omega, in a model that computes with theta."""

    config: SparsyFed

    def __init__(self, config: SparsyFed, context: FederationContext) -> None:
        super().__init__(config, context)
        self.exponent = PowerExponent(config, context)
        self.pruning: ActivationPruning | None = None
        if config.activation_pruning:
            names = self.exponent.view.names
            self.pruning = ActivationPruning(context.module, names, threshold=config.act_threshold)

    def work(self, client: Client, received: Tensor) -> Work:
        if self.pruning:
            self.pruning.new_round()
        start, d = received, self.view.total
        if client.number in (self.config.client_sparsity or {}) and client.round > 0:
            start = self.pruned(received, client.number)
        beta = self.exponent(start[:d].to(client.params), client.torch_generator("spectral"))
        plain = isinstance(beta, float) and beta == 1
        return Work(start, received, transform=None if plain else PowerTransform(self.exponent.view, beta))

    def pruned(self, model: Tensor, client: int) -> Tensor:
        """Return a model (D,) as sparse as what a client with a sparsity of its own sends."""
        omega, made = self.prunable(model), model.clone()
        mask = top_k_mask(omega, kept(self.view.numel, self.config.sparsity_of(client)))
        self.view.scatter_(made[: self.view.total], omega.where(mask, 0))
        return made

    def notes(self) -> dict[str, float]:
        densities = self.pruning.densities if self.pruning else {}
        return {f"act_density/{name}": value for name, value in densities.items()}

    def encode(self, model: Tensor, client: Client, received: Tensor) -> bytes:
        d = self.view.total
        if self.config.payload == "delta":
            model[:d] -= received[:d]  # what was pruned just now goes as minus what it was
        return super().encode(model, client, received)


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
