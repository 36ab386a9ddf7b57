"""Which devices are connected to their coordinator: one connection each, and heartbeats over it."""

from __future__ import annotations

import queue
import socket
import threading
from dataclasses import dataclass

from sparsync.engines.devices.messages import LONGEST_CONTROL, DeviceAddress, DeviceKind, EndTraining
from sparsync.transport import Connection, Frame, Listener


@dataclass
class Member:
    """A device that is connected, and its address once it has registered."""

    number: int
    connection: Connection
    address: DeviceAddress | None = None


class Membership:
    """The devices that are connected.

    Parameters
    ----------
    devices : int
        K; their numbers are 0 to K - 1.
    token : bytes, optional
        What they must know. Default: drawn anew.
    port : int
        Where to listen; 0 for any that is free.
    heartbeat_timeout : float
        Seconds after which a device that does not answer is given up.
    quorum : int, optional
        Devices with which training begins. Default: all.
    join_timeout : float
        Seconds to wait for them.

    Attributes
    ----------
    members : dict of int to Member
        By the number of the connection, which frames carry: a device that connects again has another one.
    """

    def __init__(
        self,
        devices: int,
        *,
        token: bytes | None = None,
        port: int = 0,
        heartbeat_timeout: float = 10.0,
        quorum: int | None = None,
        join_timeout: float = 600.0,
    ) -> None:
        self.devices, self.heartbeat_timeout, self.join_timeout = devices, heartbeat_timeout, join_timeout
        self.quorum = devices if quorum is None else quorum
        self.inbox: queue.Queue[Frame] = queue.Queue()
        self.members: dict[int, Member] = {}
        self._limit = LONGEST_CONTROL
        self._connections = 0
        self._lock = threading.Lock()
        self._listener = Listener(self._welcome, token=token, port=port)
        self.token, self.port = self._listener.token, self._listener.port

    def permit(self, limit: int) -> None:
        """From now on accept bodies of so many bytes, also from those who are connected already."""
        with self._lock:
            self._limit = limit
            for member in self.members.values():
                member.connection.limit = limit

    def _welcome(self, sock: socket.socket, number: int) -> None:
        with self._lock:
            before = next((member for member in self.members.values() if member.number == number), None)
            if before is None and number < self.devices:
                self._connections += 1
                connection = Connection(
                    sock, self._connections, DeviceKind, self.inbox, self._limit, self.heartbeat_timeout
                )
                self.members[self._connections] = Member(number, connection)
                return
        if before is not None and before.address is not None and _answers(before.connection):
            message = EndTraining(why="another process is the device of this number; give each its own").pack()
            connection = Connection(sock, 0, DeviceKind, queue.Queue(), self._limit, self.heartbeat_timeout)
            connection.finish(DeviceKind.CONTROL, message)
        else:
            sock.close()  # it will connect again, by when its old connection may have been given up

    def member(self, connection: int) -> Member | None:
        """Return whose connection that is; None if it has been closed."""
        with self._lock:
            return self.members.get(connection)

    def all(self) -> list[Member]:
        """Return those who are connected now."""
        with self._lock:
            return list(self.members.values())

    def connected(self) -> set[int]:
        """Return the numbers of those who are connected."""
        return {member.number for member in self.all()}

    def registered(self) -> dict[int, Member]:
        """Return those who have registered, by their number."""
        return {member.number: member for member in self.all() if member.address is not None}

    def disconnect(self, number: int) -> None:
        """Close a device's connection."""
        with self._lock:
            for key in [key for key, member in self.members.items() if member.number == number]:
                self.members.pop(key).connection.close()

    def close(self) -> None:
        """Close all connections, and listen no more."""
        self._listener.close()
        for member in self.all():
            member.connection.close()


def _answers(connection: Connection) -> bool:
    """Whether heartbeats are answered; the last may be under way."""
    return connection.unanswered <= 1 and not connection.ended
