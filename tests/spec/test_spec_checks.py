"""A spec is checked without building what it asks for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sparsync.errors import UsageError
from sparsync.workers import OPTIMIZERS


@pytest.mark.parametrize("spec", ["sdg", "sgd:rate=1", "sgd:lr=x", "adam:lr=-1"])
def test_a_check_says_what_building_would(spec):
    with pytest.raises(UsageError) as checked:
        OPTIMIZERS.resolve(spec)
    with pytest.raises(UsageError) as built:
        OPTIMIZERS.build(spec, [])
    assert str(checked.value) == str(built.value)


def test_an_experiment_is_checked_without_torch_s_compiler():
    code = (
        "from sparsync.experiment import Experiment; Experiment(); import sys; sys.exit('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
