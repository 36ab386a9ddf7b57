"""Connections between processes: whole messages over TCP, from peers that may be slow, dead or hostile.

A frame is one byte, which says what the message is for, and mostly a payload, whose header says how long it is. Every
connection has a thread that reads: both sides always take what the other one sends, so neither can wait for the other
to read; and a heartbeat is answered whatever else the process is doing.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from enum import IntEnum
from typing import NamedTuple

from sparsync.errors import PayloadError, SparsyncError
from sparsync.wire import HEADER_BYTES
from sparsync.wire.payload import body_bytes

SMALL_BODY = 1 << 16
"""Bytes of the largest body that is accepted before its receiver knows what to expect."""

_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}  # seconds, seconds, probes


class MessageKind(IntEnum):
    """What a message is for: the base of every protocol's kinds, which are numbered from 16 on."""

    @property
    def is_bare(self) -> bool:
        """Whether the message is its kind alone, without a payload."""
        return False


class Signal(MessageKind):
    """Messages of the transport itself."""

    HELLO = 1  # token and number of who connects
    PING = 2  # heartbeat; the receiver's connection answers it
    PONG = 3  # the answer
    CLOSE = 4  # nothing more will be sent

    @property
    def is_bare(self) -> bool:
        """All but HELLO are."""
        return self is not Signal.HELLO


_SIGNALS = {int(signal): signal for signal in Signal}


class ConnectionLost(SparsyncError):
    """The other side of a connection has gone."""


class ProtocolFault(str):
    """Why nothing more will arrive, if the sender is to blame: what it sent is no frame."""


class Frame(NamedTuple):
    """What arrived: from whom, what for, and the payload; or the reason why nothing more will (`kind` None)."""

    sender: int
    kind: MessageKind | None
    payload: bytes
    reason: str = ""


class Connection:
    """One side of an authenticated link between two processes.

    Parameters
    ----------
    sock : socket
        Connected.
    peer : int
        Number of the other side, which frames from it carry.
    kinds : type of MessageKind
        What its messages may be for, beside `Signal`.
    inbox : Queue
        Where frames go.
    limit : int
        Largest body that is accepted, in bytes; may be changed.
    timeout : float
        Seconds that the other side may leave unread what is sent to it.

    Attributes
    ----------
    unanswered : int
        Heartbeats sent since anything has arrived. Counted, not timed: after a pause of this process, answers are
        already waiting here.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: int,
        kinds: type[MessageKind],
        inbox: queue.Queue[Frame],
        limit: int = SMALL_BODY,
        timeout: float = 600.0,
    ) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds, fraction = divmod(timeout, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that vanishes closes nothing
        for option, value in _KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self.peer, self.kinds, self.inbox, self.limit, self.unanswered = peer, kinds, inbox, limit, 0
        self._sock = sock
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, kind: MessageKind, payload: bytes = b"") -> None:
        """Send a message.

        Raises
        ------
        ConnectionLost
            If the other side is gone, or does not read.
        """
        try:
            with self._sending:
                self._sock.sendall(bytes((kind,)) + payload)
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from None

    def ping(self) -> None:
        """Send a heartbeat, which the other side's connection answers.

        Raises
        ------
        ConnectionLost
            If the other side is gone.
        """
        self.unanswered += 1
        self.send(Signal.PING)

    @property
    def host(self) -> str:
        """Address of the other side.

        Raises
        ------
        ConnectionLost
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

    def finish(self, kind: MessageKind = Signal.CLOSE, payload: bytes = b"") -> None:
        """Send a last message, by default that nothing more will come, and close the connection."""
        with contextlib.suppress(ConnectionLost):
            self.send(kind, payload)
        self.close()

    def close(self) -> None:
        """Close the connection; the other side reads to its end what has been sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read(self) -> None:
        reason = "it closed the connection"
        try:
            while True:
                number = self._receive(1)[0]
                kind = _SIGNALS.get(number) or self.kinds(number)
                header = b"" if kind.is_bare else self._receive(HEADER_BYTES)
                body = self._receive(body_bytes(header, self.limit)) if header else b""
                self.unanswered = 0
                if kind is Signal.PING:
                    self.send(Signal.PONG)
                self.inbox.put(Frame(self.peer, kind, header + body))
        except ValueError:
            reason = ProtocolFault("it sent a frame of no known kind")
        except PayloadError as error:
            reason = ProtocolFault(error)
        except OSError as error:
            reason = error.strerror or reason
        except (EOFError, ConnectionLost):
            pass
        self.inbox.put(Frame(self.peer, None, b"", reason))

    def _receive(self, count: int) -> bytes:
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            received = self._sock.recv_into(view)
            if not received:
                raise EOFError
            view = view[received:]
        return bytes(buffer)
