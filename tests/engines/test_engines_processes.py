"""Processes that are started from a thread, asked to stop, or not to be started at all."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsync.engines import processes, remote
from sparsync.engines.processes import choose, run, stopping
from sparsync.engines.remote import RemoteClients
from sparsync.errors import Interrupted, UsageError
from sparsync.workers import Group


def look_round(group: Group, folder: Path) -> None:
    """Write down what this process has inherited."""
    with stopping() as asked:
        said = {"safe": os.environ.get("PYTHONSAFEPATH"), "asked": asked()}
    (folder / f"{group.rank}.json").write_text(json.dumps(said))


def test_from_a_thread_and_beside_files_named_as_modules(tmp_path, monkeypatch):
    for name in ("pickle", "selectors"):  # which Python needs to start processes
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the current folder came first')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    thread = threading.Thread(target=run, args=(look_round, tmp_path, 2))
    thread.start()
    thread.join()
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert said["safe"] == os.environ.get("PYTHONSAFEPATH")
        assert not said["asked"]


def signal_parent(group: Group, folder: Path) -> None:
    """Tell the process that started this one, and nobody else, to stop."""
    if group.rank == 0:
        with stopping() as asked:
            os.kill(os.getppid(), signal.SIGTERM)
            while not asked():
                pass
        raise Interrupted("all is saved")
    group.barrier()


@pytest.mark.spawned  # whose parent is the process that waits
def test_a_request_to_the_process_that_waits_reaches_the_one_that_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 0.0)
    with pytest.raises(Interrupted, match="saved"):
        run(signal_parent, tmp_path, 2)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_memory_for_all_is_no_file_that_can_be_left():
    with processes._slots(3) as path:
        assert path.stat().st_size > 0
        assert os.readlink(path).startswith("/memfd:")
    assert not path.exists()


@pytest.mark.parametrize(
    ("daemon", "script", "said"), [(True, __file__, "daemonic"), (False, "<stdin>", "<stdin>")], ids=["daemon", "stdin"]
)
def test_where_no_processes_can_be_started(monkeypatch, daemon, script, said):
    monkeypatch.setattr(processes.multiprocessing, "current_process", lambda: SimpleNamespace(daemon=daemon))
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=script, __spec__=None))
    assert choose("auto", 8) == choose(1, 8) == 1
    with pytest.raises(UsageError, match=said):
        choose(2, 8)


def test_a_script_that_is_imported_by_what_it_starts_starts_nothing(monkeypatch):
    monkeypatch.setattr(processes.multiprocessing, "current_process", lambda: SimpleNamespace(_inheriting=True))
    with pytest.raises(SystemExit) as left:
        choose(2, 8)
    ended = SimpleNamespace(exitcode=left.value.code)
    with pytest.raises(UsageError, match="__main__"):
        processes._blame([ended, ended])


def test_a_server_that_waits_for_a_client_sees_that_it_is_to_stop(monkeypatch):
    monkeypatch.setattr(remote, "_LOOK_UP", 0.0)
    clients = object.__new__(RemoteClients)
    clients.connections, clients.timeout, clients.stopping = (
        {3: SimpleNamespace(inbox=queue.Queue())},
        600.0,
        lambda: True,
    )
    with pytest.raises(Interrupted, match="client 3"):
        clients._answer(3, remote.SplitKind.SIZES)
