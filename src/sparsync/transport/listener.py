"""Where processes connect: strangers are turned away, however many, slow or silent they are.

Who connects sends one frame of fixed length, `Signal.HELLO` with the token and its number. One thread accepts and reads
all of these greetings side by side. Each has one deadline in total, and there is room for so many: beyond that the
oldest is closed. So a stranger costs a socket for some seconds, and delays nobody.
"""

from __future__ import annotations

import os
import queue
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sparsync.errors import PayloadError, UsageError
from sparsync.transport.connection import Connection, ConnectionLost, Frame, MessageKind, Signal
from sparsync.wire import HEADER_BYTES, pack, unpack
from sparsync.wire.parcel import RAW

TOKEN_BYTES = 16

_HELLO = struct.Struct(f"<{TOKEN_BYTES}sI")
_HELLO_BYTES = 1 + HEADER_BYTES + _HELLO.size
_LARGE_BODY = 1 << 30  # accepted from a listener, whose address comes from a trusted place


@dataclass
class _Greeting:
    """What an unauthenticated connection has sent so far, and until when (`time.monotonic`) it may."""

    deadline: float
    received: bytearray = field(default_factory=bytearray)


class Listener:
    """Accepts connections at any time, from those who know the token.

    Parameters
    ----------
    welcome : callable
        Gets the socket and the number of everyone who does, in the listener's thread.
    token : bytes, optional
        What they must know. Default: drawn anew.
    port : int
        Where to listen; 0 for any that is free.
    timeout : float
        Seconds that an unauthenticated connection may take in all.
    unauthenticated : int
        Most of them at a time.

    Raises
    ------
    UsageError
        If nobody can listen at the port.
    """

    def __init__(
        self,
        welcome: Callable[[socket.socket, int], None],
        *,
        token: bytes | None = None,
        port: int = 0,
        timeout: float = 10.0,
        unauthenticated: int = 64,
    ) -> None:
        if not 0 <= port < 2**16:
            raise UsageError(f"port {port}: there is none of that number; name another")
        self.welcome, self.timeout, self.unauthenticated = welcome, timeout, unauthenticated
        self.token = secrets.token_bytes(TOKEN_BYTES) if token is None else token
        try:
            self._sock = socket.create_server(("", port), backlog=128)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UsageError(f"port {port}: cannot listen there ({reason}); name another") from None
        self._sock.setblocking(False)
        self.port = int(self._sock.getsockname()[1])
        self._greetings: dict[socket.socket, _Greeting] = {}  # oldest first
        self._closing, self._closed = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more; the port is free when this returns."""
        self._closing.close()
        self._thread.join()

    def _listen(self) -> None:
        with self._closed, self._sock, selectors.DefaultSelector() as selector:
            selector.register(self._closed, selectors.EVENT_READ)
            selector.register(self._sock, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(self._next_deadline())}
                if self._closed in ready:
                    break
                for sock in self._greetings.keys() & ready:  # before new ones, which may end the oldest
                    self._read(sock, selector)
                if self._sock in ready:
                    self._accept(selector)
                now = time.monotonic()
                for sock in [sock for sock, greeting in self._greetings.items() if greeting.deadline <= now]:
                    self._forget(sock, selector).close()
            for sock in self._greetings:
                sock.close()

    def _next_deadline(self) -> float | None:
        """Seconds until the oldest greeting's deadline."""
        oldest = next(iter(self._greetings.values()), None)
        return None if oldest is None else max(0.0, oldest.deadline - time.monotonic())

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionError):  # who was about to connect has gone again
            return
        except OSError:  # the process has too many files open
            time.sleep(0.1)
            return
        if len(self._greetings) >= self.unauthenticated:
            self._forget(next(iter(self._greetings)), selector).close()
        sock.setblocking(False)
        self._greetings[sock] = _Greeting(time.monotonic() + self.timeout)
        selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        """Read more of a greeting; welcome its sender once it is complete, or turn it away."""
        received = self._greetings[sock].received
        try:
            piece = sock.recv(_HELLO_BYTES - len(received))
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        received += piece
        if piece and received[0] == Signal.HELLO and len(received) < _HELLO_BYTES:
            return
        self._forget(sock, selector)
        number = self._authenticate(received)
        if number is None:
            sock.close()
            return
        try:
            self.welcome(sock, number)
        except OSError:  # it has gone again
            sock.close()

    def _authenticate(self, greeting: bytearray) -> int | None:
        """Return the number of who has sent a greeting; None for a stranger."""
        try:
            token, number = _HELLO.unpack(unpack(bytes(greeting[1:]), RAW, _HELLO.size))
        except (PayloadError, struct.error):
            return None
        genuine = greeting[0] == Signal.HELLO and secrets.compare_digest(token, self.token)
        return int(number) if genuine else None

    def _forget(self, sock: socket.socket, selector: selectors.BaseSelector) -> socket.socket:
        del self._greetings[sock]
        selector.unregister(sock)
        return sock


def connect(
    address: tuple[str, int],
    token: bytes,
    number: int,
    kinds: type[MessageKind],
    inbox: queue.Queue[Frame],
    *,
    peer: int,
    limit: int = _LARGE_BODY,
    timeout: float = 600.0,
) -> Connection:
    """Connect to a listener.

    Parameters
    ----------
    address : (str, int)
        Host and port of the listener.
    token : bytes
        That of the listener.
    number : int
        Of who connects.
    peer : int
        Of whose listener it is.
    kinds, inbox, limit, timeout
        As of `Connection`.

    Raises
    ------
    ConnectionLost
        If the listener cannot be reached.
    """
    try:
        sock = socket.create_connection(address, timeout=timeout)
    except OSError as error:
        host, port = address
        raise ConnectionLost(f"nothing answers at {host}:{port} ({error})") from None
    connection = Connection(sock, peer, kinds, inbox, limit, timeout)
    try:
        connection.send(Signal.HELLO, pack(RAW, _HELLO.pack(token, number)))
    except ConnectionLost:
        connection.close()
        raise
    return connection
