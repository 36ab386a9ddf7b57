"""SparsyFed in whole rounds: docs/methods/sparsyfed.md P3 to P6 and P8 to P12. Single layers are tests/sparsity's."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sparse_federation import Small, equal_bits, lengths, pictures, small_net, weighted_mean
from torch import nn

from sparsync.errors import UsageError
from sparsync.federated import SparsyFed, TopK
from sparsync.federated.top_k import TopKServer
from sparsync.sparsity import ActivationPruning, power, prunable_names, reparametrize
from sparsync.strategies import STRATEGIES
from sparsync.wire import MaskedSupport
from sparsync.wire.positions import sizes

M = 540
SHARES = (20, 10, 15, 15)
RESNET = "resnet8:width=4"
COUNTED = (0.8, 0.81, 0.9011, 0.0)


def load_sparse(made: Small, number: int = 0, density: float = 0.3):
    """A client that holds the first model with some prunable entries at zero; and which those are."""
    client = made.client(number)
    client.load(made.state.weights)
    dead = torch.rand(made.view.numel, generator=torch.Generator().manual_seed(1)) > density
    made.view.scatter_(client.params, made.view.gather(client.params).where(~dead, 0))
    return client, dead


@pytest.mark.parametrize("optimizer", ["sgd:lr=0.5,weight_decay=1e-3", "sgd:lr=0.1,momentum=0.9", "adam:lr=0.01"])
@pytest.mark.parametrize("beta", [1.25, 2.0, 1.0])
def test_p3_zeros_are_absorbing_unless_beta_is_one(beta, optimizer):
    made = Small(SparsyFed(beta=beta), optimizer=optimizer, epochs=2)
    client, dead = load_sparse(made)
    client.train(transform=made.clients.half.work(client, client.model()).transform)
    trained = made.view.gather(client.params)
    assert client.steps == 8
    if beta == 1:
        assert int((trained[dead] != 0).sum()) > 0.8 * int(dead.sum())
    else:
        assert equal_bits(trained[dead], torch.zeros(int(dead.sum())))
        assert int((trained[~dead] != 0).sum()) > 0.9 * int((~dead).sum())


def test_local_steps_are_those_of_the_re_parametrised_module():
    """Against torch's own parametrization, autograd and optimiser on the same batches."""
    made = Small(SparsyFed(beta=1.25, sparsity=0.5), optimizer="sgd:lr=0.2,weight_decay=1e-2", dtype=torch.float64)
    module = made.task.module(0, torch.float64)
    client = made.client(1)
    client.load(made.state.weights)
    batches = [client.batches[step] for step in range(len(client.batches))]
    client.train(transform=made.clients.half.work(client, client.model()).transform)
    reparametrize(module, 1.25)
    with torch.no_grad():  # omega as it crossed the network, in float32
        for parameter in module.parameters():
            parameter.copy_(parameter.float())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, weight_decay=1e-2)
    with ActivationPruning(module):
        for batch in batches:
            inputs, labels = made.task.dataset.train.batch(batch, torch.float64)
            optimizer.zero_grad()
            made.task.loss(module(inputs), labels).backward()
            optimizer.step()
    by_name = dict(module.named_parameters())
    for name, slot in zip(made.view.names, made.view.spans, strict=True):
        layer, _, leaf = name.rpartition(".")
        expected = by_name[f"{layer}.parametrizations.{leaf}.original"].flatten()
        torch.testing.assert_close(client.params[slot[0] : slot[1]], expected, rtol=1e-5, atol=1e-7)
    assert len(batches) == client.steps == 2


def test_the_first_model_computes_as_without_re_parametrisation():
    made = Small(SparsyFed(beta=1.25))
    torch.testing.assert_close(made.state.model(), made.server.initial, rtol=1e-5, atol=1e-7)
    omega = made.prunable(made.state.weights)
    assert torch.equal(made.prunable(made.state.model()), power(omega, 1.25))
    assert not torch.allclose(omega, made.prunable(made.server.initial), rtol=0.1)
    assert torch.equal(made.rest(made.state.weights), made.rest(made.server.initial))


@pytest.mark.parametrize("sparsity", COUNTED)
def test_p4_an_upload_has_exactly_so_many_non_zeros_and_all_else_as_trained(sparsity):
    made = Small(SparsyFed(sparsity=sparsity))
    for number, payload in (exchange := made.send(0)).uploads.items():
        model, trained = made.state.decode(payload), exchange.trained[number]
        assert int(made.prunable(model).count_nonzero()) == M - round(sparsity * M)
        assert equal_bits(made.rest(model), made.rest(trained))


def test_p5_what_is_kept_is_the_largest_omega_of_all_layers_together():
    made = Small(SparsyFed(sparsity=0.8))
    for round_ in range(2):
        exchange = made.send(round_)
        for number, payload in exchange.uploads.items():
            omega, sent = made.prunable(exchange.trained[number]), made.prunable(made.state.decode(payload))
            live = sent != 0
            assert torch.equal(sent[live], omega[live])
            assert float(omega[live].abs().min()) >= float(omega[~live].abs().max())
            assert len(set(made.view.layer_density(live).values())) == 3
        made.finish(exchange)


def test_p6_activations_are_pruned_from_the_second_round_on_and_only_while_training():
    on, off = Small(SparsyFed(sparsity=0.8)), Small(SparsyFed(sparsity=0.8, activation_pruning=False))
    first = on.exchange(0), off.exchange(0)
    assert first[0].uploads == first[1].uploads  # dense weights: not one bit differs
    assert on.state.model().equal(off.state.model())
    for made in (on, off):
        made.runtime.vector.write(made.state.model())
    evaluated = [made.task.evaluate(made.runtime.module, 0, 20) for made in (on, off)]
    assert evaluated[0][1] == evaluated[1][1]
    second = on.exchange(1), off.exchange(1)
    assert second[0].uploads[0] != second[1].uploads[0]
    density = on.view.layer_density(on.prunable(second[0].received))
    for name in on.view.names:
        assert first[0].notes[0][f"act_density/{name}"] == 1
        assert f"act_density/{name}" not in second[1].notes[0]
        assert density[name] < 1
    # the first layer's input has no ties; steps may only kill weights, which they hardly do
    assert second[0].notes[0]["act_density/0.weight"] == pytest.approx(density["0.weight"], abs=0.01)


def test_a_cached_threshold_lasts_for_one_client_s_round():
    made = {kind: Small(SparsyFed(sparsity=0.8, act_threshold=kind)) for kind in ("per_batch", "cached_per_round")}
    rounds = {kind: one.run(2) for kind, one in made.items()}
    assert rounds["per_batch"][0].uploads == rounds["cached_per_round"][0].uploads
    assert rounds["per_batch"][1].uploads != rounds["cached_per_round"][1].uploads
    alone = Small(SparsyFed(sparsity=0.8, act_threshold="cached_per_round"))
    alone.run(1)
    for number in (3, 1):  # whoever came before, a client finds no threshold
        assert alone.send(1, [number]).uploads[number] == rounds["cached_per_round"][1].uploads[number]


def test_p8_the_server_averages_omega_and_the_support_is_the_union():
    made = Small(SparsyFed(sparsity=0.8))
    for round_ in range(3):
        exchange = made.send(round_)
        models = {number: made.state.decode(payload) for number, payload in exchange.uploads.items()}
        made.finish(exchange)
        mean = weighted_mean(models, SHARES)
        torch.testing.assert_close(made.state.weights.double(), mean, rtol=1e-6, atol=1e-7)
        union = torch.stack([made.prunable(model) != 0 for model in models.values()]).any(0)
        assert torch.equal(made.prunable(made.state.weights) != 0, union)
        moved = weighted_mean({n: model - exchange.received for n, model in models.items()}, SHARES)
        torch.testing.assert_close(exchange.received.double() + moved, mean, rtol=1e-5, atol=1e-6)


def test_p8_differences_give_the_same_models():
    model, delta = Small(SparsyFed(sparsity=0.8)), Small(SparsyFed(sparsity=0.8, payload="delta"))
    for round_ in range(4):
        sent, told = model.send(round_), delta.send(round_)
        for number in sent.uploads:
            a, b = model.state.decode(sent.uploads[number]), delta.state.decode(told.uploads[number])
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert torch.equal(model.prunable(a) != 0, delta.prunable(b) != 0)  # what is pruned is exactly zero
            change = delta.prunable(TopKServer.decode(delta.state, told.uploads[number]))
            before, after = delta.prunable(told.received), delta.prunable(b)
            assert not bool((change != 0)[(before == 0) & (after == 0)].any())
            pruned = (before != 0) & (after == 0)
            assert torch.equal(change[pruned], -before[pruned])
            assert bool(pruned.any()) == (round_ < 2)
        for made, exchange in ((model, sent), (delta, told)):
            made.finish(exchange)
        torch.testing.assert_close(model.state.weights, delta.state.weights, rtol=1e-4, atol=1e-5)


def test_p9_the_support_only_shrinks_and_nothing_grows_back():
    made = Small(SparsyFed(sparsity=0.8), model=RESNET, optimizer="sgd:lr=0.3,weight_decay=1e-3", cohort=3)
    k, supports = made.view.numel - round(0.8 * made.view.numel), []
    for exchange in made.run(5):
        supports.append(made.prunable(exchange.received) != 0)
        if exchange.round:
            assert all(notes["regrown"] == 0 for notes in exchange.notes.values())
    for before, after in pairwise(supports[1:]):
        assert not bool((after & ~before).any())
        assert int(after.sum()) >= k
    assert k < int(supports[1].sum()) < made.view.numel


def test_p9_plain_shortcuts_are_all_that_grows_back():
    made = Small(SparsyFed(sparsity=0.8, reparametrize_shortcuts=False), model=RESNET)
    plain = made.view.expand(torch.tensor(["shortcut" in name for name in made.view.names]))
    shortcuts = int(plain.sum())
    assert 0 < shortcuts < made.view.numel
    for exchange in made.run(3):
        for number, model in exchange.trained.items():
            grown = (made.prunable(exchange.received) == 0) & (made.prunable(model) != 0)
            assert not bool((grown & ~plain).any())
            if exchange.round:
                assert 0 < exchange.notes[number]["regrown"] == int(grown.sum()) <= shortcuts
    assert not any("shortcut" in name for name in exchange.notes[0])  # nor are their activations pruned
    assert "act_density/layer2.0.conv1.weight" in exchange.notes[0]
    theta, omega = made.prunable(made.state.model()), made.prunable(made.state.weights)
    assert torch.equal(theta[plain], omega[plain])
    assert not torch.equal(theta[~plain], omega[~plain])


def test_p10_beta_one_is_top_k_bit_for_bit():
    one = Small(SparsyFed(sparsity=0.8, beta=1, activation_pruning=False)).run(3)
    other = Small(TopK(sparsity=0.8)).run(3)
    assert [exchange.uploads for exchange in one] == [exchange.uploads for exchange in other]


def test_p11_learning_rate_of_the_authors():
    made = Small(SparsyFed(), optimizer="sgd:lr=0.5", schedule="geometric:final=0.02,steps=700", rounds=700)
    rates = [made.client(round_=round_).learning_rate for round_ in range(700)]
    assert rates[0] == pytest.approx(0.497213, abs=5e-7)
    assert rates[699] == pytest.approx(0.01, rel=1e-9)
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_p12_a_frozen_support_costs_one_bit_per_received_entry_at_most():
    made = Small(SparsyFed(sparsity=0.8))
    made.run(1)
    exchange = made.send(1)
    received = int(made.prunable(exchange.received).count_nonzero())
    positions = made.prunable(exchange.received).nonzero().squeeze(1).numpy()
    assert lengths(exchange.payload)["mask"] == min(sizes(positions, M).values())
    for number, payload in exchange.uploads.items():
        found = lengths(payload)
        assert found["model"] == 4 * 108
        assert found["rest"] == 4 * (made.server.vector.numel - M)
        assert found["mask"] <= 1 + math.ceil(received / 8) < min(sizes(positions[:108], M).values())
        sent = made.prunable(made.state.decode(payload))
        assert torch.equal(sent[sent != 0], made.prunable(exchange.trained[number])[sent != 0])


def test_p12_bytes_of_the_paper_s_resnet():
    """ResNet-18 on CIFAR-10 at sparsity 0.95: docs/methods/sparsyfed.md 5 and 6."""
    dataset = pictures(10, 10, (3, 32, 32))
    made = Small(SparsyFed(activation_pruning=False), model="resnet18", dataset=dataset, shares=(5, 5))
    vector, view, m = made.server.vector, made.view, 11_164_352
    assert (vector.d, vector.b, view.numel) == (11_173_962, 9_600, m)
    k = 558_218
    assert m - round(0.95 * m) == k
    assert round(100 * (1 - (k + vector.d - m) / vector.d), 3) == 94.918
    mask = torch.zeros(m, dtype=torch.bool)
    mask[torch.from_numpy(np.random.default_rng(0).choice(m, k, replace=False))] = True
    upload = lengths(made.state.up.encode(made.server.initial, support=MaskedSupport(mask)))
    assert (upload["model"], upload["rest"]) == (2_232_872, 76_840)
    bitmap = sizes(mask.nonzero().squeeze(1).numpy(), m)["bitmap"] - 1
    assert bitmap == 1_395_544
    assert bitmap + upload["model"] + 76_840 == 3_705_256
    assert upload["mask"] < bitmap / 3  # H(0.05) is 0.286 bits
    dense = made.state.downlink(0)
    assert sum(lengths(dense).values()) == 44_734_248 + lengths(dense)["mask"]
    assert lengths(dense)["mask"] == 1
    assert round(44_734_248 / 3_705_256, 2) == 12.07


def test_clients_with_a_sparsity_of_their_own():
    made = Small(SparsyFed(sparsity=0.8, client_sparsity={1: 0.95, 2: 0.9}))
    k = {0: 108, 1: 27, 2: 54, 3: 108}
    plain, first = Small(SparsyFed(sparsity=0.8)).send(0), made.send(0)
    for number, payload in first.uploads.items():
        assert equal_bits(first.trained[number], plain.trained[number])  # from a dense model, in the first round
        assert int(made.prunable(made.state.decode(payload)).count_nonzero()) == k[number]
    made.finish(first)
    received = made.prunable(made.state.weights)
    assert int(received.count_nonzero()) > 108
    trained_from = {}
    for number in range(4):
        client = made.client(number, 1)
        client.train = lambda *steps, held=client, **options: trained_from.update({held.number: held.model()})
        made.clients.respond(client, made.state.downlink(1))
    for number, model in trained_from.items():
        held = made.prunable(model)
        expected = int(received.count_nonzero()) if number in (0, 3) else k[number]
        assert int(held.count_nonzero()) == expected
        assert float(held[held != 0].abs().min()) >= float(received[held == 0].abs().max()) * (expected != len(held))


@pytest.mark.parametrize("beta", ["spectral", "spectral_network"])
def test_beta_from_the_weights_is_chosen_once_per_client_and_round(beta):
    made = Small(SparsyFed(sparsity=0.5, beta=beta))
    used = []

    def watched(client):
        train = client.train

        def run(*steps, transform=None, **options):
            used.append(transform.beta)
            train(*steps, transform=transform, **options)

        client.train = run
        return client

    payload = made.state.downlink(0)
    for number in (0, 1, 0):
        made.clients.respond(watched(made.client(number)), payload)
    first, second, again = (torch.as_tensor(one) for one in used)
    assert torch.equal(first, again)
    assert float(first.min()) > 1
    if beta == "spectral":
        per_layer = made.view.split(first)
        assert all(len(part.unique()) == 1 for part in per_layer)
        assert len(first.unique()) == 3
        torch.testing.assert_close(first, second, rtol=0.2, atol=0)  # one step of the power iteration
    else:
        assert first.numel() == 1
    assert bool(torch.isfinite(made.state.model()).all())


def test_a_model_without_normalisation_and_buffers():
    made = Small(SparsyFed(sparsity=0.8), model="mlp:hidden=12")
    made.run(2)
    assert made.rest(made.state.weights).numel() == 12 + 3
    assert "rest" in lengths(made.state.downlink(2))
    bare = Small(
        SparsyFed(sparsity=0.8), model=lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
    )
    bare.run(2)
    assert "rest" not in lengths(bare.state.downlink(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("beta=0.9", "beta: expected a number of at least 1, 'spectral' or 'spectral_network', got '0.9'"),
        ("beta=spectra", "beta: expected a number of at least 1, .* got 'spectra'"),
        ("beta=inf", "beta: expected a number of at least 1, .* got 'inf'"),
        ("sparsity=1", "sparsity: Input should be less than 1"),
        ("uplink=topk(0.5)", "the strategy itself chooses which numbers travel"),
        ("payload=delta,uplink=q8", "payload=delta with uplink=q8: rounding would leave a rest of what was pruned"),
        ("payload=update", "payload: Input should be 'model' or 'delta'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        STRATEGIES.build(f"sparsyfed:{options}")


def test_wrong_sparsities_of_clients():
    with pytest.raises(UsageError, match=r"client_sparsity: 1\.0 for client 0; give at least 0 and less than 1"):
        SparsyFed(client_sparsity={0: 1.0})
    with pytest.raises(UsageError, match="client_sparsity of client 9; there are 0 to 3"):
        Small(SparsyFed(client_sparsity={9: 0.5}))


def test_the_net_of_these_tests():
    names = prunable_names(small_net((1, 8, 8), 3))
    assert names == ("0.weight", "3.weight", "6.weight")
