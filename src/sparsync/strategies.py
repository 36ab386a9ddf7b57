"""The one door for strategies of all families: a family's contract tells what a registered one must be able to do."""

from __future__ import annotations

from typing import Any

from sparsync.spec import Registry

STRATEGIES: Registry[Any] = Registry("strategy")
