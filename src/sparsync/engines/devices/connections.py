"""A device's connections: to whom it can send, and what has arrived from whom."""

from __future__ import annotations

import queue
import socket
import threading
import time

from sparsync.engines.devices.messages import DeviceAddress
from sparsync.engines.links import Connection, ConnectionLost, Frame, Listener, Op, connect

COORDINATOR = -1
"""The coordinator's number among those from whom frames arrive."""

_AGAIN = 1.0  # seconds between two attempts to reach it
_COUNTED = (Op.CHUNK, Op.MODEL)


class DeviceConnections:
    """Connections to the coordinator and to other devices.

    Parameters
    ----------
    number : int
        This device.
    coordinator : (str, int)
        Where its coordinator listens.
    token : bytes
        What all of a run know.
    limit : int
        Largest body that is accepted, in bytes.
    patience : float
        Seconds that another device may take to accept a connection, or to read.

    Attributes
    ----------
    port : int
        Where this device listens.
    sent, received : int
        Bytes of models, to and from other devices.
    """

    def __init__(
        self, number: int, coordinator: tuple[str, int], token: bytes, *, limit: int, patience: float = 5.0
    ) -> None:
        self.number, self.token, self.limit, self.patience = number, token, limit, patience
        self._coordinator = coordinator
        self.inbox: queue.Queue[Frame] = queue.Queue()
        self.control: Connection | None = None
        self._called = False
        self._closed = threading.Event()
        self._lines: dict[DeviceAddress, Connection] = {}
        self._lock = threading.Lock()
        self.sent = self.received = 0
        self._gate = Listener(token, self._welcome)
        self.port = self._gate.port

    def _welcome(self, sock: socket.socket, other: int) -> None:
        Connection(sock, other, self.limit, self.inbox, self.patience)

    def call_again(self) -> None:
        """Connect to the coordinator, however long that takes, in the background; a frame of ``HELLO`` says when."""
        self.control = None
        threading.Thread(target=self._call, args=(self._called,), daemon=True).start()
        self._called = True

    def _call(self, again: bool) -> None:
        host, port = self._coordinator
        if again:
            self._closed.wait(_AGAIN)  # it may hang up at once on whom it has no use for
        while not self._closed.is_set():
            try:
                self.control = connect(
                    host, port, self.token, self.number, self.inbox, self.patience, whose=COORDINATOR, limit=self.limit
                )
            except ConnectionLost:
                self._closed.wait(_AGAIN)
                continue
            self.inbox.put(Frame(COORDINATOR, Op.HELLO, b""))
            return

    def tell(self, op: Op, payload: bytes) -> None:
        """Send the coordinator something, if it is there; if not, its end of the connection says so."""
        control = self.control  # which another thread may change
        if control is not None:
            try:
                control.send(op, payload)
            except ConnectionLost:
                control.close()

    def send(self, peer: DeviceAddress, op: Op, payload: bytes = b"") -> bool:
        """Send another device something. Return whether that was possible; it may be dead nevertheless."""
        for _ in range(2):  # it may have hung up since the last time
            try:
                self._line(peer).send(op, payload)
            except ConnectionLost:
                self._drop(peer)
            else:
                if op in _COUNTED:
                    with self._lock:
                        self.sent += len(payload)
                return True
        return False

    def _line(self, peer: DeviceAddress) -> Connection:
        with self._lock:
            line = self._lines.get(peer)
        if line is None:
            line = connect(
                peer.host,
                peer.port,
                self.token,
                self.number,
                self.inbox,
                self.patience,
                whose=peer.number,
                limit=self.limit,
            )
            with self._lock:
                self._lines[peer] = line
        return line

    def _drop(self, peer: DeviceAddress) -> None:
        with self._lock:
            line = self._lines.pop(peer, None)
        if line is not None:
            line.close()

    def take(self, until: float) -> Frame | None:
        """Return what has arrived, or arrives by then (`time.monotonic`)."""
        try:
            frame = self.inbox.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        if frame.op in _COUNTED and frame.client != COORDINATOR:
            self.received += len(frame.payload)
        return frame

    def close(self) -> None:
        """Hang up everywhere."""
        self._closed.set()
        self._gate.close()
        for line in [*self._lines.values(), *([self.control] if self.control else [])]:
            line.close()
