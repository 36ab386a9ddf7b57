from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsync.engines.loop import Budget, PeerLoop
from sparsync.engines.pace import PaceAction
from sparsync.errors import UsageError
from sparsync.peers import LocalSGD, Synchronous
from sparsync.peers.contract import Cadence
from sparsync.strategies import STRATEGIES
from sparsync.workers import Fleet

MakeFleet = Callable[..., Fleet]
Drive = Callable[..., list[int]]
MakeRun = Callable[..., SimpleNamespace]
Train = Callable[[SimpleNamespace, int], list[Tensor]]


def rounds(synced: list[int]) -> list[int]:
    return [after - before for before, after in itertools.pairwise([0, *synced])]


def test_identity_by_hand_on_two_workers(make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(2, 3)
    move = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, -1.0]])
    assert drive(fleet, LocalSGD(period=2).start(fleet), [move, move]) == [2]
    assert fleet.params.tolist() == [[4, 4, 2], [4, 4, 2]]


@pytest.mark.parametrize(
    ("spec", "steps", "expected"),
    [
        ("period=1", 4, [1, 1, 1, 1]),
        ("period=4", 12, [4, 4, 4]),
        ("period=5", 4, []),  # the last round is not finished, and not averaged
        ("period=3,warmup=2", 9, [1, 1, 3, 3]),
        ("period=3,warmup=9", 9, [1] * 9),
        ("period=2,growth=2", 30, [2, 4, 8, 16]),
        ("period=2,growth=2,max_period=5", 21, [2, 4, 5, 5, 5]),
        ("period=2,growth=1.3", 22, [2, 2, 3, 4, 5]),  # 2, 2.6, 3.38, 4.394, 5.71, 7.4: slow growth adds up
        ("period=2,growth=2,warmup=2", 16, [1, 1, 2, 4, 8]),  # growth begins after the warm-up
        ("period=1,growth=1e300", 4, [1]),
    ],
)
def test_schedule_is_exact(spec: str, steps: int, expected: list[int], make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(2, 1)
    state = STRATEGIES.build(f"local-sgd:{spec}").start(fleet)
    assert rounds(drive(fleet, state, [torch.ones(2, 1)] * steps)) == expected
    assert fleet.syncs == len(expected)


def test_growth_never_begins_beyond_its_end(make_fleet: MakeFleet, drive: Drive) -> None:
    """max_period is "where growth ends": no round is longer, or the combination is refused."""
    fleet = make_fleet(2, 1)
    try:
        state = LocalSGD(period=10, max_period=4).start(fleet)
    except ValueError:
        return
    assert rounds(drive(fleet, state, [torch.ones(2, 1)] * 12)) == [4, 4, 4]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_period_one_is_synchronous_bit_for_bit(optimizer: str, make_run: MakeRun, train: Train) -> None:
    ours = train(make_run(LocalSGD(period=1), optimizer=optimizer), 10)
    for one, two in zip(ours, train(make_run(Synchronous(), optimizer=optimizer), 10), strict=True):
        assert torch.equal(one, two)


def test_no_averaging_is_independent_training(make_run: MakeRun, train: Train) -> None:
    together = make_run(LocalSGD(period=10), 3)
    together.training.train(9)
    for worker in range(3):
        alone = make_run(LocalSGD(period=10), 1, numbers=[worker])
        alone.training.train(9)
        assert torch.equal(together.fleet.params[worker], alone.fleet.params[0])


def test_models_are_equal_after_every_exchange_and_differ_within_a_round(make_run: MakeRun) -> None:
    made = make_run(LocalSGD(period=3))
    for _ in range(3):
        made.training.train(made.state.local_steps(made.fleet))
        assert not torch.equal(made.fleet.params[0], made.fleet.params[1])
        made.state.exchange(made.fleet)
        assert torch.equal(made.fleet.params, made.fleet.params[:1].expand_as(made.fleet.params))


@pytest.mark.parametrize(("steps", "syncs", "begun"), [(11, 2, 3), (12, 3, 3), (13, 3, 4), (3, 0, 1)])
def test_bytes_in_both_views(steps: int, syncs: int, begun: int, make_fleet: MakeFleet, drive: Drive) -> None:
    fleet = make_fleet(3, 10)
    drive(fleet, LocalSGD(period=4).start(fleet), [torch.ones(3, 10)] * steps)
    assert fleet.ledger.moved.get("model", 0) == syncs * 2 * 2 * 40
    assert fleet.ledger.paper == {"model": begun * 8 * 3 * 10}  # rounds begun


@pytest.mark.parametrize("eval_every", [1, 2, 3, 7, 100])
def test_evaluations_between_do_not_move_the_averagings(eval_every: int, make_run: MakeRun) -> None:
    """The loop cuts a round short where it evaluates; the exchange waits for the rest."""
    ends = []
    for every in (100, eval_every):
        made = make_run(LocalSGD(period=4))
        lines: list[dict[str, Any]] = []
        loop = PeerLoop(made.fleet, made.training, made.state, made.task, Budget(18, every), lines.append)
        assert loop.run(lambda steps: PaceAction.GO_ON, lambda: None)
        lines = [line for line in lines if line["kind"] == "evaluation"]
        assert [line["step"] for line in lines] == sorted({*range(every, 19, every), 18})
        assert [line["syncs"] for line in lines] == [line["step"] // 4 for line in lines]
        ends.append(made.fleet.params.clone())
    assert torch.equal(*ends)


def test_match_is_the_realised_period(make_fleet: MakeFleet) -> None:
    strategy = LocalSGD(match="fda", warmup=3, growth=1.5, max_period=50)
    assert strategy.matched(Cadence(1000, 25)) == LocalSGD(period=40, warmup=3, growth=1.5, max_period=50)
    assert [Cadence(1000, syncs).period for syncs in (0, 1, 3, 600, 1000, 3000)] == [1000, 1000, 333, 2, 1, 1]
    with pytest.raises(UsageError, match="match=fda has no earlier run to follow here; give a period"):
        strategy.start(make_fleet(2, 1))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("local-sgd", "give either period (local steps between two averagings) or match (an earlier strategy)"),
        ("local-sgd:period=2,match=fda", "give either period"),
        ("local-sgd:period=0", "period: Input should be greater than or equal to 1, got '0'"),
        ("local-sgd:period=1.5", "period: Input should be a valid integer"),
        ("local-sgd:period=2,warmup=-1", "warmup: Input should be greater than or equal to 0, got '-1'"),
        ("local-sgd:period=2,growth=0.5", "growth: Input should be greater than or equal to 1, got '0.5'"),
        ("local-sgd:period=2,growth=inf", "growth: Input should be a finite number, got 'inf'"),
        ("local-sgd:period=2,max_period=0", "max_period: Input should be greater than or equal to 1, got '0'"),
        ("local-sgd:tau=2", "has no parameter 'tau': its parameters are period, match, warmup, growth, max_period"),
    ],
)
def test_bad_inputs(spec: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        STRATEGIES.build(spec)
    assert says in str(caught.value)
