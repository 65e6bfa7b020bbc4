"""ACGS's records: what we build is what its readers need, and what peers write never raises."""

from __future__ import annotations

import json
import re
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordination import blackboard_records as records
from coordination.blackboard_records import BadRecord

NOW = 1_800_000_000_123

AGENT = records.agent_record("a", "t", ["c"], NOW)
KNOWLEDGE = records.knowledge_item(
    item_id="k",
    space="performance",
    agent_id="a",
    knowledge_type="t",
    content={"x": []},
    at_ms=NOW,
    ttl_ms=5_000,
    tags=["b", "a"],
)
TASK = records.task_record(task_id="t", task_type="cache_optimization", input_data={}, at_ms=NOW)
CONFLICT = records.conflict_record(
    conflict_id="c",
    conflict_type="resource_conflict",
    involved_agents=["a"],
    involved_tasks=[],
    description="",
    at_ms=NOW,
)
PARSERS = {
    "agent": (records.parse_agent, AGENT),
    "knowledge": (records.parse_knowledge, KNOWLEDGE),
    "task": (records.parse_task, TASK),
    "conflict": (records.parse_conflict, CONFLICT),
}


def test_records_have_every_field_in_the_order_of_acgs():
    assert list(AGENT) == ["agent_id", "agent_type", "capabilities", "status", "registered_at", "last_heartbeat"]
    assert list(KNOWLEDGE) == [
        "id",
        "space",
        "agent_id",
        "task_id",
        "knowledge_type",
        "content",
        "timestamp",
        "priority",
        "expires_at",
        "dependencies",
        "tags",
    ]
    assert list(TASK) == [
        "id",
        "task_type",
        "status",
        "agent_id",
        "priority",
        "requirements",
        "input_data",
        "output_data",
        "error_details",
        "dependencies",
        "deadline",
        "created_at",
        "claimed_at",
        "completed_at",
        "retries",
        "max_retries",
    ]
    assert list(CONFLICT) == [
        "id",
        "conflict_type",
        "involved_agents",
        "involved_tasks",
        "description",
        "severity",
        "status",
        "resolution_strategy",
        "resolution_data",
        "created_at",
        "resolved_at",
    ]


@pytest.mark.parametrize("name", PARSERS)
def test_what_is_built_is_parsed_unchanged(name):
    parse, record = PARSERS[name]
    assert parse(json.dumps(record)) == record


@pytest.mark.parametrize("name", PARSERS)
def test_every_field_is_checked_for_its_type_and_the_reason_names_it(name):
    parse, record = PARSERS[name]
    for field in record:
        bad = parse(json.dumps(record | {field: {"not": ["this"]} if not isinstance(record[field], dict) else 7}))
        if isinstance(bad, BadRecord):
            assert f"`{field}`" in bad.reason
        else:
            assert field in ("output_data", "error_details", "resolution_data"), f"any value passes as {field}"


@pytest.mark.parametrize("field", ["dependencies", "tags"])
def test_an_empty_list_that_lua_wrote_as_an_object_is_repaired(field):
    parsed = records.parse_knowledge(json.dumps(KNOWLEDGE | {field: {}}))
    assert parsed == KNOWLEDGE | {field: []}


def test_optional_fields_that_are_missing_get_the_defaults_of_acgs():
    text = json.dumps({k: TASK[k] for k in ("id", "task_type", "status", "created_at")})
    assert records.parse_task(text) == TASK
    assert (
        "`created_at` is missing"
        in records.parse_task(json.dumps({"id": "t", "task_type": "x", "status": "pending"})).reason
    )


def test_a_default_is_not_shared_between_records():
    text = json.dumps({k: TASK[k] for k in ("id", "task_type", "status", "created_at")})
    first = records.parse_task(text)
    first["dependencies"].append("spoilt")
    first["input_data"]["spoilt"] = True
    assert records.parse_task(text) == TASK


def test_fields_that_we_do_not_know_are_kept():
    assert records.parse_task(json.dumps(TASK | {"theirs": 1}))["theirs"] == 1


@pytest.mark.parametrize(
    ("at_ms", "text"), [(0, "1970-01-01T00:00:00+00:00"), (NOW, "2027-01-15T08:00:00.123000+00:00")]
)
def test_times_carry_their_offset_and_are_what_python_reads(at_ms, text):
    assert records.iso_utc(at_ms) == text
    assert records.time_ms(text) == at_ms
    assert datetime.fromisoformat(text).tzinfo is not None


@pytest.mark.parametrize(
    "text", ["2027-01-15T08:00:00.123Z", "2027-01-15T09:00:00.123+01:00", "2027-01-15T08:00:00.123"]
)
def test_the_times_of_others_are_understood(text):
    assert records.time_ms(text) == NOW


@pytest.mark.parametrize("value", [None, "", "yesterday", 17, "9999-99-99", {}])
def test_what_is_no_time_is_none(value):
    assert records.time_ms(value) is None


def test_knowledge_lives_at_least_two_seconds():
    short = records.knowledge_item(
        item_id="k", space="performance", agent_id="a", knowledge_type="t", content={}, at_ms=NOW, ttl_ms=-5
    )
    assert records.time_ms(short["expires_at"]) == NOW + 2_000


def test_an_id_is_a_uuid_that_follows_from_its_parts():
    first = records.record_id("task", "e-1")
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", first)
    assert first == records.record_id("task", "e-1")
    assert len({first, records.record_id("task", "e-2"), records.record_id("taske", "-1")}) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            records.event_message("task_created", NOW, {"task_id": "t"}),
            {"timestamp": records.iso_utc(NOW), "data": {"task_id": "t"}},
        ),
        (
            '{"event_type": "task_created", "timestamp": "", "data": {"task_id": "t"}}',
            {"timestamp": None, "data": {"task_id": "t"}},
        ),
        (
            '{"task_id": "t", "constitutional_hash": "h"}',
            {"timestamp": None, "data": {"task_id": "t", "constitutional_hash": "h"}},
        ),
    ],
)
def test_three_forms_of_events_are_understood(text, expected):
    assert records.parse_event("events:task_created", text) == {"event_type": "task_created"} | expected


@pytest.mark.parametrize(
    ("channel", "text"),
    [
        ("events:other", "{}"),
        ("events:task_created", '{"event_type": "task_claimed", "data": {}}'),
        ("events:task_created", '{"event_type": "task_created"}'),
        ("events:task_created", "7"),
    ],
)
def test_other_messages_are_no_events(channel, text):
    assert isinstance(records.parse_event(channel, text), BadRecord)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    st.one_of(
        st.text(),
        JSON.map(json.dumps),
        st.dictionaries(st.sampled_from(sorted({*AGENT, *KNOWLEDGE, *TASK, *CONFLICT})), JSON).map(json.dumps),
    )
)
def test_no_text_makes_a_parser_raise(text):
    for parse, _ in PARSERS.values():
        assert isinstance(parse(text), (dict, BadRecord))
    assert isinstance(records.parse_event("events:knowledge_added", text), (dict, BadRecord))


@given(st.sampled_from(sorted(PARSERS)), st.data())
def test_whatever_a_field_holds_the_parser_says_so_or_takes_it(name, data):
    parse, record = PARSERS[name]
    field = data.draw(st.sampled_from(sorted(record)))
    parsed = parse(json.dumps(record | {field: data.draw(JSON)}))
    assert isinstance(parsed, (dict, BadRecord))


@pytest.mark.parametrize("value", [None, 7, b"{}", "[" * 100_000, "x" * (1 << 21)])
def test_what_is_no_text_or_too_much_is_bad(value):
    assert isinstance(records.parse_task(value), BadRecord)
