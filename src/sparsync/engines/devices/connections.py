"""A device's connections: to whom it can send, and what has arrived from whom."""

from __future__ import annotations

import queue
import socket
import threading
import time

from sparsync.engines.devices.messages import DeviceAddress, DeviceKind
from sparsync.transport import Connection, ConnectionLost, Frame, Listener, MessageKind, Signal, connect

COORDINATOR = -1
"""The coordinator's number among those from whom frames arrive."""

_RETRY_SECONDS = 1.0  # between two attempts to reach it
_BOOKED = (DeviceKind.CHUNK, DeviceKind.MODEL)


class DeviceConnections:
    """Connections to the coordinator and to other devices.

    Parameters
    ----------
    number : int
        This device.
    coordinator : (str, int)
        Where its coordinator listens.
    token : bytes
        What all processes of a run know.
    limit : int
        Largest body that is accepted, in bytes.
    timeout : float
        Seconds that another device may take to accept a connection, or to read.

    Attributes
    ----------
    port : int
        Where this device listens.
    sent, received : int
        Bytes of models, to and from other devices.
    """

    def __init__(
        self, number: int, coordinator: tuple[str, int], token: bytes, *, limit: int, timeout: float = 5.0
    ) -> None:
        self.number, self.token, self.limit, self.timeout = number, token, limit, timeout
        self._coordinator = coordinator
        self.inbox: queue.Queue[Frame] = queue.Queue()
        self.control: Connection | None = None
        self._connected_before = False
        self._closed = threading.Event()
        self._connections: dict[DeviceAddress, Connection] = {}
        self._lock = threading.Lock()
        self.sent = self.received = 0
        self._listener = Listener(self._welcome, token=token)
        self.port = self._listener.port

    def _welcome(self, sock: socket.socket, peer: int) -> None:
        Connection(sock, peer, DeviceKind, self.inbox, self.limit, self.timeout)

    def _connect(self, address: tuple[str, int], peer: int) -> Connection:
        return connect(
            address,
            self.token,
            self.number,
            DeviceKind,
            self.inbox,
            peer=peer,
            limit=self.limit,
            timeout=self.timeout,
        )

    def reconnect(self) -> None:
        """Connect to the coordinator, however long that takes, in the background; a frame of ``HELLO`` says when."""
        self.control = None
        threading.Thread(target=self._connect_coordinator, args=(self._connected_before,), daemon=True).start()
        self._connected_before = True

    def _connect_coordinator(self, again: bool) -> None:
        if again:
            self._closed.wait(_RETRY_SECONDS)  # it may close at once the connection of whom it has no use for
        while not self._closed.is_set():
            try:
                self.control = self._connect(self._coordinator, COORDINATOR)
            except ConnectionLost:
                self._closed.wait(_RETRY_SECONDS)
                continue
            self.inbox.put(Frame(COORDINATOR, Signal.HELLO, b""))
            return

    def send_coordinator(self, kind: MessageKind, payload: bytes) -> None:
        """Send the coordinator a message, if it is connected; if not, a frame has said so, or will."""
        control = self.control  # which another thread may change
        if control is not None:
            try:
                control.send(kind, payload)
            except ConnectionLost:
                control.close()

    def send(self, peer: DeviceAddress, kind: MessageKind, payload: bytes = b"") -> bool:
        """Send another device a message. Return whether that was possible; it may be dead nevertheless."""
        for _ in range(2):  # it may have closed the connection since the last time
            try:
                self.connection(peer).send(kind, payload)
            except ConnectionLost:
                self._drop(peer)
            else:
                if kind in _BOOKED:
                    with self._lock:
                        self.sent += len(payload)
                return True
        return False

    def connection(self, peer: DeviceAddress) -> Connection:
        """Return the connection to another device, opened if need be.

        Raises
        ------
        ConnectionLost
            If it cannot be reached.
        """
        with self._lock:
            connection = self._connections.get(peer)
        if connection is None:
            connection = self._connect((peer.host, peer.port), peer.number)
            with self._lock:
                self._connections[peer] = connection
        return connection

    def _drop(self, peer: DeviceAddress) -> None:
        with self._lock:
            connection = self._connections.pop(peer, None)
        if connection is not None:
            connection.close()

    def receive(self, deadline: float) -> Frame | None:
        """Return what has arrived, or arrives before the deadline (`time.monotonic`)."""
        try:
            frame = self.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        if frame.kind in _BOOKED and frame.sender != COORDINATOR:
            self.received += len(frame.payload)
        return frame

    def close(self) -> None:
        """Close all connections, and listen no more."""
        self._closed.set()
        self._listener.close()
        for connection in [*self._connections.values(), *([self.control] if self.control else [])]:
            connection.close()
