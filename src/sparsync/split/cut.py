"""One model as two: a bottom half for the clients, a top half for the server.

`split_at` runs the model once on symbols (torch.fx) and cuts its list of calls before one module. Only the modules
that contain that one are looked into; all others are single calls, with any control flow inside. The halves are made
of the model's own layers, so whatever happens to a layer happens to the model and to a half alike.

Where to cut, and why no BatchNorm may lie below: Kohankhaki et al., arXiv:2407.15738, and ``mohkoh19/gpsl``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsync.errors import UsageError
from sparsync.sparsity.view import LAYERS

_WEIGHTED = (*LAYERS, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Cut:
    """Two halves that are trained as one model, ``top(bottom(x))``: from `split_at`, or any two modules that fit.

    Attributes
    ----------
    bottom : nn.Module
        What every client holds. It returns one tensor, samples first.
    top : nn.Module
        What the server holds; it takes that tensor.

    Raises
    ------
    UsageError
        If a half has nothing to train, both hold the same parameter or buffer, or the bottom has a BatchNorm: it would
        normalise by the few samples of one client, and training would no longer be that of the whole model.
    """

    bottom: nn.Module
    top: nn.Module

    def __post_init__(self) -> None:
        _check_halves(self.bottom, self.top)
        for name, module in self.bottom.named_modules():
            if isinstance(module, _BatchNorm):
                raise UsageError(
                    f"the bottom has a {type(module).__name__}, {name!r}, which would normalise by the samples of one "
                    'client; expected GroupNorm there, which split_at(..., bottom_norm="group") puts in its place'
                )


def split_at(model: nn.Module, before: str, *, bottom_norm: Literal["group"] | None = None) -> Cut:
    """Cut a model before one of its modules.

    The halves share all layers with the model and call them by the same names. What the forward of a module around the
    cut computes without its input, it computes once, here.

    Parameters
    ----------
    model : nn.Module
        Any that is called with one input. Exactly one value may cross the cut.
    before : str
        Name of a module, such as ``"layer2"`` or ``"layer1.1"``: what is computed before its first call is the bottom.
    bottom_norm : "group", optional
        Replace every BatchNorm in the bottom, in the model itself, by a fresh GroupNorm of 32 groups, or of as many as
        divide the channels into groups of at least two; build optimisers afterwards. Default: refuse such a cut.

    Raises
    ------
    UsageError
        If there is no such module or norm, or the cut cannot work; the message says why, and names cuts that do.
    """
    if bottom_norm not in (None, "group"):
        raise UsageError(f'bottom_norm={bottom_norm!r}; expected "group", or None to leave the bottom as it is')
    try:
        bottom, top = _halves(model, before)
    except UsageError as error:
        others = ", ".join(cuts(model)) or "none among its children, perhaps among the modules inside them"
        raise UsageError(f"cut before {before!r}: {error}. Cuts that work: {others}") from error.__cause__
    if bottom_norm == "group":
        _replace_batch_norms(bottom, model)
    return Cut(bottom, top)


def cuts(model: nn.Module) -> list[str]:
    """Names of the model's children before which it can be cut, in order of registration, whatever their norms.

    Modules inside the children may be cut at as well; `split_at` tells.
    """

    def works(name: str) -> bool:
        try:
            _halves(model, name)
        except UsageError:
            return False
        return True

    return [name for name, _ in model.named_children() if works(name)]


def default_cut(model: nn.Module) -> str:
    """Name of the child that begins with the second layer that has weights: clients keep the first one.

    Raises
    ------
    UsageError
        If there is none at which the model can be cut.
    """
    children = dict(model.named_children())
    weighted = [
        name for name, child in children.items() if any(isinstance(part, _WEIGHTED) for part in child.modules())
    ]
    works = [name for name in cuts(model) if name in weighted[1:]]
    if not works:
        raise UsageError(
            f"the {type(model).__name__} has no second layer with weights before which it can be cut; name a cut"
        )
    return works[0]


def _halves(model: nn.Module, before: str) -> tuple[nn.Module, nn.Module]:
    """Bottom and top, checked for all but norms. Messages start after ``cut before ...:``."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if not before or before not in modules:
        raise UsageError(f"the {type(model).__name__} has no such module")
    target = modules[before]
    nodes = _trace(model, target)
    first = next((i for i, node in enumerate(nodes) if _called(model, node) is target), None)
    if first is None:
        raise UsageError(f"the {type(model).__name__} never calls it")
    early, late = nodes[:first], nodes[first:]
    used = {value for node in late for value in node.all_input_nodes}
    crossing = [value for value in early if value in used and value.op != "get_attr"]
    if len(crossing) != 1:
        names = ", ".join(_describe(value) for value in crossing) or "none depends on the input"
        raise UsageError(
            f"{len(crossing)} values cross it ({names}), expected 1; cut between blocks or whole stages, never through "
            "a skip connection"
        )
    bottom = _half("Bottom", model, early, returns=crossing[0])
    top = _half("Top", model, late, takes=crossing[0])
    _check_halves(bottom, top)
    return bottom, top


class _Tracer(fx.Tracer):
    """Looks only into modules that contain the target, and refuses what a graph of calls cannot hold."""

    proxy_buffer_attributes = True  # a buffer's value is read at every call, as a parameter's is

    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.target = target
        self.modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _contains(m, self.target)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """One symbol as input; further arguments of the model keep their defaults, which a symbol would hide."""
        return self.root.forward, [self.create_proxy("placeholder", "x", (), {})]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not any(a is known for known in (*self.root.parameters(), *self.root.buffers())):
            raise fx.proxy.TraceError("it uses a tensor that is neither parameter nor buffer")
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise fx.proxy.TraceError("it enters no_grad or autocast")
        return super().create_node(*args, **kwargs)


def _trace(model: nn.Module, target: nn.Module) -> list[fx.Node]:
    """All calls of the model's forward, in their order."""
    path = [module for module in model.modules() if _contains(module, target)]
    where = f"the forward around it ({' > '.join(type(module).__name__ for module in path)})"
    if any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in path
    ):
        raise UsageError(f"{where} has hooks, which the halves would not run; register them on the layers inside")
    kept = [module.training for module in path]
    graphs = []
    try:
        for training in (True, False):
            for module in path:
                module.training = training
            graphs.append(_Tracer(target).trace(model))
    except Exception as error:  # tracing runs the user's code on symbols: anything may come of it
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise UsageError(f"{where} cannot be followed: {reason}; move that into a module of its own") from error
    finally:
        for module, training in zip(path, kept, strict=True):
            module.training = training
    if str(graphs[0]) != str(graphs[1]):
        raise UsageError(f"{where} reads self.training; let a module do so, nn.Dropout instead of F.dropout")
    return list(graphs[0].nodes)


def _contains(module: nn.Module, target: nn.Module) -> bool:
    return module is not target and any(inner is target for inner in module.modules())


def _modes() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def _called(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _describe(value: fx.Node) -> str:
    if value.op == "placeholder":
        return "the input"
    return f"what {value.target} returns" if value.op == "call_module" else value.name


def _half(
    name: str,
    model: nn.Module,
    calls: Iterable[fx.Node],
    *,
    takes: fx.Node | None = None,
    returns: fx.Node | None = None,
) -> nn.Module:
    """Some of the model's calls as a module that holds the layers they use."""
    graph = fx.Graph()
    copies = {} if takes is None else {takes: graph.placeholder("activation")}

    def copy(value: fx.Node) -> fx.Node:
        if value not in copies:
            copies[value] = graph.node_copy(value, copy)
        return copies[value]

    for call in calls:
        if call.op != "get_attr":  # parameters and buffers are read on the side that uses them
            copy(call)
    if returns is not None:
        graph.output(copies[returns])
    half = fx.GraphModule(model, graph, name)
    for node in graph.nodes:
        if node.op == "get_attr":  # of a module that is not called as a whole: share its registries, not their entries
            path, _, _ = node.target.rpartition(".")
            for registry in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
                setattr(half.get_submodule(path), registry, getattr(model.get_submodule(path), registry))
    return half


def _check_halves(bottom: nn.Module, top: nn.Module) -> None:
    for side, half in (("bottom", bottom), ("top", top)):
        if not any(parameter.requires_grad for parameter in half.parameters()):
            raise UsageError(f"the {side} would have no parameter to train; expected at least one in each half")
    below = {id(tensor) for tensor in (*bottom.parameters(), *bottom.buffers())}
    for name, tensor in (*top.named_parameters(), *top.named_buffers()):
        if id(tensor) in below:
            raise UsageError(f"both halves hold {name!r}; expected each parameter and buffer in one of them")


def _replace_batch_norms(bottom: nn.Module, model: nn.Module) -> None:
    """Put GroupNorms in the place of the bottom's BatchNorms, under every name they have in either module."""
    fresh = {module: _group_norm(module) for module in bottom.modules() if isinstance(module, _BatchNorm)}
    for whole in (bottom, model):
        for name, module in list(whole.named_modules(remove_duplicate=False)):
            if module in fresh:
                path, _, leaf = name.rpartition(".")
                setattr(whole.get_submodule(path), leaf, fresh[module])


def _group_norm(norm: _BatchNorm) -> nn.GroupNorm:
    """A GroupNorm as at initialisation, for the same channels."""
    channels = norm.num_features
    if not channels:
        raise UsageError("a lazy BatchNorm has no shape yet; run the model once before cutting it")
    # a group of one channel would be instance normalisation, and all zeros behind a linear layer
    groups = max(count for count in range(1, 33) if channels % count == 0 and (2 * count <= channels or count == 1))
    like = norm.weight if norm.affine else torch.empty(0)
    fresh = nn.GroupNorm(groups, channels, norm.eps, norm.affine, device=like.device, dtype=like.dtype)
    return fresh.train(norm.training)
