"""What a registered function makes must be an optimiser that steps by gradients, with one learning rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparsync.errors import UsageError
from sparsync.workers import OPTIMIZERS


class Rateless(torch.optim.Optimizer):
    def __init__(self, rows: list[nn.Parameter]) -> None:
        super().__init__(rows, {})

    def step(self, closure: Any = None) -> None: ...


MADE = {
    "nothing": lambda rows: None,
    "a schedule": lambda rows: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(rows), 2),
    "a closure": torch.optim.LBFGS,
    "no rate": Rateless,
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_what_is_no_optimiser_is_refused_by_its_type(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    monkeypatch.setattr(OPTIMIZERS, "entries", dict(OPTIMIZERS.entries))

    @OPTIMIZERS.register("odd")
    def odd(rows: list[nn.Parameter]) -> Any:
        """Build something."""
        return made(rows)

    with pytest.raises(UsageError, match=r"optimizer 'odd': it (made|returned) a"):
        OPTIMIZERS.build("odd", [nn.Parameter(torch.zeros(1))])


def test_optimisers_of_torch_pass() -> None:
    for name in OPTIMIZERS.entries:
        assert isinstance(OPTIMIZERS.build(name, [nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)
