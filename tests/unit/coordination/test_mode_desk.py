"""Modes at run time: what permits less counts at once, what permits more only once it is written down."""

from __future__ import annotations

import pytest

from cachewarden.fleet import parse_fleet
from cachewarden.machine import EffectFailed, Record, Recorded, Send, SetTimer, TimerFired
from cachewarden.messages import AuditRecord, Mode
from cachewarden.modes import acts, modes_of, with_modes
from cachewarden.protocol import CancelExecution, ModesChanged, SetMode
from coordination.mode_desk import ModeDesk

FLEET_TEXT = """
services:
  - {name: pages, url: "redis://localhost:1", mode: advise}
  - {name: carts, url: "redis://localhost:2", mode: auto}
  - {name: spare, url: "redis://localhost:3", mode: "off"}
"""
FLEET = parse_fleet(FLEET_TEXT)


def order(service: str, mode: Mode) -> SetMode:
    return SetMode(service=service, mode=mode, by="ann", reason="a test")


def entry(record: Record, seq: int = 1) -> AuditRecord:
    return AuditRecord(
        seq=seq,
        at_ms=0,
        kind=record.kind,
        agent="coordinator",
        service=record.service,
        subject_id=record.subject_id,
        payload=record.payload,
    )


def recorded(desk: ModeDesk, record: Record) -> tuple[object, ...]:
    return desk.step(Recorded(ref=record.ref, record=entry(record)), 1)


def failed(desk: ModeDesk, record: Record) -> tuple[object, ...]:
    return desk.step(EffectFailed(ref=record.ref, effect="Record", kind="JournalUnavailable", reason="gone"), 1)


def test_a_mode_that_permits_more_is_in_force_only_once_the_journal_has_it():
    desk = ModeDesk(FLEET)
    (record,) = desk.order(order("pages", Mode.AUTO), 0)
    assert desk.modes["pages"] is Mode.ADVISE
    told = recorded(desk, record)
    assert desk.modes["pages"] is Mode.AUTO
    assert {e.to for e in told if isinstance(e.message, ModesChanged)} >= {"actuator", "consensus", "validator"}


def test_one_that_permits_more_is_dropped_where_the_journal_is_gone():
    desk = ModeDesk(FLEET)
    (record,) = desk.order(order("pages", Mode.AUTO), 0)
    assert failed(desk, record) == ()
    assert recorded(desk, record) == ()
    assert desk.modes["pages"] is Mode.ADVISE


def test_a_mode_that_permits_less_counts_at_once_and_takes_back_what_is_in_flight():
    desk = ModeDesk(FLEET)
    record, stop, *told = desk.order(order("carts", Mode.ADVISE), 0)
    assert desk.modes["carts"] is Mode.ADVISE
    assert isinstance(stop.message, CancelExecution)
    assert (stop.message.service, stop.message.in_flight_only) == ("carts", True)
    assert all(isinstance(e, Send) and isinstance(e.message, ModesChanged) for e in told)
    (timer,) = failed(desk, record)
    assert isinstance(timer, SetTimer)
    assert desk.step(TimerFired(ref=timer.ref), 2) == (record,)


def test_the_newest_order_counts_whatever_the_journal_answers_first():
    desk = ModeDesk(FLEET)
    (raised,) = desk.order(order("pages", Mode.AUTO), 0)
    desk.order(order("pages", Mode.OFF), 1)
    recorded(desk, raised)
    assert desk.modes["pages"] is Mode.OFF


def test_a_service_that_is_off_is_not_looked_at():
    desk = ModeDesk(FLEET)
    assert desk.looked_at == ("pages", "carts")
    desk.order(order("carts", Mode.OFF), 0)
    assert desk.looked_at == ("pages",)


def test_an_unknown_service_changes_nothing():
    assert ModeDesk(FLEET).order(order("nobody", Mode.AUTO), 0) == ()


def test_the_journal_gives_the_modes_back_after_a_restart():
    desk = ModeDesk(FLEET)
    (record,) = desk.order(order("pages", Mode.AUTO), 0)
    again = ModeDesk(FLEET)
    told = again.replay([entry(record)])
    assert again.modes["pages"] is Mode.AUTO
    assert told


def test_whoever_edits_the_fleet_file_has_the_last_word():
    desk = ModeDesk(FLEET)
    (record,) = desk.order(order("pages", Mode.AUTO), 0)
    edited = parse_fleet(FLEET_TEXT.replace("mode: advise", "mode: approve"))
    assert modes_of([entry(record)], edited) == {}


@pytest.mark.parametrize("payload", [{}, {"mode": "auto"}, {"mode": "root", "file_mode": "advise"}])
def test_a_record_that_cannot_be_read_is_passed_over(payload: dict):
    bad = AuditRecord(
        seq=1, at_ms=0, kind="mode_changed", agent="x", service="pages", subject_id="pages", payload=payload
    )
    assert modes_of([bad], FLEET) == {}


def test_a_fleet_without_changes_stays_the_same_object():
    assert with_modes(FLEET, {}) is FLEET
    assert with_modes(FLEET, {"pages": Mode.ADVISE}) is FLEET
    changed = with_modes(FLEET, {"pages": Mode.AUTO})
    assert acts(changed, "pages")
    assert not acts(FLEET, "pages")
    assert not acts(FLEET, "nobody")


# --- Orders while the journal is gone, and orders of others -----------------------------------------------------------


def stops(effects: tuple[object, ...]) -> list[str]:
    return [e.message.service for e in effects if isinstance(e, Send) and isinstance(e.message, CancelExecution)]


def ordered(mode: Mode, service: str = "carts", seq: int = 7, file_mode: str = "auto") -> AuditRecord:
    payload = {"mode": mode.value, "file_mode": file_mode, "by": "bob", "reason": "elsewhere"}
    return AuditRecord(
        seq=seq, at_ms=0, kind="mode_changed", agent="o", service=service, subject_id=service, payload=payload
    )


def test_a_restriction_is_written_down_although_an_order_after_it_failed():
    desk = ModeDesk(FLEET)
    restriction, *_ = desk.order(order("carts", Mode.OFF), 0)
    (timer,) = failed(desk, restriction)
    again, *_ = desk.order(order("carts", Mode.AUTO), 1)
    # What permits more waits until the restriction is written down, and is dropped with the journal gone.
    assert again == restriction
    (timer,) = failed(desk, restriction)
    assert desk.step(TimerFired(ref=timer.ref), 2) == (restriction,)
    told = recorded(desk, restriction)
    assert not any(isinstance(e, Record) for e in told)
    assert desk.modes["carts"] is Mode.OFF
    assert modes_of([entry(restriction)], FLEET) == {"carts": Mode.OFF}


def test_orders_reach_the_journal_one_at_a_time_in_the_order_in_which_they_were_given():
    desk = ModeDesk(FLEET)
    first, *_ = desk.order(order("carts", Mode.ADVISE), 0)
    second, *_ = desk.order(order("pages", Mode.OFF), 0)
    assert desk.order(order("carts", Mode.APPROVE), 1) == ()
    third = recorded(desk, first)[-1]
    assert isinstance(third, Record)
    assert third.payload["mode"] == "approve"
    assert desk.modes["carts"] is Mode.ADVISE
    desk.step(Recorded(ref=third.ref, record=entry(third, 2)), 2)
    assert desk.modes["carts"] is Mode.APPROVE
    assert recorded(desk, second)


def test_a_restriction_that_fails_to_be_written_while_a_stricter_one_waits_leaves_the_stricter_one_in_force():
    desk = ModeDesk(FLEET)
    first, *_ = desk.order(order("carts", Mode.ADVISE), 0)
    desk.order(order("carts", Mode.OFF), 1)
    assert desk.modes["carts"] is Mode.OFF
    failed(desk, first)
    assert desk.modes["carts"] is Mode.OFF
    second = recorded(desk, first)[-1]
    desk.step(Recorded(ref=second.ref, record=entry(second, 2)), 2)
    assert desk.overrides == {"carts": "off"}


def test_a_restriction_of_another_deployment_stops_what_runs_here():
    desk = ModeDesk(FLEET)
    told = desk.follow([ordered(Mode.ADVISE)])
    assert stops(told) == ["carts"]
    assert desk.modes["carts"] is Mode.ADVISE
    assert {e.to for e in told if isinstance(e.message, ModesChanged)} >= {"actuator", "consensus", "validator"}
    assert desk.follow([ordered(Mode.ADVISE)]) == ()


def test_what_another_deployment_permits_counts_here_too():
    desk = ModeDesk(FLEET)
    desk.follow([ordered(Mode.AUTO, "pages", file_mode="advise")])
    assert desk.modes["pages"] is Mode.AUTO
    desk.follow([ordered(Mode.ADVISE, "pages", seq=8, file_mode="advise")])
    assert (desk.modes["pages"], desk.overrides) == (Mode.ADVISE, {})


def test_an_older_order_of_another_deployment_does_not_undo_a_newer_one_of_ours():
    desk = ModeDesk(FLEET)
    ours, *_ = desk.order(order("carts", Mode.OFF), 0)
    assert stops(desk.follow([ordered(Mode.AUTO, seq=3)])) == ["carts"]
    assert desk.modes["carts"] is Mode.OFF
    desk.step(Recorded(ref=ours.ref, record=entry(ours, 5)), 1)
    assert desk.follow([ordered(Mode.AUTO, seq=4), entry(ours, 5)]) == ()
    assert desk.modes["carts"] is Mode.OFF


def test_a_restriction_that_was_ordered_after_the_journal_lost_its_tail_counts():
    desk = ModeDesk(FLEET)
    desk.replay([ordered(Mode.OFF, seq=900), ordered(Mode.AUTO, seq=950)])
    desk.read_again(800)
    assert stops(desk.follow([ordered(Mode.OFF, seq=801)])) == ["carts"]
    assert desk.modes["carts"] is Mode.OFF


def test_a_record_of_ours_behind_what_was_taken_changes_nothing():
    desk = ModeDesk(FLEET)
    desk.follow([ordered(Mode.OFF, seq=5), ordered(Mode.AUTO, seq=7)])
    desk.read_again(7)
    assert desk.follow([ordered(Mode.OFF, seq=5)]) == ()
    assert desk.modes["carts"] is Mode.AUTO


def test_an_order_of_ours_that_is_read_after_its_answer_stops_nothing_again():
    desk = ModeDesk(FLEET)
    ours, *_ = desk.order(order("carts", Mode.OFF), 0)
    desk.step(Recorded(ref=ours.ref, record=entry(ours, 5)), 1)
    desk.read_again(5)
    assert desk.follow([entry(ours, 5)]) == ()


def test_an_answer_that_comes_after_a_later_restriction_was_read_lifts_nothing():
    desk = ModeDesk(FLEET)
    (raised,) = desk.order(order("pages", Mode.AUTO), 0)
    desk.follow([ordered(Mode.OFF, "pages", seq=9, file_mode="advise")])
    desk.step(Recorded(ref=raised.ref, record=entry(raised, 8)), 1)
    assert desk.modes["pages"] is Mode.OFF


@pytest.mark.parametrize("payload", [{}, {"mode": "auto"}, {"mode": "root", "file_mode": "auto"}])
def test_a_record_of_another_deployment_that_cannot_be_read_leaves_the_mode_as_it_is(payload: dict):
    desk = ModeDesk(FLEET)
    desk.follow([ordered(Mode.OFF)])
    bad = AuditRecord(
        seq=8, at_ms=0, kind="mode_changed", agent="x", service="carts", subject_id="carts", payload=payload
    )
    desk.follow([bad, ordered(Mode.AUTO, "nobody")])
    assert desk.overrides == {"carts": "off"}
