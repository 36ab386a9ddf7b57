"""A pytest plugin under which sums round as on some other processor: ``PYTHONPATH=tests pytest -p other_processor``.

The last bit of every result that must be rounded is turned up, down or not at all. What decides is the result itself,
so the same computation still gives the same bits, and only another order of summation gives others. Small numbers that
are exact stay so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
SUMS = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot, aten.sum, aten.mean, aten.var),
    *(aten.convolution, aten.convolution_backward, aten.linalg_vector_norm, aten.exp, aten.log, aten.pow, aten.tanh),
    *(aten.native_batch_norm, aten.native_batch_norm_backward, aten.native_group_norm, aten.native_group_norm_backward),
    *(aten._log_softmax, aten._log_softmax_backward_data, aten.nll_loss_forward),
}
BITS = {torch.float32: (torch.int32, 40_503), torch.float64: (torch.int64, 2_654_435_761)}


def turned(x: Any) -> Any:
    """The same numbers, the last bit of each turned by a lot that the other bits draw."""
    if not isinstance(x, Tensor) or x.dtype not in BITS:
        return x
    kind, factor = BITS[x.dtype]
    bits = x.contiguous().view(kind)
    lots = (bits * factor >> 11) % 3 - 1
    rounded = (bits & 7 != 0) & x.isfinite()
    return torch.where(rounded, bits + lots, bits).view(x.dtype)


def is_exact(func: Any, args: Any, result: Any) -> bool:
    """Whether nothing is rounded: no sum, or one of single terms."""
    single = func.overloadpacket in (aten.sum, aten.mean) and args[0].numel() == result.numel()
    return single or func.overloadpacket not in SUMS or "out" in func._overloadname


class OtherProcessor(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_exact(func, args, result):
            return result
        return tuple(map(turned, result)) if isinstance(result, tuple) else turned(result)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with OtherProcessor():
        yield
