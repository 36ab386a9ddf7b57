"""``python -m sparsync`` is ``sparsync``."""

from sparsync.cli import main

if __name__ == "__main__":
    main()
