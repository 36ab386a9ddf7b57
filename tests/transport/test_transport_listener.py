"""Who gets in, and what strangers cost: whatever they do, a client that knows the token is let in meanwhile."""

from __future__ import annotations

import queue
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processes import GIVEN_UP
from sparsync.errors import UsageError
from sparsync.transport import (
    TOKEN_BYTES,
    Connection,
    ConnectionLost,
    Frame,
    Listener,
    MessageKind,
    ProtocolFault,
    Signal,
    connect,
)
from sparsync.wire import HEADER_BYTES, pack
from sparsync.wire.parcel import RAW

TOKEN = bytes(range(TOKEN_BYTES))


class Kind(MessageKind):
    TEXT = 16


class Server:
    """A listener, and those whom it has welcomed."""

    def __init__(self, **options: float) -> None:
        self.arrivals: queue.Queue[tuple[socket.socket, int]] = queue.Queue()
        self.listener = Listener(lambda sock, number: self.arrivals.put((sock, number)), token=TOKEN, **options)  # type: ignore[arg-type]
        self.sockets = ExitStack()

    def stranger(self) -> socket.socket:
        return self.sockets.enter_context(socket.create_connection(("127.0.0.1", self.listener.port)))

    def welcomes(self, number: int) -> None:
        """A client that knows the token gets in."""
        connection = connect(
            ("127.0.0.1", self.listener.port), TOKEN, number, Kind, queue.Queue(), peer=0, timeout=GIVEN_UP
        )
        sock, arrived = self.arrivals.get(timeout=GIVEN_UP)
        assert arrived == number
        assert self.arrivals.empty()
        connection.close()
        sock.close()

    def close(self) -> None:
        self.listener.close()
        self.sockets.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """Whose greetings have longer than any test takes."""
    made = Server(timeout=10 * GIVEN_UP)
    yield made
    made.close()


def hello(token: bytes, number: int = 5) -> bytes:
    return bytes((Signal.HELLO,)) + pack(RAW, struct.pack(f"<{TOKEN_BYTES}sI", token, number))


def ended(sock: socket.socket) -> bool:
    """Whether the other side closes the connection; waits for that."""
    sock.settimeout(GIVEN_UP)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:  # it has not read all that was sent
        return True


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\n\r\n".ljust(200), hello(bytes(TOKEN_BYTES)), bytes((Signal.PING,)), bytes(200), b"\1" * 200],
)
def test_garbage_is_turned_away(server, noise):
    sock = server.stranger()
    sock.sendall(noise)
    assert ended(sock)
    server.welcomes(3)


def test_a_stranger_that_leaves_changes_nothing(server):
    for sent in (b"", hello(TOKEN)[:9]):
        with socket.create_connection(("127.0.0.1", server.listener.port)) as sock:
            sock.sendall(sent)
    server.welcomes(3)


def test_a_silent_stranger_delays_nobody(server):
    server.stranger()
    server.welcomes(3)
    server.stranger().sendall(hello(TOKEN)[:-1])
    server.welcomes(4)


def test_of_200_strangers_the_oldest_go_and_a_client_gets_in(server):
    strangers = [server.stranger() for _ in range(200)]
    assert all(ended(sock) for sock in strangers[: 200 - server.listener.unauthenticated])
    server.welcomes(3)


def test_a_greeting_in_single_bytes_has_one_deadline(server):
    """A byte now and then does not prolong it."""
    sock, deadlines = server.stranger(), set()
    for sent, byte in enumerate(hello(TOKEN)[:-1], start=1):
        sock.sendall(bytes((byte,)))
        while not any(len(one.received) == sent for one in list(server.listener._greetings.values())):
            time.sleep(0.001)
        deadlines.update(one.deadline for one in server.listener._greetings.values())
    assert len(deadlines) == 1
    server.welcomes(3)


@pytest.mark.parametrize("sent", [0, 1, 30])
def test_an_unfinished_greeting_is_turned_away_in_the_end(sent):
    server = Server(timeout=0.05)
    sock = server.stranger()
    sock.sendall(hello(TOKEN)[:sent])
    assert ended(sock)
    server.close()


def test_a_greeting_may_arrive_in_pieces(server):
    sock = server.stranger()
    for byte in hello(TOKEN, 7):
        sock.sendall(bytes((byte,)))
    accepted, number = server.arrivals.get(timeout=GIVEN_UP)
    assert number == 7
    accepted.close()


@given(st.binary(max_size=100))
def test_no_other_bytes_are_a_greeting(noise):
    listener = object.__new__(Listener)
    listener.token = TOKEN
    assert listener._authenticate(bytearray(noise)) is None
    assert listener._authenticate(bytearray(hello(TOKEN, 9))) == 9


def test_what_follows_a_greeting_is_for_its_receiver(server):
    """The listener takes no byte beyond it."""
    sock = server.stranger()
    sock.sendall(hello(TOKEN, 7) + b"next")
    accepted, _ = server.arrivals.get(timeout=GIVEN_UP)
    accepted.settimeout(GIVEN_UP)
    assert accepted.recv(4, socket.MSG_WAITALL) == b"next"
    accepted.close()


def test_a_closed_listener_accepts_nobody_and_frees_its_port(server):
    waiting = server.stranger()
    waiting.sendall(hello(TOKEN)[:3])
    server.listener.close()
    assert ended(waiting)
    with pytest.raises(ConnectionLost, match=f"nothing answers at 127.0.0.1:{server.listener.port}"):
        connect(("127.0.0.1", server.listener.port), TOKEN, 3, Kind, queue.Queue(), peer=0)
    again = Listener(lambda *_: None, port=server.listener.port)
    again.close()


@pytest.mark.parametrize("port", [-1, 2**16])
def test_a_port_that_does_not_exist(port):
    with pytest.raises(UsageError, match=f"port {port}: there is none of that number; name another"):
        Listener(lambda *_: None, port=port)


# Connections


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection, queue.Queue[Frame]]]:
    """A bare socket, and the connection at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sock = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    inbox: queue.Queue[Frame] = queue.Queue()
    connection = Connection(accepted, 9, Kind, inbox, 1000)
    yield sock, connection, inbox
    connection.close()
    sock.close()


def test_frames_arrive_whole_whatever_the_pieces(pair):
    sock, _, inbox = pair
    frame = bytes((Kind.TEXT,)) + pack(RAW, bytes(range(200)))
    for byte in frame + frame:
        sock.sendall(bytes((byte,)))
    assert [inbox.get(timeout=GIVEN_UP) for _ in range(2)] == [Frame(9, Kind.TEXT, frame[1:])] * 2
    sock.sendall(frame[: 1 + HEADER_BYTES])
    sock.close()
    assert inbox.get(timeout=GIVEN_UP) == Frame(9, None, b"", "it closed the connection")


def test_a_heartbeat_is_answered_and_counted(pair):
    """Anything that arrives is a sign of life."""
    sock, connection, inbox = pair
    sock.sendall(bytes((Signal.PING,)))
    assert inbox.get(timeout=GIVEN_UP).kind is Signal.PING
    sock.settimeout(GIVEN_UP)
    assert sock.recv(1) == bytes((Signal.PONG,))
    connection.ping()
    connection.ping()
    assert connection.unanswered == 2
    assert sock.recv(2, socket.MSG_WAITALL) == bytes((Signal.PING,)) * 2
    sock.sendall(bytes((Signal.PONG,)))
    assert inbox.get(timeout=GIVEN_UP).kind is Signal.PONG
    assert connection.unanswered == 0


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (b"\0", "it sent a frame of no known kind"),
        (b"\x77", "it sent a frame of no known kind"),
        (bytes((Kind.TEXT,)) + pack(RAW, b"")[:8] + struct.pack("<QI", 1001, 0), "payload: declares a body of"),
    ],
)
def test_what_is_no_frame_is_blamed_on_its_sender(pair, noise, reason):
    sock, _, inbox = pair
    sock.sendall(noise)
    frame = inbox.get(timeout=GIVEN_UP)
    assert frame.kind is None
    assert isinstance(frame.reason, ProtocolFault)
    assert frame.reason.startswith(reason)
