"""K workers, of which this process hosts some; what they say to each other is averaged here, and booked.

A strategy reaches the workers only through its fleet. It cannot tell whether all K of them live in this process, or
one, and so what is simulated is what is deployed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparsync.errors import DivergedError, UsageError
from sparsync.hetero import RingPlan
from sparsync.randomness import generator
from sparsync.system import Clock, Profile, System
from sparsync.wire import Chain, Dense, Ledger, Ring, Topology, Traffic
from sparsync.wire.dense import Precision
from sparsync.wire.ledger import Kind
from sparsync.workers.group import Group, SingleProcess, gather, share
from sparsync.workers.layout import Arena

BuffersPolicy = Literal["average", "local"]

_ARENA_PRECISION: dict[torch.dtype, Precision] = {torch.float32: "float32", torch.float64: "float64"}
_NOBODY = 2**62
_MIXED_AT_ONCE = 2**24  # numbers of all workers together


@dataclass(frozen=True)
class Model:
    """A model outside the arena: parameters (d,), and the buffers (b,) that are averaged with them."""

    params: Tensor
    buffers: Tensor


class Fleet:
    """K workers as rows.

    Parameters
    ----------
    arena : Arena
        The rows that this process hosts.
    workers : int
        K, over all processes.
    seed : int
        Seed of the run.
    group : Group
        The processes. Default: this one alone.
    topology : Topology
        Who is linked to whom. Default: a ring.
    precision : str, optional
        How models and gradients travel to and from a server. Default: as the arena holds them, which is also what a
        ring moves.
    profile : Profile
        Devices and links, for the virtual clock.
    buffers : {"average", "local"}
        Whether averaging models averages their floating-point buffers too (booked), or leaves each worker its own.
    samples : sequence of int, optional
        Samples per worker, (K,), for strategies that weight by them.
    epoch_steps : int, optional
        Local steps in which the worker with fewest samples has seen all of them once, for strategies that count those.

    Attributes
    ----------
    params, grads : Tensor, (k, d)
        Parameters and gradients of the workers here; modules hold views, so write in place.
    rows : range
        Which workers those are.
    ledger : Ledger
        What has been sent.
    clock : Clock
        What time it would be on the profile's devices.
    syncs : int
        How often models (or gradients) have been averaged.
    rate : float
        Factor on the learning rate, beside its schedule.
    journal : list of dict, or None
        Where `record` writes; None: nowhere.
    readouts : bool
        Whether an experimenter watches, so that strategies may compute, unbooked, what only a reader will need.
    """

    def __init__(
        self,
        arena: Arena,
        workers: int,
        *,
        seed: int = 0,
        group: Group | None = None,
        topology: Topology | None = None,
        precision: Precision | None = None,
        profile: Profile | None = None,
        buffers: BuffersPolicy = "average",
        samples: Sequence[int] | None = None,
        epoch_steps: int | None = None,
    ) -> None:
        self.arena = arena
        self.workers = workers
        self.seed = seed
        self.group: Group = group or SingleProcess()
        self.topology: Topology = topology or Ring()
        self.buffers_policy = buffers
        self.samples, self._epoch_steps = samples, epoch_steps
        self.rows = share(workers, self.group.size, self.group.rank)
        native = _ARENA_PRECISION[arena.params.dtype]
        if precision not in (None, native) and self.topology.name == "ring":
            raise UsageError(f"precision {precision!r}: a ring moves models as they are held, in {native}; use a star")
        self._native = Dense(native)
        self._codec = Dense(precision or native)
        self._traffic: dict[tuple[int, int], Traffic] = {}  # of a mean, by numbers and their size
        self.ledger = Ledger(workers)
        self.clock = Clock(System.of(profile or Profile(), workers, seed))
        self.syncs = 0
        self.rate = 1.0
        self.failures: list[tuple[int, int]] = []  # (step, worker), of losses that were not finite
        self.journal: list[dict[str, Any]] | None = None
        self.readouts = False

    @property
    def params(self) -> Tensor:
        return self.arena.params

    @property
    def grads(self) -> Tensor:
        return self.arena.grads

    @property
    def d(self) -> int:
        """Number of parameters that workers train, and send."""
        return self.arena.layout.numel

    @property
    def epoch_steps(self) -> int:
        """Local steps of a local epoch.

        Raises
        ------
        UsageError
            If that is not known.
        """
        if self._epoch_steps is None:
            raise UsageError("this fleet does not know how many steps a local epoch has; state local steps instead")
        return self._epoch_steps

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the generator of a purpose that all workers share: it gives them all the same numbers."""
        return generator(self.seed, purpose)

    def record(self, **numbers: Any) -> None:
        """Note numbers that a user will want to see, such as an estimate and its threshold."""
        if self.journal is not None:
            self.journal.append(numbers)

    def mean(
        self, x: Tensor, kind: Kind | None, *, paper: int = 0, weighted: bool = False, chain: Chain | None = None
    ) -> Tensor:
        """Average one vector per worker over the whole fleet.

        Parameters
        ----------
        x : Tensor, (k, p)
            One row per worker here.
        kind : str or None
            What it is, for the ledger. None: a read-out for the experimenter, which costs nothing.
        paper : int
            Bytes per worker to book in the paper view.
        weighted : bool
            Weight workers by their number of samples instead of equally.
        chain : Chain, optional
            How the vector travels to a star's server, and the mean back. Default: as the fleet's models do.

        Returns
        -------
        Tensor, (p,)
            The same bits in all processes; memory of its own.

        Raises
        ------
        DivergedError
            If the mean's first entry is not finite: then no later average would mend it. A worker whose loss was not
            finite has filled its row with NaN, so this happens in all processes at once, and names that worker.
        """
        if x.shape[1] == 0:  # no numbers, no message
            return x.sum(0)
        codec: Dense | Chain = chain or (self._codec if kind in ("model", "gradient") else self._native)
        messages: list[int] = []  # their lengths, where what is said decides about them
        if isinstance(codec, Chain):
            x, messages = self._through(codec, x)
        elif self.topology.name == "star":
            x = codec.round(x)
        if weighted:
            total, divisor = self._shares(x) @ x, 1.0
        else:
            total, divisor = x.sum(0), float(self.workers)
        wire = codec if self.group.size == self.workers else self._native
        mean = self.group.mean(total, divisor, self.topology, wire)
        if self.topology.name == "star":
            mean = codec.round(mean)
        if kind is not None and isinstance(codec, Chain):
            self._book_messages(kind, messages, len(codec.encode(mean)), paper)
        elif kind is not None and isinstance(codec, Dense):
            self._book(kind, x.shape[1], x.itemsize if self.topology.name == "ring" else codec.dtype.itemsize, paper)
        if not math.isfinite(mean[0].item()):
            self.diverged(kind or "model")
        return mean

    def _book(self, kind: Kind, numel: int, itemsize: int, paper: int) -> None:
        traffic = self._traffic.get((numel, itemsize))
        if traffic is None:
            traffic = self._traffic[numel, itemsize] = self.topology.mean(self.workers, numel, itemsize)
        self.ledger.book(kind, traffic)
        self._take_time(traffic)
        if paper:
            self.ledger.book_paper(kind, paper * self.workers)

    def _take_time(self, traffic: Traffic) -> None:
        clock = self.clock
        if traffic.lockstep:
            clock.ring(traffic.messages, traffic.serial_bytes)
            return
        if traffic.sent.any():
            clock.gather(traffic.sent)
        if traffic.received.any():
            clock.scatter(traffic.received)

    def _through(self, chain: Chain, x: Tensor) -> tuple[Tensor, list[int]]:
        """What a server decodes of the rows (k, p), and how long the messages of the workers here are."""
        if self.topology.name != "star":
            raise UsageError(f"codec {chain}: a ring moves bare numbers; use topology='star'")
        payloads = [chain.encode(row.float()) for row in x]
        return torch.stack([chain.decode(one, x.shape[1]).to(x) for one in payloads]), [len(one) for one in payloads]

    def _book_messages(self, kind: Kind, sizes: list[int], answer: int, paper: int) -> None:
        """Book messages whose length depends on what they say: each worker's own up, the same answer down to all."""
        if self.workers == 1:
            return
        up = gather(self.group, dict(zip(self.rows, sizes, strict=True)))
        sent = np.asarray([up[worker] for worker in range(self.workers)], np.int64)
        received = np.full(self.workers, answer, np.int64)
        traffic = Traffic(sent, received, int((sent + received).sum()), 2, int(sent.max()) + answer)
        self.ledger.book(kind, traffic)
        self._take_time(traffic)
        if paper:
            self.ledger.book_paper(kind, paper * self.workers)

    def _shares(self, x: Tensor) -> Tensor:
        counts = self._counts
        return torch.from_numpy((counts / counts.sum())[self.rows.start : self.rows.stop]).to(x)

    @property
    def _counts(self) -> npt.NDArray[np.float64]:
        """Samples of each worker, (K,)."""
        if self.samples is None:
            raise UsageError("weights 'samples': this fleet does not know its workers' samples; use weights 'uniform'")
        return np.asarray(self.samples, np.float64)

    def decide(self, decision: bool) -> bool:
        """Pass on a decision that follows from a mean: free on a ring, a message per worker from a star's server."""
        traffic = self.topology.decision(self.workers)
        if traffic.total:
            self.ledger.book("control", traffic)
            self._take_time(traffic)
        return decision

    def average_models(self, *, weighted: bool = False) -> Tensor:
        """Give all workers the mean of their models, and return its parameters, (d,)."""
        return self.adopt(self.mean(self.params, "model", weighted=weighted), weighted=weighted)

    def adopt(self, mean: Tensor, *, weighted: bool = False) -> Tensor:
        """Give all workers their mean (d,), average buffers by policy, and return the parameters as they hold them."""
        mean = self.load(mean)
        self.average_buffers(weighted=weighted)
        self.open_round("model")
        self.syncs += 1
        return mean

    # Some workers among themselves

    @property
    def model_bytes(self) -> int:
        """Of a model in one message between workers, with what is averaged of its buffers."""
        return (self.d + self._shared_buffers) * self.params.itemsize

    @property
    def _shared_buffers(self) -> int:
        return self.arena.buffers.shape[1] if self.buffers_policy == "average" else 0

    def need_ring(self, strategy: str) -> None:
        """Refuse a topology in which workers are linked to a server only.

        Raises
        ------
        UsageError
            If it is one.
        """
        if self.topology.name != "ring":
            raise UsageError(f"{strategy}: workers pass models to one another; use topology='ring'")

    def ring(self, members: Sequence[int], *, weighted: bool = False) -> Model:
        """Average the models of some workers, who meet and pass them round a ring; all of them adopt the mean.

        Parameters
        ----------
        members : sequence of int, (n,)
            Workers, in the ring's order.
        weighted : bool
            Weight them by their number of samples instead of equally.

        Returns
        -------
        Model
            Parameters and averaged buffers: the same bits in all processes.

        Raises
        ------
        DivergedError
            If one of them is no longer finite.
        """
        order = np.asarray(members)
        mean = self._agree(order, self._counts[order] if weighted else None)
        plan = RingPlan(len(order), self.d + self._shared_buffers)
        sent, received = np.zeros(self.workers, np.int64), np.zeros(self.workers, np.int64)
        sent[order] = plan.floats_sent * self.params.itemsize
        received[order] = np.roll(sent[order], 1)
        longest = plan.steps * int(np.diff(plan.bounds).max()) * self.params.itemsize
        self.ledger.book("model", Traffic(sent, received, int(sent.sum()), plan.steps, longest, lockstep=True))
        self.ledger.book_paper("model", 2 * 4 * self.d * (len(order) - 1))
        self.clock.ring(plan.steps, longest, order)
        self.syncs += 1
        return mean

    def _agree(self, members: npt.NDArray[np.int64], counts: npt.NDArray[np.float64] | None = None) -> Model:
        """Some workers replace their models by the mean of theirs, by weight if counts are given. Not booked."""
        weights, divisor = np.zeros(self.workers), 1.0 if counts is not None else float(len(members))
        weights[members] = 1.0 if counts is None else counts / counts.sum()
        mine = np.flatnonzero(weights[self.rows.start : self.rows.stop])  # others may no longer be finite
        own = torch.from_numpy(weights[self.rows.start + mine]).to(self.params)[:, None]
        sums = [(rows[mine] * own).sum(0) for rows in (self.params, self.arena.buffers[:, : self._shared_buffers])]
        ring, native = Ring(), self._native
        mean = Model(*(self.group.mean(one, divisor, ring, native) if len(one) else one for one in sums))
        if not math.isfinite(mean.params[0].item()):
            self.diverged("model")
        for worker in members.tolist():
            self.blend(worker, mean, 1.0)
        return mean

    def mix(self, weights: npt.NDArray[np.float64]) -> None:
        """Every worker replaces its model by a weighted sum of its neighbours' and its own.

        Parameters
        ----------
        weights : array of float64, (K, K)
            Row i: what worker i makes of all models. Whoever has a weight elsewhere than for itself is a neighbour:
            they wait for one another, and send one another their models.

        Raises
        ------
        DivergedError
            If a worker's model is no longer finite.
        """
        mine = torch.from_numpy(weights[:, self.rows.start : self.rows.stop])
        healthy = bool(torch.isfinite(self.params[:, 0]).all())
        if not self.group.minimum(int(healthy)):
            self.diverged("model")
        for rows in (self.params, self.arena.buffers[:, : self._shared_buffers]):
            for some in torch.split(rows, max(1, _MIXED_AT_ONCE // self.workers), dim=1):
                sums = (mine.to(some) @ some).reshape(-1)  # of all workers, as far as rows here contribute
                if self.group.size > 1:
                    sums = self.group.mean(sums, 1.0, Ring(), self._native)
                some.copy_(sums.view(self.workers, -1)[self.rows.start : self.rows.stop])
        links = (weights != 0) & ~np.eye(self.workers, dtype=bool)
        sent, received = links.sum(0) * self.model_bytes, links.sum(1) * self.model_bytes
        self.ledger.book("model", Traffic(sent, received, int(sent.sum()), 1, int(sent.max())))
        self.ledger.book_paper("model", 4 * self.d * int(links.sum()))
        self.clock.neighbours(links, self.model_bytes)
        self.syncs += 1

    def average_pair(self, first: int, second: int) -> None:
        """Two workers replace their models by the mean of both; the first waits for it, the second goes on meanwhile.

        Raises
        ------
        DivergedError
            If a model is no longer finite.
        """
        self._agree(np.array([first, second]))
        for sender, receiver in ((first, second), (second, first)):
            self.ledger.book_transfer("model", sender, receiver, self.model_bytes)
        self.ledger.book_paper("model", 2 * 4 * self.d)
        self.clock.pair(first, second, self.model_bytes)
        self.syncs += 1

    def send(self, sender: int, receiver: int) -> float:
        """A worker sends another one a model, and goes on meanwhile. Return when it has arrived, in virtual seconds."""
        self.ledger.book_transfer("model", sender, receiver, self.model_bytes)
        self.ledger.book_paper("model", 4 * self.d)
        return self.clock.transfer(sender, receiver, self.model_bytes)

    def blend(self, worker: int, model: Model, weight: float) -> None:
        """A worker moves its model towards another one: by half the way with weight 0.5, all of it with 1."""
        if worker in self.rows:
            i = worker - self.rows.start
            shared = self.arena.buffers[i, : self._shared_buffers]
            for own, other in ((self.params[i], model.params), (shared, model.buffers)):
                own.lerp_(other, weight)  # with weight 1 exactly the other one

    def average_buffers(self, *, weighted: bool = False) -> None:
        """Give all workers the mean of their floating-point buffers, if the policy says so. Booked as model."""
        buffers = self.arena.buffers
        if self.buffers_policy == "average" and buffers.shape[1]:
            buffers.copy_(self.mean(buffers, "model", weighted=weighted))

    def open_round(self, kind: Kind) -> None:
        """Book a round in the paper view: d float32 numbers up and down per worker, once a step is taken in it."""
        self.ledger.open_round(kind, 2 * 4 * self.d * self.workers)

    def load(self, model: Tensor) -> Tensor:
        """Give all workers a model (d,), in place, and return it as they hold it."""
        self.params.copy_(model)
        return model

    def start(self) -> None:
        """Give all workers rank 0's first model, once: booked as a broadcast in the wire view."""
        self.group.broadcast(self.params[0])
        self.params.copy_(self.params[0].clone())
        if self.arena.buffers.shape[1]:
            self.group.broadcast(self.arena.buffers[0])
            self.arena.buffers.copy_(self.arena.buffers[0].clone())
        numel = self.d + self.arena.buffers.shape[1]
        if self.workers > 1:
            traffic = self.topology.broadcast(self.workers, numel, self.params.itemsize)
            self.ledger.book("model", traffic)
            self._take_time(traffic)

    def fail(self, worker: int, step: int) -> None:
        """A worker's loss is not finite: remember it, and let the next average tell everyone."""
        self.failures.append((step, worker))
        row = worker - self.rows.start
        self.params[row].fill_(math.nan)
        self.grads[row].fill_(math.nan)

    def diverged(self, what: str) -> None:
        """Raise the same `DivergedError` in all processes, naming the first worker that failed."""
        mine = min((step * self.workers + worker for step, worker in self.failures), default=_NOBODY)
        first = self.group.minimum(mine)
        if first == _NOBODY:
            raise DivergedError(f"the workers' mean {what} is not finite; lower the learning rate or clip gradients")
        step, worker = divmod(first, self.workers)
        raise DivergedError(
            f"worker {worker}: the loss is not finite at step {step}; lower the learning rate or clip gradients"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the rows here, the ledger and the clock."""
        return {
            "params": self.params,
            "buffers": self.arena.buffers,
            "others": self.arena.others,
            "ledger": self.ledger.state_dict(),
            "clock": self.clock.state_dict(),
            "syncs": self.syncs,
            "rate": self.rate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, in place."""
        self.params.copy_(state["params"])
        self.arena.buffers.copy_(state["buffers"])
        for rows, saved in zip(self.arena.others, state["others"], strict=True):
            rows.copy_(saved)
        self.ledger.load_state_dict(state["ledger"])
        self.clock.load_state_dict(state["clock"])
        self.syncs, self.rate = state["syncs"], state["rate"]
