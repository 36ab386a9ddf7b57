"""Monitors: the small state that each worker sends so that all can bound the variance of their models.

With drifts u_k = w_k - w0 from the last common model, their mean ubar, and S1 the mean of ||u_k||^2,

    Var = (1/K) sum_k ||w_k - wbar||^2 = S1 - ||ubar||^2,

a sum over all d coordinates. A monitor's estimate H of it is made from the *mean* of the workers' states alone, and
bounds it from above: always (naive, linear), always and exactly (exact), or with high probability (sketch).
FDA, arXiv:2405.20988, section 3; naive is from ``miketheologitis/FedL-Sync-FDA`` @ b69536f.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Protocol

import torch
from pydantic import AfterValidator
from torch import Tensor

from sparsync.randomness import torch_generator
from sparsync.sketch import Layout, Sketch
from sparsync.spec import Registry
from sparsync.workers import Fleet


class SketchSettings(Protocol):
    """What `fda` says of its monitors."""

    depth: int
    width: int
    epsilon: float | None
    layout: Layout


class Monitor(ABC):
    """State per worker in, estimate of the variance out.

    Attributes
    ----------
    paper_bytes : int
        Bytes of one worker's state, in that code's counting: float32, no header.
    """

    paper_bytes: int

    @abstractmethod
    def variance(self, fleet: Fleet, anchor: Tensor, *, weighted: bool = False) -> float:
        """H, from the drift of ``fleet.params`` (k, d) off `anchor` (d,)."""

    def synced(self, now: Tensor, before: Tensor) -> None:
        """The common model moved from `before` to `now`, both (d,)."""

    def state_dict(self) -> dict[str, Any]:
        """What `synced` has changed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""


_TOGETHER = 8  # workers whose drifts are taken together, up to _SMALL parameters
_SMALL = 1 << 20


def _reused(owner: object, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory of an object's own for a tensor like another one, so that not every step asks for fresh pages."""
    held: Tensor | None = getattr(owner, name, None)
    if held is None or held.shape != like.shape:
        held = torch.empty_like(like, dtype=dtype)
        setattr(owner, name, held)
    return held


def squared_norms(u: Tensor) -> Tensor:
    """||u_k||^2 of rows (k, d), accumulated in float64: (k,)."""
    return torch.stack([torch.dot(row, row) for row in map(Tensor.double, u)])


class StateMonitor(Monitor):
    """A monitor whose state is a pure function of one worker's drift, and H one of the mean state."""

    @abstractmethod
    def state(self, u: Tensor) -> Tensor:
        """States of drifts (k, d): (k, p)."""

    @abstractmethod
    def estimate(self, mean_state: Tensor) -> float:
        """H from the mean of the states, (p,)."""

    def variance(self, fleet: Fleet, anchor: Tensor, *, weighted: bool = False) -> float:
        """H, from one average of p numbers, booked as state."""
        state = torch.cat([self.state(drift) for drift in self._drifts(fleet.params, anchor)])
        return self._exchange(fleet, state, weighted)

    def _exchange(self, fleet: Fleet, state: Tensor, weighted: bool) -> float:
        sent = state.to(fleet.params.dtype)
        return self.estimate(fleet.mean(sent, "state", paper=self.paper_bytes, weighted=weighted))

    def _drifts(self, params: Tensor, anchor: Tensor) -> Iterator[Tensor]:
        """Drifts of a few workers at a time, in the same memory: no second arena."""
        few = min(len(params), _TOGETHER) if params.shape[1] <= _SMALL else 1
        drift = _reused(self, "_drift", params[:few])
        return (torch.sub(rows, anchor, out=drift[: len(rows)]) for rows in torch.split(params, few))

    def _rows(self, u: Tensor) -> Iterator[Tensor]:
        """Rows of (k, d) in float64, one after the other in the same memory."""
        wide = _reused(self, "_wide", u[0], torch.float64)
        return (wide.copy_(row) for row in u)

    def _norms(self, u: Tensor) -> Tensor:
        return torch.stack([torch.dot(row, row) for row in self._rows(u)])


class NaiveMonitor(StateMonitor):
    """H = S1: as if the drifts had nothing in common. One number."""

    paper_bytes = 4

    def state(self, u: Tensor) -> Tensor:
        return self._norms(u)[:, None]

    def estimate(self, mean_state: Tensor) -> float:
        return mean_state[0].item()


class LinearMonitor(StateMonitor):
    """H = S1 - (mean_k <xi, u_k>)^2, with xi the direction in which the common model last moved. Two numbers.

    Parameters
    ----------
    direction : Tensor, (d,)
        A random unit vector, the same for all workers: xi until the common model has moved, and whenever two
        successive ones coincide.
    """

    paper_bytes = 8

    def __init__(self, direction: Tensor) -> None:
        self.random = direction.double()
        self.xi = self.random  # float64, as all sums of products here

    def state(self, u: Tensor) -> Tensor:
        return torch.stack([torch.stack((torch.dot(row, row), torch.dot(row, self.xi))) for row in self._rows(u)])

    def estimate(self, mean_state: Tensor) -> float:
        s1, along = mean_state.tolist()
        return float(s1 - along**2)

    def synced(self, now: Tensor, before: Tensor) -> None:
        moved = (now - before).double()
        length = torch.linalg.vector_norm(moved).item()
        self.xi = moved / length if length > 0 else self.random

    def state_dict(self) -> dict[str, Any]:
        return {"xi": self.xi}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.xi = state["xi"].to(self.xi)


class SketchMonitor(StateMonitor):
    """H = S1 - M2(mean_k sk(u_k)) / (1 + epsilon): the sketch of the mean drift, for 1 + l m numbers.

    Parameters
    ----------
    sketch : Sketch
        The same for all workers, and for the whole run.
    epsilon : float
        Safety against an over-estimate of ||ubar||^2. At 1/sqrt(m), the default, one check in eleven still
        under-estimates the variance (5 rows), by little.
    """

    def __init__(self, sketch: Sketch, epsilon: float) -> None:
        self.sketch = sketch
        self.epsilon = epsilon
        self.paper_bytes = 4 * (sketch.depth * sketch.width + 1)

    def state(self, u: Tensor) -> Tensor:
        return torch.cat((self._norms(u)[:, None].to(u.dtype), self.sketch(u).flatten(1)), 1)

    def variance(self, fleet: Fleet, anchor: Tensor, *, weighted: bool = False) -> float:
        """H, from one average of 1 + l m numbers, booked as state.

        A sketch is linear, so that of the summed drift is the sum of the sketches: a process that hosts many workers
        sketches once. Only the workers' mean matters, so the first row stands for all of them.
        """
        if weighted or len(fleet.params) == 1:
            return super().variance(fleet, anchor, weighted=weighted)
        norms, total = [], torch.zeros_like(anchor)
        for drift in self._drifts(fleet.params, anchor):
            norms.append(self._norms(drift))
            total += drift.sum(0)
        state = fleet.params.new_zeros(len(fleet.params), 1 + self.sketch.depth * self.sketch.width)
        state[:, 0] = torch.cat(norms)
        state[0, 1:] = self.sketch(total[None]).flatten()
        return self._exchange(fleet, state, weighted)

    def estimate(self, mean_state: Tensor) -> float:
        of_mean = mean_state[1:].view(self.sketch.depth, self.sketch.width)
        return mean_state[0].item() - Sketch.squared_norm(of_mean) / (1 + self.epsilon)


class ExactMonitor(Monitor):
    """H = Var: sends the whole model, so it saves nothing. The measure of the others.

    Not computed as S1 - ||ubar||^2, which cancels when workers move together, but as the mean of ||w_k - wbar||^2 once
    wbar is known; in float64, and what is below its rounding is 0, so that equal models have no variance at all.
    """

    def __init__(self, d: int) -> None:
        self.paper_bytes = 4 * (d + 1)

    def variance(self, fleet: Fleet, anchor: Tensor, *, weighted: bool = False) -> float:
        """H, from an average of d numbers and then one of 1, booked as state; needs no anchor."""
        mean = fleet.mean(fleet.params.double(), "state", paper=self.paper_bytes, weighted=weighted)
        variance = distance_to(mean, fleet, weighted=weighted)
        rounding = fleet.workers * torch.finfo(torch.float64).eps
        return variance if variance > rounding**2 * squared_norms(mean[None]).item() else 0.0


def distance_to(model: Tensor, fleet: Fleet, *, weighted: bool = False, book: bool = True, paper: int = 0) -> float:
    """Mean of ||w_k - model||^2 over all workers: the variance, if `model` (d,) is their mean. One number each."""
    squared = torch.stack([squared_norms((row - model)[None])[0] for row in fleet.params])
    sent = squared[:, None].to(fleet.params.dtype)
    return fleet.mean(sent, "state" if book else None, paper=paper, weighted=weighted)[0].item()


def unit_vector(fleet: Fleet) -> Tensor:
    """Return a random direction (d,) that all workers share."""
    normal = torch.randn(fleet.d, generator=torch_generator(fleet.seed, "xi"), dtype=torch.float64)
    unit: Tensor = normal / torch.linalg.vector_norm(normal)
    return unit.to(fleet.params)


def default_epsilon(width: int) -> float:
    """Return 1/sqrt(m), as in ``miketheologitis/FedL-Sync-FDA`` @ b69536f."""
    return 1 / math.sqrt(width)


MONITORS: Registry[Monitor] = Registry("monitor", Monitor)
"""Functions (fleet, settings of `fda`, *, options) -> Monitor, the same for all workers."""

MonitorSpec = Annotated[str, AfterValidator(MONITORS.check)]


@MONITORS.register("linear")
def linear(fleet: Fleet, _settings: SketchSettings) -> Monitor:
    """The drift's norm, and its part along the direction in which the models last moved: 2 numbers."""
    return LinearMonitor(unit_vector(fleet))


@MONITORS.register("sketch")
def sketch(fleet: Fleet, settings: SketchSettings) -> Monitor:
    """The drift's norm and its sketch: 1 + depth x width numbers. Its parameters are those of fda itself."""
    made = Sketch(
        fleet.d,
        settings.depth,
        settings.width,
        fleet.generator("sketch"),
        settings.layout,
        device=fleet.params.device,
        dtype=fleet.params.dtype,
    )
    return SketchMonitor(made, default_epsilon(settings.width) if settings.epsilon is None else settings.epsilon)


@MONITORS.register("naive")
def naive(_fleet: Fleet, _settings: SketchSettings) -> Monitor:
    """The drift's norm alone: 1 number."""
    return NaiveMonitor()


@MONITORS.register("exact")
def exact(fleet: Fleet, _settings: SketchSettings) -> Monitor:
    """The whole model, to measure the others by."""
    return ExactMonitor(fleet.d)
