"""The command `sparsync`, and ``python -m sparsync``: a module of its own, so that processes it starts load no more."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; the user's modules in the current folder are found, after all that is installed."""
    here = os.getcwd()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here)] + [here]
    from sparsync import cli

    cli.main()


if __name__ == "__main__":
    main()
