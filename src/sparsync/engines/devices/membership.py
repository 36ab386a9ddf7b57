"""Where devices call their coordinator: one connection for each, from those that know the token."""

from __future__ import annotations

import queue
import secrets
import socket
import threading
from dataclasses import dataclass

from sparsync.engines.devices.messages import LONGEST_CONTROL, DeviceAddress, EndTraining
from sparsync.engines.links import TOKEN_BYTES, Connection, Frame, Listener, Op


@dataclass
class Member:
    """A device's connection, and how often it has been asked whether it lives since it last said anything."""

    number: int
    connection: Connection
    asked: int = 0
    peer: DeviceAddress | None = None


class Membership:
    """Where devices call.

    Parameters
    ----------
    devices : int
        K; their numbers are 0 to K - 1.
    token : bytes, optional
        What they must know. Default: drawn anew.
    port : int
        To listen at; 0 for any that is free.
    heartbeat_timeout : float
        Seconds after which a device that does not answer is given up.
    begin_with : int, optional
        Devices that must be there at first. Default: all.
    patience : float
        Seconds to wait for them.
    """

    def __init__(
        self,
        devices: int,
        *,
        token: bytes | None = None,
        port: int = 0,
        heartbeat_timeout: float = 10.0,
        begin_with: int | None = None,
        patience: float = 600.0,
    ) -> None:
        self.devices, self.heartbeat_timeout, self.patience = devices, heartbeat_timeout, patience
        self.begin_with = devices if begin_with is None else begin_with
        self.token = secrets.token_bytes(TOKEN_BYTES) if token is None else token
        self.inbox: queue.Queue[Frame] = queue.Queue()
        self.members: dict[int, Member] = {}  # by the number of a call
        self._limit = LONGEST_CONTROL
        self._calls = 0
        self._lock = threading.Lock()
        self._gate = Listener(self.token, self._welcome, port)
        self.port = self._gate.port

    def permit(self, limit: int) -> None:
        """From now on accept bodies of so many bytes, also from those who have called already."""
        with self._lock:
            self._limit = limit
            for member in self.members.values():
                member.connection.limit = limit

    def _welcome(self, sock: socket.socket, number: int) -> None:
        with self._lock:
            before = next((member for member in self.members.values() if member.number == number), None)
            if before is None and number < self.devices:
                self._calls += 1
                connection = Connection(sock, self._calls, self._limit, self.inbox, self.heartbeat_timeout)
                self.members[self._calls] = Member(number, connection)
                return
        if before is not None and before.peer is not None and before.asked <= 1 and not before.connection.ended:
            message = EndTraining(why="another process is the device of this number; give each its own").pack()
            Connection(sock, 0, self._limit, queue.Queue(), self.heartbeat_timeout).bye(Op.WORD, message)
        else:
            sock.close()  # it will call again, by when its old connection may have been given up

    def member(self, call: int) -> Member | None:
        """Who called; None if that connection has been given up."""
        with self._lock:
            return self.members.get(call)

    def connected(self) -> set[int]:
        """Numbers of those who are connected."""
        with self._lock:
            return {member.number for member in self.members.values()}

    def disconnect(self, number: int) -> None:
        """End a device's connection."""
        with self._lock:
            for call in [call for call, member in self.members.items() if member.number == number]:
                self.members.pop(call).connection.close()

    def close(self) -> None:
        """Hang up everywhere."""
        self._gate.close()
        for member in list(self.members.values()):
            member.connection.close()
