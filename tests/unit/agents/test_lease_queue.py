"""One question about a lease at a time: the others wait, in their order, and none is forgotten."""

from __future__ import annotations

from agents.lease_queue import LeaseQueue
from cachewarden import machine as m
from cachewarden.messages import Lease


def ask(ref: str, service: str = "shop") -> m.AcquireLease:
    return m.AcquireLease(ref=ref, service=service, ttl_ms=1)


def granted(ref: str, service: str = "shop") -> m.LeaseGranted:
    return m.LeaseGranted(ref=ref, lease=Lease(service=service, holder="we", epoch=1, expires_at_ms=1))


def test_questions_about_one_service_leave_one_after_the_other_and_others_are_not_held_back():
    queue = LeaseQueue()
    other, timer = ask("x", "pages"), m.SetTimer(ref="t", due_ms=1)
    assert queue.admit([ask("a"), ask("b"), timer, other, ask("c")]) == (ask("a"), timer, other)
    assert queue.answered(granted("a")) == (ask("b"),)
    failed = m.EffectFailed(ref="b", effect="AcquireLease", kind="k", reason="r")
    assert queue.answered(failed) == (ask("c"),)
    assert queue.answered(m.LeaseDenied(ref="c", service="shop", holder="they", reason="r")) == ()
    assert not queue.waits("shop")


def test_a_newer_question_of_the_same_kind_takes_the_place_of_the_one_that_waits():
    queue = LeaseQueue()
    queue.admit([ask("a")])
    queue.admit([ask("k#renew")])
    queue.admit([ask("b"), ask("k#renew")])
    assert queue.answered(granted("a")) == (ask("b"),)
    assert queue.answered(granted("b")) == (ask("k#renew"),)
    assert queue.answered(granted("k#renew")) == ()


def test_an_answer_to_something_else_lets_nothing_go():
    queue = LeaseQueue()
    queue.admit([ask("a"), ask("b")])
    assert queue.answered(granted("z")) == ()
    assert queue.answered(m.EffectFailed(ref="a", effect="WriteKnobs", kind="k", reason="r")) == ()
    assert queue.answered(m.TimerFired(ref="a")) == ()
    assert queue.answered(granted("a")) == (ask("b"),)


def test_questions_of_a_change_that_is_over_are_taken_back():
    queue = LeaseQueue()
    queue.admit([ask("a"), ask("k#3"), ask("k#renew"), ask("j#1")])
    queue.forget("k")
    assert queue.answered(granted("a")) == (ask("j#1"),)
