"""Asynchronous clients: who arrives when and how stale, both updates, FedAvg as a limit, faults, and the same bits."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsync import Experiment, compare
from sparsync.engines import PaceAction
from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.errors import SparsyncError, UsageError
from sparsync.federated import AsynchronousServer, FedAsync, FedAvg, FedBuff, Upload
from sparsync.strategies import STRATEGIES
from sparsync.system import Profile

APART = Profile(step_seconds=4.0, power="4:2:1", latency=0.5, bandwidth=math.inf)
"""From the moment of their dispatch, clients of one step arrive after 2, 3 and 5 seconds: half a second each way."""

POINTS = [[(8.0, 0.0)], [(0.0, 8.0)], [(-8.0, -8.0)]]


def kinds(made, kind):
    return [line for line in made.lines if line["kind"] == kind]


def watch(made):
    """Return a list that fills with (seconds, client, staleness) of whatever the server takes in."""
    seen = []
    aggregate = made.state.aggregate

    def watched(round_, uploads):
        arrived = list(uploads)
        seen.extend((made.loop.clock.now, upload.client, upload.staleness) for upload in arrived)
        return aggregate(round_, iter(arrived))

    made.state.aggregate = watched
    return seen


def meddle(made, when):
    """Cut uploads short, where `when(client)` holds."""
    update = made.clients.respond

    def damaged(client, payload):
        reply = update(client, payload)
        return replace(reply, payload=reply.payload[:-1]) if when(client) else reply

    made.clients.respond = damaged


# Who arrives when, and how stale ------------------------------------------------------------------------------------


def test_fedasync_takes_clients_in_the_order_in_which_they_arrive(pulls):
    """Each is sent out anew when it arrives; at 6 and 10 two arrive at once, the one that was sent out first before."""
    made = pulls(FedAsync(), POINTS, profile=APART)
    seen = watch(made)
    made.run(10)
    assert seen == [
        (2.0, 0, 0),
        (3.0, 1, 1),  # one update since it began
        (4.0, 0, 1),
        (5.0, 2, 3),
        (6.0, 1, 2),
        (6.0, 0, 2),
        (8.0, 0, 0),  # sent out at 6, after both updates
        (9.0, 1, 1),
        (10.0, 2, 4),
        (10.0, 0, 2),
    ]
    assert [line["seconds"] for line in kinds(made, "evaluation")] == [moment for moment, _, _ in seen]
    assert [line["staleness"] for line in kinds(made, "round")] == [staleness for _, _, staleness in seen]
    assert (made.loop.counts, made.loop.syncs) == ("rounds", 10)


def test_fedbuff_updates_when_the_buffer_is_full(pulls):
    made = pulls(FedBuff(buffer=2), POINTS, profile=APART)
    seen = watch(made)
    made.run(4)
    assert seen == [
        *((3.0, 0, 0), (3.0, 1, 0)),
        *((5.0, 0, 1), (5.0, 2, 1)),  # the first of these arrived at 4
        *((6.0, 1, 1), (6.0, 0, 1)),  # sent out at 3 and 4, between the first update and the second
        *((9.0, 0, 0), (9.0, 1, 0)),
    ]
    line = kinds(made, "round")[1]
    assert (line["round"], line["staleness"], line["staleness_min"], line["staleness_max"]) == (2, 1, 1, 1)


def test_what_each_device_has_spent_its_time_on(pulls):
    made = pulls(FedAsync(), POINTS, profile=APART)
    made.run(9)  # to 10 s; the second is under way since 9 s, and it is known when it will be done
    spent = {name: seconds.tolist() for name, seconds in made.loop.clock.spent.items()}
    assert spent["receive"] == [5 * 0.5, 4 * 0.5, 2 * 0.5]
    assert spent["compute"] == [5 * 1, 4 * 2, 2 * 4]
    assert spent["send"] == [5 * 0.5, 3 * 0.5, 2 * 0.5]
    assert spent["wait"] == [0, 0, 0]


def test_messages_through_a_link_that_all_share_follow_one_another(pulls):
    """One second each: down at 1 and 2, steps of 4 s to 5 and 6, up at 6 and 7; then the same from there."""
    nbytes = len(pulls(FedAvg(), POINTS).state.downlink(0))
    profile = Profile(step_seconds=4, latency=0, bandwidth=math.inf, shared=nbytes)
    made = pulls(FedAsync(), POINTS[:2], profile=profile)
    seen = watch(made)
    made.run(4)
    assert [(moment, client) for moment, client, _ in seen] == [(6, 0), (7, 1), (12, 0), (13, 1)]


def test_fast_clients_contribute_in_proportion_to_their_speed(federation):
    profile = Profile(step_seconds=1, power="4:2:1:1", latency=0, bandwidth=math.inf)
    made = federation(FedAsync(mu=0), sizes=[10] * 4, profile=profile)
    seen = watch(made)
    made.run(8 * 6)
    assert Counter(client for _, client, _ in seen) == {0: 24, 1: 12, 2: 6, 3: 6}


def test_nobody_is_under_way_twice_and_all_get_their_turn(federation):
    made = federation(FedAsync(concurrency=3), sizes=[10] * 8, profile=Profile(spread=0.5))
    seen = watch(made)
    for _ in range(40):
        made.run(1)
        under_way = [visit.client for visit in made.loop.away]
        assert len(under_way) == len(set(under_way)) == 2  # one has just arrived
    assert {client for _, client, _ in seen} == set(range(8))


def test_a_client_that_returns_before_an_update_takes_other_batches(federation):
    """Both visits begin with the same model, but not with the same random numbers."""
    made = federation(FedBuff(buffer=6, concurrency=1), sizes=[30], batch_size=5)
    uploads = []
    aggregate = made.state.aggregate
    made.state.aggregate = lambda round_, arrived: aggregate(round_, iter([uploads.append(u) or u for u in arrived]))
    made.run(1)
    assert len({upload.payload for upload in uploads}) == 6
    assert {upload.staleness for upload in uploads} == {0}


# Updates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "factors"),
    [
        (FedAsync(alpha=0.5, discount="constant"), {0: 1, 3: 1, 8: 1}),
        (FedAsync(alpha=0.5), {0: 1, 3: 1 / 2, 8: 1 / 3}),
        (FedAsync(alpha=0.5, a=1), {0: 1, 3: 1 / 4, 8: 1 / 9}),
        (FedAsync(alpha=0.5, discount="hinge", a=10), {0: 1, 3: 1, 4: 1, 5: 1 / 11, 8: 1 / 41}),
        (FedAsync(alpha=0.5, discount="hinge", a=0.5, b=0), {0: 1, 2: 1 / 2, 8: 1 / 5}),
    ],
    ids=["constant", "polynomial", "a=1", "hinge", "b=0"],
)
def test_fedasync_moves_towards_what_arrived(pulls, strategy, factors):
    """w <- (1 - alpha s) w + alpha s x."""
    state = pulls(strategy, POINTS).state
    wanted = torch.zeros(2)
    for round_, (staleness, factor) in enumerate(factors.items()):
        x = torch.tensor([1.0 + round_, -2.0])
        state.aggregate(round_, iter([Upload(0, state.up.encode(x), staleness)]))
        wanted = (1 - 0.5 * factor) * wanted + 0.5 * factor * x
        assert state.model().tolist() == pytest.approx(wanted.tolist())


def test_fedasync_in_a_run_in_literal_numbers(pulls):
    """Half-way to (8, 0) at first: (4, 0), taken in by a half; then (0, 4), stale by one, by a quarter."""
    made = pulls(FedAsync(alpha=0.5, a=1, mu=0), POINTS, profile=APART)
    assert made.run(1).tolist() == [2, 0]
    assert made.run(1).tolist() == [1.5, 1]
    assert made.run(1).tolist() == pytest.approx([0.75 * 1.5 + 0.25 * 5, 0.75 * 1])  # from (2, 0): to (5, 0)


def test_fedasyncs_clients_hold_on_to_what_they_received(pulls):
    """Two steps of 1/2 towards (8, 0): 4, then 8 + 4 mu - 4 / 2 less of the way."""
    made = pulls(FedAsync(alpha=1, mu=0.5), [[(8.0, 0.0)]], steps=2)
    assert made.run(1).tolist() == [4 + 0.5 * (4 - 0.5 * 4), 0]


def test_fedbuff_by_hand(pulls):
    """Changes stale by 0 and 3, of 1 and 3 samples: lr times (1 d + 3/2 e) / 4."""
    state = pulls(FedBuff(buffer=2, lr=2), [[(0, 0)], [(0, 0)] * 3]).state
    d, e = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 8.0])
    for round_ in (1, 2):
        state.aggregate(0, iter([Upload(0, state.up.encode(d), 0), Upload(1, state.up.encode(e), 3)]))
        assert state.model().tolist() == pytest.approx([round_ * 2 * 4 / 4, round_ * 2 * 1.5 * 8 / 4])


def test_fedbuff_averages_buffers_of_the_model(federation):
    """In the weights of the changes, 1 and 1/2: they are no differences, and a discount does not make them smaller."""
    made = federation(FedBuff(buffer=2), model=normed)
    state, d = made.state, made.runtime.vector.d
    one, other = torch.zeros(made.runtime.vector.numel), torch.zeros(made.runtime.vector.numel)
    one[d:], other[d:] = 1, 4
    exact = made.server.exact
    sent = [exact.join(state.up.encode(model), exact.values) for model in (one, other)]
    state.aggregate(0, iter([Upload(0, sent[0], 0), Upload(1, sent[1], 3)]))
    assert state.model()[d:].tolist() == pytest.approx([2.0] * (len(one) - d))
    assert torch.equal(state.model()[:d], made.server.initial[:d])


def normed(shape, classes):
    return torch.nn.Sequential(
        torch.nn.Linear(*shape, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, classes)
    )


@pytest.mark.parametrize("settings", [{}, {"cohort": 3}, {"cohort": 3, "uplink": "q8"}], ids=["all", "some", "q8"])
def test_fedbuff_of_clients_that_are_equally_fast_is_fedavg(federation, settings):
    """The same cohorts, batches, bytes and times; in the models the rounding of w + mean(x - w), not of mean(x)."""
    options = {name: value for name, value in settings.items() if name != "uplink"}
    uplink, cohort = settings.get("uplink"), settings.get("cohort", 6)
    profile = Profile(step_seconds=1, latency=0.25)
    common = {"weights": "uniform", "profile": profile, "model": normed, **options}
    average = federation(FedAvg(uplink=uplink), **common)
    buffered = federation(FedBuff(uplink=uplink, buffer=cohort), **common)
    for _ in range(4):
        assert torch.allclose(average.run(1), buffered.run(1), atol=1e-5)
        assert buffered.loop.clock.now == pytest.approx(average.loop.clock.now)
        assert buffered.loop.ledger.moved == average.loop.ledger.moved
        assert buffered.loop.ledger.paper == average.loop.ledger.paper
        assert buffered.loop.progress.step == average.loop.progress.step
    assert {line["staleness_max"] for line in kinds(buffered, "round")} == {0}
    for one, other in zip(kinds(average, "evaluation"), kinds(buffered, "evaluation"), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


# What is booked -----------------------------------------------------------------------------------------------------


def test_bytes_down_are_booked_at_dispatch_and_up_at_arrival(pulls):
    made = pulls(FedAsync(), POINTS, profile=APART)
    message, values = len(made.state.downlink(0)), 4 * 2
    ledger = made.loop.ledger
    made.run(1)  # all were sent out, one is back
    assert ledger.received["model"].tolist() == [message] * 3
    assert ledger.sent["model"].tolist() == [message, 0, 0]
    made.run(2)  # that one was sent out again and is back again; so is the second
    assert ledger.received["model"].tolist() == [2 * message, 2 * message, message]
    assert ledger.sent["model"].tolist() == [2 * message, message, 0]
    assert ledger.moved == {"model": 8 * message}
    assert ledger.paper == {"model": 8 * values}
    assert kinds(made, "evaluation")[-1]["bytes"] == 8 * message


def test_a_step_is_the_mean_over_the_clients_that_train_at_once(federation):
    made = federation(FedAsync(concurrency=2), batch_size=10, profile=Profile(spread=0.5))
    made.run(5)
    assert made.loop.progress.total == 5 * 3
    assert made.loop.progress.step == 5 * 3 // 2


def test_a_run_ends_after_so_many_updates(federation):
    made = federation(FedAsync(), rounds=3)
    made.run(10)
    assert made.loop.done
    assert made.loop.syncs == 3


# Faults -------------------------------------------------------------------------------------------------------------


def test_a_bad_upload_is_named_and_the_next_arrival_takes_its_place(pulls):
    made = pulls(FedBuff(buffer=2), POINTS, profile=APART)
    meddle(made, lambda client: (client.number, client.round) == (1, 0))
    seen = watch(made)
    made.run(1)
    (line,) = kinds(made, "rejection")
    assert (line["round"], line["client"]) == (1, 1)
    assert "its header declares" in line["reason"]
    assert seen == [(3.0, 0, 0), (3.0, 1, 0), (4.0, 0, 0), (4.0, 0, 0)]  # what had come at 2 has waited
    assert made.loop.syncs == 1
    assert made.loop.rounds.attempt == 0
    assert made.loop.ledger.sent["model"][1] > 0  # what was sent has been sent


def test_when_all_send_rubbish_the_run_is_saved_and_goes_on_later(pulls, tmp_path):
    made = pulls(FedAsync(), POINTS, profile=APART)
    meddle(made, lambda client: client.round > 0)  # the second time that they are sent out, and later
    with pytest.raises(SparsyncError, match=r"^round 4: 9 arrivals in a row sent too little; the last: 0 valid") as why:
        made.run(4)
    assert "\n" not in str(why.value)
    assert [line["round"] for line in kinds(made, "rejection")] == [3] + [4] * 9
    save_tree(made.saved[-1], tmp_path / "state")
    again = pulls(FedAsync(), POINTS, profile=APART)
    again.loop.load_state_dict(load_tree(tmp_path / "state"))
    assert torch.equal(again.state.model(), made.state.model())
    again.run(1)
    assert again.loop.syncs == 4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fedasync:alpha=0", "alpha: Input should be greater than 0"),
        ("fedasync:alpha=1.5", "alpha: Input should be less than or equal to 1"),
        ("fedasync:discount=linear", "discount: Input should be 'polynomial', 'hinge' or 'constant'"),
        ("fedasync:concurrency=0", "concurrency: Input should be greater than or equal to 1"),
        ("fedasync:uplink=q8", "the server mixes whole models"),
        ("fedasync:uplink=ef(topk(0.1))", "the server mixes whole models"),
        ("fedasync:buffer=3", "has no parameter 'buffer'"),
        ("fedbuff:buffer=0", "buffer: Input should be greater than or equal to 1"),
        ("fedbuff:lr=0", "lr: Input should be greater than 0"),
        ("fedbuff:exponent=-1", "exponent: Input should be greater than or equal to 0"),
        ("fedbuff:uplink=ef(topk(0.1))", "leave out ef(...)"),
        ("fedbuff:downlink=topk(0.1)", "cannot fill in what is left out"),
    ],
)
def test_wrong_options_are_one_clear_line(spec, says):
    with pytest.raises(UsageError) as why:
        STRATEGIES.build(spec)
    assert says in str(why.value)
    assert "\n" not in str(why.value)


def test_what_does_not_go_with_the_federation_is_refused(federation):
    with pytest.raises(UsageError, match=r"^asynchronous clients: concurrency=7 of 6; ask for at most all$"):
        federation(FedBuff(concurrency=7))
    with pytest.raises(UsageError, match=r"^asynchronous clients: on this profile a local step takes no time"):
        federation(FedAsync(), profile=Profile(step_seconds=0))


def test_who_is_asynchronous(federation):
    assert isinstance(federation(FedAsync()).state, AsynchronousServer)
    assert isinstance(federation(FedBuff()).state, AsynchronousServer)
    assert not isinstance(federation(FedAvg()).state, AsynchronousServer)


# The same bits again ------------------------------------------------------------------------------------------------

SPECS = ["fedasync:concurrency=4", "fedbuff:buffer=3,concurrency=4,uplink=topk(0.2)+q8,downlink=bf16"]
SLOW = Profile(step_seconds=1, power=[5, 4, 3, 2, 1, 1], latency=0.1, bandwidth=1e4, shared=2e3)


def same(one, other, *, lines=True):
    assert torch.equal(one.state.model(), other.state.model())
    assert one.loop.state_dict().keys() == other.loop.state_dict().keys()
    assert one.loop.ledger.moved == other.loop.ledger.moved
    assert one.loop.ledger.paper == other.loop.ledger.paper
    assert one.loop.clock.now == other.loop.clock.now
    assert np.array_equal(one.loop.clock.times, other.loop.clock.times)
    assert one.loop.progress == other.loop.progress
    assert one.loop.away == other.loop.away
    if lines:
        assert one.lines == other.lines


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(federation, spec):
    one, again, other = (federation(spec, seed=seed, profile=SLOW) for seed in (0, 0, 1))
    for made in (one, again, other):
        made.run(5)
    same(one, again)
    assert not torch.equal(one.state.model(), other.state.model())


@pytest.mark.parametrize("spec", SPECS)
def test_interrupted_after_any_update_and_resumed(federation, tmp_path, spec):
    rounds = 6
    expected = federation(spec, profile=SLOW, rounds=rounds)
    expected.run(rounds)
    for stop in range(1, rounds):
        first, second = (federation(spec, profile=SLOW, rounds=rounds) for _ in range(2))
        first.loop.run(
            lambda steps, loop=first.loop, stop=stop: PaceAction.STOP if loop.syncs == stop else PaceAction.GO_ON,
            lambda loop=first.loop: save_tree(loop.state_dict(), tmp_path / "state"),
        )
        second.loop.load_state_dict(load_tree(tmp_path / "state"))
        assert any(visit.report is not None for visit in second.loop.away)
        second.run(rounds)
        same(expected, second, lines=False)
        assert [*first.lines, *second.lines] == expected.lines


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("spec", SPECS)
def test_several_processes_do_what_one_does(federation, together, spec, size):
    def whole(group=None):
        made = federation(spec, profile=SLOW, group=group)
        meddle(made, lambda client: client.number == 2)
        trained = made.trained = []
        update = made.clients.respond
        made.clients.respond = lambda client, payload: trained.append(client.number) or update(client, payload)
        made.run(6)
        return made

    alone, hosts = whole(), together(size, whole)
    assert kinds(alone, "rejection")
    assert Counter(number for made in hosts for number in made.trained) == Counter(alone.trained)
    for made in hosts:
        assert made.trained
        assert made.lines == hosts[0].lines
        assert torch.equal(made.state.model(), hosts[0].state.model())
        assert torch.allclose(made.state.model(), alone.state.model(), atol=1e-2 if "uplink" in spec else 2e-5)
        assert made.loop.ledger.moved == alone.loop.ledger.moved
        assert np.array_equal(made.loop.clock.times, alone.loop.clock.times)
        assert [line["kind"] for line in made.lines] == [line["kind"] for line in alone.lines]


def test_several_processes_resume_each_with_what_it_has_trained(federation, together, tmp_path):
    spec = SPECS[1]

    def interrupted(group):
        first = federation(spec, profile=SLOW, group=group)
        path = tmp_path / str(group.rank)
        first.run(2)
        save_tree(first.loop.state_dict(), path)
        second = federation(spec, profile=SLOW, group=group)
        second.loop.load_state_dict(load_tree(path))
        second.run(3)
        return second

    def whole(group):
        made = federation(spec, profile=SLOW, group=group)
        made.run(5)
        return made

    for one, other in zip(together(2, whole), together(2, interrupted), strict=True):
        same(one, other, lines=False)


def test_a_comparison_counts_their_rounds(tmp_path):
    experiment = Experiment(
        model="logistic",
        workers=4,
        processes=1,
        strategies=["fedavg", "fedasync", "fedbuff:buffer=2"],
        federation={"rounds": 3, "cohort": 2},
        profile={"power": "4:2:1:1"},
    )
    compare(experiment, tmp_path)
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    for one in results:
        assert one["error"] is None
        assert one["rounds"] == 3
        last = [line for line in lines if line["label"] == one["label"] and line["kind"] == "evaluation"][-1]
        assert one["seconds"] == last["seconds"] > 0  # when the server was done, not those that are still under way
    assert len(results) == 3
