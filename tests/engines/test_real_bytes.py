"""The ledger's wire view against the kernel's own counters, socket by socket."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads TCP_INFO and /proc, which only Linux has")


@pytest.mark.parametrize(("topology", "measured"), [("ring", range(4)), ("star", range(1, 4))])
def test_ledger_agrees_with_the_sockets_to_3_percent(tmp_path, torchrun, topology, measured):
    """Rank 0 of a star is left out: it is the server, too, and what it sends itself crosses no socket."""
    done = torchrun(4, Path(__file__).with_name("socket_bytes.py"), topology, tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in measured:
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["syncs"] == 20
        assert report["ledger"][0] > 20 * 4 * 288_010  # what is compared is worth comparing
        assert report["kernel"] == pytest.approx(report["ledger"], rel=0.03)
