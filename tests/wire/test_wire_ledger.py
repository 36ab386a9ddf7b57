from __future__ import annotations

import copy

import pytest

from sparsync.wire import Ledger, Ring, Star


def test_by_hand_on_three_workers() -> None:
    ledger = Ledger(3)
    ledger.book("model", Ring().mean(3, 4, 4))  # chunks of 1, 1 and 2 numbers
    ledger.book("control", Star().decision(3))
    assert ledger.sent["model"].tolist() == [32 - 4 - 8, 32 - 8 - 4, 32 - 4 - 4]
    assert ledger.received["model"].tolist() == [24, 20, 20]
    assert ledger.moved == {"model": 64, "control": 63}
    assert ledger.total == 127
    assert ledger.paper == {}
    assert ledger.paper_total == 0


def test_messages_between_a_server_and_single_clients() -> None:
    ledger = Ledger(3)
    ledger.book_message("model", 1, down=100)
    ledger.book_message("model", 1, up=40)
    ledger.book_message("model", 2, up=3, down=4)
    ledger.book_message("mask", 0, up=5)
    assert ledger.sent["model"].tolist() == [0, 40, 3]
    assert ledger.received["model"].tolist() == [0, 100, 4]
    assert ledger.sent["mask"].tolist() == [5, 0, 0]
    assert ledger.moved == {"model": 147, "mask": 5}
    assert ledger.total == 152
    assert ledger.paper_total == 0
    again = Ledger(3)
    again.load_state_dict(ledger.state_dict())
    again.book_message("model", 0, down=1)
    assert again.received["model"].tolist() == [1, 100, 4]
    assert ledger.received["model"].tolist() == [0, 100, 4]


def test_views_do_not_touch_each_other() -> None:
    ledger = Ledger(2)
    ledger.book_paper("state", 16)
    ledger.book_paper("state", 16)
    ledger.book_paper("model", 100)
    assert ledger.paper == {"state": 32, "model": 100}
    assert ledger.paper_total == 132
    assert ledger.total == 0
    assert ledger.moved == ledger.sent == ledger.received == {}


def test_a_round_is_paid_for_when_a_step_enters_it() -> None:
    ledger = Ledger(2)
    ledger.open_round("model", 10)
    assert ledger.paper_total == 0
    ledger.step_begins()
    ledger.step_begins()  # the same round goes on
    assert ledger.paper == {"model": 10}
    ledger.open_round("model", 10)  # the last step's own averaging: no step follows
    assert ledger.paper == {"model": 10}


def test_rounds_opened_together_are_all_paid_for() -> None:
    ledger = Ledger(2)
    ledger.open_round("model", 10)
    ledger.open_round("model", 10)
    ledger.open_round("mask", 1)
    ledger.step_begins()
    assert ledger.paper == {"model": 20, "mask": 1}


def test_booking_keeps_no_hold_on_the_traffic() -> None:
    ledger = Ledger(3)
    traffic = Ring().mean(3, 4, 4)
    ledger.book("model", traffic)
    ledger.book("model", traffic)
    assert int(traffic.sent.sum()) == traffic.total == 64
    assert ledger.moved == {"model": 128}


def test_state_goes_round() -> None:
    ledger = Ledger(3)
    ledger.book("model", Ring().mean(3, 4, 4))
    ledger.book_paper("state", 7)
    ledger.open_round("model", 10)
    saved = ledger.state_dict()
    kept = copy.deepcopy(saved)
    ledger.book("model", Ring().mean(3, 4, 4))  # what was saved stays as it was
    ledger.step_begins()
    assert str(saved) == str(kept)
    other = Ledger(3)
    other.load_state_dict(saved)
    other.step_begins()
    assert (other.total, other.paper) == (64, {"state": 7, "model": 10})
    other.book("model", Ring().mean(3, 4, 4))
    assert other.sent["model"].tolist() == [40, 40, 48]
    assert str(saved) == str(kept)


@pytest.mark.parametrize("kind", ["model", "state", "mask", "activation", "gradient", "control"])
def test_every_kind(kind: str) -> None:
    ledger = Ledger(2)
    ledger.book(kind, Star().mean(2, 1, 4))  # type: ignore[arg-type]
    assert ledger.moved == {kind: 96}
