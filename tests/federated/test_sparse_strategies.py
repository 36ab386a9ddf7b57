"""What every strategy that sends sparse models must do, whatever it does besides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sparse_federation import Small, equal_bits

from sparsync.engines import Budget, PaceAction, RoundLoop
from sparsync.engines.checkpoint import load_tree, save_tree
from sparsync.strategies import STRATEGIES
from sparsync.system import Profile
from sparsync.wire import values_of
from sparsync.workers import Client

SPECS = [
    "top-k:sparsity=0.8",
    "sparsyfed:sparsity=0.8",
    "sparsyfed:sparsity=0.8,payload=delta,act_threshold=cached_per_round",
    "sparsyfed:sparsity=0.8,beta=spectral",
    "zerofl:sparsity=0.8",
    "flash:sparsity=0.8",
    "feddip:lambda_steps=4,reconfiguration_interval=2",
    "feddip:lambda_steps=4,reconfiguration_interval=2,reconfigure_on=masked,upload=masked,mask_init=none",
    "feddip:lambda_steps=4,reconfiguration_interval=2,reconfigure_on=masked,upload=masked,mask_init=clients",
    "dpf:reconfiguration_interval=2,upload=dense",
    "feddst:readjustment_interval=2,sparsity=0.8",
    "prunefl:reconfiguration_interval=2,initial_rounds=5",
    "prunefl:reconfiguration_interval=2,initial_mask=erk",
    "prunefl:reconfiguration_interval=2,initial_mask=erk,order=rate,droppable=0.3",
    "snip:sparsity=0.8",
]
FIRST_MASK = ("snip:sparsity=0.8", "prunefl:reconfiguration_interval=2,initial_rounds=5")  # one client makes it

each = pytest.mark.parametrize("spec", SPECS)


@each
def test_killed_and_resumed_it_ends_with_the_same_bits(spec, tmp_path):
    whole = Small(spec, cohort=3)
    exchanges = whole.run(4)
    half = Small(spec, cohort=3)
    half.run(2)
    save_tree(half.state.state_dict(), tmp_path / "state")
    resumed = Small(spec, cohort=3)
    resumed.state.load_state_dict(load_tree(tmp_path / "state"))
    resumed.exchanges = half.exchanges
    later = resumed.run(2, start=2)
    assert equal_bits(resumed.state.model(), whole.state.model())
    for one, other in zip(later, exchanges[-2:], strict=True):
        assert (one.payload, one.uploads, one.journal) == (other.payload, other.uploads, other.journal)


@each
def test_it_learns_and_all_bytes_are_booked(spec):
    made = Small(spec, cohort=3, epochs=4)
    sent, values = [], []
    downlink, update = made.state.downlink, made.clients.respond

    def seen(payload, times=1):
        whole = made.server.exact.join(payload, made.server.exact.values)  # BatchNorm's counters travel beside it
        sent.append(times * len(whole))
        values.append(times * sum(values_of(whole).values()))
        return payload

    made.state.downlink = lambda round_: seen(downlink(round_), 1 if spec in FIRST_MASK and not sent else 3)

    def respond(client, payload):
        reply = update(client, payload)
        seen(reply.payload)
        return reply

    made.clients.respond = respond
    lines = []
    loop = RoundLoop(
        made.server, made.state, made.clients, made.runtime, made.task, Budget(6, 6), Profile(), lines.append
    )
    loop.run(lambda steps: PaceAction.GO_ON, lambda: None)
    assert loop.ledger.total == sum(sent)
    assert loop.ledger.paper_total == sum(values) < sum(sent)
    rounds = [line for line in lines if line["kind"] == "round"]
    assert [line["round"] for line in rounds] == [1] * (spec in FIRST_MASK) + [1, 2, 3, 4, 5, 6]
    for line in rounds[-6:]:
        for name in ("down_density", "up_density", "sparsity_target", "regrown", "deactivated", "iou_clients"):
            assert line[name] >= 0, name
        assert sum(name.startswith("layer_density/") for name in line) >= 3
    (evaluation,) = [line for line in lines if line["kind"] == "evaluation"]
    assert evaluation["accuracy"] > 0.9


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "delta" not in spec])  # see test_sparsyfed.py
def test_numbers_may_be_rounded_on_their_way(spec):
    exact, rounded = Small(spec), Small(f"{spec}{',' if ':' in spec else ':'}uplink=bf16,downlink=bf16")
    exchanges = exact.run(3), rounded.run(3)
    a, b = exact.prunable(exact.state.model()), rounded.prunable(rounded.state.model())
    assert not torch.equal(a, b)
    assert float((a - b).norm() / a.norm()) < 0.5
    assert all(len(one.payload) < len(other.payload) for one, other in zip(exchanges[1], exchanges[0], strict=True))


@each
def test_a_client_that_diverges_is_refused_and_the_others_go_on(spec, monkeypatch):
    made = Small(spec, minimum=2)
    train = Client.train

    def diverging(client, *args, **options):
        train(client, *args, **options)
        if client.number == 2:
            client.params.fill_(np.nan)

    monkeypatch.setattr(Client, "train", diverging)
    refused = [exchange.refused for exchange in made.run(3) if len(exchange.uploads) == 4]
    assert refused == [[2]] * 3
    assert bool(torch.isfinite(made.state.model()).all())


@pytest.mark.parametrize("spec", FIRST_MASK)
def test_the_one_client_that_makes_the_first_mask_is_enough(spec):
    made = Small(spec, minimum=3, cohort=3)
    first, second = made.run(1)
    assert len(first.uploads) == 1
    assert not first.over
    assert len(second.uploads) == 3
    assert second.over
    assert int(made.state.mask.count_nonzero()) < made.view.numel


@each
def test_processes_that_share_the_clients_do_what_one_does(spec, together):
    made = [Small(spec, cohort=3) for _ in range(3)]

    def run(one, group=None):
        one.server.group = group or one.server.group
        lines = []
        parts = one.server, one.state, one.clients, one.runtime, one.task
        loop = RoundLoop(*parts, Budget(4, 4), Profile(), lines.append)
        loop.run(lambda steps: PaceAction.GO_ON, lambda: None)
        return one.state.model(), loop.ledger.moved, lines

    alone, moved, history = run(made[2])
    first, second = together(2, lambda group: run(made[group.rank], group))
    assert equal_bits(first[0], second[0])
    torch.testing.assert_close(first[0], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(made[0].prunable(first[0]) != 0, made[2].prunable(alone) != 0)
    assert first[1] == second[1] == moved
    for mine, line in zip(first[2], history, strict=True):
        assert mine.keys() == line.keys()
        for name in ("down_density", "iou_rounds", "iou_clients", "up_density", "regrown", "bytes"):
            assert mine.get(name) == pytest.approx(line.get(name))


@each
def test_its_summary_and_options_can_be_listed(spec):
    entry = STRATEGIES[spec.partition(":")[0]]
    assert entry.summary.endswith(".")
    documented = (entry.factory.__doc__ or "") + "".join(base.__doc__ or "" for base in entry.factory.__mro__)
    for parameter in entry.parameters:
        assert parameter.name in documented
