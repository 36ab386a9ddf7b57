"""Parallel split learning is SGD on the pooled batch: docs/methods/psl.md 4.2, properties 1 and 5 to 7."""

from __future__ import annotations

import functools
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsync.errors import DivergedError, UsageError
from sparsync.split import BatchComposition
from sparsync.split.channel import Channel
from sparsync.system import Profile
from sparsync.task import Dataset, Task, from_arrays
from tolerance import Nudge, assert_alike, distance, exactly

SAMPLERS = ["ugs", "lds", "fls", "fpls"]
ROWS = [(3, 2, 4, 1, 2), (0, 0, 9, 0, 0), (1, 1, 0, 1, 0), (12, 7, 20, 1, 10)]
BOTH = pytest.mark.parametrize("copies", [False, True], ids=["one bottom", "every bottom"])


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    """Forty of 8x8, in three classes."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 1, 8, 8)).astype(np.float32), np.arange(40) % 3
    return from_arrays(x, y, x[:3], y[:3])


class Sum(Task):
    """Loss: the mean over samples of the sum of their outputs."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum(1).mean()


def lines(made: SimpleNamespace) -> nn.Module:
    row = nn.Sequential()
    row.add_module("w", nn.Linear(1, 1, bias=False))
    row.add_module("v", nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        row.w.weight.fill_(2)
        row.v.weight.copy_(torch.tensor([[1.0], [3.0]]))
    return row


# 1. An identity by hand


@BOTH
def test_gradients_of_three_parameters_are_summed_by_hand(make_split, copies):
    """Outputs v w x with w = 2, v = (1, 3); x = 1 on client 0 and 2, 6 on client 1, so their mean is 3.

    dL/dw = (1 + 3) 3 = 12, dL/dv = 2 * 3 = 6 each; a step of 0.1 leads to w = 0.8, v = (0.4, 2.4). An average over the
    two clients would give half of dL/dw, and w = 1.4; a mean of each client's own mean, 2.5, w = 1.
    """
    x = np.array([[1], [2], [6], [50]], np.float32)
    task = Sum(from_arrays(x, [0, 1, 0, 1], x, [0, 1, 0, 1]), lambda shape, classes: lines(None))
    made = make_split(f"psl:copies={copies}", task=task, sizes=(1, 2, 1), batch_size=3, optimizer="sgd:lr=0.1")
    assert made.step(1, 2, 0) == pytest.approx(2 * 3 * (1 + 3))
    assert made.trainer.bottoms.arena.params.tolist() == [[pytest.approx(0.8)]] * (3 if copies else 1)
    assert made.trainer.tops.arena.params.tolist() == [[pytest.approx(0.4), pytest.approx(2.4)]]


# 2. Property 5: centralised SGD on the concatenated batch


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_step_with_any_row_is_a_step_of_sgd(make_split, by_hand, row, dtype, copies):
    made = make_split(f"psl:copies={copies}", dtype=dtype, optimizer="sgd:lr=0.5")
    made.step(*row)
    assert [(client, len(indices)) for client, indices in made.used[0]] == [(k, n) for k, n in enumerate(row) if n]
    reached = made.trainer.whole().state_dict()
    assert_alike(reached, lambda nudge: by_hand(made, torch.optim.SGD, nudge, lr=0.5))
    assert distance(reached, made.first.state_dict()) > 0.01


@BOTH
def test_a_step_of_a_residual_network_whose_bottom_norms_were_replaced(make_split, by_hand, pictures, copies):
    task = Task(pictures, "resnet8:width=4")
    options = {"cut": "layer2", "bottom_norm": "group", "batch_size": 40, "optimizer": "sgd:lr=0.1"}
    made = make_split(f"psl:copies={copies}", task=task, sizes=(5, 15, 20), dtype=torch.float64, **options)
    kinds = [type(part) for part in made.first.modules() if "Norm" in type(part).__name__]
    assert kinds == [nn.GroupNorm] * 3 + [nn.BatchNorm2d] * 6
    made.step(2, 0, 7)
    assert_alike(made.trainer.whole().state_dict(), lambda nudge: by_hand(made, torch.optim.SGD, nudge, lr=0.1))


@BOTH
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("spec", "optimizer", "options"),
    [
        ("sgd:lr=0.1,momentum=0.9", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        ("adam:lr=0.01", torch.optim.Adam, {"lr": 0.01}),
    ],
    ids=["momentum", "adam"],
)
def test_epochs_are_epochs_of_a_centralised_optimiser(make_split, by_hand, spec, optimizer, options, sampler, copies):
    made = make_split(f"psl:sampler={sampler},copies={copies}", dtype=torch.float64, optimizer=spec)
    reached = made.run()
    assert len(made.used) >= 2 * 7
    assert_alike(reached, lambda nudge: by_hand(made, optimizer, nudge, **options))


def test_with_one_client_the_same_bits(make_split, by_hand):
    made = make_split("psl", sizes=(50,), optimizer="sgd:lr=0.3")
    reached = made.run()
    for name, expected in by_hand(made, torch.optim.SGD, lr=0.3, fused=True).items():
        assert torch.equal(reached[name], expected), name


def test_the_learning_rate_follows_the_schedule_by_global_step(make_split, by_hand):
    made = make_split("psl", dtype=torch.float64, optimizer="sgd:lr=0.5", schedule="step:every=3,factor=0")
    made.run()
    del made.used[3:]  # from step 4 on the rate is 0
    halves = made.trainer.whole().state_dict()
    parameters = dict(made.first.named_parameters())  # a BatchNorm's statistics go on

    def of_three_steps(nudge: Nudge) -> dict[str, Tensor]:
        expected = by_hand(made, torch.optim.SGD, nudge, lr=0.5)
        return {name: expected[name] for name in parameters}

    assert_alike({name: halves[name] for name in parameters}, of_three_steps)


def test_whose_the_samples_are_changes_nothing_but_rounding(make_split):
    def stepped(sizes: tuple[int, ...], nudge: Nudge = exactly) -> dict[str, Tensor]:
        made = make_split("psl", sizes=sizes, dtype=torch.float64, nudge=nudge)
        made.step(*sizes)
        return made.trainer.whole().state_dict()

    assert_alike(stepped((1, 20, 29)), lambda nudge: stepped((12, 7, 20, 1, 10), nudge))


# 3. Property 6: equal bottoms


@pytest.mark.parametrize("optimizer", ["sgd:lr=0.3,momentum=0.9", "adam:lr=0.05"])
def test_all_bottoms_are_equal_after_every_step_also_of_clients_that_never_take_part(make_split, optimizer):
    made = make_split("psl:copies=True", optimizer=optimizer)
    arena, seen = made.trainer.bottoms.arena, []
    for row in [(3, 2, 4, 0, 0), (2, 0, 5, 0, 1), (0, 0, 2, 0, 0), (1, 1, 1, 0, 1)]:
        made.step(*row)  # client 3 never
        assert torch.equal(arena.params, arena.params[:1].expand_as(arena.params))
        seen.append(arena.params[3].clone())
    assert not any(torch.equal(one, other) for one, other in pairwise(seen))
    states = made.trainer.bottoms.state_dict()["optimizers"]
    for name, value in states[3].items():  # patched weights alone would diverge at the next step
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[0][name])), name


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_bottom_stands_for_all(make_split, sampler):
    def equal() -> None:
        params = every.trainer.bottoms.arena.params
        assert torch.equal(params, params[:1].expand_as(params))

    options = {"model": "mlp:hidden=8", "dtype": torch.float64}
    one, every = (make_split(f"psl:sampler={sampler},copies={copies}", **options) for copies in "01")
    one.run()
    again = functools.partial(make_split, f"psl:sampler={sampler}", **options)
    assert_alike(every.run(equal), lambda nudge: again(nudge=nudge).run())
    assert one.trainer.bottoms.rows == 1
    assert every.trainer.bottoms.rows == 5
    assert every.trainer.ledger.moved == one.trainer.ledger.moved
    assert every.trainer.ledger.paper == one.trainer.ledger.paper
    seconds = [[line["seconds"] for line in run.lines if "seconds" in line] for run in (one, every)]
    assert seconds[0] == pytest.approx(seconds[1])


# 4. Property 1: an epoch uses every sample once


@pytest.mark.parametrize("deadline", [None, 0.15], ids=["patient", "with a deadline"])
@pytest.mark.parametrize("sampler", [*SAMPLERS, "gpsl", "lds,sample_size=20", "lds,delays=measured"])
def test_every_sample_once_per_epoch_in_a_new_order(make_split, sampler, deadline):
    made = make_split(
        f"psl:sampler={sampler}",
        model="mlp:hidden=4",  # without a BatchNorm, which has no use for a batch of one
        delays="stragglers:count=2,seconds=0.1,factor=4,jitter=0.4",
        deadline=deadline,
    )
    made.run()
    steps = [line for line in made.lines if line["kind"] == "step"]
    epochs: list[dict[int, list[int]]] = [{}, {}]
    for line, contributions in zip(steps, made.used, strict=True):
        assert [client for client, _ in contributions] == sorted(client for client, _ in contributions)
        assert not {client for client, _ in contributions} & set(line.get("late", ()))
        assert line["size"] == sum(len(indices) for _, indices in contributions) > 0
        for client, indices in contributions:
            epochs[line["epoch"] - 1].setdefault(client, []).extend(indices.tolist())
    for epoch in epochs:
        assert {client: sorted(own) for client, own in epoch.items()} == {
            client: own.tolist() for client, own in enumerate(made.parts)
        }
    for client in (0, 1, 2, 4):
        assert epochs[0][client] != epochs[1][client]
    assert any("late" in line for line in steps) == (deadline is not None)


def test_the_schedule_is_redrawn_every_epoch_and_the_first_one_is_in_the_history(make_split):
    made = make_split("psl")
    made.run()
    steps = [line for line in made.lines if line["kind"] == "step"]
    sizes = [[(client, len(indices)) for client, indices in contributions] for contributions in made.used]
    first = [line for line in steps if line["epoch"] == 1]
    assert [list(zip(line["clients"], line["sizes"], strict=True)) for line in first] == sizes[: len(first)]
    assert all("clients" not in line for line in steps[len(first) :])
    assert len(steps) == 2 * len(first)
    assert sizes[: len(first)] != sizes[len(first) :]


def test_history_tells_how_far_each_batch_is_from_the_whole(make_split):
    made = make_split("psl", sizes=(30, 30))  # 20 of each class
    made.run()
    labels = made.task.dataset.train.labels.numpy()
    for line, contributions in zip([x for x in made.lines if x["kind"] == "step"], made.used, strict=True):
        own = np.bincount(labels[np.concatenate([indices for _, indices in contributions])], minlength=3)
        assert line["deviation"] == pytest.approx(np.abs(own / own.sum() - 1 / 3).sum())


# 5. Bytes


def test_a_step_of_the_authors_resnet_in_the_paper_view(make_split):
    """docs/methods/psl.md 3 and 4.2; only the bottom computes, on three samples."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (9, 3, 32, 32)).astype(np.uint8)
    task = Task(from_arrays(x, np.arange(9), x, np.arange(9), classes=10), "resnet18")
    made = make_split("psl", task=task, sizes=(3, 3, 3), cut="layer2", bottom_norm="group", batch_size=4)
    trainer, paper = made.trainer, made.trainer.ledger.paper
    assert trainer.bottoms.numel == 149_824
    assert trainer.tops.numel == 11_024_138
    assert paper == {"model": 3 * 599_296}
    row = trainer.ask(BatchComposition(np.array([0, 2]), np.array([2, 1])))
    cut_tensors = trainer.forward(row)
    assert cut_tensors.arrived[0].numel() == 65_536
    cut_tensors.arrived.grad = torch.zeros_like(cut_tensors.arrived)
    trainer.backward(cut_tensors)
    trainer.share_gradient(row)
    assert paper["activation"] == 3 * 262_144
    assert paper["label"] == 3 * 8
    assert paper["gradient"] == 3 * 262_144 + (2 + 3) * 599_296


TINY = {"model": "mlp:hidden=8", "sizes": (3, 2), "batch_size": 5, "epochs": 1}


def test_every_byte_of_a_run_of_one_step_by_hand(make_split):
    """A message of n bytes has 29 more: 20 of header, 1 + 8 of its table. 56 parameters below the cut, 27 above it."""
    made = make_split("psl", **TINY)
    made.run()
    ledger = made.trainer.ledger
    bottom, three, two = 29 + 4 * 56, 29 + 3 * 32, 29 + 2 * 32  # a sample is 8 numbers at the cut
    assert {kind: own.tolist() for kind, own in ledger.sent.items()} == {
        "model": [0, 0],
        "control": [29 + 8] * 2,  # D_k
        "activation": [three, two],
        "label": [8 + 3, 8 + 2],  # an entry in the table of the same message, and a byte each
        "gradient": [bottom] * 2,
    }
    assert {kind: own.tolist() for kind, own in ledger.received.items()} == {
        "model": [bottom] * 2,
        "control": [29 + 4 + 28] * 2,  # a column of one step, and a START
        "activation": [0, 0],
        "label": [0, 0],
        "gradient": [three + bottom, two + bottom],  # the activations', and the sum of the bottoms'
    }
    assert ledger.paper == {
        "model": 2 * 224,
        "activation": 5 * 32,
        "label": 5 * 8,
        "gradient": 5 * 32 + (2 + 2) * 224,
    }


def test_lds_asks_for_histograms_and_delays(make_split):
    plain, lds = make_split("psl", **TINY), make_split("psl:sampler=lds", **TINY)
    plain.run()
    lds.run()
    more = lds.trainer.ledger.sent["control"] - plain.trainer.ledger.sent["control"]
    assert more.tolist() == [8 * 3 + 29 + 8] * 2  # three classes; a delay in a message of its own
    assert lds.trainer.ledger.received["control"].tolist() == plain.trainer.ledger.received["control"].tolist()


def test_a_long_schedule_travels_as_pairs_of_step_and_size(make_split):
    made = make_split("psl:sampler=fls", model="mlp:hidden=2", sizes=(20, 1), batch_size=2, epochs=1)
    before = made.trainer.ledger.received["control"].copy()
    assert made.state.schedule(made.trainer.left, np.random.default_rng(0)).shape == (20, 2)
    assert (made.trainer.ledger.received["control"] - before).tolist() == [29 + 4 * 20, 29 + 8]


def test_labels_that_stay_with_the_clients(make_split):
    """The U-shape: the same training, no label on the way; outputs come down and their gradients go up instead."""
    there, here = make_split("psl", **TINY), make_split("psl:labels=clients", **TINY)
    reached = there.run(), here.run()
    for name, tensor in reached[0].items():
        assert torch.equal(tensor, reached[1][name])
    assert [line.get("train_loss") for line in there.lines] == [line.get("train_loss") for line in here.lines]
    with_labels, without = there.trainer.ledger, here.trainer.ledger
    assert "label" not in without.moved
    assert "label" not in without.paper
    outputs = np.array([29 + 3 * 12, 29 + 2 * 12])
    for kind, up, down in (("activation", 0, outputs), ("gradient", outputs, 0)):
        assert np.array_equal(without.sent[kind], with_labels.sent[kind] + up)
        assert np.array_equal(without.received[kind], with_labels.received[kind] + down)
        assert without.paper[kind] == with_labels.paper[kind] + 5 * 12
    assert without.moved["control"] == with_labels.moved["control"]


CHAINS = {  # values of one message of n numbers, and of all messages of a run beside 4 bytes a number
    "bf16": (lambda n: 2 * n, 0.5),
    "q8": (lambda n: 4 + n, 0.3),
    "q4(block=16,stochastic)": (lambda n: 4 * -(-n // 16) + -(-n // 2), 0.25),
    "topk(0.1)": (lambda n: 4 * max(1, round(0.1 * n)), 0.15),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", ["uplink", "downlink"])
@pytest.mark.parametrize("chain", CHAINS)
def test_codecs_train_and_send_what_they_say(make_split, monkeypatch, chain, direction, dtype):
    sent: list[tuple[str, bytes]] = []
    pack = Channel.pack
    monkeypatch.setattr(Channel, "pack", lambda self, *a: sent.append((self.kind, pack(self, *a))) or sent[-1][1])
    options = {"sizes": (60, 40, 30), "batch_size": 20, "epochs": 3, "dtype": dtype, "optimizer": "sgd:lr=0.3"}
    made, plain = make_split(f"psl:{direction}={chain}", **options), make_split("psl", **options)
    made.run()
    assert made.lines[-1]["accuracy"] > 0.5
    kind = "activation" if direction == "uplink" else "gradient"
    assert {name for name, _ in sent} == {kind}
    counts = [len(indices) for contributions in made.used for _, indices in contributions]
    assert len(sent) == len(counts)
    plain.run()
    ours, theirs = made.trainer.ledger, plain.trainer.ledger
    each, most = CHAINS[chain]
    number = 4 if dtype == torch.float32 else 8
    exact = sum(29 + number * 8 * n for n in counts)  # of the other side, and here without the codec
    values = sum(each(8 * n) for n in counts)
    assert ours.paper[kind] - theirs.paper[kind] == values - 4 * 8 * sum(counts)
    assert values <= most * 4 * 8 * sum(counts)
    packed = sum(len(payload) for _, payload in sent)
    labels = ours.moved["label"] if direction == "uplink" else 0
    rest = theirs.moved[kind] - exact  # the bottoms' gradients
    assert ours.moved[kind] + labels + ours.moved.get("mask", 0) - rest == packed < exact
    assert ours.moved["label"] == theirs.moved["label"] == sum(8 + n for n in counts)


@pytest.mark.parametrize("text", ["ef(topk(0.1))", "zip"])
def test_chains_that_make_no_sense(text):
    from sparsync.split import PSL, SplitFed

    for strategy in (PSL, SplitFed):
        for direction in ("uplink", "downlink"):
            with pytest.raises(UsageError, match=r"error feedback has no meaning|unknown codec 'zip'"):
                strategy(**{direction: text})


# 6. Numbers that are not finite


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("psl", r"^step \d+: the loss is (nan|inf); lower the learning rate$"),
        ("psl:labels=clients", r"^step \d+: the loss is (nan|inf)"),
        ("psl:uplink=float32", r"^step 2: activations at the cut are not finite as float32 carries them; lower the"),
        ("psl:uplink=topk(0.5)+q8", r"^step 2: activations at the cut are not finite as topk\(0.5\)\+q8 carries"),
    ],
)
def test_a_rate_that_is_far_too_high_is_reported(make_split, spec, message):
    made = make_split(spec, model="mlp:hidden=8", optimizer="sgd:lr=1e39")
    with pytest.raises(DivergedError, match=message):
        made.run()


class Steep(Task):
    """Gradients at the cut of about 1e6."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 1e8 * super().loss(outputs, labels)


def test_gradients_that_overflow_their_codec_are_reported(make_split, blobs):
    task = Task(blobs, "mlp"), Steep(blobs, "mlp")
    assert make_split("psl:downlink=f16", task=task[0]).step(2, 2, 2, 1, 1) < 2
    with pytest.raises(DivergedError, match=r"^step 1: gradients at the cut are not finite as float16 carries them"):
        make_split("psl:downlink=f16", task=task[1]).step(2, 2, 2, 1, 1)


# 7. Dropout


def dropping(shape: tuple[int, ...], classes: int, probability: float = 0.5) -> nn.Module:
    row = nn.Sequential()
    row.add_module("fc1", nn.Linear(shape[0], 16))
    row.add_module("drop1", nn.Dropout(probability))
    row.add_module("fc2", nn.Linear(16, 16))
    row.add_module("drop2", nn.Dropout(probability))
    row.add_module("fc", nn.Linear(16, classes))
    return row


@pytest.mark.parametrize("spec", ["psl", "psl:copies=True", "centralised", "splitfed", "splitfed:version=2"])
def test_dropout_gives_the_same_bits_and_leaves_the_global_generator_alone(make_split, spec):
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        models.append(make_split(spec, model=dropping).run())
        assert torch.equal(torch.get_rng_state(), before)
    assert distance(*models) == 0
    assert distance(models[0], make_split(spec, model=dropping, seed=1).run()) > 0.01
    undropped = make_split(spec, model=lambda shape, classes: dropping(shape, classes, 0.0)).run()
    assert distance(models[0], undropped) > 0.01


def test_dropout_is_each_clients_own_whether_its_bottom_is_or_not(make_split):
    every = make_split("psl:copies=1", model=dropping, dtype=torch.float64).run()
    assert_alike(every, lambda nudge: make_split("psl", model=dropping, dtype=torch.float64, nudge=nudge).run())
    alike = from_arrays(np.ones((8, 6), np.float32), np.arange(8) % 2, np.ones((2, 6), np.float32), [0, 1])
    made = make_split("psl", task=Task(alike, dropping), sizes=(4, 4))
    trainer, row = made.trainer, BatchComposition(np.array([0, 1]), np.array([2, 2]))
    masks = []
    for trainer.step in (0, 1):
        masks += trainer.forward(trainer.ask(row)).arrived.split(2)
    assert not any(torch.equal(masks[i], masks[j]) for i in range(4) for j in range(i))


# 8. Bad inputs


def test_a_batch_larger_than_all_data(make_split):
    with pytest.raises(UsageError, match=r"^batch_size=51; expected an integer from 1 to 50, all the clients' sa"):
        make_split("psl", batch_size=51)
    assert make_split("psl", batch_size=50).run()


def test_a_sample_size_beyond_the_data_is_a_mistake_but_not_at_the_end_of_an_epoch(make_split):
    with pytest.raises(UsageError, match="sample_size=50; expected an integer from 1 to below 50"):
        make_split("psl:sampler=lds,sample_size=50").run()
    made = make_split("psl:sampler=lds,sample_size=49")
    for left in ([3, 0, 2, 1, 0], [0, 0, 1, 0, 0]):
        made.trainer.left = np.array(left)
        drawn = made.state.schedule(made.trainer.left, np.random.default_rng(0))
        assert drawn.sum(axis=0).tolist() == left


def test_time_and_profile_do_not_touch_the_training(make_split):
    slow = Profile(step_seconds=3, bandwidth=10, latency=2)
    one, other = make_split("psl"), make_split("psl", profile=slow, delays="constant:seconds=9,jitter=1")
    assert distance(one.run(), other.run()) == 0
    assert one.trainer.clock.now < other.trainer.clock.now
