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
