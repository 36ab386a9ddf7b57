"""The server: who is selected, what a mean refuses, and the settings of a federation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsync.errors import PayloadError, UsageError
from sparsync.federated import FedAvg, Federation, Upload
from sparsync.federated.context import TooFewUploads
from sparsync.wire import Dense
from tolerance import distance, rounding

SIZES = [10, 20, 30, 40, 80]


def cohorts(made, rounds, attempt=0):
    server = made.server
    return [server.sample(server.generator("select", round_, attempt)) for round_ in range(rounds)]


@pytest.mark.parametrize(
    ("settings", "size"), [({"cohort": 3}, 3), ({"participation": 0.5}, 2), ({"participation": 0.01}, 1), ({}, 5)]
)
def test_cohorts_are_of_the_size_asked_for_and_without_replacement(federation, settings, size):
    made = federation(FedAvg(), sizes=SIZES, **settings)
    assert made.server.cohort == size
    for cohort in cohorts(made, 20):
        assert len(set(cohort)) == len(cohort) == size
        assert set(cohort) <= set(range(5))
        assert cohort == sorted(cohort)


def test_uniform_sampling_favours_nobody(federation):
    made = federation(FedAvg(), sizes=SIZES, cohort=2)
    seen = np.bincount(np.concatenate(cohorts(made, 3000)), minlength=5)
    assert abs(seen - 1200).max() < 5 * np.sqrt(3000 * 0.4 * 0.6)


def test_weighted_sampling_favours_those_with_more_samples(federation):
    made = federation(FedAvg(), sizes=SIZES, cohort=1, sampling="weighted")
    seen = np.bincount(np.concatenate(cohorts(made, 3000)), minlength=5)
    expected = 3000 * np.array(SIZES) / 180
    assert (abs(seen - expected) < 5 * np.sqrt(expected)).all()
    everybody = federation(FedAvg(), sizes=SIZES, cohort=5, sampling="weighted")
    assert cohorts(everybody, 1) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("sampling", ["uniform", "weighted"])
def test_a_cohort_is_a_function_of_seed_round_and_attempt(federation, sampling):
    made, again, other = (federation(FedAvg(), cohort=3, sampling=sampling, seed=seed) for seed in (0, 0, 1))
    assert cohorts(made, 20) == cohorts(again, 20)
    assert cohorts(made, 20) != cohorts(other, 20)
    assert cohorts(made, 20) != cohorts(made, 20, attempt=1)
    again.run(3)  # what has happened since has no part in it
    assert cohorts(made, 20) == cohorts(again, 20)


def test_the_cohorts_of_a_run_are_those(federation):
    made = federation(FedAvg(), cohort=2)
    expected = [made.server.sample(made.server.generator("select", round_, 0)) for round_ in range(4)]
    seen = []
    sample = made.server.sample
    made.server.sample = lambda rng: seen.append(sample(rng)) or seen[-1]
    made.run(4)
    assert seen == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cohort": 7}, "federation: a cohort of 7 out of 6 clients; select at most all of them"),
        ({"cohort": 3, "minimum": 4}, "federation: minimum=4 valid uploads of a cohort of 3; ask for fewer"),
        ({"participation": 0.5, "minimum": 4}, "minimum=4 valid uploads of a cohort of 3"),
        ({"cohort": 2, "participation": 0.5}, "give either cohort (clients per round) or participation (their frac"),
        ({"epochs": 2, "steps": 5}, "give either epochs or steps of local work, not both"),
        ({"participation": 1.5}, "participation: Input should be less than or equal to 1"),
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': did you mean 'sgd'?"),
        ({"schedule": "cosine"}, "steps: Field required"),
        ({"sampling": "best"}, "sampling: Input should be 'uniform' or 'weighted'"),
    ],
)
def test_settings_that_cannot_work_are_one_clear_line(federation, settings, says):
    with pytest.raises(UsageError) as caught:
        federation(FedAvg(), **settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_local_work_is_an_epoch_unless_something_else_is_said():
    assert Federation().local_work(32).epochs == 1
    assert Federation(epochs=3).local_work(32).epochs == 3
    steps = Federation(steps=7, drop_last=True, optimizer="adam").local_work(32)
    assert (steps.epochs, steps.steps, steps.drop_last, steps.optimizer) == (None, 7, True, "adam")


@pytest.mark.parametrize(("drop_last", "batches"), [(False, [1, 2, 3, 4]), (True, [1, 1, 3, 3])])
def test_batches_of_a_client_are_those_that_it_takes(federation, drop_last, batches):
    made = federation(FedAvg(), sizes=[5, 15, 30, 31], drop_last=drop_last)
    assert [made.server.batches_of(client) for client in range(4)] == batches
    made.run(1)
    assert made.loop.progress.step == max(batches)


# Means --------------------------------------------------------------------------------------------------------------


def encoded(*rows):
    return [Upload(client, Dense().encode(torch.tensor(row))) for client, row in enumerate(rows)]


def decode(payload):
    return Dense().decode(payload, 2)


def test_bad_uploads_cost_their_senders_and_nobody_else(federation):
    """Of clients with 10 to 80 samples, three are heard: (1 x 10 + 2 x 40 + 4 x 80) / 130."""
    server = federation(FedAvg(), sizes=SIZES).server
    uploads = encoded((1.0, 0.0), (9.0, float("nan")), (9.0, 9.0), (2.0, 0.0), (4.0, 0.0))
    uploads[2] = Upload(2, uploads[2].payload[:-1])
    mean = server.average(uploads, decode, 2)
    assert mean.tolist() == pytest.approx([410 / 130, 0])
    assert list(server.rejected) == [1, 2]
    assert server.rejected[1] == "upload holds NaN or infinity; its sender diverged"
    assert "header declares" in server.rejected[2]
    assert server.share == pytest.approx(130 / 180)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused(federation, value):
    server = federation(FedAvg(), sizes=SIZES).server
    assert server.average(encoded((1.0, value), (1.0, 2.0)), decode, 2).tolist() == [1, 2]
    assert list(server.rejected) == [0]


def test_huge_numbers_do_not_overflow_on_the_way(federation):
    server = federation(FedAvg(), sizes=SIZES).server
    assert server.average(encoded((3e38, 1.0), (3e38, 1.0)), decode, 2).float().tolist() == pytest.approx([3e38, 1])


def test_too_few_valid_uploads(federation):
    server = federation(FedAvg(), sizes=SIZES, minimum=2).server
    bad = [Upload(client, b"") for client in range(1, 5)]
    with pytest.raises(TooFewUploads) as caught:
        server.average([*encoded((1.0, 1.0)), *bad], decode, 2)
    reasons = "; ".join(f"client {n}: payload of 0 bytes: shorter than its header of 20" for n in (1, 2, 3))
    assert str(caught.value) == f"1 valid uploads, 2 needed ({reasons}; 1 more)"
    with pytest.raises(TooFewUploads, match=r"^0 valid uploads, 2 needed$"):
        server.average([], decode, 2)


def test_only_faults_of_the_payload_cost_the_sender(federation):
    def broken(payload):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # a mistake in the program is no reason to go on without a client
        federation(FedAvg()).server.average(encoded((1.0, 1.0)), broken, 2)


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_take_the_mean_of_all_uploads(federation, together, size):
    x = torch.randn(6, 1000, generator=torch.Generator().manual_seed(3))
    bad = {2: b"?", 4: b"!"}

    def job(group):
        server = federation(FedAvg(), sizes=[5, 10, 20, 30, 45, 70], group=group).server
        mine = [Upload(client, bad.get(client, bytes([client]))) for client in range(6) if client % size == group.rank]

        def look_up(payload):
            if payload in bad.values():
                raise PayloadError(f"no upload: {payload!r}")
            return x[payload[0]]

        return server.average(mine, look_up, 1000), server.rejected, server.share

    (mean, rejected, share), *others = together(size, job)
    weights = torch.tensor([5, 10, 0, 30, 0, 70], dtype=torch.float64)
    expected = weights @ x.double() / weights.sum()
    assert distance(mean, expected) <= rounding(9, float(x.abs().max()))
    assert rejected == {2: "no upload: b'?'", 4: "no upload: b'!'"}
    assert share == pytest.approx(115 / 180)
    for other_mean, other_rejected, _ in others:
        assert torch.equal(mean, other_mean)
        assert rejected == other_rejected


def test_too_few_uploads_are_too_few_in_all_processes(federation, together):
    def job(group):
        server = federation(FedAvg(), minimum=2, group=group).server
        with pytest.raises(TooFewUploads) as caught:
            server.average(encoded((1.0, 1.0)) if group.rank == 1 else [], decode, 2)
        return str(caught.value)

    assert together(2, job) == ["1 valid uploads, 2 needed"] * 2
