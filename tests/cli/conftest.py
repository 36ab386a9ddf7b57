"""The command line as a user types it, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparsync.__main__ import main

HERE = str(Path(__file__).parent)


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run ``sparsync ARGUMENTS`` in this process: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparsync", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run
