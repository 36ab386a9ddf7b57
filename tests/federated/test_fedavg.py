"""FedAvg: means by hand, buffers, plain training as a limit, codecs both ways."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sparsync.federated import FedAvg, Upload
from sparsync.strategies import STRATEGIES
from sparsync.wire import Chain, Quantised, kinds_of, pack_parcel
from sparsync.workers import Client
from sparsync.workers.batches import LocalPasses
from tolerance import distance, rounding

UNEQUAL = [[(4, 0)], [(0, 8)] * 3]  # two clients, one sample and three


def test_a_round_by_hand_weighted_by_samples(pulls):
    """One step of rate 1/2 takes each client half-way: to (2, 0) and (0, 4)."""
    assert pulls(FedAvg(), UNEQUAL).run(1).tolist() == [(2 * 1 + 0 * 3) / 4, (0 * 1 + 4 * 3) / 4]


def test_a_round_by_hand_with_uniform_weights(pulls):
    assert pulls(FedAvg(), UNEQUAL, weights="uniform").run(1).tolist() == [1, 2]


def test_a_second_round_starts_from_the_mean(pulls):
    """From (1, 2) half-way to (4, 0) and (0, 8): (2.5, 1) and (0.5, 5)."""
    assert pulls(FedAvg(), UNEQUAL, weights="uniform").run(2).tolist() == [1.5, 3]


def test_local_epochs_and_steps_by_hand(pulls):
    """Two passes take a client three quarters of the way, whichever way they are asked for."""
    for work in ({"epochs": 2}, {"steps": 2}):
        assert pulls(FedAvg(), UNEQUAL, **work).run(1).tolist() == [0.75, 4.5]


def test_the_schedule_counts_rounds(pulls):
    """Rates 1/2 and 1/4: (0, 0) to (2, 2) to (2.5, 2.5)."""
    made = pulls(FedAvg(), [[(4, 4)]], schedule="step:every=1,factor=0.5", epochs=1)
    assert made.run(1).tolist() == [2, 2]
    assert made.run(1).tolist() == [2.5, 2.5]


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_weights_sum_to_one_and_equal_uploads_are_their_own_mean(federation, weights):
    server = federation(FedAvg(), sizes=[1, 2, 3, 5, 7, 162], weights=weights).server
    same = torch.tensor([0.1, -3.0, 7.0])
    mean = server.average([Upload(i, b"") for i in range(6)], lambda payload: same, 3)
    assert distance(mean, same.double()) <= rounding(9, 7.0)
    assert server.share == pytest.approx(1)
    server.average([Upload(5, b"")], lambda payload: same, 3)
    assert server.share == pytest.approx(162 / 180 if weights == "samples" else 1 / 6)


def test_equal_numbers_of_samples_give_the_plain_mean(federation):
    server = federation(FedAvg()).server
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    mean = server.average([Upload(i, bytes([i])) for i in range(6)], lambda payload: x[payload[0]], 50)
    assert distance(mean, x.double().mean(0)) <= rounding(9, float(x.abs().max()))


def test_the_order_of_uploads_does_not_matter(federation):
    server = federation(FedAvg(), sizes=[10, 20, 30]).server
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    means = [
        server.average([Upload(i, bytes([i])) for i in order], lambda payload: x[payload[0]], 50)
        for order in itertools.permutations(range(3))
    ]
    for mean in means:
        assert distance(mean, means[0]) <= rounding(6, float(x.abs().max()))
        assert torch.equal(mean.float(), means[0].float())  # what the next round starts from


def normed(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(*shape, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))


def test_buffers_are_averaged_and_counters_come_back_as_integers(federation):
    made = federation(FedAvg(), model=normed, sizes=[30, 20], weights="samples")
    vector, runtime = made.runtime.vector, made.runtime
    assert (vector.b, made.server.exact.numel) == (8, 1)
    trained = []
    for number in range(2):
        client = Client(number, 0, 1.0, runtime)
        client.load(made.server.initial)
        client.train()
        trained.append(client.model())
        assert made.server.exact.read()[0].item() == 3 - number  # batches that BatchNorm has seen
        made.server.exact.write()
    expected = (30 * trained[0].double() + 20 * trained[1].double()) / 50
    model = made.run(1)
    assert torch.equal(model, expected.float())
    assert not torch.equal(model[vector.d :], made.server.initial[vector.d :])
    saved = made.loop.evaluated().state_dict()
    counter = saved["1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert int(counter) == 3  # the mean is 2.6
    assert torch.equal(vector.read(), model)
    assert torch.equal(saved["0.weight"].flatten(), model[:24])


def test_one_client_with_all_data_is_plain_training(federation, blobs):
    made = federation(FedAvg(), sizes=[180], batch_size=50, epochs=3, optimizer="sgd:lr=0.2,momentum=0.9")
    module = made.task.module(0)
    seen = 0
    for round_ in range(2):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)  # afresh in every round
        passes = LocalPasses(np.arange(180), 50, epochs=3, seed=0, client=0, round_=round_)
        for step in range(len(passes)):
            inputs, labels = blobs.train.batch(passes[step])
            optimizer.zero_grad()
            made.task.loss(module(inputs), labels).backward()
            optimizer.step()
            seen += len(inputs)
    assert seen == 2 * 3 * 180
    plain = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert torch.allclose(made.run(2), plain, atol=1e-6)
    assert made.loop.progress.step == 2 * 3 * 4


def test_an_evaluation_is_of_the_global_model(federation):
    made = federation(FedAvg(), optimizer="sgd:lr=0.5", eval_every=2, rounds=5)
    made.run(5)
    lines = [line for line in made.lines if line["kind"] == "evaluation"]
    assert [line["rounds"] for line in lines] == [2, 4, 5]
    made.runtime.vector.write(made.state.model())
    correct, loss = made.task.evaluate(made.runtime.module, 0, 60)
    assert lines[-1]["accuracy"] == int(correct.sum()) / 60
    assert lines[-1]["loss"] == pytest.approx(loss / 60)
    assert lines[0]["loss"] > lines[-1]["loss"]


# Codecs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uplink", "bound"),
    [
        ("float32", lambda change: 0 * change),
        ("bf16", lambda change: change / 256),
        ("f16", lambda change: change / 2048 + 2**-25),
        ("q8", lambda change: change.max() / 127 / 2),
        ("q4(block=16)", lambda change: change.max() / 7 / 2),
        ("q8(stochastic)", lambda change: change.max() / 127),
    ],
)
def test_what_the_server_decodes_is_the_clients_model_to_within_the_codec(federation, uplink, bound):
    made = federation(FedAvg(uplink=uplink))
    state, client = made.state, Client(0, 0, 1.0, made.runtime)
    upload = made.clients.respond(client, state.downlink(0)).payload
    trained = client.model()
    error = (state.decode(upload) - trained).abs()
    slack = 0 if uplink == "float32" else 1e-6  # sums of float32
    assert bool((error <= bound((trained - state.sent).abs()) + slack).all())
    assert bool(error.any()) == (uplink != "float32")
    assert len(upload) < len(made.server.initial) * 4 + 30


def test_an_upload_through_topk_holds_exactly_the_largest_changes(federation):
    made = federation(FedAvg(uplink="topk(0.05)+q8"))
    state, client = made.state, Client(0, 0, 1.0, made.runtime)
    upload = made.clients.respond(client, state.downlink(0)).payload
    change = client.model() - state.sent
    decoded = state.decode(upload) - state.sent
    count = round(0.05 * len(change))
    assert int(decoded.count_nonzero()) == count
    assert set(decoded.nonzero().flatten().tolist()) == set(change.abs().topk(count).indices.tolist())
    assert kinds_of(upload)["mask"] > 0


def test_error_feedback_makes_up_for_what_was_lost(federation):
    """Over rounds, what a client was taken to have changed, plus its memory, is all that it changed."""
    made = federation("fedavg:uplink=ef(topk(0.1)+q4)", sizes=[90, 90], cohort=1)
    state = made.state
    assert made.clients.stateful
    wished, arrived = {}, {}
    update = made.clients.respond

    def follow(client, payload):
        upload = update(client, payload)
        change = client.model() - state.down.decode(payload)
        wished[client.number] = wished.get(client.number, 0) + change
        arrived[client.number] = arrived.get(client.number, 0) + state.decode(upload.payload) - state.sent
        return upload

    made.clients.respond = follow
    made.run(6)
    assert set(wished) == {0, 1} == set(made.runtime.memories)
    for number, memory in made.runtime.memories.items():
        assert float(memory["feedback"].abs().max()) > 1e-3
        assert torch.allclose(arrived[number] + memory["feedback"], wished[number], atol=1e-5)


def test_without_feedback_clients_keep_nothing(federation):
    made = federation("fedavg:uplink=topk(0.1)+q4")
    made.run(2)
    assert not made.clients.stateful
    assert made.runtime.memories == {}


@pytest.mark.parametrize("downlink", ["bf16", "q8", "q4(stochastic)"])
def test_a_lossy_downlink_leaves_server_and_clients_with_the_same_model(federation, downlink):
    """Uploads are changes of what arrived, not of what the server holds: without training nothing moves further."""
    made = federation(FedAvg(uplink="q8", downlink=downlink), optimizer="sgd:lr=0")
    state, before = made.state, made.state.weights
    client = Client(0, 0, 1.0, made.runtime)
    payload = state.downlink(0)
    made.clients.respond(client, payload)
    assert torch.equal(client.model(), state.sent)
    assert not torch.equal(state.sent, before)
    assert torch.equal(made.run(1), state.sent)
    assert len(payload) < 0.6 * 4 * len(before)


def test_stochastic_downloads_are_the_same_bytes_whoever_encodes_them(federation):
    """Every process encodes the download for itself; and another round draws anew."""
    one, other = (federation(FedAvg(downlink="q4(stochastic)")).state for _ in range(2))
    assert one.downlink(3) == other.downlink(3) != one.downlink(4)


def test_buffers_pass_lossy_codecs_unharmed(federation):
    made = federation(FedAvg(uplink="topk(0.1)+q4", downlink="bf16"), model=normed)
    state, client = made.state, Client(0, 0, 1.0, made.runtime)
    upload = made.clients.respond(client, state.downlink(0)).payload
    d = made.runtime.vector.d
    assert torch.equal(state.decode(upload)[d:], client.model()[d:])
    assert not torch.equal(state.decode(upload)[:d], client.model()[:d])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            "fedavg:downlink=topk(0.1)",
            "downlink=topk(0.1): a client that holds nothing cannot fill in what is left out",
        ),
        ("fedavg:downlink=ef(bf16)", "downlink=ef(bf16): a client that holds nothing"),
        ("fedavg:uplink=zip", "uplink: chain 'zip': unknown codec 'zip': choose one of bf16, bfloat16"),
        ("fedavg:uplink=topk(2)", "uplink: chain 'topk(2)': topk: fraction 2.0 is not in (0, 1]"),
        ("fedavg:uplink=q8+topk(0.1)", "q8 turns numbers into bytes, so it ends a chain, but topk follows it"),
        ("fedavg:uplink=ef(ef(q8))", "ef wraps a whole chain, once"),
        ("fedprox:downlink=topk(0.5)", "strategy 'fedprox': downlink=topk(0.5): a client that holds nothing"),
        ("fedadam:downlink=sparse+ef(q8)", "downlink: chain 'sparse+ef(q8)'"),
        (
            "scaffold:uplink=q8",
            "strategy 'scaffold': control variates travel as they are; leave out uplink and downlink",
        ),
        ("scaffold:downlink=bf16", "control variates travel as they are"),
        ("fda-opt:uplink=bf16", "strategy 'fda-opt': its variance is that of the models as they are; leave out uplink"),
        ("top-k:uplink=topk(0.1)", "strategy 'top-k': uplink=topk(0.1): the strategy itself chooses which numbers"),
        ("sparsyfed:downlink=sparse", "downlink=sparse: the strategy itself chooses which numbers travel"),
        ("feddip:uplink=ef(q8)", "uplink=ef(q8): the strategy itself chooses which numbers travel"),
        ("fedavg:upload=q8", "strategy 'fedavg' has no parameter 'upload': its parameters are uplink, downlink"),
        ("fedavg:mu=1", "strategy 'fedavg' has no parameter 'mu'"),
    ],
)
def test_codecs_that_make_no_sense_are_one_clear_line(spec, says):
    with pytest.raises(ValueError) as caught:
        STRATEGIES.build(spec)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_message_is_that_of_the_chain(federation):
    """Header and table, then what the chain itself would make of the model: nothing is added."""
    made = federation(FedAvg(downlink="q8"))
    payload = made.state.downlink(0)
    chain = Chain((), Quantised(8))
    assert payload == pack_parcel(chain.encode_body(made.server.initial))
    assert len(payload) == 20 + 1 + 8 + 4 + made.runtime.vector.d
