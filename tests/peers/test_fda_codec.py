"""FDA whose model exchange goes through a codec chain."""

from __future__ import annotations

import pytest
import torch

from sparsync.errors import UsageError
from sparsync.strategies import STRATEGIES
from sparsync.wire import TOPOLOGIES, parse_chain
from sparsync.workers import Arena, Fleet


def fleet_of(rows: list[list[float]], topology: str = "star") -> Fleet:
    module = torch.nn.Linear(len(rows[0]), 1, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    arena = Arena(module, len(rows), torch.device("cpu"), torch.float32)
    fleet = Fleet(arena, len(rows), topology=TOPOLOGIES[topology])
    fleet.start()
    return fleet


def average(rows: list[list[float]], spec: str) -> Fleet:
    """One exchange of workers that have drifted from zero to these rows."""
    fleet = fleet_of(rows)
    state = STRATEGIES.build(spec).start(fleet)
    fleet.params.copy_(torch.tensor(rows))
    state.local_steps(fleet)
    state.exchange(fleet)
    return fleet


def test_workers_adopt_what_the_server_decodes_and_encodes_again() -> None:
    rows = [[4.0, 0.1, -2.0, 0.0], [0.0, 3.0, 0.2, -1.0]]
    fleet = average(rows, "fda:threshold=0,codec=topk(0.5)")
    # Kept of the drifts: (4, 0, -2, 0) and (0, 3, 0, -1); of their mean (2, 1.5, -1, -0.5) the two largest.
    assert fleet.params.tolist() == [[2.0, 1.5, 0.0, 0.0]] * 2


def test_a_lossless_codec_changes_nothing() -> None:
    rows = [[4.0, 0.1, -2.0, 0.0], [0.0, 3.0, 0.2, -1.0]]
    plain = average(rows, "fda:threshold=0")
    coded = average(rows, "fda:threshold=0,codec=sparse")
    assert torch.equal(coded.params, plain.params)
    assert coded.syncs == plain.syncs == 1


def test_the_messages_as_encoded_are_booked() -> None:
    rows = [[4.0, 0.1, -2.0, 0.0], [0.0, 3.0, 0.2, -1.0]]
    before = fleet_of(rows).ledger.moved["model"]
    chain = parse_chain("topk(0.5)+q8")
    fleet = average(rows, "fda:threshold=0,codec=topk(0.5)+q8")
    up = [len(chain.encode(torch.tensor(row))) for row in rows]
    down = len(chain.encode(fleet.params[0]))
    assert fleet.ledger.moved["model"] - before == sum(up) + 2 * down
    assert fleet.ledger.sent["model"].tolist() == up


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fda:threshold=1,codec=ef(q8)", "leave out ef and stochastic"),
        ("fda:threshold=1,codec=q8(stochastic)", "leave out ef and stochastic"),
        ("fda:threshold=1,codec=q9", "unknown codec 'q9'"),
    ],
)
def test_codecs_that_cannot_be(spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        STRATEGIES.build(spec)


def test_a_ring_has_no_server_to_decode() -> None:
    with pytest.raises(UsageError, match="topology='star'"):
        STRATEGIES.build("fda:threshold=1,codec=q8").start(fleet_of([[1.0], [2.0]], "ring"))
