"""Which order to pause or resume is the newer one: what was told directly, or what the journal has."""

from __future__ import annotations

import itertools

import pytest

from cachewarden.messages import AuditRecord
from cachewarden.pausing import OrdersOfPause
from cachewarden.protocol import SetPaused

NEXT = itertools.count(1)


def told(orders: OrdersOfPause, order_id: str, *, paused: bool) -> bool:
    return orders.tell(SetPaused(paused=paused, by="ann", reason="x", order_id=order_id))


def counts(orders: OrdersOfPause, kind: str, order_id: str | None = None, seq: int = 0) -> bool:
    payload = {} if order_id is None else {"order_id": order_id}
    return orders.counts(
        AuditRecord(seq=seq or next(NEXT), at_ms=0, kind=kind, agent="o", service=None, subject_id="x", payload=payload)
    )


def test_a_resumption_from_before_our_pause_does_not_end_it():
    orders = OrdersOfPause()
    told(orders, "p1", paused=True)
    assert not counts(orders, "resumed")
    assert counts(orders, "paused", "p1")
    # Behind ours in the journal it is newer.
    assert counts(orders, "resumed")


def test_our_own_older_orders_do_not_come_back_when_they_are_read():
    orders = OrdersOfPause()
    told(orders, "p1", paused=True)
    told(orders, "r1", paused=False)
    assert not counts(orders, "paused", "p1")
    assert counts(orders, "resumed", "r1")
    assert not counts(orders, "paused", "p1")


@pytest.mark.parametrize("paused", [True, False])
def test_a_pause_of_others_always_counts(paused: bool):
    orders = OrdersOfPause()
    told(orders, "o1", paused=paused)
    assert counts(orders, "paused", "of-another")


def test_without_an_order_of_ours_the_journal_alone_counts():
    orders = OrdersOfPause()
    assert counts(orders, "paused")
    assert counts(orders, "resumed")
    told(orders, "", paused=True)
    assert counts(orders, "resumed")


def test_an_order_that_was_read_before_it_was_told_is_no_news_and_holds_no_later_one_back():
    orders = OrdersOfPause()
    assert counts(orders, "paused", "p1")
    assert not told(orders, "p1", paused=True)
    assert counts(orders, "resumed", "of-another")


def test_only_so_many_orders_are_remembered():
    orders = OrdersOfPause()
    for number in range(1_000):
        counts(orders, "paused", f"p{number}")
    assert len(orders._read) <= 100


def test_a_resumption_that_is_read_twice_does_not_end_the_pause_behind_it():
    orders = OrdersOfPause()
    told(orders, "p1", paused=True)
    counts(orders, "resumed", "of-before", seq=101)
    assert counts(orders, "paused", "p1", seq=102)
    # The answer to the other question, which has less, comes second.
    assert not counts(orders, "resumed", "of-before", seq=101)
    assert not counts(orders, "resumed", seq=102)
    assert counts(orders, "resumed", seq=103)


def test_a_pause_that_is_read_twice_does_not_undo_the_resumption_behind_it():
    orders = OrdersOfPause()
    assert [counts(orders, kind, seq=seq) for kind, seq in (("paused", 5), ("resumed", 6), ("paused", 5))] == [
        True,
        True,
        False,
    ]


def test_what_stands_where_the_journal_has_lost_its_tail_counts():
    orders = OrdersOfPause()
    counts(orders, "resumed", seq=950)
    orders.read_again(800)
    assert counts(orders, "paused", seq=801)


def test_what_was_read_before_the_journal_lost_its_tail_ends_no_pause_that_was_lost_with_it():
    orders = OrdersOfPause()
    for seq, (kind, order_id) in enumerate([("paused", "p1"), ("resumed", "r1"), ("paused", "p2")], 6):
        assert counts(orders, kind, order_id, seq=seq)
    orders.read_again(5)
    assert not counts(orders, "paused", "p1", seq=6)
    assert not counts(orders, "resumed", "r1", seq=7)
    assert counts(orders, "resumed", "r2", seq=8)
