"""How the clients of split learning and their server find each other, in processes that start together."""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Iterable

import torch

from sparsync.engines.messages import SplitKind
from sparsync.errors import SparsyncError
from sparsync.transport import TOKEN_BYTES, Connection, ConnectionLost, Frame, Listener, connect
from sparsync.workers import Group
from sparsync.workers.group import share


class ServerRendezvous:
    """Where the server's clients connect, each once.

    Attributes
    ----------
    port : int
        That it listens at.
    token : bytes
        Drawn anew for every run; goes to the clients by another way.
    """

    def __init__(self) -> None:
        self._arrivals: queue.Queue[tuple[socket.socket, int]] = queue.Queue()
        self._listener = Listener(lambda sock, client: self._arrivals.put((sock, client)))
        self.port, self.token = self._listener.port, self._listener.token

    def gather(self, clients: Iterable[int], timeout: float) -> dict[int, Connection]:
        """Wait for all clients, and stop listening.

        Raises
        ------
        SparsyncError
            If some have not connected within so many seconds.
        """
        missing, connections = set(clients), {}
        deadline = time.monotonic() + timeout
        try:
            while missing:
                try:
                    sock, client = self._arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    raise SparsyncError(
                        f"client {min(missing)} has not connected within {timeout:g} s; start all processes"
                    ) from None
                if client in missing:
                    missing.remove(client)
                    connections[client] = Connection(sock, client, SplitKind, queue.Queue(), timeout=timeout)
                else:
                    sock.close()
        finally:
            self._listener.close()
            while not self._arrivals.empty():
                self._arrivals.get()[0].close()
        return connections


def connect_client(
    address: tuple[str, int], token: bytes, client: int, inbox: queue.Queue[Frame], timeout: float
) -> Connection:
    """Connect a client to its server.

    Raises
    ------
    ConnectionLost
        If the server cannot be reached.
    """
    try:
        return connect(address, token, client, SplitKind, inbox, peer=client, timeout=timeout)
    except ConnectionLost as error:
        raise ConnectionLost(f"client {client} cannot reach its server: {error}") from None


def rendezvous(group: Group, clients: int, timeout: float = 600.0) -> tuple[dict[int, Connection], queue.Queue[Frame]]:
    """Connect the clients, which ranks 1 and up share, with rank 0, their server.

    Returns
    -------
    connections : dict of int to Connection
        On rank 0 everybody's, elsewhere those of the clients here.
    inbox : Queue
        Where the latter put what arrives.
    """
    inbox: queue.Queue[Frame] = queue.Queue()
    secret = torch.zeros(TOKEN_BYTES + 1, dtype=torch.int64)
    if group.rank == 0:
        server = ServerRendezvous()
        secret[:] = torch.tensor([*server.token, server.port])
        group.broadcast(secret)
        return server.gather(range(clients), timeout), inbox
    *token, port = group.broadcast(secret).tolist()
    address = os.environ.get("MASTER_ADDR", "localhost"), port
    hosted = share(clients, group.size - 1, group.rank - 1)
    return {client: connect_client(address, bytes(token), client, inbox, timeout) for client in hosted}, inbox
