"""How long clients take to answer: specs, stragglers, deadlines, what the server measures, and the time of a step."""

from __future__ import annotations

import math

import numpy as np
import pytest

import sparsync.split.psl as psl
from sparsync.errors import UsageError
from sparsync.split import BatchComposition, SplitSettings
from sparsync.system import DELAYS, Profile
from sparsync.system.delays import listed

INSTANT = Profile(step_seconds=0, bandwidth=math.inf, latency=0)
PAIR = {"model": "mlp:hidden=8", "sizes": (9, 9), "batch_size": 5, "profile": INSTANT}


def steps(made) -> list[dict]:
    return [line for line in made.lines if line["kind"] == "step"]


# 1. Specs


def test_nobody_is_late_by_default():
    assert DELAYS.build(SplitSettings().delays, 3, 0).draw(7).tolist() == [0, 0, 0]


def test_all_clients_alike():
    delays = DELAYS.build("constant:seconds=0.25", 4, 0)
    assert delays.typical.tolist() == [0.25] * 4
    assert delays.draw(0).tolist() == delays.draw(9).tolist() == [0.25] * 4


@pytest.mark.parametrize("seed", range(4))
def test_stragglers_are_so_many_and_exactly_so_slow(seed):
    delays = DELAYS.build("stragglers:count=3,factor=10,seconds=0.2,spread=0.5", 200, seed).typical
    assert (delays == 2.0).sum() == 3
    rest = np.log(delays[delays != 2.0] / 0.2)
    assert abs(rest.mean()) < 0.15
    assert rest.std() == pytest.approx(0.5, rel=0.2)
    plain = DELAYS.build("stragglers:count=3,factor=10,seconds=0.2", 200, seed).typical
    assert np.flatnonzero(plain == 2.0).tolist() == np.flatnonzero(delays == 2.0).tolist()
    assert (plain == 0.2).sum() == 197


def test_who_straggles_depends_on_the_seed_alone():
    def slowest(seed: int) -> int:
        return int(DELAYS.build("stragglers", 50, seed).typical.argmax())

    assert slowest(0) == slowest(0)
    assert len({slowest(seed) for seed in range(8)}) > 4


def test_jitter_is_log_normal_around_the_typical_delay_and_a_function_of_the_step():
    delays = DELAYS.build("constant:seconds=0.1,jitter=0.3", 500, 4)
    one, other = delays.draw(3), delays.draw(4)
    assert np.array_equal(one, DELAYS.build("constant:seconds=0.1,jitter=0.3", 500, 4).draw(3))
    assert not np.array_equal(one, other)
    for drawn in (one, other):
        logs = np.log(drawn / 0.1)
        assert abs(logs.mean()) < 0.05
        assert logs.std() == pytest.approx(0.3, rel=0.1)
    assert delays.typical.tolist() == [0.1] * 500


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("constant:seconds=-1", "seconds: Input should be greater than or equal to 0"),
        ("constant:seconds=inf", "seconds: Input should be a finite number"),
        ("constant:jitter=4", "jitter: Input should be less than or equal to 3"),
        ("stragglers:factor=0", "factor: Input should be greater than 0"),
        ("stragglers:count=-1", "count: Input should be greater than or equal to 0"),
        ("stragglers:count=6", "delays 'stragglers': count=6 of 5 clients; ask for at most all of them"),
        ("stragglers:slow=3", "has no parameter 'slow'"),
        ("straglers", "unknown delays 'straglers': did you mean 'stragglers'?"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UsageError) as error:
        DELAYS.build(spec, 5, 0)
    assert message in str(error.value)


def test_settings_refuse_delays_that_do_not_exist_and_deadlines_that_are_over():
    with pytest.raises(UsageError, match="unknown delays 'slow'"):
        SplitSettings(delays="slow:seconds=3")
    for deadline in (0, -1, math.nan):
        with pytest.raises(UsageError, match="deadline: Input should be greater than 0"):
            SplitSettings(deadline=deadline)


def test_delays_client_by_client():
    assert listed([0.5, 0, 2]).draw(1).tolist() == [0.5, 0, 2]
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=rf"^delays: client 1 has {bad:g} seconds; expected a number of at least"):
            listed([0.5, bad])


# 2. The time of a step: max over up, server, max over back, down


@pytest.mark.parametrize(("delays", "slowest", "up"), [((1.0, 0.2), 0, 2.264), ((0.2, 1.0), 1, 2.19767)])
def test_the_time_of_a_step_by_hand(make_split, delays, slowest, up):
    """Halves of 96 and 48 operations: of 0.3 s for 2 samples through the whole model, 0.1 a sample go to the bottom.

    A third of that is the forward pass. A message of n bytes takes 0.5 s + n ms. Of client 0 (3 samples) and 1 (2):

        START down       28 B                 0.528
        activations up   29 + 96 + 11 = 136 B 0.636     29 + 64 + 10 = 103 B  0.603
        forward          3 * 0.1 / 3          0.1       2 * 0.1 / 3           0.06667
        server           5 * 0.05 = 0.25
        gradients down   125 B                0.625     93 B                  0.593
        backward         3 * 0.2 / 3          0.2                             0.13333
        bottom's up      253 B                0.753                           0.753
        sum down         253 B                0.753
    """
    profile = Profile(step_seconds=0.3, bandwidth=1000, latency=0.5)
    made = make_split("psl", **{**PAIR, "profile": profile}, profile_batch=2)
    made.trainer.delays = listed(delays)
    made.step(3, 2)
    times = made.trainer.times
    assert times.up == pytest.approx([delays[0] + 0.528 + 0.636 + 0.1, delays[1] + 0.528 + 0.603 + 0.06667], abs=1e-4)
    assert times.server == pytest.approx(0.25)
    assert times.back == pytest.approx([0.625 + 0.2 + 0.753, 0.593 + 0.13333 + 0.753], abs=1e-4)
    assert times.down == pytest.approx(0.753)
    assert times.up.argmax() == slowest
    assert times.total == pytest.approx(up + 0.25 + 1.578 + 0.753, abs=1e-4)


def test_every_client_has_a_device_and_links_of_its_own(make_split):
    """Messages as above; client 1 computes three times as fast, sends four times as fast, and receives half as fast."""
    profile = Profile(step_seconds=0.3, power="1:3", up=[1000, 4000], down=[1000, 500], latency=0.5)
    made = make_split("psl", **{**PAIR, "profile": profile}, profile_batch=2)
    made.step(3, 2)
    times = made.trainer.times
    first = [0.528 + 0.636 + 0.1, (0.5 + 0.028 * 2) + (0.5 + 0.103 / 4) + 0.06667 / 3]
    assert times.up == pytest.approx(first, abs=1e-4)
    assert times.server == pytest.approx(0.25)  # a device of power 1
    last = [0.625 + 0.2 + 0.753, (0.5 + 0.093 * 2) + 0.13333 / 3 + (0.5 + 0.253 / 4)]
    assert times.back == pytest.approx(last, abs=1e-4)
    assert times.down == pytest.approx(0.5 + 0.253 * 2)  # all wait for the slowest


def test_messages_of_a_step_share_a_channel(make_split):
    profile = Profile(step_seconds=0, bandwidth=1000, latency=0.5, shared=500)
    made = make_split("psl", **{**PAIR, "profile": profile})
    made.step(3, 2)
    assert made.trainer.times.up.tolist() == pytest.approx([0.5 + 56 / 500 + 0.5 + 239 / 500] * 2)
    assert made.trainer.times.down == pytest.approx(0.5 + 2 * 253 / 500)


def test_the_clock_adds_steps_and_history_names_the_slowest(make_split):
    made, delays = make_split("psl", **{**PAIR, "sizes": (9,) * 6}), [1, 5, 3, 1.5, 2, 4]
    made.trainer.delays = listed(delays)
    made.run()
    total = 0.0
    for line in steps(made):
        clients = [client for client, _ in made.used[line["step"] - 1]]
        assert line["seconds"] == max(delays[client] for client in clients)
        assert line["slowest"] == max(clients, key=delays.__getitem__)
        total += line["seconds"]
    assert made.trainer.clock.now == total == made.lines[-1]["seconds"]
    assert len({line["seconds"] for line in steps(made)}) > 2


@pytest.mark.parametrize(("spec", "seconds"), [("centralised", 0.0), ("splitfed", 6.0), ("psl:sampler=fls", 6.0)])
def test_only_clients_that_are_asked_are_waited_for(make_split, spec, seconds):
    made = make_split(spec, **{**PAIR, "epochs": 1})
    made.trainer.delays = listed([2, 2])  # local batches of 2 samples or 3, from 9
    made.run()
    expected = len(made.used) * 2.0 if seconds else 0.0
    assert made.trainer.clock.now == expected
    if spec == "centralised":
        assert all("slowest" not in line for line in steps(made))
        assert made.trainer.ledger.total == 0


def test_training_in_one_place_takes_the_whole_models_time_per_sample(make_split):
    made = make_split("centralised", **{**PAIR, "profile": Profile(step_seconds=0.3)}, profile_batch=2)
    made.run()
    assert made.trainer.clock.now == pytest.approx(2 * 18 * 0.15)


# 3. Deadlines


def test_a_late_client_is_left_out_and_keeps_its_samples(make_split):
    made = make_split("psl", **PAIR, deadline=0.5)
    made.trainer.delays = listed([0.2, 1.0])
    made.step(3, 2)
    trainer = made.trainer
    assert trainer.late.tolist() == [1]
    assert trainer.left.tolist() == [6, 9]
    assert [client for client, _ in made.used[0]] == [0]
    assert trainer.times.up.tolist() == [0.5]  # until the deadline, though client 0 was there
    assert trainer.batch_classes.sum() == 3
    assert trainer.ledger.sent["activation"][1] == trainer.ledger.sent["gradient"][1] == 0
    assert trainer.ledger.received["control"].tolist() == [28, 28]  # asked all the same
    assert trainer.ledger.received["gradient"][1] == 253  # and it steps as all do


def test_nobody_is_waited_for_longer_than_needed(make_split):
    made = make_split("psl", **PAIR, deadline=2)
    made.trainer.delays = listed([0.2, 1.0])
    made.step(3, 2)
    assert made.trainer.late.tolist() == []
    assert made.trainer.times.up.tolist() == [0.2, 1.0]


def test_if_nobody_is_in_time_the_quickest_is_waited_for(make_split):
    made = make_split("psl", **{**PAIR, "sizes": (9, 9, 9)}, deadline=0.1)
    made.trainer.delays = listed([3.0, 0.7, 0.9])
    made.step(1, 1, 1)
    assert made.trainer.late.tolist() == [0, 2]
    assert made.trainer.times.up.tolist() == [0.7]
    made.step(1, 0, 1)
    assert made.trainer.late.tolist() == [0]
    made.step(1, 0, 0)
    assert made.trainer.late.tolist() == []
    assert made.trainer.times.up.tolist() == [3.0]


@pytest.mark.parametrize("spec", ["psl", "psl:sampler=lds", "psl:sampler=fls", "splitfed", "splitfed:version=2"])
def test_an_epoch_with_a_client_that_is_always_late_still_uses_every_sample(make_split, spec):
    made = make_split(spec, **{**PAIR, "sizes": (9, 6, 7)}, deadline=0.5)
    made.trainer.delays = listed([0.2, 0.9, 0.2])
    made.run()
    late = [line for line in steps(made) if "late" in line]
    assert late
    assert all(line["late"] == [1] and line["seconds"] == 0.5 for line in late)
    per_epoch = [0, 0]
    alone = 0
    for line in steps(made):
        per_epoch[line["epoch"] - 1] += line["size"]
        alone += line["seconds"] == 0.9
        if line["seconds"] == 0.9:  # asked with nobody else: it is waited for
            assert [client for client, _ in made.used[line["step"] - 1]] == [1]
    assert per_epoch == [22, 22]
    assert alone
    assert [line["epoch"] for line in steps(made)] == sorted(line["epoch"] for line in steps(made))


def test_a_schedule_is_redrawn_only_after_someone_was_late(make_split, monkeypatch):
    made = make_split("psl", **PAIR, deadline=0.5)
    drawn: list[list[int]] = []
    schedule = made.state.schedule
    monkeypatch.setattr(made.state, "schedule", lambda left, rng: drawn.append(left.tolist()) or schedule(left, rng))
    made.run()
    assert drawn == [[9, 9], [9, 9]]
    made.trainer.delays = listed([0.2, 0.9])
    drawn.clear()
    made.loop.budget = type(made.loop.budget)(3, 1)
    made.run()
    late = [line for line in steps(made) if "late" in line]
    assert len(drawn) == 1 + len(late) > 1
    assert drawn[0] == [9, 9]


# 4. What the server measures


def test_a_moving_mean_of_weight_a_half(make_split):
    made = make_split("psl", **{**PAIR, "sizes": (9, 9, 9)}, deadline=2.5)
    trainer = made.trainer
    assert np.isnan(trainer.measured).all()
    trainer.delays = listed([1, 2, 9])
    made.step(1, 1, 0)
    assert trainer.measured[:2].tolist() == [1, 2]
    assert np.isnan(trainer.measured[2])
    trainer.delays = listed([3, 4, 8])
    made.step(1, 0, 0)
    assert trainer.measured[:2].tolist() == [2, 2]
    made.step(1, 1, 1)  # 1 and 2 are late, and that is seen
    assert trainer.late.tolist() == [1, 2]
    assert trainer.measured.tolist() == [2.5, 3, 8]


def test_what_is_measured_has_the_forward_pass_in_it(make_split):
    made = make_split("psl", **{**PAIR, "profile": Profile(step_seconds=0.3)}, profile_batch=2)
    made.trainer.delays = listed([1, 2])
    made.step(3, 1)
    assert made.trainer.measured == pytest.approx([1 + 0.1, 2 + 0.1 / 3])


@pytest.mark.parametrize("delays", ["known", "measured"])
def test_lds_begins_without_delays_if_they_have_to_be_measured(make_split, monkeypatch, delays):
    given: list[list[float] | None] = []
    lds = psl.lds_epoch

    def spy(*arguments, delays, **options):
        given.append(None if delays is None else delays.tolist())
        return lds(*arguments, delays=delays, **options)

    monkeypatch.setattr(psl, "lds_epoch", spy)
    made = make_split(f"psl:sampler=lds,delays={delays}", **{**PAIR, "epochs": 3})
    made.trainer.delays = listed([1, 4])
    made.run()
    assert given == ([None, [1, 4], [1, 4]] if delays == "measured" else [[1, 4]] * 3)


def test_whom_nobody_has_asked_yet_counts_as_average(make_split, monkeypatch):
    given: list[list[float]] = []
    lds = psl.lds_epoch

    def spy(*arguments, delays, **options):
        given.append(delays.tolist())
        return lds(*arguments, delays=delays, **options)

    monkeypatch.setattr(psl, "lds_epoch", spy)
    made = make_split("psl:sampler=lds,delays=measured", **{**PAIR, "sizes": (9, 9, 9, 9)})
    made.trainer.delays = listed([1, 4, 7, 7])
    made.step(1, 1, 0, 0)
    made.state.schedule(np.array([8, 8, 9, 0]), np.random.default_rng(0))
    assert given == [[1, 4, 2.5]]


# 5. What LDS is for


def test_under_lds_fewer_steps_wait_for_the_straggler(make_split):
    options = {
        "model": "mlp:hidden=2",
        "sizes": (20,) * 8,
        "batch_size": 20,
        "epochs": 4,
        "profile": INSTANT,
        "delays": "stragglers:count=1,factor=10,seconds=0.1",
    }
    found = {}
    for spec in ("ugs", "lds,strength=0", "lds,strength=0.5", "lds,strength=1", "lds,strength=1,delays=measured"):
        made = make_split(f"psl:sampler={spec}", **options)
        slow = int(made.trainer.delays.typical.argmax())
        made.run()
        waits = sum(any(client == slow for client, _ in step) for step in made.used)
        assert made.trainer.clock.now == pytest.approx(waits * 1.0 + (len(made.used) - waits) * 0.1)
        assert len(made.used) == 4 * 8
        found[spec] = made.trainer.clock.now
    assert found["lds,strength=1"] < found["lds,strength=0.5"] < 0.8 * found["lds,strength=0"]
    assert found["lds,strength=1"] < 0.6 * found["ugs"]
    assert found["lds,strength=1"] < found["lds,strength=1,delays=measured"] < 0.8 * found["ugs"]


def test_rows_that_are_asked_for_by_hand():
    row = BatchComposition(np.array([0, 3, 4]), np.array([2, 1, 5]))
    assert row.total == 8
    assert row.only(np.array([True, False, True])).clients.tolist() == [0, 4]
    assert row.only([1]).sizes.tolist() == [1]


def test_what_lds_decides_is_in_the_history(make_split):
    run = make_split("psl:sampler=lds,strength=1", delays="stragglers:count=1", epochs=2)
    run.run()
    noted = [line for line in run.lines if line["kind"] == "schedule"]
    assert [line["epoch"] for line in noted] == [1, 2]
    for line in noted:
        assert sum(line["pi"]) == pytest.approx(1)
        assert len(line["pi"]) == 5
        assert line["alpha_0"] > 0
    assert not [line for line in make_split("psl").lines if line["kind"] == "schedule"]
