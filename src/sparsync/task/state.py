"""What a model holds: which of it can be trained, kept and saved, and what a forward pass does to it.

Whatever ``state_dict()`` holds is each worker's to train, and has a type of its own. A model that holds what cannot be
kept like that is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsync.errors import UsageError


@dataclass(frozen=True)
class ModelBehaviour:
    """What a model does in training mode, as has been tried.

    Attributes
    ----------
    stochastic : bool
        Whether its forward pass draws from torch's global generator, as dropout does.
    lonely : str, optional
        Why it cannot be trained on a batch of one sample, as BatchNorm cannot. None: it can.
    changed : frozenset of str
        Buffers that its forward pass changes, by every name.
    """

    stochastic: bool
    lonely: str | None
    changed: frozenset[str]

    def check_batches(self, who: str, samples: Sequence[int], batch_size: int) -> None:
        """Refuse data that could only be learnt in batches of one sample, if the model cannot be trained on these.

        Parameters
        ----------
        who : str
            Whose samples they are, in the singular.
        samples : sequence of int
            How many each of them has.
        batch_size : int
            Of their batches.

        Raises
        ------
        UsageError
            If so.
        """
        alone = next((number for number, own in enumerate(samples) if own == 1), None)
        if self.lonely is not None and (batch_size == 1 or alone is not None):
            what = "batch_size is 1" if alone is None else f"{who} {alone} has only one"
            raise UsageError(
                f"the model cannot be trained on a single sample ({self.lonely}), and {what}; give every {who} at "
                "least two, in batches of at least two, or take a model without BatchNorm, such as norm=group"
            )


def check_tensor(kind: str, name: str, tensor: Tensor) -> None:
    """Refuse what is no dense tensor of real numbers.

    Raises
    ------
    UsageError
        Naming the parameter or buffer and what to do.
    """
    if is_lazy(tensor):
        raise UsageError(f"{kind} {name!r} has no shape yet; run the lazy model once before handing it over")
    if tensor.is_meta:
        raise UsageError(f"{kind} {name!r} is on the meta device; give it storage first, e.g. model.to_empty(...)")
    if tensor.layout is not torch.strided:
        raise UsageError(f"{kind} {name!r} is sparse ({tensor.layout}); only dense {kind}s can be averaged")
    if tensor.is_complex():
        raise UsageError(f"{kind} {name!r} is complex; hold its real and imaginary parts as two real {kind}s")
    if tensor.is_quantized:
        raise UsageError(f"{kind} {name!r} is quantised ({tensor.dtype}); hold its integers and scales as buffers")


def check_state(module: nn.Module) -> None:
    """Refuse a model whose state cannot be kept and saved, tensor by tensor.

    Raises
    ------
    UsageError
        Naming what cannot.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise UsageError(
                f"module {name or type(part).__name__!r} is TorchScript, whose tensors cannot be exchanged for each "
                "worker's own; give the model as it was before torch.jit"
            )
    held: list[tuple[str, str, Tensor]] = [("parameter", *pair) for pair in module.named_parameters()]
    held += [("buffer", *pair) for pair in module.named_buffers()]
    for kind, name, tensor in held:
        if not is_lazy(tensor):
            check_tensor(kind, name, tensor)
    known = {id(tensor) for _, _, tensor in held}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in known:
            raise UsageError(
                f"the model's state_dict holds {name!r}, which is neither parameter nor buffer, so no worker can have "
                "its own; hold it in a buffer"
            )
        if not (isinstance(value, nn.Parameter) or is_lazy(value) or bool(torch.isfinite(value).all())):
            raise UsageError(
                f"{name!r} holds numbers that are not finite, which cannot be averaged; take large finite ones, or "
                "register the buffer with persistent=False"
            )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; modes and buffers are put back afterwards, whatever forward does to them."""
    with mode(module, training=False), torch.no_grad(), _exchanged(module, parameters=False):
        yield


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Switch to training or evaluation mode, and every submodule back to its own afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, own in modes:
            part.training = own


@contextmanager
def forked_rng(device: torch.device | None = None) -> Iterator[Callable[[], bool]]:
    """Put torch's global generators, of the CPU and of one GPU, back afterwards; yields "has one been used?"."""
    gpu = device if device is not None and device.type == "cuda" else None
    cpu_state = torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state(gpu) if gpu else None

    def changed() -> bool:
        if gpu_state is not None and gpu is not None and not torch.equal(gpu_state, torch.cuda.get_rng_state(gpu)):
            return True
        return not torch.equal(cpu_state, torch.get_rng_state())

    try:
        yield changed
    finally:
        torch.set_rng_state(cpu_state)
        if gpu_state is not None and gpu is not None:
            torch.cuda.set_rng_state(gpu_state, gpu)


def set_parameter(owner: nn.Module, leaf: str, parameter: nn.Parameter | None) -> None:
    """Exchange a module's parameter, at little cost where the module allows it."""
    if type(owner).__setattr__ is nn.Module.__setattr__:
        owner._parameters[leaf] = parameter
    else:  # modules that keep references of their own to their parameters, such as nn.LSTM
        setattr(owner, leaf, parameter)


@contextmanager
def _exchanged(module: nn.Module, *, parameters: bool) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Let copies stand for a module's buffers, perhaps for its parameters, too; yields all with their originals."""
    before = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
    copies: dict[int, tuple[Tensor, Tensor]] = {}

    def copy(tensor: Any) -> Any:
        if tensor is None or is_lazy(tensor):
            return tensor
        if id(tensor) not in copies:
            fresh = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                fresh = nn.Parameter(fresh, tensor.requires_grad)
            copies[id(tensor)] = tensor, fresh
        return copies[id(tensor)][1]

    try:
        for part, own, buffers in before:
            part._buffers.update({leaf: copy(buffer) for leaf, buffer in buffers.items()})
            for leaf, parameter in own.items() if parameters else ():
                set_parameter(part, leaf, copy(parameter))
        yield copies
    finally:
        for part, own, buffers in before:
            part._buffers.clear()
            part._buffers.update(buffers)
            for leaf in part._parameters.keys() - own.keys():
                del part._parameters[leaf]
            for leaf, parameter in own.items() if parameters else ():
                set_parameter(part, leaf, parameter)


def try_out(module: nn.Module, learn: Callable[[int], None], device: torch.device) -> ModelBehaviour:
    """Train a model on two samples and on one, with copies of all that it holds, and see what that does.

    Parameters
    ----------
    module : nn.Module
        The model; it is left as it was.
    learn : callable
        Takes the forward and backward passes of a batch of so many samples.
    device : torch.device
        Where.

    Raises
    ------
    UsageError
        If its forward pass does what could not be kept for each worker.
    """
    kept = aliases(module)
    values = [alias.tensor.detach().clone() for alias in kept]
    with mode(module, training=True), forked_rng(device) as drew:
        with _exchanged(module, parameters=True) as copies:
            changed = _changed(module, list(copies.values()), lambda: learn(2))
        stochastic = drew()
    for alias, value in zip(kept, values, strict=True):
        if alias.trained or alias.name in changed or not torch.equal(alias.tensor, value):
            alias.check(module)
    return ModelBehaviour(stochastic, failure(module, lambda: learn(1), device), changed)


@dataclass(frozen=True)
class TensorAlias:
    """A tensor that a model keeps beside its registries, in the memory of a parameter or buffer that is in them."""

    path: str
    tensor: Tensor
    kind: str
    name: str
    trained: bool

    def check(self, module: nn.Module) -> None:
        """Refuse it, if the forward pass has not put another tensor in its place, as `spectral_norm` does.

        Raises
        ------
        UsageError
            Naming it and whose memory it is.
        """
        if dict(_beside(module)).get(self.path) is self.tensor:
            raise UsageError(
                f"{self.path!r} is a reference of the model's own to {self.kind} {self.name!r}, so no worker could "
                f"have its own; let the forward pass look up {self.name!r}"
            )


def aliases(module: nn.Module) -> list[TensorAlias]:
    """Find the tensors that a model keeps by references which do not follow when its parameters are exchanged."""
    homes = {
        tensor.untyped_storage().data_ptr(): (kind, name, tensor.requires_grad)
        for name, kind, tensor in _registered(module)
        if tensor is not None and not is_lazy(tensor) and tensor.numel()
    }
    with _exchanged(module, parameters=True):
        found = [(path, tensor, homes.get(tensor.untyped_storage().data_ptr())) for path, tensor in _beside(module)]
    return [TensorAlias(path, tensor, *home) for path, tensor, home in found if home is not None]


_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _beside(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Dense tensors among a model's plain attributes, and in their lists, tuples and dicts, by path."""

    def search(path: str, value: object, depth: int) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            if value.layout is torch.strided and not is_lazy(value) and value.numel():
                yield path, value
        elif isinstance(value, list | tuple | dict) and depth:
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from search(f"{path}[{key!r}]", item, depth - 1)

    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute not in _REGISTRIES:
                yield from search(f"{name}.{attribute}".lstrip("."), value, 4)


def failure(module: nn.Module, step: Callable[[], object], device: torch.device) -> str | None:
    """Return why a step in training mode fails, with copies of all that a module holds; None: it does not."""
    with mode(module, training=True), forked_rng(device), _exchanged(module, parameters=True):
        try:
            step()
        except Exception as error:  # the model's own code: anything may come of it
            return reason(error.__cause__ or error)
    return None


def reason(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return str(error).partition("\n")[0] or type(error).__name__


def _changed(module: nn.Module, copies: list[tuple[Tensor, Tensor]], step: Callable[[], None]) -> frozenset[str]:
    """Take a step on copies, and return the names of the buffers that it changes."""
    before = {name: tensor for name, _, tensor in _registered(module)}
    memory = {id(copy): copy.data_ptr() for _, copy in copies}
    grads = {id(copy): original.grad for original, copy in copies}
    originals = {id(copy): original for original, copy in copies}
    step()
    now: dict[int, Tensor | None] = {}
    changed = set()
    for name, kind, held in _registered(module):
        if name not in before:
            raise UsageError(f"the forward pass registers {kind} {name!r}; let __init__ do so")
        tensor = before[name]
        if held is tensor is None:
            continue
        if tensor is None:
            raise UsageError(
                f"{kind} {name!r} is None until the forward pass; let __init__ give it a tensor of its final shape"
            )
        if kind == "parameter" and held is not tensor:
            raise UsageError(
                f"the forward pass re-assigns parameter {name!r}; let it compute with another name's tensor"
            )
        held = check_fits(name, tensor, held)
        if held is not now.setdefault(id(tensor), held):
            raise UsageError(f"the forward pass re-assigns buffer {name!r} under one of its names only; use copy_")
        if held is tensor and held.data_ptr() != memory[id(tensor)]:
            raise UsageError(f"the forward pass moves {kind} {name!r} to other memory (.data = ...); use copy_")
        original = originals[id(tensor)]
        if original.grad is not grads[id(tensor)]:
            original.grad = None
            raise UsageError(
                f"the forward pass uses {kind} {name!r} by a reference of its own, so no worker could have its "
                "own; let it look up the module's attribute"
            )
        if not tensor.requires_grad and not torch.equal(held, original):
            if kind == "parameter":
                raise UsageError(f"the forward pass changes {name!r}, a frozen parameter; register it as a buffer")
            changed.add(name)
    return frozenset(changed)


def _registered(module: nn.Module) -> Iterator[tuple[str, str, Tensor | None]]:
    """Name, kind and value of all that is registered, also of what is None."""
    for path, part in module.named_modules(remove_duplicate=False):
        for kind, registry in (("parameter", part._parameters), ("buffer", part._buffers)):
            for leaf, tensor in registry.items():
                yield f"{path}.{leaf}".lstrip("."), kind, tensor


def check_fits(name: str, before: Tensor, after: Tensor | None) -> Tensor:
    """Return what a forward pass has put in a buffer's place, if it is of the buffer's shape and type.

    Raises
    ------
    UsageError
        Naming the buffer.
    """
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        now = "None" if after is None else f"{tuple(after.shape)} of {after.dtype}"
        raise UsageError(
            f"the forward pass turns buffer {name!r}, {tuple(before.shape)} of {before.dtype}, into {now}; let it keep "
            "its shape and type"
        )
    return after
