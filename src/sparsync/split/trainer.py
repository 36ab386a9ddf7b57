"""Where a step of split learning happens: the server with the top half, every client with a bottom and its own samples.

In one process. What is sent is booked and timed message by message, and what a codec loses is lost; only what would
arrive as it was sent is handed over without being encoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparsync.errors import DivergedError, PayloadError, UsageError
from sparsync.randomness import SHARED, generator, torch_seed
from sparsync.split.batch import BatchComposition, CutTensors
from sparsync.split.channel import Channel, message_bytes
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
        self._check_bottom(pieces=rows[0] > 1 or self.behaviour.stochastic)
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
        self.deadline = settings.deadline
        self.late = self.everyone[:0]
        self.lost: dict[int, str] = {}
        self.notes: dict[str, Any] = {}
        self.batch_classes = np.zeros_like(self.histograms[0])

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
        self._orders.clear()

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

    def reported(self, *, measured: bool) -> Floats:
        """Every client says how long it takes to answer, (K,): as is known of it, or as has been measured.

        NaN of who has not been asked yet.
        """
        self.costs.up("control", self.everyone, message_bytes(8))
        return self.measured if measured else self.delays.typical

    def compose(self, schedule: Schedule) -> Schedule:
        """Return a schedule without batches of one sample, if the model cannot be trained on these."""
        return schedule if self.behaviour.lonely is None else joined(schedule, apart=self.apart)

    def announce(self, schedule: Schedule) -> Schedule:
        """Every client receives its column: all sizes, or pairs of step and size if that is shorter."""
        entries = np.bincount(schedule.indices, minlength=self.clients)[self.everyone]
        self.costs.down("control", self.everyone, message_bytes(4 * np.minimum(schedule.shape[0], 2 * entries)))
        return schedule

    def resume(self, schedule: Schedule) -> None:
        """Go on in an epoch, of whose schedule so much is left: here nobody has to be told."""

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
        labels, classes = self.task.dataset.train.labels.numpy(), self.task.dataset.classes
        table = self.histograms.copy()
        for client in np.flatnonzero(self.left < self.samples):
            used = self._order(int(client))[: self.samples[client] - self.left[client]]
            table[client] -= np.bincount(labels[used], minlength=classes)
        return table

    # One step

    def ask(self, row: BatchComposition) -> BatchComposition:
        """Ask clients for samples, and return the row without those that will not have computed by the deadline.

        They are noted as `late`. If nobody would, the quickest is waited for: in the end every sample is used. So are
        all, where a single sample would be left that the model cannot be trained on.
        """
        started = self.costs.down("control", row.clients, _START)
        seconds = self.measure(row)
        deadline = self.deadline or math.inf
        in_time = seconds <= max(deadline, seconds.min())
        total = int(row.sizes[in_time].sum())
        if self.behaviour.lonely is not None and 1 in (total, int(self.left.sum()) - total):  # nor now, nor ever after
            in_time[:] = True
        chosen = row.only(in_time)
        self.late = row.clients[~in_time]
        waited = seconds[in_time] if in_time.all() else np.maximum(seconds[in_time], deadline)
        self.times = StepTimes(waited + started[in_time], np.zeros(len(chosen.clients)))
        return chosen

    def measure(self, row: BatchComposition) -> Floats:
        """Seconds until clients have computed, (n,), which become part of their means."""
        seconds: Floats = self.delays.draw(self.step)[row.clients] + self.costs.forward(row.clients, row.sizes)
        before = self.measured[row.clients]
        self.measured[row.clients] = np.where(np.isnan(before), seconds, (before + seconds) / 2)
        return seconds

    def forward(self, row: BatchComposition) -> CutTensors:
        """Clients run their next samples through their bottoms, and send activations and labels."""
        inputs, labels = self._take(row)
        self.bottoms.grads.zero_()
        if self.bottoms.rows == 1 and not self.behaviour.stochastic:
            outputs = [self.bottoms.bind(0)(inputs)]
        else:
            pieces = zip(row.clients.tolist(), inputs.split_with_sizes(row.sizes.tolist()), strict=True)
            outputs = [self.bottom(client, client, piece) for client, piece in pieces]
        whole = torch.cat([output.detach() for output in outputs])
        arrived, took = self._carry(self.up, whole, row, labels if self.labels == "server" else None)
        self.times.up += took
        return CutTensors(row, outputs, arrived.requires_grad_(), labels)

    def _take(self, row: BatchComposition) -> tuple[Tensor, Tensor]:
        """The clients' next samples, by increasing client."""
        indices = [self.next_indices(int(k), int(n)) for k, n in zip(row.clients, row.sizes, strict=True)]
        inputs, labels = self.task.dataset.train.batch(np.concatenate(indices), self.dtype, self.device)
        self.batch_classes = np.bincount(labels.cpu().numpy(), minlength=self.task.dataset.classes)
        return inputs, labels

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
        value = self.learn(cut_tensors, outputs)
        self.times.server += self.costs.top(row.total)
        if self.labels == "clients":  # outputs go down, and their gradients up: the loss is the clients' to compute
            each = message_bytes(outputs[0].numel() * outputs.element_size() * row.sizes)
            took = self.costs.down("activation", row.clients, each) + self.costs.up("gradient", row.clients, each)
            self.times.up[cut_tensors.at] += took
            self.ledger.book_paper("activation", 4 * outputs.numel())
            self.ledger.book_paper("gradient", 4 * outputs.numel())
        return value

    def learn(self, cut_tensors: CutTensors, outputs: Tensor) -> float:
        """Return the mean loss of the top's outputs, whose gradient goes back through the top."""
        return self._backward(self.task.loss(outputs, cut_tensors.labels))

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
        row, delta = cut_tensors.row, cut_tensors.arrived.grad
        assert delta is not None  # the top's backward pass has been here
        arrived, took = self._carry(self.down, delta, row, None)
        self.times.back += took + self.costs.backward(row.clients, row.sizes)
        pieces = arrived.split_with_sizes([len(output) for output in cut_tensors.outputs])
        torch.autograd.backward(cut_tensors.outputs, list(pieces))

    def share_gradient(self, row: BatchComposition) -> None:
        """The bottoms' gradients go up, and their plain sum, by increasing client, down to all clients."""
        self.collect(row)
        size = message_bytes(self.bottoms.numel * self.bottoms.grads.element_size())
        self.times.back += self.costs.up("gradient", row.clients, size)
        self.times.down += float(self.costs.down("gradient", self.everyone, size).max(initial=0.0))
        self.ledger.book_paper("gradient", 4 * (len(row.clients) + len(self.everyone)) * self.bottoms.numel)

    def collect(self, row: BatchComposition) -> None:
        """The sum of the bottoms' gradients becomes that of all; one bottom that stands for all has it already."""
        grads = self.bottoms.grads
        if self.bottoms.rows > 1:
            grads[:] = grads[torch.from_numpy(row.clients)].sum(0)

    def update(self, bottoms: Iterable[int] | None = None, tops: Iterable[int] | None = None) -> None:
        """Everyone takes an optimiser step, or only some bottoms and tops."""
        factor = self.factor(self.step)
        self.bottoms.step(factor, bottoms)
        self.tops.step(factor, tops)

    def average_bottoms(self) -> None:
        """Clients send their bottoms, and receive the mean weighted by their samples."""
        arena = self.bottoms.arena
        size = message_bytes((arena.params.shape[1] + arena.buffers.shape[1]) * arena.params.element_size())
        took = [there("model", self.everyone, size).max(initial=0.0) for there in (self.costs.up, self.costs.down)]
        self.ledger.book_paper("model", 2 * 4 * self.clients * self.bottoms.numel)
        self.clock.advance(float(sum(took)))
        self.bottoms.average(self._weights())

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
        inputs, labels = self._take(row)
        self.bottoms.grads.zero_()
        self.tops.grads.zero_()
        self._seed(SHARED)
        value = self._backward(self.task.loss(self._run(self.whole(), inputs), labels))
        self.update()
        self.late = row.clients[:0]
        self.times = StepTimes(np.zeros(0), np.zeros(0), server=self.costs.whole(row.total))
        return value

    # Of several of these

    def _check_bottom(self, *, pieces: bool) -> None:
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

    def _carry(
        self, channel: Channel, x: Tensor, row: BatchComposition, labels: Tensor | None
    ) -> tuple[Tensor, Floats]:
        """Send every client's share of `x` up or down; return what arrives, and the seconds of each, (n,)."""

        def rng(i: int) -> np.random.Generator:
            return generator(self.seed, f"split-{channel.kind}", int(row.clients[i]), self.step)

        try:
            arrived, delivery = channel.carry(x, row.sizes, labels, rng)
        except PayloadError:  # the message is our own: what it carries is at fault
            raise DivergedError(
                f"step {self.step + 1}: {channel.kind}s at the cut are not finite as {channel.chain} carries them; "
                "lower the learning rate"
            ) from None
        return arrived, self.costs.delivered(delivery, row.clients, up=channel is self.up)

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


def _portion(held: Ints, left: int) -> Ints:
    """So many samples with as nearly as can be the mix of those that are held, (M,)."""
    wanted, total = held * left, held.sum()
    portion: Ints = wanted // total
    portion[np.argsort(-(wanted % total), kind="stable")[: left - portion.sum()]] += 1
    return portion
