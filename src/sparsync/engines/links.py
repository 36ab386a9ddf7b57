"""Connections between processes: whole messages over TCP, from others that may be slow, dead or hostile.

A frame is one byte, which says what the message is for, and mostly a payload, whose header says how long it is. Every
connection belongs to one client, or device, and has a thread that reads: both sides always take what the other one
sends, so neither can wait for the other to read; and a handshake is answered whatever else the process is doing.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple

import torch

from sparsync.errors import PayloadError, SparsyncError, UsageError
from sparsync.wire import HEADER_BYTES, pack, unpack
from sparsync.wire.parcel import RAW
from sparsync.wire.payload import body_bytes
from sparsync.workers import Group
from sparsync.workers.group import share

TOKEN_BYTES = 16
_SMALL = 1 << 16  # bytes that a client may send before the server knows what to expect
_LARGE = 1 << 30  # that a server may, of which clients have the address from their own group
_HELLO = struct.Struct(f"<{TOKEN_BYTES}sI")
_ALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}  # seconds, seconds, questions


class Op(IntEnum):
    """What a message is for."""

    HELLO = 1  # client: who it is
    OPEN = 2  # server: a run begins, or goes on
    SIZES = 3  # client: what data it has
    ASK_TYPICAL = 4  # server: how long it is known to take to answer
    ASK_MEASURED = 5  # server: how long it has taken of late
    DELAY = 6  # client: so long
    SCHEDULE = 7  # server: how much it will be asked for, and when
    START = 8  # server: now
    ACTIVATIONS = 9  # client
    OUTPUTS = 10  # server: the top's, where labels stay
    OUTPUT_DELTA = 11  # client: their gradients
    DELTA = 12  # server: the activations' gradients
    GRADIENT = 13  # client: its bottom's
    SUM = 14  # server: of all bottoms' gradients; a step
    ASK_BOTTOM = 15  # server: as it is now, where every client has one of its own
    ASK_STATE = 16  # server: with what its optimiser remembers, for a checkpoint
    BOTTOM = 17  # client: so it is; server: so it is to be
    CLOSE = 18  # server: nothing more
    WORD = 19  # devices and their coordinator: what is to be done, and what has been
    CHUNK = 20  # device: a piece of a model, round the ring
    MODEL = 21  # device, or coordinator: a whole one
    PING = 22  # is anybody there?
    PONG = 23  # yes


_BARE = {Op.ASK_TYPICAL, Op.ASK_MEASURED, Op.ASK_BOTTOM, Op.ASK_STATE, Op.CLOSE, Op.PING, Op.PONG}  # without a payload


class ConnectionLost(SparsyncError):
    """The other side of a connection has gone."""


class ProtocolFault(str):
    """Why nothing more will arrive, if that is to be blamed on the other side: what it sent is no frame."""


class Frame(NamedTuple):
    """What arrived: from whom, what for, and the payload; or why nothing more will."""

    client: int
    op: Op | None
    payload: bytes
    why: str = ""


class Connection:
    """One client's connection, on either side.

    Parameters
    ----------
    sock : socket
        Connected.
    client : int
        Whose it is.
    limit : int
        Largest body that is accepted, in bytes; may be changed.
    inbox : Queue
        Where frames go.
    patience : float
        Seconds that the other side may leave unread what is sent to it.
    """

    def __init__(
        self, sock: socket.socket, client: int, limit: int, inbox: queue.Queue[Frame], patience: float = 600.0
    ) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds, rest = divmod(patience, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that vanishes does not hang up
        for option, value in _ALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self.client, self.inbox = client, inbox
        self._sock, self.limit = sock, limit
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, op: Op, payload: bytes = b"") -> None:
        """Send a message.

        Raises
        ------
        LinkLost
            If the other side is gone, or does not read.
        """
        try:
            with self._sending:
                self._sock.sendall(bytes((op,)) + payload)
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from None

    @property
    def host(self) -> str:
        """Address of the other side.

        Raises
        ------
        LinkLost
            If that is gone.
        """
        try:
            return str(self._sock.getpeername()[0])
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from None

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive."""
        return not self._reader.is_alive()

    def bye(self, op: Op = Op.CLOSE, payload: bytes = b"") -> None:
        """Say something last, by default that nothing more will come, and hang up."""
        with contextlib.suppress(ConnectionLost):
            self.send(op, payload)
        self.close()

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read(self) -> None:
        why = "it hung up"
        try:
            while True:
                op = Op(self._take(1)[0])
                header = b"" if op in _BARE else self._take(HEADER_BYTES)
                body = self._take(body_bytes(header, self.limit)) if header else b""
                if op is Op.PING:
                    self.send(Op.PONG)
                self.inbox.put(Frame(self.client, op, header + body))
        except ValueError:
            why = ProtocolFault("it sent a frame of no known kind")
        except PayloadError as error:
            why = ProtocolFault(error)
        except OSError as error:
            why = error.strerror or why
        except (EOFError, ConnectionLost):
            pass
        self.inbox.put(Frame(self.client, None, b"", why))

    def _take(self, count: int) -> bytes:
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            got = self._sock.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return bytes(buffer)


class ClientListener:
    """Where the server lets its clients in: those that know the token, each once.

    Attributes
    ----------
    port : int
        That it listens at.
    token : bytes
        Drawn anew for every run; goes to the clients by another way.
    """

    def __init__(self) -> None:
        self._sock = socket.create_server(("", 0))
        self.port = int(self._sock.getsockname()[1])
        self.token = secrets.token_bytes(TOKEN_BYTES)

    def admit(self, clients: Iterable[int], patience: float) -> dict[int, Connection]:
        """Wait for all clients; strangers are sent away.

        Raises
        ------
        SparsyncError
            If some have not come in time.
        """
        missing, connections = set(clients), {}
        end = time.monotonic() + patience
        with self._sock:
            while missing:
                self._sock.settimeout(max(0.01, end - time.monotonic()))
                try:
                    sock, _ = self._sock.accept()
                except TimeoutError:
                    raise SparsyncError(
                        f"client {min(missing)} has not connected within {patience:g} s; start all processes"
                    ) from None
                client = authenticate(sock, self.token)
                if client in missing:
                    missing.remove(client)
                    connections[client] = Connection(sock, client, _SMALL, queue.Queue(), patience)
                else:
                    sock.close()
        return connections


class Listener:
    """Where others may come in at any time, if they know the token.

    Parameters
    ----------
    token : bytes
        Theirs, too.
    welcome : callable
        Gets the socket and the number of everyone who does, in a thread of its own.
    port : int
        To listen at; 0 for any that is free.
    """

    def __init__(self, token: bytes, welcome: Callable[[socket.socket, int], None], port: int = 0) -> None:
        self.token, self.welcome = token, welcome
        if not 0 <= port < 2**16:
            raise UsageError(f"port {port}: there is none of that number; name another")
        try:
            self._sock = socket.create_server(("", port))
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise UsageError(f"port {port}: cannot listen there ({why}); name another") from None
        self.port = int(self._sock.getsockname()[1])
        threading.Thread(target=self._admit, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _admit(self) -> None:
        while self._sock.fileno() >= 0:
            try:
                sock, _ = self._sock.accept()
            except OSError:  # closed; or somebody has gone again, or there are too many
                time.sleep(0.1)
                continue
            threading.Thread(target=self._greet, args=(sock,), daemon=True).start()

    def _greet(self, sock: socket.socket) -> None:
        other = authenticate(sock, self.token)
        if other is None:
            sock.close()
        else:
            self.welcome(sock, other)


def authenticate(sock: socket.socket, token: bytes) -> int | None:
    """Who it is that has connected; None for a stranger."""
    size = 1 + HEADER_BYTES + _HELLO.size
    try:
        sock.settimeout(10.0)
        frame = b""
        while len(frame) < size:
            piece = sock.recv(size - len(frame))
            if not piece:
                return None
            frame += piece
        told, client = _HELLO.unpack(unpack(frame[1:], RAW, _HELLO.size))
    except (OSError, PayloadError):
        return None
    return int(client) if frame[0] == Op.HELLO and secrets.compare_digest(told, token) else None


def connect(
    host: str,
    port: int,
    token: bytes,
    client: int,
    inbox: queue.Queue[Frame],
    patience: float,
    *,
    whose: int | None = None,
    limit: int = _LARGE,
) -> Connection:
    """Connect a client to its server, or a device to another one, whose number `whose` then is.

    Raises
    ------
    ConnectionLost
        If it cannot be reached.
    """
    try:
        sock = socket.create_connection((host, port), timeout=patience)
    except OSError as error:
        raise ConnectionLost(f"client {client} cannot reach the server at {host}:{port} ({error})") from None
    connection = Connection(sock, client if whose is None else whose, limit, inbox, patience)
    connection.send(Op.HELLO, pack(RAW, _HELLO.pack(token, client)))
    return connection


def rendezvous(group: Group, clients: int, patience: float = 600.0) -> tuple[dict[int, Connection], queue.Queue[Frame]]:
    """Connect the clients, which ranks 1 and up share, with rank 0, their server.

    Returns
    -------
    connections : dict of int to Connection
        On rank 0 everybody's, elsewhere those of the clients here.
    inbox : Queue
        Where the latter put what arrives.
    """
    inbox: queue.Queue[Frame] = queue.Queue()
    said = torch.zeros(TOKEN_BYTES + 1, dtype=torch.int64)
    if group.rank == 0:
        door = ClientListener()
        said[:] = torch.tensor([*door.token, door.port])
        group.broadcast(said)
        return door.admit(range(clients), patience), inbox
    *token, port = group.broadcast(said).tolist()
    host = os.environ.get("MASTER_ADDR", "localhost")
    here = share(clients, group.size - 1, group.rank - 1)
    return {client: connect(host, port, bytes(token), client, inbox, patience) for client in here}, inbox
