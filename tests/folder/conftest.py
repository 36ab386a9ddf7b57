"""Small runs, in this process: complete, or stopped with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import small

from sparsync import comparison, run
from sparsync.engines import PaceAction
from sparsync.errors import Interrupted


class Stopping:
    """A pace that saves after two steps, or rounds, and goes no further."""

    def __init__(self, *_: Any) -> None:
        self.calls = 0

    def __call__(self, steps: int) -> PaceAction:
        self.calls += 1
        return PaceAction.STOP if self.calls == 2 else PaceAction.GO_ON


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def make(**more: Any) -> Path:
        folder = tmp_path / "run"
        with monkeypatch.context() as patched:
            patched.setattr(run, "Pace", Stopping)
            with pytest.raises(Interrupted):
                comparison.compare(small(**more), folder)
        return folder

    return make
