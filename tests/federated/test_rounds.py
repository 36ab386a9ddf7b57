"""The loop of rounds: what is booked and noted, faults, the same bits again, and a federation of 100,000."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sparsync.engines import PaceAction
from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.engines.evaluation import evaluate
from sparsync.errors import SparsyncError
from sparsync.federated import FedAvg, FedAvgM
from sparsync.federated.messages import ModelPacking, pack_numbers
from sparsync.system import Profile
from sparsync.task import Task, from_arrays
from sparsync.wire import parse_chain
from sparsync.workers import Client, SingleProcess

STRATEGIES = [
    "fedavg",
    "fedavg:uplink=ef(topk(0.1)+q8),downlink=bf16",
    "fedprox:mu=0.1",
    "fedavgm",
    "fedadam",
    "scaffold",
    "fda-opt:max_epochs=3,depth=3,width=50",
]


def kinds(made, kind):
    return [line for line in made.lines if line["kind"] == kind]


# What is booked and noted -------------------------------------------------------------------------------------------


def test_every_byte_of_those_selected_and_of_nobody_else(federation):
    made = federation(FedAvg(uplink="q8"), cohort=2)
    d, selected = made.runtime.vector.d, made.server.sample(made.server.generator("select", 0, 0))
    made.run(1)
    down, up = 20 + 1 + 8 + 4 * d, 20 + 1 + 8 + 4 + d
    ledger = made.loop.ledger
    for client in range(6):
        chosen = client in selected
        assert ledger.received["model"][client] == down * chosen
        assert ledger.sent["model"][client] == up * chosen
    assert ledger.moved == {"model": 2 * (down + up)}
    assert ledger.paper == {"model": 2 * (4 * d + 4 + d)}
    (line,) = kinds(made, "evaluation")
    assert line["bytes"] == 2 * (down + up)
    assert line["bytes_by_kind"] == ledger.moved
    assert line["paper_bytes"] == ledger.paper_total


def test_the_clock_waits_for_the_slowest_of_a_cohort(federation):
    """2 ways of 1 s, 7 steps of 10 s at the client with most samples, and its bytes at 100 a second."""
    made = federation(FedAvg(), sizes=[10, 61, 30], profile=Profile(step_seconds=10, latency=1, bandwidth=100))
    made.run(2)
    message = 20 + 1 + 8 + 4 * made.runtime.vector.d
    assert made.loop.clock.now == pytest.approx(2 * (2 + 70 + 2 * message / 100))
    line = kinds(made, "evaluation")[-1]
    assert line["seconds"] == made.loop.clock.now
    assert line["step"] == 2 * 7


def test_the_training_loss_is_the_mean_over_all_batches_since_the_last_evaluation(federation):
    made = federation(FedAvg(), eval_every=2, cohort=3)
    sums = []
    update = made.clients.respond

    def look(client, payload):
        upload = update(client, payload)
        sums.append((client.loss_sum, client.steps))
        return upload

    made.clients.respond = look
    for _ in range(2):
        sums.clear()
        made.run(2)
        assert len(sums) == 6
        losses, steps = map(sum, zip(*sums, strict=True))
        assert kinds(made, "evaluation")[-1]["train_loss"] == pytest.approx(losses / steps)


def test_notes_of_server_and_clients_make_one_line_per_round(federation):
    made = federation(FedAvg(), cohort=3)
    update = made.clients.respond

    def noting(client, payload):
        made.server.record(height=2.5)
        notes = {"number": client.number, **({"even": 1.0} if client.number % 2 == 0 else {})}
        return replace(update(client, payload), notes=notes)

    made.clients.respond = noting
    for round_ in range(1, 4):
        selected = made.server.sample(made.server.generator("select", round_ - 1, 0))
        made.run(1)
        line = kinds(made, "round")[-1]
        assert (line["round"], line["step"], line["height"]) == (round_, 3 * round_, 2.5)
        assert (line["number"], line["number_min"], line["number_max"]) == (
            np.mean(selected),
            min(selected),
            max(selected),
        )
        assert ("even" in line) == any(client % 2 == 0 for client in selected)


def test_it_ends_at_the_target_and_after_the_last_round(federation):
    made = federation(FedAvg(), target=0.5, rounds=50, optimizer="sgd:lr=0.5")
    made.run(50)
    assert made.loop.progress.reached["rounds"] == made.loop.rounds.round < 50
    assert made.loop.progress.reached["accuracy"] > 0.5
    assert made.loop.done
    other = federation(FedAvg(), rounds=3)
    other.run(10)
    assert other.loop.rounds.round == 3


def test_accuracy_of_clients_by_an_explicit_computation(federation, blobs):
    """Each client on the test set, every class weighted by its share of the client's own samples."""
    labels = np.sort(blobs.train.labels.numpy())  # so that consecutive clients hold few classes
    order = np.argsort(blobs.train.labels.numpy(), kind="stable")
    task = Task(
        from_arrays(blobs.train.inputs[order].numpy(), labels, blobs.test.inputs.numpy(), blobs.test.labels.numpy()),
        "mlp",
    )
    sizes = [5] * 12 + [60, 60]
    made = federation(FedAvg(), task=task, sizes=sizes, client_accuracy=True)
    made.run(1)
    made.runtime.vector.write(made.state.model())
    module = made.runtime.module.eval()
    inputs, wanted = task.dataset.test.batch(torch.arange(60))
    with torch.no_grad():
        right = (module(inputs).argmax(1) == wanted).numpy()
    mine = []
    for part in made.runtime.parts:
        own = [right[wanted.numpy() == label].mean() for label in labels[part]]
        mine.append(np.mean(own))
    line = kinds(made, "evaluation")[-1]
    assert line["client_accuracy"] == pytest.approx(np.mean(mine))
    assert line["client_accuracy_worst"] == pytest.approx(min(mine))  # a tenth of 14 clients is one
    assert min(mine) < np.mean(mine)


def test_classes_that_are_never_tested_count_for_nobody(federation):
    inputs = np.eye(3, dtype=np.float32)
    dataset = from_arrays(inputs[[0, 1, 2, 2]], np.array([0, 1, 2, 2]), inputs[:2], np.array([0, 1]), classes=3)
    made = federation(FedAvg(), task=Task(dataset, "logistic"), sizes=[1, 2, 1], client_accuracy=True)
    by_class = np.array([[1, 1], [0, 1], [0, 0]], float)
    assert made.loop._of_clients(by_class) == {"client_accuracy": 0.5, "client_accuracy_worst": 0.0}


def test_an_evaluation_counts_by_class_and_is_the_same_in_shares(federation, together):
    made = federation(FedAvg(), optimizer="sgd:lr=0.5")
    made.run(2)
    made.runtime.vector.write(made.state.model())
    by_class, loss = evaluate(made.task, made.runtime.module, SingleProcess())
    correct, total = made.task.evaluate(made.runtime.module, 0, 60)
    assert by_class.tolist() == [[count, 20] for count in correct.tolist()]
    assert loss == pytest.approx(total / 60)

    def job(group):
        own = federation(FedAvg())
        own.runtime.vector.write(made.state.model())
        return evaluate(own.task, own.runtime.module, group)

    for shared, shared_loss in together(3, job):
        assert shared.tolist() == by_class.tolist()
        assert shared_loss == pytest.approx(loss)


def test_a_loss_that_is_not_finite_is_none_not_a_word_that_json_lacks(federation):
    made = federation(FedAvg())
    made.runtime.vector.write(torch.full((made.runtime.vector.numel,), math.nan))
    assert evaluate(made.task, made.runtime.module, SingleProcess())[1] is None


# Faults -------------------------------------------------------------------------------------------------------------


def meddle(made, when, how):
    """Replace uploads by what `how` makes of them, where `when(client)` holds."""
    update = made.clients.respond

    def respond(client, payload):
        reply = update(client, payload)
        return replace(reply, payload=how(reply.payload)) if when(client) else reply

    made.clients.respond = respond


def flipped(payload):
    return payload[:-1] + bytes((payload[-1] ^ 4,))


DAMAGE = {
    "empty": (lambda payload: b"", "payload of 0 bytes: shorter than its header of 20"),
    "truncated": (lambda payload: payload[:-3], "its header declares"),
    "oversized": (lambda payload: payload + bytes(1000), "its header declares"),
    "declares terabytes": (lambda payload: payload[:8] + (2**40).to_bytes(8, "little") + payload[16:], "permitted are"),
    "a flipped bit": (flipped, "checksum does not hold"),
    "random": (lambda payload: np.random.default_rng(1).bytes(500), "does not start like a sparsync message"),
    "a shorter model": (lambda payload: pack_numbers(torch.zeros(1), "model"), "expected 2 numbers"),
    "a longer model": (lambda payload: pack_numbers(torch.zeros(9), "model"), "permitted are"),
    "NaN": (lambda payload: pack_numbers(torch.tensor([0.0, math.nan]), "model"), "upload holds NaN or infinity"),
    "infinity": (lambda payload: pack_numbers(torch.tensor([math.inf, 0.0]), "model"), "upload holds NaN or infinity"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_upload_costs_its_sender_and_the_others_mean_is_exact(pulls, damage):
    """Clients half-way to (4, 0), (0, 8) and (8, 8), of which the second is not heard: (2, 0) x 1 and (4, 4) x 3."""
    how, says = DAMAGE[damage]
    made = pulls(FedAvg(), [[(4, 0)], [(0, 8)], [(8, 8)] * 3])
    meddle(made, lambda client: client.number == 1, how)
    assert made.run(1).tolist() == [(2 + 3 * 4) / 4, 3 * 4 / 4]
    (line,) = kinds(made, "rejection")
    assert (line["round"], line["client"]) == (1, 1)
    assert says in line["reason"]
    assert "\n" not in line["reason"]
    assert made.loop.rounds.round == 1


def test_a_client_whose_loss_diverges_is_refused_and_stops_training(pulls):
    """1e30 squared is no float32."""
    made = pulls(FedAvg(), [[(4, 0)], [(1e30, 0)] * 5, [(8, 8)]], batch_size=1)
    assert made.run(1).tolist() == [3, 2]
    (line,) = kinds(made, "rejection")
    assert (line["client"], line["reason"]) == (1, "upload holds NaN or infinity; its sender diverged")
    assert kinds(made, "evaluation")[0]["train_loss"] == pytest.approx((8 + 64) / 2)  # of the two finite batches
    assert math.isfinite(kinds(made, "evaluation")[0]["loss"])


@pytest.mark.parametrize("uplink", ["topk(0.5)", "q8", "ef(topk(0.5)+q8)"])
def test_divergence_is_noticed_through_a_codec_and_a_client_may_recover(pulls, uplink):
    made = pulls(FedAvg(uplink=uplink), [[(4, 2)], [(4, 2)]])
    update = made.clients.respond

    def diverging(client, payload):
        if (client.number, client.round) != (1, 1):
            return update(client, payload)
        client.train = lambda *steps, **options: client.params.fill_(math.nan)
        return update(client, payload)

    made.clients.respond = diverging
    made.run(4)
    assert [(line["round"], line["client"]) for line in kinds(made, "rejection")] == [(2, 1)]


def test_what_a_refused_upload_was_to_make_up_for_is_not_forgotten(pulls):
    """The memory of error feedback is as before the round: the server never had what was taken from it."""
    made = pulls(FedAvg(uplink="ef(topk(0.5))"), [[(4, 2)], [(4, 2)]])
    made.run(1)
    before = made.runtime.memories[1]["feedback"].clone()
    assert before.tolist() == [0, 1]
    meddle(made, lambda client: (client.number, client.round) == (1, 1), lambda payload: payload[:-1])
    made.run(1)
    assert torch.equal(made.runtime.memories[1]["feedback"], before)
    assert not torch.equal(made.runtime.memories[0]["feedback"], before)


def test_with_too_few_valid_uploads_another_cohort_is_tried(federation):
    made = federation(FedAvg(), cohort=2, minimum=2, sizes=[9] * 20)
    cohorts = [made.server.sample(made.server.generator("select", 0, attempt)) for attempt in range(3)]
    bad = set(cohorts[0] + cohorts[1]) - set(cohorts[2])
    assert bad & set(cohorts[0])
    assert bad & set(cohorts[1])
    trained = []
    meddle(made, lambda client: trained.append(client.number) or client.number in bad, lambda payload: b"")
    made.run(1)
    assert trained == cohorts[0] + cohorts[1] + cohorts[2]
    assert made.loop.rounds.round == 1
    assert made.loop.rounds.attempt == 0
    assert {line["client"] for line in kinds(made, "rejection")} == bad
    assert all(line["round"] == 1 for line in kinds(made, "rejection"))
    assert made.loop.ledger.received["model"].sum() == 6 * made.loop.ledger.received["model"][cohorts[2][0]]


def test_a_failed_attempt_leaves_server_and_clients_as_they_were(federation):
    """So the round ends as if the cohort that succeeded had been the first."""
    options = {"cohort": 2, "minimum": 2, "sizes": [9] * 20}
    made, plain = (federation("fedavg:uplink=ef(topk(0.2))", **options) for _ in range(2))
    lucky = made.server.sample(made.server.generator("select", 0, 1))
    first = made.server.sample(made.server.generator("select", 0, 0))
    assert not set(first) & set(lucky)
    meddle(made, lambda client: client.number == first[1], lambda payload: payload[:-1])
    plain.loop.rounds.attempt = 1
    assert torch.equal(made.run(1), plain.run(1))
    assert made.runtime.memories.keys() == set(lucky)


def test_after_three_cohorts_the_run_stops_saved_and_goes_on_when_clients_are_mended(federation):
    made = federation(FedAvgM(), cohort=2, sizes=[9] * 20)
    made.run(2)
    weights = made.state.model().clone()
    trained = []
    meddle(made, lambda client: trained.append(client.number) or True, lambda payload: payload[:-1])
    with pytest.raises(SparsyncError) as caught:
        made.run(1)
    says = str(caught.value)
    assert says.startswith("round 3: 3 cohorts in a row sent too little; the last: 0 valid uploads, 1 needed (client ")
    assert says.endswith("the run is saved: mend the clients, or lower the learning rate, and resume")
    assert "\n" not in says
    assert len(trained) == 6
    assert torch.equal(made.state.model(), weights)
    assert len(made.saved) == 2  # one when the first run was asked to stop, and this one
    again = federation(FedAvgM(), cohort=2, sizes=[9] * 20)
    again.loop.load_state_dict(made.saved[-1])
    assert (again.loop.rounds.round, again.loop.rounds.attempt) == (2, 3)
    next_cohort = again.server.sample(again.server.generator("select", 2, 3))
    again.run(1)
    assert again.loop.rounds.round == 3
    received = again.loop.ledger.received["model"] - made.loop.ledger.received["model"]
    assert np.flatnonzero(received).tolist() == next_cohort  # not one of those that have failed
    assert not torch.equal(again.state.model(), weights)


def test_the_count_of_failures_begins_again_with_each_round(federation):
    made = federation(FedAvg(), cohort=1, sizes=[9] * 20)
    failing = {(round_, attempt) for round_ in range(3) for attempt in range(2)}
    meddle(made, lambda client: (client.round, made.loop.rounds.attempt) in failing, lambda payload: b"")
    made.run(3)
    assert made.loop.rounds.round == 3
    assert len(kinds(made, "rejection")) == 6


# The same bits again ------------------------------------------------------------------------------------------------


def whole(made, rounds=4):
    made.run(rounds)
    return made


def same(one, other, *, lines=True):
    assert torch.equal(one.state.model(), other.state.model())
    assert one.loop.ledger.moved == other.loop.ledger.moved
    assert one.loop.ledger.paper == other.loop.ledger.paper
    assert one.loop.clock.now == other.loop.clock.now
    assert one.loop.rounds == other.loop.rounds
    assert one.loop.progress == other.loop.progress
    if lines:
        assert one.lines == other.lines


@pytest.mark.parametrize("spec", STRATEGIES)
def test_the_same_seed_gives_the_same_bits_and_another_does_not(federation, spec):
    one, again, other = (whole(federation(spec, cohort=3, seed=seed)) for seed in (0, 0, 1))
    same(one, again)
    assert not torch.equal(one.state.model(), other.state.model())


@pytest.mark.parametrize("spec", STRATEGIES)
def test_interrupted_after_any_exchange_and_resumed(federation, tmp_path, spec):
    """Also in the middle of a round, where there is one (fda-opt)."""
    expected = whole(federation(spec, cohort=3))
    stops = 0
    for stop in range(1, 20):
        first = federation(spec, cohort=3, rounds=4)
        left = [stop]

        def pace(steps, left=left):
            left[0] -= 1
            return PaceAction.STOP if left[0] == 0 else PaceAction.GO_ON

        if first.loop.run(pace, lambda loop=first.loop: save_tree(loop.state_dict(), tmp_path / "state")):
            break
        stops += 1
        second = federation(spec, cohort=3)
        second.loop.load_state_dict(load_tree(tmp_path / "state"))
        second.run(4 - second.loop.rounds.round)
        same(expected, second, lines=False)
        assert [*first.lines, *second.lines] == expected.lines
    assert stops >= 3
    assert (stops > 6) == spec.startswith("fda-opt")


def normed(shape, classes):
    return nn.Sequential(nn.Linear(*shape, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, classes))


@pytest.mark.parametrize("spec", ["fedavg", "scaffold", "fda-opt:max_epochs=3"])
def test_nothing_depends_on_or_touches_the_global_generators(federation, spec):
    models = []
    for salt in (1, 2):
        torch.manual_seed(salt)
        np.random.seed(salt)  # noqa: NPY002
        random.seed(salt)
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        made = federation(spec, model=normed, cohort=3, sampling="uniform")
        models.append(made.run(3))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert str(np.random.get_state()) == before[1]  # noqa: NPY002
        assert random.getstate() == before[2]
    assert torch.equal(*models)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("spec", STRATEGIES)
def test_several_processes_do_what_one_does(federation, together, spec, size):
    """Up to the order of float64 sums: a bit of float32 in the mean, or of a codec that rounds the other way."""
    options = {"cohort": 4, "client_accuracy": True}
    alone = whole(federation(spec, **options))
    hosts = together(size, lambda group: whole(federation(spec, group=group, **options)))
    for made in hosts:
        assert torch.equal(made.state.model(), hosts[0].state.model())
        assert made.lines == hosts[0].lines
        assert torch.allclose(made.state.model(), alone.state.model(), atol=1e-2 if "uplink" in spec else 2e-5)
        assert made.loop.ledger.moved == alone.loop.ledger.moved
        for kind, counts in alone.loop.ledger.sent.items():
            assert np.array_equal(made.loop.ledger.sent[kind], counts)
        assert made.loop.clock.now == pytest.approx(alone.loop.clock.now)
        assert [line["kind"] for line in made.lines] == [line["kind"] for line in alone.lines]
    remembered = [set(made.runtime.memories) for made in hosts]
    assert sum(map(len, remembered)) == len(set().union(*remembered)) == len(alone.runtime.memories)
    for number, memory in alone.runtime.memories.items():
        (home,) = [made for made in hosts if number in made.runtime.memories]
        for name, value in memory.items():
            assert torch.allclose(home.runtime.memories[number][name], value, atol=1e-2 if "uplink" in spec else 1e-3)


def test_faults_and_retries_are_the_same_in_all_processes(federation, together):
    def job(group):
        made = federation(FedAvg(), cohort=2, minimum=2, sizes=[9] * 20, group=group)
        first = made.server.sample(made.server.generator("select", 0, 0))
        meddle(made, lambda client: client.number == first[1], lambda payload: b"")
        made.run(2)
        return made

    hosts = together(2, job)
    assert torch.equal(hosts[0].state.model(), hosts[1].state.model())
    assert hosts[0].lines == hosts[1].lines
    assert kinds(hosts[0], "rejection")


@pytest.mark.parametrize("spec", ["scaffold", "fda-opt:max_epochs=3,depth=3,width=50"])
def test_several_processes_resume_each_with_what_its_clients_remember(federation, together, tmp_path, spec):
    def interrupted(group):
        first = federation(spec, cohort=4, group=group)
        calls = []

        def pace(steps):
            calls.append(steps)
            return PaceAction.STOP if len(calls) == 4 else PaceAction.GO_ON

        path = tmp_path / str(group.rank)
        first.loop.run(pace, lambda: save_tree(first.loop.state_dict(), path))
        second = federation(spec, cohort=4, group=group)
        second.loop.load_state_dict(load_tree(path))
        assert second.runtime.memories
        second.run(6 - second.loop.rounds.round)
        return second

    expected = together(2, lambda group: whole(federation(spec, cohort=4, group=group), 6))
    for one, other in zip(expected, together(2, interrupted), strict=True):
        same(one, other, lines=False)


@pytest.mark.parametrize("processes", [1, 3])
def test_stateful_clients_stay_in_one_process(federation, together, processes):
    def job(group):
        made = federation("scaffold", cohort=4, group=group)
        homes = []
        update = made.clients.respond
        made.clients.respond = lambda client, payload: homes.append(client.number) or update(client, payload)
        made.run(5)
        return set(homes)

    homes = together(processes, job)
    assert set().union(*homes) == set(range(6))
    assert sum(map(len, homes)) == 6


# Size ---------------------------------------------------------------------------------------------------------------


def test_a_cohort_of_a_thousand_out_of_a_hundred_thousand_clients(federation):
    """What is held: one row, one sum, no client; and nothing of a round costs more than its cohort does."""
    clients, cohort = 100_000, 1000
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 3, clients)
    labels = np.arange(sizes.sum()) % 10
    inputs = (rng.normal(size=(len(labels), 64)) + 2 * np.eye(10, 64)[labels]).astype(np.float32)
    dataset = from_arrays(inputs, labels, inputs[:500], labels[:500])
    made = federation(
        FedAvg(), task=Task(dataset, "logistic"), sizes=sizes, cohort=cohort, client_accuracy=True, batch_size=32
    )
    averaged = []
    average = made.server.average
    made.server.average = lambda uploads, decode, numel: (
        averaged.append(iter(uploads) is uploads) or average(uploads, decode, numel)
    )
    made.run(2)
    assert averaged == [True, True]  # uploads come one by one, as clients are done
    assert made.runtime.arena.params.shape == (1, 650)
    assert made.runtime.memories == {}
    trained = np.flatnonzero(made.loop.ledger.received["model"])
    assert 1000 < len(trained) <= 2000
    assert made.loop.progress.step == 2
    first, second = kinds(made, "evaluation")
    assert 0.1 < first["accuracy"] < second["accuracy"]
    assert 0 <= second["client_accuracy_worst"] <= second["client_accuracy"] <= 1


def test_uploads_are_made_one_by_one_as_the_server_asks(federation):
    made = federation(FedAvg())
    events = []
    update, average = made.clients.respond, made.server.average

    def slow(client, payload):
        events.append("train")
        return update(client, payload)

    def watched(uploads, decode, numel):
        return average(uploads, lambda payload: events.append("decode") or decode(payload), numel)

    made.clients.respond, made.server.average = slow, watched
    made.run(1)
    assert events == ["train", "decode"] * 6


def test_a_wrong_codec_on_the_client_is_a_refusal_not_a_crash(federation):
    made = federation(FedAvg(uplink="q8"))
    other = ModelPacking(made.runtime.vector, parse_chain("q4"))
    meddle(made, lambda client: client.number == 0, lambda payload: other.encode(made.server.initial))
    made.run(1)
    (line,) = kinds(made, "rejection")
    assert "codec" in line["reason"]


def test_a_client_may_look_at_its_round(federation):
    made = federation(FedAvg(), schedule="step:every=1,factor=0.5", optimizer="sgd:lr=0.2")
    seen = []
    update = made.clients.respond

    def look(client: Client, payload):
        seen.append((client.round, client.learning_rate, client.samples))
        return update(client, payload)

    made.clients.respond = look
    made.run(2)
    assert seen == [(0, 0.2, 30)] * 6 + [(1, 0.1, 30)] * 6
