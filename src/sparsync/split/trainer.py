"""The trainer of a cut model: the server with the top half, and its `SplitClients`, each with a bottom and samples.

The protocol is written here, wherever the clients are. What is sent is booked and timed message by message, and what a
codec loses is lost; between processes everything is encoded, in one process only what would not arrive as it was sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparsync.errors import DivergedError, PayloadError, SparsyncError, UsageError
from sparsync.randomness import SHARED, generator, torch_seed
from sparsync.split.batch import BatchComposition, CutTensors, NoClientAnswered
from sparsync.split.channel import Channel, Delivery, message_bytes
from sparsync.split.clients import LocalSplitClients, SplitClients
from sparsync.split.costs import SplitCosts, StepTimes
from sparsync.split.cut import Cut
from sparsync.split.model_part import ModelPart
from sparsync.split.schedule import Floats, Ints, Schedule, check, joined
from sparsync.split.settings import SplitSettings
from sparsync.system import DELAYS, Profile
from sparsync.task import Task, counts, total_flops
from sparsync.wire import HEADER_BYTES, Chain
from sparsync.workers import SCHEDULES

Labels = Literal["server", "clients"]

_START = HEADER_BYTES + 8  # a step's number


class SplitTrainer:
    """One model in two halves, all clients with their samples, and what passes between them.

    Parameters
    ----------
    task : Task
        Data, model and loss.
    module : nn.Module
        The whole model, whose layers the halves share.
    cut : Cut
        The halves.
    parts : sequence of int64 arrays, (K,)
        Every client's samples.
    settings : SplitSettings
        What all split strategies have in common.
    rows : (int, int)
        How many different bottoms and tops there are: 1 of what is equal everywhere, or one per client.
    seed : int
        Seed of the run.
    profile : Profile
        Devices and links. Its `step_seconds` are those of `batch_size` samples through the whole model.
    batch_size : int
        See there.
    device, dtype
        Of the model.
    clients : callable
        From this trainer to the port through which it reaches its clients. Default: they are in this process.

    Raises
    ------
    UsageError
        If a client has no sample, a batch is larger than all they have, or the model cannot be trained on batches
        that would have a single sample.

    Attributes
    ----------
    behaviour : Habits
        What the model does in training mode.
    samples, left : array of int64, (K,)
        What each client holds, and has not yet been asked for in this epoch.
    histograms : array of int64, (K, M)
        What it holds of each class.
    delays : Delays
        How long each takes to answer.
    measured : array of float64, (K,)
        What the server has seen of it: a moving mean of weight 0.5; NaN of who has not been asked yet.
    times : StepTimes
        Of the current step.
    late : array of int64
        Clients that were asked in it and left out.
    lost : dict of int to str
        Clients that have been given up, and why: only where they are processes of their own.
    batch_classes : array of int64, (M,)
        Samples of each class in it.
    port : SplitClients
        Through which the trainer reaches its clients.
    notes : dict
        What the strategy would like the history to have of the schedule that it has just composed.
    step, epoch : int
        Of the run, from 0.
    """

    def __init__(
        self,
        task: Task,
        module: nn.Module,
        cut: Cut,
        parts: Sequence[Ints],
        settings: SplitSettings,
        *,
        rows: tuple[int, int] = (1, 1),
        seed: int = 0,
        profile: Profile | None = None,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        clients: Callable[[SplitTrainer], SplitClients] = LocalSplitClients,
    ) -> None:
        self.task, self.module, self.cut, self.parts, self.settings, self.seed = (
            task,
            module,
            cut,
            parts,
            settings,
            seed,
        )
        self.device, self.dtype = torch.device(device), dtype
        self.samples = np.array([len(part) for part in parts], np.int64)
        check(self.samples, settings.batch_size)
        self.histograms = counts(parts, task.dataset.train.labels.numpy(), task.dataset.classes)
        self.delays = DELAYS.build(settings.delays, len(parts), seed)
        self.behaviour = task.behaviour(module)
        self.behaviour.check_batches("client", [int(self.samples.sum())], settings.batch_size)
        self.check_bottom(pieces=rows[0] > 1 or self.behaviour.stochastic)
        flops = total_flops(module, task.dataset.shape)
        share = total_flops(cut.bottom, task.dataset.shape) / flops if flops else 0.5
        self.costs = SplitCosts(profile or Profile(), batch_size, share, len(parts), seed)
        self.ledger, self.clock = self.costs.ledger, self.costs.clock
        self.bottoms = ModelPart(cut.bottom, rows[0], settings.optimizer, self.device, dtype)
        self.tops = ModelPart(cut.top, rows[1], settings.optimizer, self.device, dtype)
        self.factor = SCHEDULES.build(settings.schedule)
        self.configure(None, None, "server")
        self.apart = False
        self.everyone = np.arange(len(parts), dtype=np.int64)
        self.step = self.epoch = 0
        self.left = self.samples.copy()
        self.measured = np.full(len(parts), np.nan)
        self._orders: dict[int, Ints] = {}
        self.times = StepTimes(np.zeros(0), np.zeros(0))
        self.late = self.everyone[:0]
        self.lost: dict[int, str] = {}
        self.notes: dict[str, Any] = {}
        self.batch_classes = np.zeros_like(self.histograms[0])
        self.port = clients(self)

    @property
    def clients(self) -> int:
        """Number of clients, K."""
        return len(self.samples)

    def configure(self, uplink: Chain | None, downlink: Chain | None, labels: Labels) -> None:
        """Say how activations and their gradients travel, and where labels are."""
        classes = self.task.dataset.classes
        self.up = Channel("activation", uplink, classes)
        self.down = Channel("gradient", downlink, classes)
        self.labels = labels

    # One epoch

    def begin_epoch(self) -> None:
        """All samples are to be used again, in a new order on every client."""
        self.left = self.samples.copy()
        self.left[list(self.lost)] = 0
        self._orders.clear()
        self.port.begin_epoch()

    def open(self, *, histograms: bool = False, apart: bool = False) -> None:
        """A run begins: every client receives its bottom, and says how much data it has, perhaps of which classes.

        With `apart` it then trains its bottom on its own; else all bottoms stay equal.
        """
        self.apart = apart
        arena = self.bottoms.arena
        model = (arena.params.shape[1] + arena.buffers.shape[1]) * arena.params.element_size()
        classes = self.histograms.shape[1] if histograms else 0
        self.costs.down("model", self.everyone, message_bytes(model))
        self.costs.up("control", self.everyone, message_bytes(8 * (1 + classes)))
        self.ledger.book_paper("model", 4 * self.clients * self.bottoms.numel)
        self.port.open(histograms=histograms)

    def reported(self, *, measured: bool) -> Floats:
        """Every client says how long it takes to answer, (K,): as is known of it, or as has been measured.

        NaN of who has not been asked yet.
        """
        self.costs.up("control", self.everyone, message_bytes(8))
        return self.port.delays(measured=measured)

    def compose(self, schedule: Schedule) -> Schedule:
        """Return a schedule without batches of one sample, if the model cannot be trained on these."""
        return schedule if self.behaviour.lonely is None else joined(schedule, apart=self.apart)

    def announce(self, schedule: Schedule) -> Schedule:
        """Every client receives its column: all sizes, or pairs of step and size if that is shorter."""
        entries = np.bincount(schedule.indices, minlength=self.clients)[self.everyone]
        self.costs.down("control", self.everyone, message_bytes(4 * np.minimum(schedule.shape[0], 2 * entries)))
        self.port.schedule(schedule)
        return schedule

    def resume(self, schedule: Schedule) -> None:
        """Go on in an epoch, of whose schedule so much is left, which clients have forgotten."""
        self.port.schedule(schedule)

    def next_indices(self, client: int, size: int) -> Ints:
        """Take a client's next samples of this epoch, (size,)."""
        used = int(self.samples[client] - self.left[client])
        self.left[client] -= size
        return self._order(client)[used : used + size]

    def _order(self, client: int) -> Ints:
        if client not in self._orders:
            rng = generator(self.seed, "split-batches", client, self.epoch)
            self._orders[client] = rng.permutation(self.parts[client])
        return self._orders[client]

    def histograms_left(self) -> Ints:
        """Of each class, the samples that each client has not been asked for, (K, M), as far as the server can know.

        If labels stay with the clients, that is the same part of each class.
        """
        if self.labels == "clients":
            return np.stack([_portion(own, left) for own, left in zip(self.histograms, self.left, strict=True)])
        return self.histograms - self.port.labels_seen()

    def labels_used(self) -> Ints:
        """Return the labels of the samples that have been used in this epoch, (K, M) by client and class."""
        labels, classes = self.task.dataset.train.labels.numpy(), self.task.dataset.classes
        table = np.zeros_like(self.histograms)
        for client in np.flatnonzero(self.left < self.samples):
            used = self._order(int(client))[: self.samples[client] - self.left[client]]
            table[client] = np.bincount(labels[used], minlength=classes)
        return table

    # One step

    def ask(self, row: BatchComposition) -> BatchComposition:
        """Ask clients for samples, and return the row of those who contribute; the others are noted as `late`."""
        row = row.only(np.isin(row.clients, self.everyone))
        if not len(row.clients):
            raise self.unanswered()
        started = self.costs.down("control", row.clients, _START)
        in_time, waited = self.port.ask(row, self.measure(row))
        self.late = row.clients[~in_time]
        if not in_time.any():
            raise self.unanswered()
        self.times = StepTimes(waited + started[in_time], np.zeros(len(waited)))
        return row.only(in_time)

    def unanswered(self) -> SparsyncError:
        """Return the error of a step without any client."""
        if len(self.everyone):
            return NoClientAnswered("none of the clients that were asked has answered")
        client, reason = list(self.lost.items())[-1]
        return SparsyncError(f"all clients are lost, the last was {client}: {reason}; start them again, and resume")

    def lose(self, client: int, reason: str) -> None:
        """Train on without a client, and without its samples."""
        self.lost[client] = reason
        self.left[client] = 0
        self.everyone = self.everyone[self.everyone != client]

    def measure(self, row: BatchComposition) -> Floats:
        """Seconds until clients have computed, (n,), which become part of their means."""
        seconds: Floats = self.delays.draw(self.step)[row.clients] + self.costs.forward(row.clients, row.sizes)
        before = self.measured[row.clients]
        self.measured[row.clients] = np.where(np.isnan(before), seconds, (before + seconds) / 2)
        return seconds

    def forward(self, row: BatchComposition) -> CutTensors:
        """Clients run their next samples through their bottoms, and send activations and labels."""
        cut_tensors, delivery = self.port.activations(row)
        self.times.up += self.costs.delivered(delivery, row.clients, up=True)
        self.batch_classes = self._count(cut_tensors.labels)
        return cut_tensors

    def take(self, row: BatchComposition) -> tuple[Tensor, Tensor]:
        """Return the clients' next samples, by increasing client: inputs and labels."""
        indices = [self.next_indices(int(k), int(n)) for k, n in zip(row.clients, row.sizes, strict=True)]
        return self.task.dataset.train.batch(np.concatenate(indices), self.dtype, self.device)

    def _count(self, labels: Tensor) -> Ints:
        return np.bincount(labels.cpu().numpy(), minlength=self.task.dataset.classes)

    def bottom(self, client: int, row: int, inputs: Tensor) -> Tensor:
        """Run a client's samples through the bottom in a row."""
        self._seed(client)
        output: Tensor = self.bottoms.bind(row)(inputs)
        return output

    def top(self, cut_tensors: CutTensors, client: int = 0) -> float:
        """The server runs what has arrived through its top (or that of a client): loss, and gradients down to the cut.

        Raises
        ------
        DivergedError
            If the loss is not finite.
        """
        row = cut_tensors.row
        self._seed(SHARED, client)
        outputs = self._run(self.tops.bind(client), cut_tensors.arrived)
        self.tops.grads[self.tops.of(client)].zero_()
        value = self._learn(cut_tensors, outputs)
        self.times.server += self.costs.top(row.total)
        if self.labels == "clients":  # outputs go down, and their gradients up: the loss is the clients' to compute
            each = message_bytes(outputs[0].numel() * outputs.element_size() * row.sizes)
            took = self.costs.down("activation", row.clients, each) + self.costs.up("gradient", row.clients, each)
            self.times.up[cut_tensors.at] += took
            self.ledger.book_paper("activation", 4 * outputs.numel())
            self.ledger.book_paper("gradient", 4 * outputs.numel())
        return value

    def _learn(self, cut_tensors: CutTensors, outputs: Tensor) -> float:
        """Return the mean loss of the top's outputs, whose gradient goes back through the top.

        Where labels stay with the clients, each brings the gradient of its loss; the mean is over those who do.
        """
        loss = self.task.loss(outputs, cut_tensors.labels)
        if self.labels == "server":
            return self._backward(loss)
        value = self._finite(loss)  # else clients would be blamed for what they answer
        gradient, answered = self.port.output_gradient(cut_tensors, outputs)
        if not answered.any():
            raise self.unanswered()
        outputs.backward(gradient)  # type: ignore[no-untyped-call]
        if answered.all():
            return value
        self.batch_classes -= self._count(cut_tensors.labels[~answered])
        return self.task.loss(outputs[answered], cut_tensors.labels[answered]).item()

    def _backward(self, loss: Tensor) -> float:
        value = self._finite(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        return value

    def _finite(self, loss: Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"step {self.step + 1}: the loss is {value}; lower the learning rate")
        return value

    def backward(self, cut_tensors: CutTensors) -> None:
        """The activations' gradients go down, and through the bottoms into the gradients of their rows."""
        row = cut_tensors.row
        self.times.back += self.costs.delivered(self.port.deltas(cut_tensors), row.clients, up=False)
        self.times.back += self.costs.backward(row.clients, row.sizes)

    def share_gradient(self, row: BatchComposition) -> None:
        """The bottoms' gradients go up, and their plain sum, by increasing client, down to all clients."""
        self.port.sum_gradients(row)
        size = message_bytes(self.bottoms.numel * self.bottoms.grads.element_size())
        self.times.back += self.costs.up("gradient", row.clients, size)
        self.times.down += float(self.costs.down("gradient", self.everyone, size).max(initial=0.0))
        self.ledger.book_paper("gradient", 4 * (len(row.clients) + len(self.everyone)) * self.bottoms.numel)
        self.port.send_sum()

    def update(self, bottoms: Iterable[int] | None = None, tops: Iterable[int] | None = None) -> None:
        """Everyone takes an optimiser step, or only some bottoms and tops."""
        factor = self.factor(self.step)
        self.port.step(factor, bottoms)
        self.tops.step(factor, tops)

    def average_bottoms(self) -> None:
        """Clients send their bottoms, and receive the mean weighted by their samples."""
        self.port.fetch_bottoms()
        if not len(self.everyone):
            raise self.unanswered()
        arena = self.bottoms.arena
        size = message_bytes((arena.params.shape[1] + arena.buffers.shape[1]) * arena.params.element_size())
        took = [there("model", self.everyone, size).max(initial=0.0) for there in (self.costs.up, self.costs.down)]
        self.ledger.book_paper("model", 2 * 4 * self.clients * self.bottoms.numel)
        self.clock.advance(float(sum(took)))
        self.bottoms.average(self._weights())
        self.port.send_bottom()

    def average_tops(self) -> None:
        """The server averages the tops that it holds."""
        self.tops.average(self._weights())

    def _weights(self) -> Tensor:
        """The clients' samples; none of who is lost."""
        return torch.from_numpy(np.where(np.isin(np.arange(self.clients), self.everyone), self.samples, 0))

    def train(self, row: BatchComposition) -> float:
        """Take a step on the samples of a row in one place: nothing is cut, and nothing sent.

        Raises
        ------
        DivergedError
            If the loss is not finite.
        """
        inputs, labels = self.take(row)
        self.batch_classes = self._count(labels)
        self.bottoms.grads.zero_()
        self.tops.grads.zero_()
        self._seed(SHARED)
        value = self._backward(self.task.loss(self._run(self.whole(), inputs), labels))
        self.update()
        self.late = row.clients[:0]
        self.times = StepTimes(np.zeros(0), np.zeros(0), server=self.costs.whole(row.total))
        return value

    # Of several of these

    def check_bottom(self, *, pieces: bool) -> None:
        """Refuse a bottom that cannot be trained on one sample, where it will be run on `pieces`, one client's each.

        Raises
        ------
        UsageError
            If so.
        """
        if pieces and self.behaviour.lonely is not None:
            why = self.task.lonely(self.cut.bottom)
            if why is not None:
                raise UsageError(
                    f"the bottom cannot be run on a single sample ({why}), which may be all that a client contributes "
                    "to a batch; cut the model before that layer"
                )

    def carry(
        self, channel: Channel, x: Tensor, row: BatchComposition, labels: Tensor | None
    ) -> tuple[Tensor, Delivery]:
        """Send every client's share of `x` up or down without a network; return what arrives, and what that costs."""
        try:
            return channel.carry(x, row.sizes, labels, lambda i: self.message_rng(channel, int(row.clients[i])))
        except PayloadError:  # the message is our own: what it carries is at fault
            raise DivergedError(
                f"step {self.step + 1}: {channel.kind}s at the cut are not finite as {channel.chain} carries them; "
                "lower the learning rate"
            ) from None

    def message_rng(self, channel: Channel, client: int) -> np.random.Generator:
        """Return the generator of a stochastic codec for a client's message of this step."""
        return generator(self.seed, f"split-{channel.kind}", client, self.step)

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        try:
            outputs: Tensor = module(x)
        except ValueError as error:
            if len(x) > 1:
                raise
            raise UsageError(
                f"step {self.step + 1}: a batch of one sample, which the model cannot train on ({error}); "
                "use another sampler or batch_size, or a model without BatchNorm there"
            ) from None
        return outputs

    # Around the steps

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training mode; whatever dropout draws meanwhile, the global generator is put back."""
        self.module.train()
        before = self._generator.get_state() if self.behaviour.stochastic else None
        try:
            yield
        finally:
            if before is not None:
                self._generator.set_state(before)

    def _seed(self, client: int, *served: int) -> None:
        """Dropout draws from a stream of the client (or the server and whom it serves) and the step."""
        if self.behaviour.stochastic:
            self._generator.manual_seed(torch_seed(self.seed, "forward", client, self.step, *served))

    @property
    def _generator(self) -> torch.Generator:
        """Where dropout draws from."""
        if self.device.type == "cuda":
            return torch.cuda.default_generators[self.device.index or 0]
        return torch.default_generator

    def whole(self) -> nn.Module:
        """Return the whole model, with the first bottom and the first top."""
        self.bottoms.bind(0)
        self.tops.bind(0)
        return self.module

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run, for a checkpoint."""
        self.port.fetch_state()
        return {
            "bottoms": self.bottoms.state_dict(),
            "tops": self.tops.state_dict(),
            "ledger": self.ledger.state_dict(),
            "clock": self.clock.state_dict(),
            "left": torch.from_numpy(self.left.copy()),
            "measured": torch.from_numpy(self.measured.copy()),
            "step": self.step,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.bottoms.load_state_dict(state["bottoms"])
        self.tops.load_state_dict(state["tops"])
        self.ledger.load_state_dict(state["ledger"])
        self.clock.load_state_dict(state["clock"])
        self.left, self.measured = state["left"].numpy().copy(), state["measured"].numpy().copy()
        self.step, self.epoch = state["step"], state["epoch"]
        self._orders.clear()
        self.left[list(self.lost)] = 0
        self.port.restore()


def _portion(held: Ints, left: int) -> Ints:
    """So many samples with as nearly as can be the mix of those that are held, (M,)."""
    wanted, total = held * left, held.sum()
    portion: Ints = wanted // total
    portion[np.argsort(-(wanted % total), kind="stable")[: left - portion.sum()]] += 1
    return portion
