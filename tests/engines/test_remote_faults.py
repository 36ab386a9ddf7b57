"""What becomes of clients that fail, of strangers, of what they send: server and clients in threads of one process."""

from __future__ import annotations

import copy
import queue
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from processes import GIVEN_UP
from sparsync.engines import Budget, EpochLoop, PaceAction
from sparsync.engines.messages import SplitKind, pack_seconds
from sparsync.engines.remote import RemoteClients
from sparsync.engines.rendezvous import ServerRendezvous, connect_client
from sparsync.engines.serving import ClientService
from sparsync.errors import SparsyncError
from sparsync.split import SplitSettings, SplitTrainer, default_cut, split_at
from sparsync.split.channel import message_bytes
from sparsync.strategies import STRATEGIES
from sparsync.task import Dataset, Task
from sparsync.transport import ConnectionLost, Frame
from sparsync.wire import MessageSection, kinds_of, pack_parcel, unpack_parcel
from sparsync.workers import Arena, SingleProcess

K = 4
MODEL = "mlp:hidden=8"


def place(task: Task, settings: SplitSettings, **options: Any) -> SplitTrainer:
    module = task.module(0)
    parts = np.array_split(np.arange(90), K)
    return SplitTrainer(task, module, split_at(module, default_cut(module)), parts, settings, **options)


class Hosts:
    """Three processes' worth of clients, each in a thread; `spoil` may replace what a client answers."""

    def __init__(self, task: Task, settings: SplitSettings, strategy: str, spoil: Callable[..., Any]) -> None:
        self.server = ServerRendezvous()
        self.failures: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self._host, args=(here, task, settings, strategy, spoil), daemon=True)
            for here in ((0, 1), (2,), (3,))
        ]
        for thread in self.threads:
            thread.start()
        self.connections = self.server.gather(range(K), GIVEN_UP)

    def _host(self, here: tuple[int, ...], task: Task, settings: SplitSettings, strategy: str, spoil: Any) -> None:
        inbox: queue.Queue[Frame] = queue.Queue()
        connections = {
            k: connect_client(("127.0.0.1", self.server.port), self.server.token, k, inbox, GIVEN_UP) for k in here
        }

        def begin(run: int) -> SplitTrainer:
            with BUILDING:
                trainer = place(task, settings, rows=(len(here), 1))
            STRATEGIES.build(strategy).split(trainer)
            return trainer

        for link in connections.values():
            send = link.send
            link.send = lambda op, payload, k=link.peer, send=send: spoil(k, op, payload, send)  # type: ignore[method-assign]
        try:
            ClientService(connections, inbox, begin).serve()
        except (SparsyncError, OSError) as error:
            self.failures.append(error)


BUILDING = threading.Lock()  # models are drawn from torch's global generator, which threads share


def faithful(client: int, op: SplitKind, payload: bytes, send: Any) -> None:
    send(op, payload)


def in_one_process(blobs: Dataset, strategy: str, settings: SplitSettings) -> list[dict[str, Any]]:
    """History of the same run without connections."""
    built = STRATEGIES.build(strategy)
    with BUILDING:
        trainer = place(Task(blobs, MODEL), settings, rows=built.rows(K))
    lines: list[dict[str, Any]] = []
    arena = Arena(trainer.module, 1, torch.device("cpu"), torch.float32, gradients=False)
    loop = EpochLoop(trainer, built.split(trainer), arena, SingleProcess(), Budget(settings.epochs, 1), lines.append)
    loop.run(lambda steps: PaceAction.GO_ON, lambda: None)
    return lines


@pytest.fixture
def federate(blobs: Dataset) -> Callable[..., SimpleNamespace]:
    """A run with clients behind connections: its history, loop and site, and what was sent, message by message.

    It goes to its end, or stops after `stop` steps and has a `state`, from which another one may go on.
    """

    def make(
        strategy: str = "psl",
        spoil: Any = faithful,
        timeout: float = GIVEN_UP,
        stop: int | None = None,
        state: Any = None,
        **settings: Any,
    ) -> SimpleNamespace:
        task = Task(blobs, MODEL)
        said = SplitSettings(**{"batch_size": 16, "epochs": 3, "optimizer": "sgd:lr=0.1,momentum=0.5", **settings})
        up: list[tuple[int, SplitKind, bytes]] = []
        down: list[tuple[int, SplitKind, bytes]] = []

        def upwards(client: int, op: SplitKind, payload: bytes, send: Any) -> None:
            up.append((client, op, payload))
            spoil(client, op, payload, send)

        hosts = Hosts(task, said, strategy, upwards)
        for link in hosts.connections.values():

            def send(op: SplitKind, payload: bytes = b"", client: int = link.peer, send: Any = link.send) -> None:
                down.append((client, op, payload))
                send(op, payload)

            link.send = send  # type: ignore[method-assign]
        built = STRATEGIES.build(strategy)
        with BUILDING:
            trainer = place(
                task,
                said,
                rows=built.rows(K),
                clients=partial(RemoteClients, connections=hosts.connections, run=0, timeout=timeout),
            )
        lines: list[dict[str, Any]] = []
        arena = Arena(trainer.module, 1, torch.device("cpu"), torch.float32, gradients=False)
        loop = EpochLoop(trainer, built.split(trainer), arena, SingleProcess(), Budget(said.epochs, 1), lines.append)
        if state is not None:
            loop.load_state_dict(state)
        kept: list[Any] = []
        try:
            ended = loop.run(
                lambda steps: PaceAction.STOP if loop.progress.step == stop else PaceAction.GO_ON,
                lambda: kept.append(copy.deepcopy(loop.state_dict())),
            )
        finally:
            for link in hosts.connections.values():
                link.finish()
        assert ended == (stop is None)
        for thread in hosts.threads:
            thread.join(GIVEN_UP)
        assert not any(thread.is_alive() for thread in hosts.threads)
        return SimpleNamespace(
            lines=lines,
            trainer=trainer,
            loop=loop,
            failures=hosts.failures,
            up=up,
            down=down,
            state=kept[0] if kept else None,
        )

    return make


def close(value: Any) -> Any:
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def of(run: SimpleNamespace, kind: str) -> list[dict[str, Any]]:
    return [line for line in run.lines if line["kind"] == kind]


def samples_used(run: SimpleNamespace) -> list[int]:
    """Samples that each epoch was trained on."""
    steps = of(run, "step")
    return np.bincount([one["epoch"] for one in steps], [one["size"] for one in steps])[1:].astype(int).tolist()


EVERY = [
    "psl",
    "psl:copies=true",
    "psl:sampler=lds,uplink=q8,downlink=bf16",
    "psl:sampler=fls",
    "psl:labels=clients",
    "psl:labels=clients,sampler=lds,delays=measured,uplink=bf16",
    "splitfed",
    "splitfed:version=2,labels=clients",
]


@pytest.mark.parametrize("strategy", [*EVERY, "centralised"])
def test_connected_clients_train_as_simulated_ones(federate, blobs, strategy):
    """Line by line of the history: losses to 1e-5, and bytes, batches, virtual time exactly."""
    run = federate(strategy, delays="stragglers:spread=0.3,jitter=0.2")
    lines = in_one_process(blobs, strategy, run.trainer.settings)
    assert len(run.lines) == len(lines)
    for one, other in zip(run.lines, lines, strict=True):
        assert one == {key: close(value) for key, value in other.items()}
    assert samples_used(run) == [90, 90, 90]
    assert not run.failures


@pytest.mark.parametrize("strategy", EVERY)
def test_the_ledger_has_every_byte_that_crosses(federate, strategy):
    """All messages but the one that opens a run, which also says where it is to go on."""
    run = federate(strategy)
    ledger, sent, received = run.trainer.ledger, np.zeros(K, np.int64), np.zeros(K, np.int64)
    for client, _, payload in run.up:
        sent[client] += len(payload)
    for client, op, payload in run.down:
        received[client] += len(payload) if op is not SplitKind.OPEN else 0
    opened = message_bytes(4 * run.trainer.bottoms.numel)
    assert sum(ledger.sent.values()).tolist() == sent.tolist()
    assert (sum(ledger.received.values()) - opened).tolist() == received.tolist()


# 1. Labels that stay, and delays that are told


@pytest.mark.parametrize("strategy", ["psl:labels=clients", "splitfed:labels=clients"])
def test_no_label_leaves_its_client(federate, strategy):
    run = federate(strategy, epochs=1)
    assert len(run.up) > 3 * K
    assert not any("label" in kinds_of(payload) for _, _, payload in run.up)


def test_the_mean_is_over_those_whose_loss_has_come(federate, blobs):
    """One batch of all samples; client 2 spoils its answer to the outputs: the step is SGD on what the others have."""
    run = federate("psl:labels=clients", spoiled(2, SplitKind.OUTPUT_DELTA, truncated), epochs=1, batch_size=90)
    assert list(run.trainer.lost) == [2]
    rest = np.concatenate([part for client, part in enumerate(run.trainer.parts) if client != 2])
    module = Task(blobs, MODEL).module(0)
    inputs, labels = blobs.train.batch(rest)
    loss = torch.nn.functional.cross_entropy(module(inputs), labels)
    loss.backward()
    expected = torch.cat([(one - 0.1 * one.grad).flatten() for one in module.parameters()])
    trained = torch.nn.utils.parameters_to_vector(run.loop.evaluated().parameters())
    assert trained.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    (evaluation,) = of(run, "evaluation")
    assert evaluation["train_loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert [step["size"] for step in of(run, "step")] == [len(rest)]


@pytest.mark.parametrize("delays", ["known", "measured"])
def test_lds_goes_by_what_clients_tell(federate, delays):
    """One says a hundred seconds, whatever is true, and weighs most, if others have told anything at all."""

    def slow(client: int, op: SplitKind, payload: bytes, send: Any) -> None:
        send(op, pack_seconds(100.0) if (client, op) == (1, SplitKind.DELAY) else payload)

    strategy = f"psl:sampler=lds,strength=1,delays={delays}"
    told, silent = (of(federate(strategy, spoil, epochs=2), "schedule") for spoil in (slow, faithful))
    assert told[-1]["pi"][1] == max(told[-1]["pi"]) > silent[-1]["pi"][1] + 0.2


def test_delays_travel_once_per_schedule(federate):
    run = federate("psl:sampler=lds")
    assert [op for client, op, _ in run.up if client == 3 and op in (SplitKind.SIZES, SplitKind.DELAY)] == [
        SplitKind.SIZES
    ] + 3 * [SplitKind.DELAY]


@pytest.mark.parametrize("seconds", [-1.0, np.inf, -np.inf])
def test_a_delay_that_is_none_costs_its_sender(federate, seconds):
    def spoil(client: int, op: SplitKind, payload: bytes, send: Any) -> None:
        send(op, pack_seconds(seconds) if (client, op) == (1, SplitKind.DELAY) else payload)

    (lost,) = of(federate("psl:sampler=lds", spoil), "lost")
    assert (lost["client"], lost["reason"]) == (1, f"payload: a delay of {seconds:g} seconds")


def test_labels_that_cannot_be_its_own_cost_their_sender(federate):
    """Else what LDS believes to be left of a class would fall below nothing."""

    def spoil(client: int, op: SplitKind, payload: bytes, send: Any) -> None:
        if (client, op) == (2, SplitKind.ACTIVATIONS):
            numbers, labels = unpack_parcel(payload, len(payload))
            payload = pack_parcel([numbers, labels._replace(body=bytes(len(labels.body)))])
        send(op, payload)

    run = federate("psl:sampler=lds", spoil)
    (lost,) = of(run, "lost")
    assert (lost["client"], lost["reason"]) == (2, "payload: labels of more samples of a class than it has")
    assert samples_used(run)[-1] == 90 - run.trainer.samples[2]


# 2. Stopped, and resumed with other processes


@pytest.mark.parametrize("strategy", ["psl", "psl:sampler=lds,delays=measured", "psl:labels=clients", "splitfed"])
@pytest.mark.parametrize("place", ["at the boundary of two epochs", "in mid-epoch", "before the last step of an epoch"])
def test_resumed_with_the_same_bits(federate, strategy, place):
    options = {"delays": "constant:jitter=0.5", "optimizer": "adam:lr=0.02"}
    whole = federate(strategy, **options)
    epoch = [step["step"] for step in of(whole, "step") if step["epoch"] == 1]
    stop = epoch[{"at": -1, "in": 2, "before": -2}[place.split()[0]]]
    begun = federate(strategy, stop=stop, **options)
    assert begun.trainer.left.any() == (stop != epoch[-1])
    ended = federate(strategy, state=begun.state, **options)
    assert begun.lines + ended.lines == whole.lines
    for one, other in zip(*(run.loop.evaluated().state_dict().values() for run in (ended, whole)), strict=True):
        assert torch.equal(one, other)
    for one, other in (
        (ended.trainer.ledger.sent, whole.trainer.ledger.sent),
        (ended.trainer.ledger.moved, whole.trainer.ledger.moved),
    ):
        assert str(one) == str(other)


# 3. Clients that fail


def breaking(client: int, after: int, how: Callable[[SplitKind, bytes, Any], None]) -> Any:
    """One client answers `after` times as it should."""
    count = 0

    def spoil(number: int, op: SplitKind, payload: bytes, send: Any) -> None:
        nonlocal count
        count += number == client
        if number == client and count > after:
            how(op, payload, send)
        else:
            send(op, payload)

    return spoil


def flipped(op: SplitKind, payload: bytes, send: Any) -> None:
    send(op, payload[:-1] + bytes((payload[-1] ^ 1,)))


def truncated(op: SplitKind, payload: bytes, send: Any) -> None:
    send(op, pack_parcel([MessageSection("activation", b"1234", 0)]))


def wrong(op: SplitKind, payload: bytes, send: Any) -> None:
    send(SplitKind.SIZES, payload)


def huge(op: SplitKind, payload: bytes, send: Any) -> None:
    send(op, payload[:8] + struct.pack("<Q", 1 << 50) + payload[16:])


def nonsense(op: SplitKind, payload: bytes, send: Any) -> None:
    send(77, payload)


def spoiled(client: int, at: SplitKind, how: Callable[[SplitKind, bytes, Any], None]) -> Any:
    """One client spoils its first answer of a kind."""

    def spoil(number: int, op: SplitKind, payload: bytes, send: Any) -> None:
        how(op, payload, send) if (number, op) == (client, at) else send(op, payload)

    return spoil


@pytest.mark.parametrize("how", [flipped, truncated, wrong, huge, nonsense])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_bad_message_costs_its_sender(federate, how, after):
    """After 1 answer (its sizes) it spoils activations, after 2 a gradient; the others train on with their samples."""
    run = federate(spoil=breaking(2, after, how))
    survived(run)


@pytest.mark.parametrize("how", [flipped, truncated, huge])
@pytest.mark.parametrize(
    ("strategy", "at"),
    [
        ("psl", SplitKind.SIZES),
        ("psl:sampler=lds", SplitKind.DELAY),
        ("psl:labels=clients", SplitKind.OUTPUT_DELTA),
        ("splitfed:labels=clients", SplitKind.OUTPUT_DELTA),
        ("splitfed:version=2", SplitKind.ACTIVATIONS),
        ("splitfed", SplitKind.BOTTOM),
    ],
)
def test_whatever_it_spoils_costs_its_sender(federate, how, strategy, at):
    survived(federate(strategy, spoiled(2, at, how)))


def survived(run: SimpleNamespace) -> None:
    """Client 2 is lost and named, and the others have trained on with what they have."""
    (lost,) = of(run, "lost")
    assert lost["client"] == 2
    assert list(run.trainer.lost) == [2]
    held = run.trainer.samples
    assert samples_used(run)[-1] == held.sum() - held[2]
    assert all(one <= 90 for one in samples_used(run))
    assert of(run, "evaluation")[-1]["epochs"] == 3
    assert np.isfinite(of(run, "evaluation")[-1]["loss"])


def test_a_client_that_goes_takes_nobody_of_its_process_along(federate):
    """Client 1 closes its connection when it should answer, and 0, in the same process, goes on."""

    def hangs_up(op: SplitKind, payload: bytes, send: Any) -> None:
        send.__self__.close()
        send(op, payload)

    run = federate("psl:labels=clients", spoiled(1, SplitKind.OUTPUT_DELTA, hangs_up))
    assert list(run.trainer.lost) == [1]
    assert samples_used(run)[-1] == 90 - run.trainer.samples[1]
    (failure,) = run.failures
    assert "client 1: lost the server" in str(failure)


def test_a_client_that_says_nothing_is_given_up(federate):
    run = federate(spoil=breaking(1, 4, lambda op, payload, send: None), timeout=5)
    (lost,) = of(run, "lost")
    assert (lost["client"], lost["reason"]) == (1, "it has not answered for 5 s")


def test_all_clients_lost_is_an_end_with_a_reason(federate):
    def spoil(client: int, op: SplitKind, payload: bytes, send: Any) -> None:
        send(op if op is SplitKind.SIZES else SplitKind.SIZES, payload)

    with pytest.raises(SparsyncError, match=r"all clients are lost, the last was \d: .*; start them again, and resume"):
        federate(spoil=spoil)


def test_a_late_client_is_left_out_of_the_step_and_comes_back(federate):
    """It answers its first question only when the server has gone on to the next step, without it."""
    answered: set[int] = set()
    next_step = threading.Event()

    def spoil(client: int, op: SplitKind, payload: bytes, send: Any) -> None:
        if op is SplitKind.ACTIVATIONS and client == 3:
            assert next_step.wait(GIVEN_UP)
        elif op is SplitKind.ACTIVATIONS:
            if client in answered:
                next_step.set()
            answered.add(client)
        send(op, payload)

    run = federate(spoil=spoil, deadline=1.0)
    assert any(3 in step.get("late", ()) for step in of(run, "step"))
    assert not run.trainer.lost
    assert samples_used(run) == [90, 90, 90]


def test_clients_that_do_not_come_are_named():
    with pytest.raises(SparsyncError, match=r"client 1 has not connected within 0\.1 s; start all processes"):
        ServerRendezvous().gather([1, 2], timeout=0.1)


def test_a_server_that_cannot_be_reached_is_named():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionLost, match=f"client 3 cannot reach its server: nothing answers at 127.0.0.1:{port}"):
        connect_client(("127.0.0.1", port), bytes(16), 3, queue.Queue(), 1.0)
