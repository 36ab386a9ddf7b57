"""FDA-Opt, its controller by hand and FedOpt as its limit: docs/methods/fda.md 5, properties 16 and 17."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsync.engines.rounds import RoundCounter
from sparsync.federated import FDAOpt, FedAdam, FedAvg, FedAvgM
from sparsync.strategies import STRATEGIES

TWO = [[(4, 0)], [(-2, 0)]]
EPS = 1 / math.sqrt(250)


def notes(made):
    """The lines of the rounds' ends."""
    return [line for line in made.lines if line["kind"] == "round" and "variance" in line]


def estimates(made):
    """The lines after each epoch."""
    return [line for line in made.lines if line["kind"] == "round" and "estimate" in line]


@pytest.mark.parametrize("threshold", [0, 1e-9, 100, math.inf])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_first_round_is_exactly_one_epoch(federation, threshold, adaptive):
    """And so, with the plain mean as server step, it is FedAvg's."""
    made = federation(FDAOpt(threshold=threshold, adaptive=adaptive))
    assert torch.allclose(made.run(1), federation(FedAvg(), epochs=1).run(1), atol=1e-6)
    assert [line["epochs"] for line in notes(made)] == [1]
    assert made.loop.progress.step == 3


def test_a_tiny_threshold_still_gives_one_epoch_per_round(federation):
    made = federation(FDAOpt(threshold=0, adaptive=False))
    made.run(4)
    assert [line["epochs"] for line in notes(made)] == [1] * 4
    assert all(line["estimate"] > 0 for line in estimates(made))


def test_the_most_epochs_end_a_round(federation):
    made = federation(FDAOpt(threshold=math.inf, adaptive=False, max_epochs=4))
    made.run(3)
    assert [line["epochs"] for line in notes(made)] == [1, 4, 4]


@pytest.mark.parametrize(("epochs", "most"), [(1, 10), (3, 14), (5, 18), (10, 28), (None, 10)])
def test_the_authors_mapping_from_fedopts_epochs(federation, epochs, most):
    assert federation(FDAOpt(), epochs=epochs).state.max_epochs == most


@pytest.mark.parametrize("server", ["sgd:lr=1", "sgd:lr=0.7,momentum=0.9", "adam:lr=0.01,beta2=0.99,eps=0.001"])
@pytest.mark.parametrize("optimizer", ["sgd:lr=0.1", "sgd:lr=0.1,momentum=0.9", "adam:lr=0.01"])
def test_without_threshold_it_is_fedopt(federation, server, optimizer):
    """From the second round on, whose epochs are not cut to one; even batches and momentum are the same."""
    other = {
        "sgd:lr=1": FedAvgM(lr=1, momentum=0),
        "sgd:lr=0.7,momentum=0.9": FedAvgM(lr=0.7, momentum=0.9),
        "adam:lr=0.01,beta2=0.99,eps=0.001": FedAdam(lr=0.01),
    }[server]
    fda = federation(FDAOpt(threshold=math.inf, adaptive=False, max_epochs=3, server=server), optimizer=optimizer)
    opt = federation(other, epochs=3, optimizer=optimizer)
    fda.loop.rounds, opt.loop.rounds = RoundCounter(round=1), RoundCounter(round=1)
    assert torch.allclose(fda.run(3), opt.run(3), atol=1e-6)
    assert fda.loop.progress.step == opt.loop.progress.step == 3 * 3 * 3


def test_two_clients_by_hand(pulls):
    """Steps of rate 1/2 towards 4 and -2; two numbers meet in no bucket, so the sketch's norm is exact."""
    made = pulls(FDAOpt(max_epochs=10), TWO)
    assert made.run(1).tolist() == [0.5, 0]  # the mean of 2 and -1
    (first,) = notes(made)
    assert first["variance"] == (4 + 1) / 2 - 0.5**2 == 2.25
    assert estimates(made)[0]["estimate"] == pytest.approx(2.5 - 0.25 / (1 + EPS), rel=1e-6)
    assert made.state.threshold == 10 / 2 / 1 * 2.25
    made.run(1)  # from 0.5: u = (1 - 2^-e) (3.5, -2.5), whose variance never exceeds 9 < 11.25
    assert [line["epochs"] for line in notes(made)] == [1, 10]
    share = 1 - 2**-10
    assert notes(made)[1]["variance"] == pytest.approx(9 * share**2, rel=1e-6)
    assert made.state.threshold == pytest.approx(10 / 2 / 10 * 9 * share**2, rel=1e-6)
    for epoch, line in enumerate(estimates(made)[1:], 1):
        u = (1 - 2**-epoch) * torch.tensor([3.5, -2.5], dtype=torch.float64)
        expected = float(u.square().mean() - u.mean().square() / (1 + EPS))
        assert line["estimate"] == pytest.approx(expected, rel=1e-5)
        assert line["threshold"] == 11.25
    made.run(1)  # from 1, with Theta = 4.49: u = (1 - 2^-e) (3, -3): 2.25, then 5.06
    assert notes(made)[2]["epochs"] == 2
    assert made.state.threshold == pytest.approx(10 / 2 / 2 * 9 * 0.75**2, rel=1e-5)


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_the_controller_follows_the_exact_variance_of_the_models(federation, weights):
    sizes = [10, 20, 30, 30, 40, 50]
    made = federation(FDAOpt(threshold=0.05), sizes=sizes, weights=weights, optimizer="sgd:lr=0.3")
    state = made.state
    aggregate, models, thresholds = state.aggregate, {}, []

    def look(round_, uploads):
        uploads = list(uploads)
        if state.asked == 2:
            models.update({upload.client: state.up.decode(upload.payload).double() for upload in uploads})
        thresholds.append(state.threshold)
        return aggregate(round_, iter(uploads))

    state.aggregate = look
    for _ in range(4):
        made.run(1)
        share = torch.tensor(sizes if weights == "samples" else [1] * 6, dtype=torch.float64)
        share /= share.sum()
        stack = torch.stack([models[client] for client in range(6)])
        mean = share @ stack
        variance = float(share @ (stack - mean).square().sum(1))
        line = notes(made)[-1]
        assert line["variance"] == pytest.approx(variance, rel=1e-9)
        assert line["threshold"] == thresholds[-1]
        assert state.threshold == pytest.approx(state.max_epochs / 2 / line["epochs"] * variance, rel=1e-9)
        assert torch.allclose(state.model(), mean.float(), atol=1e-6)
    assert max(line["epochs"] for line in notes(made)) > 1
    assert min(line["epochs"] for line in notes(made)[1:]) < state.max_epochs


def test_the_variance_of_models_far_from_zero_is_still_exact(pulls):
    """In float32, ||u||^2 of about 1e8 would have an error of 8, as large as what is left of it."""
    made = pulls(FDAOpt(), [[(20000, 0)], [(20004, 0)]], weights="uniform")
    made.run(1)
    assert notes(made)[0]["variance"] == pytest.approx(1.0, abs=1e-6)  # at 10000 and 10002


def cohorts(made, rounds):
    seen = []
    for _ in range(rounds):
        made.run(1)
        seen.append(list(made.state.cohort))
    return seen


def test_groups_are_without_replacement_within_a_pass(federation):
    seen = cohorts(federation(FDAOpt(max_epochs=2), cohort=2), 9)
    for start in range(0, 9, 3):
        assert sorted(client for cohort in seen[start : start + 3] for client in cohort) == [0, 1, 2, 3, 4, 5]
    assert seen[:3] != seen[3:6]
    assert seen == cohorts(federation(FDAOpt(max_epochs=2), cohort=2), 9)
    assert seen != cohorts(federation(FDAOpt(max_epochs=2), cohort=2, seed=1), 9)


def test_groups_that_do_not_divide_the_clients_leave_some_out_of_a_pass(federation):
    seen = cohorts(federation(FDAOpt(max_epochs=2), cohort=4), 4)
    assert all(len(set(group)) == 4 for group in seen)
    assert len({tuple(group) for group in seen}) > 1


@pytest.mark.parametrize("drop_last", [False, True])
def test_all_clients_of_a_round_take_the_same_number_of_steps(federation, drop_last):
    made = federation(
        FDAOpt(max_epochs=2, threshold=math.inf, adaptive=False), sizes=[5, 17, 30, 128], drop_last=drop_last
    )
    taken = {}
    update = made.clients.respond

    def look(client, payload):
        upload = update(client, payload)
        taken.setdefault((client.round, client.number), []).append(client.steps)
        return upload

    made.clients.respond = look
    made.run(2)
    longest = 12 if drop_last else 13
    assert taken == {
        (round_, client): [longest] * epochs + [0] for round_, epochs in ((0, 1), (1, 2)) for client in range(4)
    }


def test_bytes_per_client_and_round(federation):
    """2 x 4 d for the models, 4 (1 + l m) per epoch for states; counted apart, what the server asks of the cohort."""
    made = federation(FDAOpt(threshold=math.inf, adaptive=False, max_epochs=3, depth=3, width=50), cohort=2)
    made.run(1)
    paper, wire = dict(made.loop.ledger.paper), dict(made.loop.ledger.moved)
    made.run(1)
    d, epochs, orders = made.runtime.vector.d, 3, 4
    paper = {kind: nbytes - paper[kind] for kind, nbytes in made.loop.ledger.paper.items()}
    wire = {kind: nbytes - wire[kind] for kind, nbytes in made.loop.ledger.moved.items()}
    assert paper == {"model": 2 * 2 * 4 * d, "state": 2 * 4 * (1 + 3 * 50) * epochs, "control": 2 * 4 * 3 * orders}
    header, table, entry = 20, 1, 8
    assert wire == {
        "model": 2 * (2 * 4 * d + 2 * (header + table + entry)),
        "state": 2 * epochs * (4 * (1 + 3 * 50) + header + table + entry),
        "control": 2 * (orders * (3 * 4 + entry) + (orders - 1) * (header + table)),
    }


def test_clients_remember_nothing_after_a_round(federation):
    made = federation(FDAOpt(max_epochs=3), cohort=2)
    made.run(3)
    assert made.runtime.memories == {}


def corrupt(made, bad):
    """Let uploads arrive damaged of clients for which `bad(client)` holds."""
    update = made.clients.respond

    def damaged(client, payload):
        upload = update(client, payload)
        return replace(upload, payload=upload.payload[:-1]) if bad(client) else upload

    made.clients.respond = damaged


def test_who_fails_is_out_of_the_round(federation):
    made = federation(FDAOpt(max_epochs=2, threshold=math.inf, adaptive=False))
    corrupt(made, lambda client: (client.number, client.round) == (4, 1))
    made.run(2)
    assert [(line["client"], line["round"]) for line in made.lines if line["kind"] == "rejection"] == [(4, 2)]
    sent, one = made.loop.ledger.sent, 20 + 1 + 8 + 4 * 1251  # bytes of a state
    assert (sent["state"][3], sent["state"][4]) == (3 * one, one)
    assert sent["model"][4] == sent["model"][3] // 2 + one - 1  # what cannot be read is booked as model
    made.run(1)
    assert made.state.cohort == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("exchange", [1, 2, 3])
def test_a_round_that_fails_on_the_way_begins_again_with_the_next_group(federation, exchange):
    made = federation(FDAOpt(max_epochs=2, threshold=math.inf, adaptive=False), cohort=2, minimum=2)
    made.run(1)
    model = made.state.model().clone()
    first = made.server.generator("groups", 0).permutation(6)
    seen = []

    def bad(client):
        seen.append(client.number)
        return client.number in first[2:4] and seen.count(client.number) == exchange

    corrupt(made, bad)
    made.run(1)
    assert set(made.state.cohort) == set(first[4:6])
    assert sorted(set(seen)) == sorted(first[2:6])
    assert seen[-6:] == sorted(first[4:6].tolist()) * 3  # two epochs and the models
    assert not torch.equal(made.state.model(), model)
    assert notes(made)[-1]["epochs"] == 2


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fda-opt:threshold=-1", "strategy 'fda-opt': threshold: Input should be greater than or equal to 0"),
        ("fda-opt:max_epochs=0", "max_epochs: Input should be greater than or equal to 1"),
        ("fda-opt:depth=4", "depth=4: give an odd number"),
        ("fda-opt:server=sdg", "unknown optimizer 'sdg': did you mean 'sgd'?"),
    ],
)
def test_mistakes(spec, says):
    with pytest.raises(ValueError) as caught:
        STRATEGIES.build(spec)
    assert says in str(caught.value)


def test_federations_that_make_no_sense(federation):
    with pytest.raises(ValueError, match=r"fda-opt: clients take turns, so federation.sampling=weighted means nothing"):
        federation("fda-opt", sampling="weighted")
    with pytest.raises(ValueError, match=r"fda-opt: rounds are counted in epochs, but federation.steps=5"):
        federation("fda-opt", steps=5)
    assert federation("fda-opt:max_epochs=3", steps=5).state.max_epochs == 3
