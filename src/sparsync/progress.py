"""What is shown while a run is being prepared, before anything trains."""

from __future__ import annotations

import os
import sys


def tell(doing: str) -> None:
    """Say on a terminal what is being done now; once for all processes of a run."""
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"{doing} ...", file=sys.stderr, flush=True)
