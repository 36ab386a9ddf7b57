"""A strategy whose halves live in two processes: the server's here, the clients' in another; bytes pass between them.

Each side builds what it needs from the experiment alone: the one never sees an object of the other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from processes import FORKED, GIVEN_UP
from sparsync.assembly import SeedSetting
from sparsync.engines import Envelope, LocalFederatedClients, PaceAction, RoundLoop
from sparsync.experiment import Experiment, import_modules
from sparsync.federated import FederatedStrategy
from sparsync.task import Task, load_dataset, partition
from sparsync.workers import SingleProcess

UPDATE, SETTLE, CLOSE = b"u", b"s", b"c"
_ENVELOPE = struct.Struct("<qqdq")


class RemoteClients:
    """Clients at the other end of a pipe."""

    def __init__(self, connection: Connection, stateful: bool) -> None:
        self.connection, self.stateful = connection, stateful

    def update(self, envelope: Envelope, message: bytes) -> tuple[bytes, dict[str, Any]]:
        self.connection.send_bytes(UPDATE + _ENVELOPE.pack(*astuple(envelope)) + message)
        upload = self.connection.recv_bytes()
        return upload, json.loads(self.connection.recv_bytes())

    def settle(self, accepted: Collection[int]) -> None:
        self.connection.send_bytes(SETTLE + json.dumps(sorted(accepted)).encode())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError("memories lie with the clients")


def answer(connection: Connection, clients: LocalFederatedClients) -> None:
    """Let clients do what comes through a pipe, until it is closed."""
    while (frame := connection.recv_bytes())[:1] != CLOSE:
        if frame[:1] == SETTLE:
            clients.settle(json.loads(frame[1:]))
            continue
        envelope = Envelope(*_ENVELOPE.unpack_from(frame, 1))
        upload, report = clients.update(envelope, frame[1 + _ENVELOPE.size :])
        connection.send_bytes(upload)
        connection.send_bytes(json.dumps(report).encode())


def setting(text: str) -> tuple[SeedSetting, FederatedStrategy]:
    """Return task, data and first model of an experiment, given as JSON, and its only strategy."""
    settings = json.loads(text)
    import_modules(settings.get("imports", []))
    experiment = Experiment(**settings)
    (label,), (seed,) = experiment.strategies, experiment.seeds
    task = Task(load_dataset(experiment.data), experiment.model)
    parts = partition(experiment.partition, task.dataset.train.labels.numpy(), experiment.workers, seed)
    strategy = experiment.strategy(label)
    assert isinstance(strategy, FederatedStrategy)
    return SeedSetting(experiment, task, parts, seed, SingleProcess()), strategy


def serve_clients(connection: Connection, text: str) -> None:
    """Play an experiment's clients in this process."""
    torch.set_num_threads(1)
    made, strategy = setting(text)
    clients = made.clients(strategy, made.client_runtime())
    connection.send_bytes(bytes([clients.stateful]))
    answer(connection, clients)


@contextmanager
def remote_clients(text: str) -> Iterator[RemoteClients]:
    """An experiment's clients, in a process of their own."""
    near, far = FORKED.Pipe()
    process = FORKED.Process(target=serve_clients, args=(far, text))
    process.start()
    far.close()
    try:
        yield RemoteClients(near, bool(near.recv_bytes()[0]))
        near.send_bytes(CLOSE)
    finally:
        near.close()
        process.join(GIVEN_UP)


def complete(loop: RoundLoop) -> tuple[Tensor, dict[str, Any], list[Tensor]]:
    """Go through all rounds; return the model, (D,), the ledger, and what is exact of the model."""
    loop.run(lambda _: PaceAction.GO_ON, lambda: None)
    return loop.strategy.model(), loop.ledger.state_dict(), loop.context.exact.values


def in_one_process(text: str) -> tuple[Tensor, dict[str, Any], list[Tensor], list[dict[str, Any]]]:
    """Run an experiment as a simulation does; return `complete` and the history."""
    made, strategy = setting(text)
    lines: list[dict[str, Any]] = []
    loop = made.assemble(strategy, lines.append)
    assert isinstance(loop, RoundLoop)
    return *complete(loop), lines


def in_two_processes(text: str) -> tuple[Tensor, dict[str, Any], list[Tensor], list[dict[str, Any]]]:
    """Run an experiment with the server's half here and the clients' elsewhere; return as `in_one_process`."""
    made, strategy = setting(text)
    lines: list[dict[str, Any]] = []
    with remote_clients(text) as clients:
        return *complete(made.rounds(strategy, clients, made.client_runtime(), lines.append)), lines
