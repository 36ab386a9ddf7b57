"""Adaptive federated optimisation: Reddi et al., arXiv:2003.00295, and FedAvgM: Hsu et al., arXiv:1909.06335.

The server treats w_t minus the clients' mean as a gradient and takes a step of an optimiser of its own; buffers are
averaged. FedAdam is torch's Adam, FedAvgM torch's SGD, FedAdagrad torch's Adagrad, with torch's conventions: epsilon is
added to the root of the second moment, and Adam's moments are corrected for their start at zero. The paper's
Algorithm 2 has no such correction, and its v starts at tau^2 or above: first steps differ by the factor
sqrt(1 - beta2) / (1 - beta1), which is 1 at the defaults. FedYogi, which torch lacks, follows the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsync.federated.context import ServerContext
from sparsync.federated.fedavg import FedAvg, FedAvgServer
from sparsync.spec import config
from sparsync.strategies import STRATEGIES

Build = Callable[[nn.Parameter], Optimizer]


@STRATEGIES.register("fedavgm")
@config
class FedAvgM(FedAvg):
    """FedAvg with momentum on the server (Hsu et al.).

    Attributes
    ----------
    lr, momentum : float
        Of the server. lr 1 without momentum is FedAvg. Default: 1 and 0.9.
    """

    lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)

    def make_server(self, context: ServerContext) -> FedOptServer:
        return FedOptServer(self, context, lambda w: torch.optim.SGD([w], lr=self.lr, momentum=self.momentum))


@STRATEGIES.register("fedadam")
@config
class FedAdam(FedAvg):
    """Adam on the server (Reddi et al.).

    Attributes
    ----------
    lr, beta1, beta2, tau : float
        Of the server: rate, decay of both moments, and what is added to the root of the second. Default: 0.01, 0.9,
        0.99 and 0.001.
    """

    lr: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0, allow_inf_nan=False)

    def make_server(self, context: ServerContext) -> FedOptServer:
        betas = self.beta1, self.beta2
        return FedOptServer(self, context, lambda w: torch.optim.Adam([w], lr=self.lr, betas=betas, eps=self.tau))


@STRATEGIES.register("fedyogi")
@config
class FedYogi(FedAdam):
    """Yogi on the server: Adam whose second moment moves by the sign of its error (Reddi et al.).

    Its parameters are FedAdam's.
    """

    def make_server(self, context: ServerContext) -> FedOptServer:
        betas = self.beta1, self.beta2
        return FedOptServer(self, context, lambda w: Yogi(w, self.lr, betas, self.tau))


@STRATEGIES.register("fedadagrad")
@config
class FedAdagrad(FedAvg):
    """Adagrad on the server (Reddi et al.).

    Attributes
    ----------
    lr, tau : float
        Of the server: rate, and what is added to the root of the summed squares. Default: 0.01 and 0.001.
    """

    lr: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    tau: float = Field(default=1e-3, gt=0, allow_inf_nan=False)

    def make_server(self, context: ServerContext) -> FedOptServer:
        return FedOptServer(self, context, lambda w: torch.optim.Adagrad([w], lr=self.lr, eps=self.tau))


class FedOptServer(FedAvgServer):
    """The global model, and the state of the server's optimiser."""

    def __init__(self, config: FedAvg, context: ServerContext, build: Build) -> None:
        super().__init__(config, context)
        self.parameter = nn.Parameter(self.weights[: context.vector.d].clone())
        self.optimizer = build(self.parameter)

    def step(self, mean: Tensor) -> Tensor:
        d = self.context.vector.d
        self.parameter.grad = self.parameter.detach() - mean[:d]  # the pseudo-gradient
        self.optimizer.step()
        return torch.cat((self.parameter.detach(), mean[d:]))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": dict(self.optimizer.state[self.parameter])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            self.parameter.copy_(self.weights[: self.context.vector.d])
        self.optimizer.state[self.parameter] = dict(state["optimizer"])


class Yogi(Optimizer):
    """m <- b1 m + (1-b1) g;  v <- v - (1-b2) g^2 sign(v - g^2);  w <- w - lr m / (sqrt(v) + tau).

    Algorithm 2 of arXiv:2003.00295: no correction of the moments, v starts at tau^2.
    """

    def __init__(self, parameter: nn.Parameter, lr: float, betas: tuple[float, float], tau: float) -> None:
        super().__init__([parameter], {"lr": lr, "betas": betas, "tau": tau})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: the gradient is given
        """Take one step."""
        for group in self.param_groups:
            (beta1, beta2), tau = group["betas"], group["tau"]
            for w in group["params"]:
                state = self.state[w]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(w), torch.full_like(w, tau**2)
                m, v, square = state["m"], state["v"], w.grad.square()
                m.lerp_(w.grad, 1 - beta1)
                v.sub_((1 - beta2) * square * torch.sign(v - square))
                w.sub_(group["lr"] * m / (v.sqrt() + tau))
