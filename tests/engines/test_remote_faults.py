"""What becomes of clients that fail, of strangers, of what they send: server and clients in threads of one process."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparsync.engines import Action, Budget, EpochLoop
from sparsync.engines.links import TOKEN_BYTES, Door, Frame, Link, LinkLost, Op, knock
from sparsync.engines.remote import RemoteClients, RemoteSite
from sparsync.errors import SparsyncError, UsageError
from sparsync.split import Site, Split, default_cut, split_at
from sparsync.strategies import STRATEGIES
from sparsync.task import Dataset, Task
from sparsync.wire import HEADER_BYTES, Section, pack, pack_parcel
from sparsync.wire.parcel import RAW
from sparsync.workers import Alone, Arena

K = 4
MODEL = "mlp:hidden=8"


def place(task: Task, kind: Callable[..., Site], settings: Split, strategy: str, **options: Any) -> Site:
    module = task.module(0)
    parts = np.array_split(np.arange(90), K)
    return kind(task, module, split_at(module, default_cut(module)), parts, settings, **options)


class Hosts:
    """Three processes' worth of clients, each in a thread; `spoil` may replace what a client answers."""

    def __init__(self, task: Task, settings: Split, strategy: str, spoil: Callable[..., Any]) -> None:
        self.door = Door()
        self.failures: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self._host, args=(here, task, settings, strategy, spoil), daemon=True)
            for here in ((0, 1), (2,), (3,))
        ]
        for thread in self.threads:
            thread.start()
        self.links = self.door.admit(range(K), patience=30)

    def _host(self, here: tuple[int, ...], task: Task, settings: Split, strategy: str, spoil: Any) -> None:
        inbox: queue.Queue[Frame] = queue.Queue()
        links = {k: knock("127.0.0.1", self.door.port, self.door.token, k, inbox, 30.0) for k in here}

        def begin(run: int) -> Site:
            with BUILDING:
                site = place(task, Site, settings, strategy, rows=(len(here), 1))
            STRATEGIES.build(strategy).split(site)
            return site

        for link in links.values():
            send = link.send
            link.send = lambda op, payload, k=link.client, send=send: spoil(k, op, payload, send)  # type: ignore[method-assign]
        try:
            RemoteClients(links, inbox, begin).serve()
        except (SparsyncError, OSError) as error:
            self.failures.append(error)


BUILDING = threading.Lock()  # models are drawn from torch's global generator, which threads share


def faithful(client: int, op: Op, payload: bytes, send: Any) -> None:
    send(op, payload)


@pytest.fixture
def federate(blobs: Dataset) -> Callable[..., SimpleNamespace]:
    """A run with clients behind connections, to its end: its history, loop and site."""

    def make(strategy: str = "psl", spoil: Any = faithful, patience: float = 30.0, **settings: Any) -> SimpleNamespace:
        task = Task(blobs, MODEL)
        said = Split(**{"batch_size": 16, "epochs": 3, "optimizer": "sgd:lr=0.1,momentum=0.5", **settings})
        hosts = Hosts(task, said, strategy, spoil)
        with BUILDING:
            site = place(task, RemoteSite, said, strategy, links=hosts.links, run=0, patience=patience)
        lines: list[dict[str, Any]] = []
        arena = Arena(site.module, 1, torch.device("cpu"), torch.float32, gradients=False)
        built = STRATEGIES.build(strategy)
        loop = EpochLoop(site, built.split(site), arena, Alone(), Budget(said.epochs, 1), lines.append)
        try:
            assert loop.run(lambda steps: Action.GO_ON, lambda: None)
        finally:
            for link in hosts.links.values():
                link.bye()
        for thread in hosts.threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in hosts.threads)
        return SimpleNamespace(lines=lines, site=site, loop=loop, failures=hosts.failures)

    return make


def close(value: Any) -> Any:
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def of(run: SimpleNamespace, kind: str) -> list[dict[str, Any]]:
    return [line for line in run.lines if line["kind"] == kind]


def samples_used(run: SimpleNamespace) -> list[int]:
    """Samples that each epoch was trained on."""
    steps = of(run, "step")
    return np.bincount([one["epoch"] for one in steps], [one["size"] for one in steps])[1:].astype(int).tolist()


@pytest.mark.parametrize("strategy", ["psl", "psl:sampler=lds,uplink=q8,downlink=bf16", "psl:sampler=fls"])
def test_connected_clients_train_as_simulated_ones(federate, blobs, strategy):
    run = federate(strategy)
    with BUILDING:
        site = place(Task(blobs, MODEL), Site, run.site.settings, strategy)
    lines: list[dict[str, Any]] = []
    arena = Arena(site.module, 1, torch.device("cpu"), torch.float32, gradients=False)
    loop = EpochLoop(site, STRATEGIES.build(strategy).split(site), arena, Alone(), Budget(3, 1), lines.append)
    loop.run(lambda steps: Action.GO_ON, lambda: None)
    assert len(run.lines) == len(lines)
    for one, other in zip(run.lines, lines, strict=True):
        assert one == {
            key: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for key, value in other.items()
        }
    assert samples_used(run) == [90, 90, 90]
    assert not run.failures


def breaking(client: int, after: int, how: Callable[[Op, bytes, Any], None]) -> Any:
    """One client answers `after` times as it should."""
    count = 0

    def spoil(number: int, op: Op, payload: bytes, send: Any) -> None:
        nonlocal count
        count += number == client
        if number == client and count > after:
            how(op, payload, send)
        else:
            send(op, payload)

    return spoil


def flipped(op: Op, payload: bytes, send: Any) -> None:
    send(op, payload[:-1] + bytes((payload[-1] ^ 1,)))


def truncated(op: Op, payload: bytes, send: Any) -> None:
    send(op, pack_parcel([Section("activation", b"1234", 0)]))


def wrong(op: Op, payload: bytes, send: Any) -> None:
    send(Op.SIZES, payload)


def huge(op: Op, payload: bytes, send: Any) -> None:
    send(op, payload[:8] + struct.pack("<Q", 1 << 50) + payload[16:])


def nonsense(op: Op, payload: bytes, send: Any) -> None:
    send(77, payload)


@pytest.mark.parametrize("how", [flipped, truncated, wrong, huge, nonsense])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_bad_message_costs_its_sender(federate, how, after):
    """After 1 answer (its sizes) it spoils activations, after 2 a gradient; the others train on with their samples."""
    run = federate(spoil=breaking(2, after, how))
    (lost,) = of(run, "lost")
    assert lost["client"] == 2
    assert list(run.site.lost) == [2]
    held = run.site.samples
    assert samples_used(run)[-1] == held.sum() - held[2]
    assert all(one <= 90 for one in samples_used(run))
    assert of(run, "evaluation")[-1]["epochs"] == 3


def test_a_client_that_says_nothing_is_given_up(federate):
    run = federate(spoil=breaking(1, 4, lambda op, payload, send: None), patience=0.5)
    (lost,) = of(run, "lost")
    assert (lost["client"], lost["reason"]) == (1, "it has said nothing for 0.5 s")


def test_all_clients_lost_is_an_end_with_a_reason(federate):
    def spoil(client: int, op: Op, payload: bytes, send: Any) -> None:
        send(op if op is Op.SIZES else Op.SIZES, payload)

    with pytest.raises(SparsyncError, match=r"all clients are lost, the last was \d: .*; start them again, and resume"):
        federate(spoil=spoil)


def test_a_late_client_is_left_out_of_the_step_and_comes_back(federate):
    """It answers its first question only after the deadline, which the others meet."""
    slow = iter([1.0])

    def spoil(client: int, op: Op, payload: bytes, send: Any) -> None:
        if client == 3 and op is Op.ACTIVATIONS:
            time.sleep(next(slow, 0.0))
        send(op, payload)

    run = federate(spoil=spoil, deadline=0.4)
    assert [3] in [step.get("late") for step in of(run, "step")]
    assert not run.site.lost
    assert samples_used(run) == [90, 90, 90]


def test_labels_beside_their_clients_are_refused(federate):
    with pytest.raises(UsageError, match="compare it in one process"):
        federate("psl:labels=clients")


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:  # it has not read all that was sent
        return True


def test_strangers_are_sent_away():
    door = Door()
    admitted: list[dict[int, Link]] = []
    thread = threading.Thread(target=lambda: admitted.append(door.admit([5], patience=30)))
    thread.start()
    address = "127.0.0.1", door.port
    with socket.create_connection(address) as sock:  # speaks another language
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(200))
        assert ended(sock)
    with socket.create_connection(address) as sock:  # has no token
        sock.sendall(bytes((Op.HELLO,)) + pack(RAW, struct.pack(f"<{TOKEN_BYTES}sI", bytes(TOKEN_BYTES), 5)))
        assert ended(sock)
    with socket.create_connection(address):  # hangs up
        pass
    inbox: queue.Queue[Frame] = queue.Queue()
    mine = knock("127.0.0.1", door.port, door.token, 5, inbox, 30.0)
    thread.join(timeout=30)
    assert list(admitted[0]) == [5]
    admitted[0][5].bye()
    assert inbox.get(timeout=30).op is Op.CLOSE
    mine.close()


def test_clients_that_do_not_come_are_named():
    with pytest.raises(SparsyncError, match=r"client 1 has not connected within 0\.1 s; start all processes"):
        Door().admit([1, 2], patience=0.1)


def test_a_server_that_cannot_be_reached_is_named():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(LinkLost, match=f"client 3 cannot reach the server at 127.0.0.1:{port}"):
        knock("127.0.0.1", port, bytes(TOKEN_BYTES), 3, queue.Queue(), 1.0)


def test_frames_arrive_whole_whatever_the_pieces():
    server = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(server.getsockname())
    receiver, _ = server.accept()
    inbox: queue.Queue[Frame] = queue.Queue()
    link = Link(receiver, 9, 1000, inbox)
    frame = bytes((Op.SUM,)) + pack(RAW, bytes(range(200)))
    for byte in frame + frame:
        sender.sendall(bytes((byte,)))
    assert [inbox.get(timeout=30) for _ in range(2)] == [Frame(9, Op.SUM, frame[1:])] * 2
    sender.sendall(frame[: 1 + HEADER_BYTES])
    sender.close()
    assert inbox.get(timeout=30) == Frame(9, None, b"", "it hung up")
    link.close()
    server.close()
