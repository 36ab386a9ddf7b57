"""Which room may import which, and that importing sparsync does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_flow_one_way():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_importing_does_nothing():
    """No thread, no environment variable, no draw from or seeding of a global generator, no drawing library."""
    code = """
import os, random, threading
import numpy, torch
def state():
    numpy_state = numpy.random.get_state()[1].tobytes()
    return dict(os.environ), threading.active_count(), torch.get_num_threads(), random.getstate(), numpy_state
before, seeded = state(), torch.get_rng_state()
import sparsync, sys
assert state() == before
assert torch.equal(torch.get_rng_state(), seeded)
assert "matplotlib" not in sys.modules and "typer" not in sys.modules and "sklearn" not in sys.modules
assert not torch.distributed.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
