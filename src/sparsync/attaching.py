"""The drop-in for a training loop of your own: a strategy on the optimiser's step hook.

    dist.init_process_group("gloo")
    with sparsync.attach(model, optimizer, FDA(threshold=2.0)) as sync:
        for x, y in loader:                              # the loop stays as it was
            ...
            optimizer.step()

Every process is one worker. The same strategy objects run here as in simulation, and the same ledger books them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsync.engines.ranks import TorchDistributed
from sparsync.errors import UsageError
from sparsync.peers import ExchangesGradients, FollowsClock, PeerState, PeerStrategy
from sparsync.spec import unknown
from sparsync.strategies import STRATEGIES
from sparsync.wire import TOPOLOGIES, Ledger
from sparsync.workers import Arena, Fleet, Group, SingleProcess
from sparsync.workers.fleet import BuffersPolicy


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    strategy: PeerStrategy | str,
    group: dist.ProcessGroup | None = None,
    *,
    seed: int = 0,
    topology: Literal["ring", "star"] = "ring",
    buffers: BuffersPolicy = "average",
) -> Attached:
    """Synchronise a model in a training loop of your own.

    Parameters
    ----------
    model : nn.Module
        What is trained. Its trainable parameters are synchronised, shared ones once, in float32 (float64 if one of
        them is); frozen parameters are never sent, and must be equal on all processes already.
    optimizer : Optimizer
        The local optimiser; its state stays local.
    strategy : PeerStrategy or str
        `FDA`, `LocalSGD`, `Synchronous`, or a spec such as ``"fda:threshold=2,monitor=sketch"``.
    group : ProcessGroup, optional
        Default: all processes of torch.distributed; without ``init_process_group``, this one alone.
    seed : int
        For what the workers share (hashes, directions): the same on all processes.
    topology : {"ring", "star"}
        Ring: the backend's all-reduce. Star: payloads to and from rank 0, over gloo.
    buffers : {"average", "local"}
        Whether buffers of the parameters' type that ``state_dict()`` holds (BatchNorm statistics) are averaged with the
        models; all others stay each process's own.

    Returns
    -------
    Attached
        A context manager. On entry all processes take rank 0's model. Every process must take the same number of
        optimiser steps inside; one that leaves early, or skips a step, is named on the others (gloo).

    Raises
    ------
    UsageError
        If a trainable parameter is complex, sparse, on the meta device or not initialised, or there is none; if the
        optimizer is none of torch's; or if strategy or topology are not known.
    """
    if topology not in TOPOLOGIES:
        raise unknown("topology", topology, sorted(TOPOLOGIES))
    if not (isinstance(optimizer, Optimizer) and getattr(type(optimizer).step, "hooked", False)):
        raise UsageError(
            f"attach: the optimizer is a {type(optimizer).__name__}, which runs no step hooks; give the "
            "torch.optim.Optimizer inside it, often called .optimizer"
        )
    chosen = STRATEGIES.build(strategy) if isinstance(strategy, str) else strategy
    if isinstance(chosen, type) or not isinstance(chosen, PeerStrategy):
        raise UsageError(f"attach: strategy {chosen!r} is none among peers; give one such as FDA(threshold=2)")
    return Attached(model, optimizer, chosen, group, seed, topology, buffers)


class Attached:
    """A strategy on a user's model and optimiser; made by `attach`.

    Attributes
    ----------
    fleet : Fleet
        All workers, of which this process is one.
    steps : int
        Optimiser steps taken inside.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        strategy: PeerStrategy,
        group: dist.ProcessGroup | None,
        seed: int,
        topology: str,
        buffers: BuffersPolicy,
    ) -> None:
        self._optimizer = optimizer
        self._strategy = strategy
        self._farewell = _Farewell(group)
        ranks: Group = TorchDistributed(group, self._farewell.missing) if dist.is_initialized() else SingleProcess()
        self.fleet = _ModelFleet(model, seed, ranks, topology, buffers)
        self.steps = 0
        self._remaining = 0
        self._state: PeerState | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._hooks: list[Any] = []

    @property
    def ledger(self) -> Ledger:
        """What all workers have sent."""
        return self.fleet.ledger

    @property
    def syncs(self) -> int:
        """How often models (or gradients) have been averaged."""
        return self.fleet.syncs

    def __enter__(self) -> Attached:
        self._farewell.meet(self.fleet.group)
        if self._loaded is None:
            self.fleet.start()
            self.fleet.push()
        else:
            self.fleet.pull()
        self._state = self._strategy.start(self.fleet)
        if isinstance(self._state, FollowsClock):
            name = type(self._strategy).__name__
            raise UsageError(f"attach: {name} plans on the virtual clock how long each worker trains; use compare")
        if self._loaded is not None:
            self._restore(self._loaded)
        if isinstance(self._state, ExchangesGradients):
            self.fleet.with_gradients()
            self._hooks.append(self._optimizer.register_step_pre_hook(partial(self._before_step, self._state)))
        self._hooks.append(self._optimizer.register_step_post_hook(self._after_step))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._farewell.leave(self.steps, failed=error is not None)

    @torch.no_grad()
    def _before_step(self, state: ExchangesGradients, *_: Any) -> None:
        self.fleet.pull_gradients()
        state.gradients(self.fleet)
        self.fleet.push_gradients()

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        state = self._state
        assert state is not None  # the hook lives only between enter and exit
        self.fleet.ledger.step_begins()
        self.fleet.clock.compute(1)
        if self._remaining == 0:
            wished = state.local_steps(self.fleet)
            self._remaining = wished if isinstance(wished, int) else wished[self.fleet.rows.start]
        self.steps += 1
        self._farewell.steps = self.steps
        self._remaining -= 1
        if self._remaining == 0:
            self.fleet.pull()
            state.exchange(self.fleet)

    @torch.no_grad()
    def average(self) -> None:
        """Average the models now, on all processes: after the loop, so that all end with the same one. Booked."""
        self.fleet.pull()
        self.fleet.average_models()

    def state_dict(self) -> dict[str, Any]:
        """Strategy, ledger and counters of this process: tensors and plain values. The model is yours to save."""
        if self._state is None:
            raise UsageError("attach: nothing to save before the with block is entered")
        fleet = {"ledger": self.fleet.ledger.state_dict(), "clock": self.fleet.clock.state_dict()}
        return {
            "strategy": self._state.state_dict(),
            "fleet": {**fleet, "syncs": self.fleet.syncs},
            "steps": self.steps,
            "remaining": self._remaining,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, with the model and optimiser restored by you; before or inside the with block."""
        self._loaded = state
        if self._state is not None:
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        assert self._state is not None  # both callers have just seen to it
        self._state.load_state_dict(state["strategy"])
        self.fleet.ledger.load_state_dict(state["fleet"]["ledger"])
        self.fleet.clock.load_state_dict(state["fleet"]["clock"])
        self.fleet.syncs = state["fleet"]["syncs"]
        self.steps = state["steps"]
        self._remaining = state["remaining"]


class _ModelFleet(Fleet):
    """A fleet with one worker here, whose row is a copy of the user's model: no storage of theirs is rebound."""

    def __init__(self, model: nn.Module, seed: int, group: Group, topology: str, buffers: BuffersPolicy) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        wide = any(parameter.dtype == torch.float64 for parameter in trained)
        device = trained[0].device if trained else torch.device("cpu")
        if device.type == "meta":
            device = torch.device("cpu")  # the layout refuses the model, and says why
        dtype = torch.float64 if wide else torch.float32
        arena = Arena(model, 1, device, dtype, gradients=False)
        super().__init__(arena, group.size, seed=seed, group=group, topology=TOPOLOGIES[topology], buffers=buffers)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        held = dict(model.named_buffers(remove_duplicate=False))
        self._parameters = [parameters[slot.names[0]] for slot in arena.layout.slots]
        self._buffers = [held[slot.names[0]] for slot in arena.buffer_layout.slots]
        self._views = arena.layout.views(arena.params[0])
        self._buffer_views = arena.buffer_layout.views(arena.buffers[0])

    @torch.no_grad()
    def pull(self) -> None:
        """Model to row."""
        _copy(self._views, self._parameters)

    @torch.no_grad()
    def push(self) -> None:
        """Row to model, buffers too."""
        _copy(self._parameters, self._views)
        _copy(self._buffers, self._buffer_views)

    def with_gradients(self) -> None:
        """Make room for gradients: only strategies that exchange them need it."""
        self.arena.grads = torch.zeros_like(self.params)

    def pull_gradients(self) -> None:
        """Gradients to row; 0 where a parameter has none."""
        for view, parameter in zip(self.arena.layout.views(self.grads[0]), self._parameters, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)

    def push_gradients(self) -> None:
        """Row to gradients: every parameter gets one, since another worker may have had one."""
        for view, parameter in zip(self.arena.layout.views(self.grads[0]), self._parameters, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(view)

    def load(self, model: Tensor) -> Tensor:
        """Give the user's model its new parameters; return them as it holds them, in its own precision."""
        super().load(model)
        _copy(self._parameters, self._views)
        self.pull()
        return self.params[0].clone()

    def average_buffers(self, *, weighted: bool = False) -> None:
        """Average the model's own buffers."""
        _copy(self._buffer_views, self._buffers)
        super().average_buffers(weighted=weighted)
        _copy(self._buffers, self._buffer_views)


def _copy(into: list[Any], source: list[Any]) -> None:
    if into:
        torch._foreach_copy_(into, source)


class _Farewell:
    """How processes learn that one of them has left the loop: they would wait for it in vain otherwise.

    Whoever leaves says so in the key-value store that the processes met in. It is asked only when an exchange has been
    waiting for long.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.steps = 0
        self._store: Any = None
        self._key = ""

    def meet(self, ranks: Group) -> None:
        """Agree on a place in the store, new for every attachment."""
        if ranks.size > 1:
            fresh = int(np.random.SeedSequence().generate_state(1)[0])  # a name, not randomness of the run
            self._key = f"sparsync/{int(ranks.broadcast(torch.tensor(fresh)))}"
            self._store = dist.distributed_c10d._get_default_store()

    def leave(self, steps: int, *, failed: bool) -> None:
        """Say that this process takes no further steps."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the store goes with rank 0's process
                rank = dist.get_rank(self.group)
                self._store.set(f"{self._key}/{rank}", f"{steps} {'failed' if failed else 'left'}")

    def missing(self) -> str | None:
        """Why the others may not come, if one of them has left."""
        if self._store is None:
            return None
        for rank in range(dist.get_world_size(self.group)):
            key = f"{self._key}/{rank}"
            if rank != dist.get_rank(self.group) and self._store.check([key]):
                steps, how = self._store.get(key).decode().split()
                why = "it failed; its own message says why"
                if how == "left":
                    why = "give all ranks equally many batches, and let none skip a step (as AMP does on overflow)"
                return (
                    f"rank {rank} left the loop after {steps} optimiser steps, this rank waits at {self.steps}: {why}"
                )
        return None
