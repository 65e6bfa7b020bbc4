"""Requests of the API as tasks on the blackboard: once each, ended with the decision or with its change."""

from __future__ import annotations

from dataclasses import replace

from cachewarden.machine import EffectFailed, JournalRead
from cachewarden.messages import AGENT_ID, AuditRecord, Execution, ExecutionState, RecordKind
from coordination.fleet_memory import FleetMemory
from coordination.request_mirror import RequestMirror
from tests.unit.policy.builders import SETTINGS, fleet, proposal

NOW = 1_800_000_000_000
REF = "requests:read"


def entry(number, **payload):
    fields = {"request": {"service_name": "cart"}, "state": "nothing_to_do", "reason": "why", "applied": False}
    return AuditRecord(
        seq=number,
        at_ms=NOW,
        kind=RecordKind.REQUEST_DECIDED,
        agent="api",
        service="cart",
        subject_id=f"d-{number}",
        payload=fields | payload,
    )


def read(mirror, *records, memory=None):
    memory = memory or FleetMemory(fleet(), SETTINGS)
    return mirror.step(JournalRead(ref=REF, records=records), memory, NOW)


def operations(effects):
    return [e.operation for e in effects]


def test_a_request_becomes_a_task_that_ends_with_the_decision():
    create, finish = read(RequestMirror(), entry(1, verdict={"decision": "deny", "denied_by": ["floor"]}))
    assert operations((create, finish)) == ["create_task", "finish_task"]
    assert create.arguments["claimed_by"] == AGENT_ID
    assert create.arguments["task"]["input_data"]["decision_id"] == "d-1"
    output = finish.arguments["output"]
    assert (output["coordination_result"]["status"], output["constitutional_compliance"]) == ("nothing_to_do", False)


def test_each_request_is_mirrored_once():
    mirror = RequestMirror()
    assert read(mirror, entry(1))
    assert read(mirror, entry(1)) == ()
    assert mirror.mirrored == 1


def test_a_request_that_brings_a_change_about_ends_with_it():
    mirror, given = RequestMirror(), proposal("cart")
    memory = FleetMemory(fleet(), SETTINGS)
    effects = read(mirror, entry(1, will_execute=True, proposal_id=given.proposal_id), memory=memory)
    assert operations(effects) == ["create_task"]
    execution = Execution(
        execution_id="x", proposal=given, state=ExecutionState.OBSERVING, started_at_ms=NOW, updated_at_ms=NOW
    )
    assert mirror.note_execution(execution, memory, NOW) == ()
    kept = replace(execution, state=ExecutionState.KEPT)
    [finish] = mirror.note_execution(kept, memory, NOW)
    assert finish.arguments["output"]["optimization_response"]["optimization_applied"] is True
    assert mirror.note_execution(kept, memory, NOW) == ()
    memory.note_execution(kept, NOW)
    late = read(mirror, entry(2, will_execute=True, proposal_id=given.proposal_id), memory=memory)
    assert operations(late) == ["create_task", "finish_task"]


def test_under_load_the_newest_are_mirrored_and_the_others_counted():
    mirror = RequestMirror()
    effects = read(mirror, *(entry(number) for number in range(120)))
    created = [e.arguments["task"]["input_data"]["decision_id"] for e in effects if e.operation == "create_task"]
    assert created == [f"d-{number}" for number in range(110, 120)]
    assert (mirror.mirrored, mirror.left_out) == (10, 110)


def test_one_question_at_a_time_and_not_too_often():
    mirror, memory = RequestMirror(), FleetMemory(fleet(), SETTINGS)
    assert mirror.look(NOW)
    assert mirror.look(NOW + 60_000) == ()
    mirror.step(EffectFailed(ref=REF, effect="ReadJournal", kind="JournalUnavailable", reason="r"), memory, NOW)
    assert mirror.look(NOW + 4_999) == ()
    assert mirror.look(NOW + 5_000)
