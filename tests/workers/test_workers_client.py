"""One client at work: its batches, its model as one vector, local steps, and what it remembers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsync.task import Task, from_arrays
from sparsync.workers import Arena, Client, ClientRuntime, LocalWork, ModelVector
from sparsync.workers.batches import LocalPasses, batches_per_pass

OWN = np.arange(100, 110)  # ten samples


def passes(**options):
    return LocalPasses(OWN, **{"batch_size": 4, "seed": 0, "client": 1, "round_": 2, **options})


def as_lists(batches):
    return [batches[step].tolist() for step in range(len(batches))]


# Batches ------------------------------------------------------------------------------------------------------------


def test_epochs_are_shuffled_passes_with_a_smaller_last_batch():
    batches = as_lists(passes(epochs=2))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    first, second = ([index for batch in each for index in batch] for each in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == OWN.tolist()
    assert first != second


def test_the_last_batch_is_left_out_if_wished():
    batches = as_lists(passes(epochs=3, drop_last=True))
    assert [len(batch) for batch in batches] == [4, 4] * 3
    assert len({index for batch in batches for index in batch}) == 10  # another pass leaves out others


def test_steps_are_batches_of_as_many_passes_as_that_takes():
    assert as_lists(passes(steps=4)) == as_lists(passes(epochs=2))[:4]
    assert len(passes(steps=1000)) == 1000


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_client_with_fewer_samples_than_a_batch_takes_them_all(drop_last):
    batches = as_lists(passes(batch_size=64, epochs=2, drop_last=drop_last))
    assert [sorted(batch) for batch in batches] == [OWN.tolist()] * 2


def test_batches_are_a_function_of_seed_client_round_and_step():
    one, other = passes(epochs=3), passes(epochs=3)
    backwards = [other[step].tolist() for step in reversed(range(9))]
    assert as_lists(one) == backwards[::-1]
    for changed in ({"seed": 1}, {"client": 2}, {"round_": 3}):
        assert as_lists(passes(epochs=3, **changed)) != as_lists(one)


def test_beyond_its_length_further_passes_follow():
    """Strategies that ask for more, such as fda-opt, meet the batches of a longer round."""
    short, long = passes(epochs=1), passes(epochs=4)
    assert [short[step].tolist() for step in range(len(long))] == as_lists(long)


@pytest.mark.parametrize("both", [{}, {"epochs": 1, "steps": 1}])
def test_epochs_or_steps(both):
    with pytest.raises(ValueError, match="give either epochs or steps"):
        passes(**both)


@pytest.mark.parametrize(
    ("samples", "keep", "drop"), [(1, 1, 1), (3, 1, 1), (4, 1, 1), (5, 2, 1), (8, 2, 2), (11, 3, 2)]
)
def test_batches_per_pass(samples, keep, drop):
    assert batches_per_pass(samples, 4, drop_last=False) == keep
    assert batches_per_pass(samples, 4, drop_last=True) == drop
    for drop_last, expected in ((False, keep), (True, drop)):
        made = LocalPasses(np.arange(samples), 4, epochs=1, drop_last=drop_last, seed=0, client=0, round_=0)
        assert made.per_pass == len(made) == expected


# A model as a vector ------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Parameters, a frozen one, and buffers of three dtypes."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, classes)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("seen", torch.tensor(7))
        self.register_buffer("mean", torch.tensor([0.5, 0.25]))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.fc(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_then_averaged_buffers(dtype):
    arena = Arena(Odd(2, 3).to(dtype), 1, torch.device("cpu"), dtype)
    vector = ModelVector(arena)
    assert (vector.d, vector.b, vector.numel) == (9, 2, 11)
    model = vector.read()
    assert model.dtype == torch.float32
    assert torch.equal(model[:9], arena.params[0].float())
    assert model[9:].tolist() == [0.5, 0.25]
    vector.write(torch.arange(11.0))
    assert vector.read().tolist() == [*range(11)]
    assert [rows.dtype for rows in arena.others] == [torch.int64, torch.bool]


def test_what_is_read_is_a_copy():
    vector = ModelVector(Arena(Odd(2, 3), 1, torch.device("cpu"), torch.float32))
    model = vector.read()
    vector.write(torch.zeros(11))
    assert model[9] == 0.5


# Local steps --------------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(blobs):
    def make(model="mlp:hidden=8", dataset=blobs, parts=None, seed=0, **work):
        task = Task(dataset, model)
        module = task.module(seed)
        arena = Arena(module, 1, torch.device("cpu"), torch.float32)
        parts = np.split(np.arange(90), 3) if parts is None else parts
        return ClientRuntime(
            arena, task, module, parts, LocalWork(**{"batch_size": 10, "optimizer": "sgd:lr=0.1", **work}), seed
        )

    return make


def test_one_step_is_the_gradient_times_the_rate_of_the_round(runtime, blobs):
    made = runtime(steps=1, epochs=None)
    before = made.vector.read()
    client = Client(1, 4, 0.5, made)
    client.train()
    inputs, labels = blobs.train.batch(client.batches[0])
    module = made.task.module(0)
    made.task.loss(module(inputs), labels).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    assert torch.allclose(client.model(), before - 0.1 * 0.5 * gradient, atol=1e-7)
    assert (client.steps, client.learning_rate, client.samples) == (1, 0.05, 30)
    assert client.loss_sum == pytest.approx(made.task.loss(made.task.module(0)(inputs), labels).item())


def test_a_round_in_pieces_is_the_round(runtime):
    pieces, whole = runtime(epochs=2, optimizer="adam"), runtime(epochs=2, optimizer="adam")
    first, second = Client(0, 0, 1.0, pieces), Client(0, 0, 1.0, whole)
    for steps in (range(1), range(1, 4), range(4, 6)):
        first.train(steps)
    second.train()
    assert first.steps == second.steps == 6
    assert torch.equal(first.model(), second.model())


def test_momentum_goes_from_one_visit_to_the_next_only_if_it_is_carried(runtime):
    def trained(carry):
        made = runtime(epochs=2, optimizer="sgd:lr=0.1,momentum=0.9")
        client = Client(0, 0, 1.0, made)
        client.train(range(3))
        model, momentum = client.model(), client.momentum
        Client(1, 0, 1.0, made).train()  # another client sits here in between
        client = Client(0, 0, 1.0, made)
        client.load(model)
        if carry:
            client.momentum = momentum
        client.train(range(3, 6))
        return client.model()

    whole = Client(0, 0, 1.0, runtime(epochs=2, optimizer="sgd:lr=0.1,momentum=0.9"))
    whole.train()
    assert torch.equal(trained(carry=True), whole.model())
    assert not torch.equal(trained(carry=False), whole.model())


def test_clients_begin_without_the_momentum_of_others(runtime):
    made = runtime(optimizer="adam")
    start = made.vector.read()
    models = []
    for number in (0, 1, 0):
        client = Client(number, 0, 1.0, made)
        client.load(start)
        client.train()
        models.append(client.model())
    assert torch.equal(models[0], models[2])
    assert not torch.equal(models[0], models[1])
    client.forget_momentum()
    assert client.momentum == {}


def test_the_gradient_may_be_changed_before_a_step(runtime):
    made = runtime(steps=3, epochs=None)
    before = made.vector.read()
    client = Client(0, 0, 1.0, made)
    client.train(before_step=lambda _, grad: grad.fill_(1.0))
    assert torch.allclose(client.model(), before - 3 * 0.1, atol=1e-6)


class Half:
    """The model computes with half the weights."""

    def weights(self, raw, out):
        torch.mul(raw, 0.5, out=out)

    def gradient(self, raw, grad):
        grad.mul_(0.5)


def test_effective_weights_are_what_computes_and_raw_ones_what_is_kept(runtime, blobs):
    made = runtime(steps=2, epochs=None)
    start = made.vector.read()
    client = Client(0, 0, 1.0, made)
    client.train(transform=Half())
    module = made.task.module(0)
    raw = start.clone()
    for step in range(2):
        nn.utils.vector_to_parameters(0.5 * raw, module.parameters())
        module.zero_grad()
        inputs, labels = blobs.train.batch(client.batches[step])
        made.task.loss(module(inputs), labels).backward()
        raw -= 0.1 * 0.5 * torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    assert torch.allclose(client.model(), raw, atol=1e-6)
    assert torch.equal(torch.cat([parameter.flatten() for parameter in made.module.parameters()]), client.params)


def test_a_gradient_on_the_side_changes_nothing(runtime, blobs):
    def normed(shape, classes):
        return nn.Sequential(nn.Linear(*shape, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))

    made = runtime(model=normed)
    client = Client(0, 0, 1.0, made)
    before = client.model()
    gradient = client.gradient(client.batches[0])
    assert torch.equal(client.model(), before)
    module = made.task.module(0).train()
    inputs, labels = blobs.train.batch(client.batches[0])
    made.task.loss(module(inputs), labels).backward()
    assert torch.allclose(gradient, torch.cat([p.grad.flatten() for p in module.parameters()]), atol=1e-6)
    assert client.steps == 0
    half = client.gradient(client.batches[0], Half())
    assert not torch.allclose(half, gradient)


def test_a_client_that_diverges_stops_with_nan_for_a_model(runtime):
    points = np.ones((90, 6), np.float32)
    points[35] = 1e38
    made = runtime(dataset=from_arrays(points, np.arange(90) % 3, points[:3], np.arange(3)), batch_size=1)
    client = Client(1, 0, 1.0, made)
    client.train()
    at = [int(client.batches[step][0]) for step in range(30)].index(35)
    assert client.steps <= at + 1
    assert torch.isnan(client.model()).all()
    assert math.isfinite(client.loss_sum)
    healthy = Client(0, 0, 1.0, made)  # the next one finds the bench as if nothing had been
    healthy.load(torch.zeros(made.vector.numel))
    healthy.train()
    assert healthy.steps == 30
    assert torch.isfinite(healthy.model()).all()


def test_accuracy_on_its_own_samples(runtime, blobs):
    made = runtime(epochs=20)
    client = Client(2, 0, 1.0, made)
    client.train()
    inputs, labels = blobs.train.batch(np.arange(60, 90))
    module = made.task.module(0)
    nn.utils.vector_to_parameters(client.params, module.parameters())
    assert client.accuracy() == int((module(inputs).argmax(1) == labels).sum()) / 30 > 0.4
    assert client.accuracy(most=1) in (0, 1)


def test_dropout_draws_by_seed_client_round_and_step(runtime):
    def dropping(shape, classes):
        return nn.Sequential(nn.Linear(*shape, 16), nn.Dropout(0.5), nn.Linear(16, classes))

    def trained(number=0, round_=0, seed=0, salt=1):
        torch.manual_seed(salt)
        parts = [np.arange(10)] * 3  # all hold the same, in one batch
        made = runtime(model=dropping, parts=parts, seed=seed, steps=3, epochs=None)
        client = Client(number, round_, 1.0, made)
        client.load(torch.linspace(-1, 1, made.vector.numel))
        before = torch.get_rng_state()
        client.train()
        assert torch.equal(torch.get_rng_state(), before)
        return client.model()

    assert torch.equal(trained(), trained(salt=2))
    assert torch.equal(trained(), trained())
    for other in ({"number": 1}, {"round_": 1}, {"seed": 1}):
        assert float((trained() - trained(**other)).abs().max()) > 1e-4  # more than another order of summation


# What a client remembers --------------------------------------------------------------------------------------------


def test_memory_lasts_only_if_the_bench_is_told(runtime):
    made = runtime()
    client = Client(1, 0, 1.0, made)
    client.memory["x"] = torch.ones(2)
    assert made.memories == {}
    made.remember(1, client.memory)
    again = Client(1, 1, 1.0, made)
    assert again.memory["x"].tolist() == [1, 1]
    again.memory["x"] = torch.zeros(2)
    assert Client(1, 1, 1.0, made).memory["x"].tolist() == [1, 1]
    assert Client(0, 1, 1.0, made).memory == {}


def test_an_empty_memory_takes_no_place(runtime):
    made = runtime()
    made.remember(1, {"x": 1})
    made.remember(1, {})
    made.remember(2, {})
    assert made.memories == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_messages_are_made_in_the_cpus_memory(blobs):
    task = Task(blobs, "mlp:hidden=8")
    module = task.module(0).to("cuda")
    arena = Arena(module, 1, torch.device("cuda"), torch.float32)
    made = ClientRuntime(arena, task, module, [np.arange(30)], LocalWork(10, optimizer="adam"), 0)
    client = Client(0, 0, 1.0, made)
    client.load(client.model() + 1)
    client.train()
    assert client.params.is_cuda
    assert not client.model().is_cuda
    momentum = client.momentum
    client.momentum = momentum
    client.train()
    assert torch.isfinite(client.model()).all()
