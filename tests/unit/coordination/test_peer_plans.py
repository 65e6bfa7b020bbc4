"""Plans, ballots and tasks of peers: what is understood, what is refused, and that no content whatever raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.claims import overlap
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH
from cachewarden.peer_messages import PeerBallot
from coordination import blackboard_records as records
from coordination.blackboard_records import BadRecord
from coordination.conflict_answers import Sides, answer_in_item, answer_in_record
from coordination.peer_ballots import live_ballots, read_ballot
from coordination.peer_plans import (
    HOLD_MS_MAX,
    PeerPlan,
    PlanState,
    Refused,
    intents_of,
    newest,
    plan_of,
    read_plan,
)
from coordination.peer_tasks import Ask, Refusal, read_ask
from tests.unit.policy.builders import fleet, service

NOW = 1_800_000_000_000
FLEET = fleet(service("cart"), service("pages"), service("quiet", mode="off"))
NAMES = frozenset(FLEET.names)


def item(content, *, agent="peer", kind="cache_optimization_plan", at_ms=NOW, ttl_ms=600_000, **more):
    record = records.knowledge_item(
        item_id="i-1",
        space="performance",
        agent_id=agent,
        knowledge_type=kind,
        content=content,
        at_ms=at_ms,
        ttl_ms=ttl_ms,
        priority=2,
    )
    parsed = records.parse_knowledge(json.dumps(record | more))
    assert not isinstance(parsed, BadRecord)
    return parsed


def plan(content, **more):
    return read_plan(item(content, **more), NAMES, NOW)


def resources(found):
    return [(t.service, t.resource, t.direction, t.after) for t in found.touches]


def test_a_plan_in_our_own_form_is_understood_whole():
    found = plan(
        {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "plan_id": "p",
            "status": "approved",
            "priority": 1,
            "affected_services": ["cart", "elsewhere"],
            "changes": [
                {"knob": "maxmemory", "before": "100", "after": "150"},
                {"pattern": "user:", "ttl_ms_before": 1_000, "ttl_ms_after": 500},
            ],
        }
    )
    assert (found.key, found.state, found.priority) == (("peer", "p"), PlanState.WANTED, 1)
    assert resources(found) == [
        ("cart", "maxmemory", 1, "150"),
        ("cart", "ttl:user:", -1, "500"),
        ("cart", "budget", 1, ""),
    ]
    assert found.touches[-1].amount == 50
    assert found.until_ms == NOW + 600_000


def test_a_plan_that_says_only_which_cache_touches_everything_of_it():
    assert resources(plan({"service": "cart"})) == [("cart", "*", 0, "")]


def sized(before, after):
    return plan({"service": "cart", "changes": [{"knob": "maxmemory", "before": before, "after": after}]})


def test_sizes_in_units_are_the_numbers_that_the_server_makes_of_them():
    found = sized("64mb", "1GB")
    assert [(t.resource, t.before, t.after, t.direction) for t in found.touches[:1]] == [
        ("maxmemory", "67108864", "1073741824", 1)
    ]
    assert found.touches[1].amount == 1073741824 - 67108864
    assert sized(67108864, 1073741824).touches == found.touches


@pytest.mark.parametrize("after", ["-64mb", "plenty", "1 gb", -5])
def test_a_size_that_no_server_takes_holds_the_whole_cache(after):
    found = sized("64mb", after)
    assert (found.trouble != "", resources(found), found.state) == (True, [("cart", "*", 0, "")], PlanState.ACTIVE)


def test_a_plan_is_as_old_as_it_says_but_never_younger_than_it_was_written():
    assert plan({"service": "cart"}).first_ms == NOW
    assert plan({"service": "cart", "since": records.iso_utc(NOW - 5_000)}).first_ms == NOW - 5_000
    assert plan({"service": "cart", "since": records.iso_utc(NOW + 5_000)}).first_ms == NOW
    assert plan({"service": "cart", "since": "long ago"}).first_ms == NOW


def test_key_patterns_without_changes_are_what_is_touched():
    assert resources(plan({"affected_services": ["cart"], "affected_keys": ["user:*"]})) == [
        ("cart", "ttl:user:*", 0, "")
    ]


def test_changes_may_name_services_of_their_own_and_knobs_in_underscores():
    found = plan({"changes": [{"service": "pages", "knob": "MAXMEMORY_POLICY", "after": "allkeys-lfu"}]})
    assert resources(found) == [("pages", "maxmemory-policy", 0, "allkeys-lfu")]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("in_progress", PlanState.ACTIVE),
        ("Observing", PlanState.ACTIVE),
        ("completed", PlanState.DONE),
        ("rolled_back", PlanState.ENDED),
        ("no word that we know", PlanState.ACTIVE),
    ],
)
def test_the_status_says_whether_a_plan_holds_anything(status, state):
    found = plan({"service": "cart", "status": status})
    assert found.state is state
    assert bool(intents_of(found, NOW)) == (state is PlanState.ACTIVE)


def test_a_plan_that_is_being_carried_out_holds_its_cache_as_a_whole():
    found = plan({"service": "cart", "status": "in_progress", "changes": [{"knob": "hz", "after": 20}]})
    assert [(i.resource, i.until_ms) for i in intents_of(found, NOW)] == [("hz", NOW + 600_000), ("*", NOW + 600_000)]


@pytest.mark.parametrize("content", [{"service": "elsewhere"}, {}, {"affected_services": []}])
def test_a_plan_on_other_caches_does_not_concern_us(content):
    assert plan(content) is None


def test_our_own_plans_are_no_plans_of_peers():
    assert plan({"service": "cart"}, agent=AGENT_ID) is None


def test_a_plan_with_another_hash_is_refused():
    assert plan({"service": "cart", "constitutional_hash": "0" * 16}) == Refused("peer", "0" * 16)
    assert isinstance(plan({"service": "cart", "constitutional_hash": None}), Refused)


@pytest.mark.parametrize(
    "damage",
    [
        {"affected_services": ["cart", 5]},
        {"affected_services": ["cart"] * 51},
        {"changes": "all"},
        {"changes": [5]},
        {"changes": [{"after": "1"}]},
        {"changes": [{"knob": "hz", "pattern": "a"}]},
        {"changes": [{"knob": "hz", "after": ["1"]}]},
        {"changes": [{"knob": "hz", "after": "9" * 30}]},
        {"changes": [{}] * 51},
        {"plan_id": ""},
        {"plan_id": "a\nb"},
        {"status": 5},
        {"affected_services": {"cart": 1}},
        {"memory_delta_bytes": 0.5},
        {"priority": 1.5},
        {"priority": 0},
        {"priority": True},
        {"memory_delta_bytes": "many"},
        {"memory_delta_bytes": 1 << 70},
    ],
)
def test_what_cannot_be_read_further_holds_the_whole_cache_that_it_names_and_counts_as_bad(damage):
    found = plan({"service": "cart"} | damage)
    assert (found.state, found.services, found.until_ms) == (PlanState.ACTIVE, ("cart",), NOW + 600_000)
    assert found.trouble
    assert {i.resource for i in intents_of(found, NOW)} == {"*"}
    assert isinstance(plan({"service": "elsewhere", "status": 5} | damage), BadRecord) or "cart" in str(damage)
    if "status" not in damage:
        assert intents_of(plan({"service": "cart", "status": "completed"} | damage), NOW) == ()


@pytest.mark.parametrize(
    "name", ["status", "priority", "memory_delta_bytes", "plan_id", "changes", "affected_services"]
)
def test_null_says_nothing(name):
    found = plan({"service": "cart", name: None})
    assert (found, found.trouble) == (plan({"service": "cart"}), "")


def test_one_text_is_a_list_of_one_and_a_number_may_have_a_decimal_point():
    content = {"priority": 2.0, "memory_delta_bytes": 5.0, "changes": [{"knob": "hz", "before": 10.0, "after": 12.5}]}
    found = plan({"affected_services": "cart"} | content)
    assert (found.priority, found.trouble) == (2, "")
    assert resources(found) == [("cart", "hz", 0, "12.5"), ("cart", "budget", 1, "")]
    assert found.touches[0].before == "10"


def test_lists_that_lua_has_turned_into_objects_are_empty_lists():
    found = plan({"service": "cart", "affected_keys": {}, "changes": {}, "affected_services": {}})
    assert resources(found) == [("cart", "*", 0, "")]


def test_no_plan_holds_longer_than_an_hour_whatever_it_says():
    assert plan({"service": "cart"}, ttl_ms=10 * HOLD_MS_MAX).until_ms == NOW + HOLD_MS_MAX
    assert plan({"service": "cart"}, expires_at=None).until_ms == NOW + HOLD_MS_MAX
    assert plan({"service": "cart", "until": records.iso_utc(NOW + 5_000)}).until_ms == NOW + 5_000


def test_a_clock_that_runs_ahead_neither_holds_longer_nor_makes_older():
    found = plan({"service": "cart"}, at_ms=NOW + HOLD_MS_MAX, ttl_ms=10 * HOLD_MS_MAX)
    assert (found.at_ms, found.until_ms) == (NOW, NOW + HOLD_MS_MAX)


def test_a_plan_that_stands_under_two_types_counts_once_as_it_was_written_last():
    first, last = plan({"service": "cart", "plan_id": "p"}, at_ms=NOW - 10), plan({"service": "pages", "plan_id": "p"})
    assert newest([last, first]) == (last,)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("hz", "hz", True),
        ("hz", "maxmemory", False),
        ("hz", "*", True),
        ("budget", "*", False),
        ("ttl:user:", "ttl:user:vip:*", True),
        ("ttl:user:", "ttl:page:", False),
        ("ttl:*", "ttl:page:", True),
        ("ttl:us?r:", "ttl:user:", True),
        ("hz", "ttl:*", False),
    ],
)
def test_resources_overlap_whichever_way_they_are_asked(one, other, same):
    assert overlap(one, other) is overlap(other, one) is same


def test_a_ballot_is_read_and_bounded():
    content = {"subject": "p", "choice": "approve", "confidence": 1, "reason": "a\nb" + "x" * 900}
    found = read_ballot(item(content), NOW)
    assert isinstance(found, PeerBallot)
    assert (found.confidence, found.reason[:3], len(found.reason)) == (1.0, "a b", 500)


@pytest.mark.parametrize("damage", [{"subject": 5}, {"choice": ""}, {"confidence": 1.5}, {"confidence": "high"}])
def test_a_ballot_that_cannot_be_counted_is_bad(damage):
    assert isinstance(read_ballot(item({"subject": "p", "choice": "yes"} | damage), NOW), BadRecord)


# --- Anything at all --------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "cart",
        "pages",
        "quiet",
        "maxmemory",
        "user:*",
        "in_progress",
        "approved",
        CONSTITUTIONAL_HASH,
        AGENT_ID,
        "5",
        "-1",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | WORDS, inner, max_size=3),
    max_leaves=8,
)
PLAN_FIELDS = [
    "affected_keys", "affected_services", "changes", "confidence", "conflict_id", "constitutional_hash", "event_data",
    "event_type", "choice", "memory_delta_bytes", "plan_id", "priority", "reason", "resolution", "service",
    "session_status", "status", "subject", "until",
]  # fmt: skip
CHANGE = st.dictionaries(st.sampled_from(["knob", "pattern", "before", "after", "service", "ttl_ms_after"]), JSON)
CONTENT = st.dictionaries(
    st.sampled_from(PLAN_FIELDS), JSON | st.lists(CHANGE, max_size=3) | st.lists(WORDS, max_size=3)
)
KINDS = st.sampled_from(["cache_optimization_plan", "conflict_resolution", "consensus_session_event"])
SIDES = Sides(ours=frozenset({AGENT_ID}), theirs=frozenset({"peer"}), priority_for_us=True, priority_words="")


@settings(max_examples=150, deadline=None)
@given(CONTENT, KINDS)
def test_no_content_of_a_peer_raises_and_what_comes_out_is_bounded(content, kind):
    given_item = item(content, kind=kind)
    found = read_plan(given_item, NAMES, NOW)
    if isinstance(found, PeerPlan):
        assert {t.service for t in found.touches} <= set(NAMES)
        assert found.until_ms <= NOW + HOLD_MS_MAX
        assert all(len(t.resource) <= 210 and t.resource.isprintable() for t in found.touches)
        assert all(i.holder == "peer" for i in intents_of(found, NOW))
    else:
        assert found is None or isinstance(found, (Refused, BadRecord))
    assert read_ballot(given_item, NOW) is not None
    answer = answer_in_item(given_item, "c", SIDES)
    assert answer is None or isinstance(answer.for_us, bool)


@settings(max_examples=100, deadline=None)
@given(CONTENT, st.sampled_from(["resolved", "open", "closed", "x"]), st.lists(st.text(max_size=5), max_size=3))
def test_no_conflict_of_a_peer_raises(content, status, agents):
    conflict = records.conflict_record(
        conflict_id="c",
        conflict_type="resource_conflict",
        involved_agents=agents,
        involved_tasks=[],
        description="d",
        at_ms=NOW,
    )
    record = conflict | {"status": status, "resolution_data": content, "resolution_strategy": None}
    answer = answer_in_record(record, SIDES)
    assert (answer is None) == (status == "open")
    assert plan_of(record, ("cart",), NOW).touches


@settings(max_examples=150, deadline=None)
@given(
    JSON, st.dictionaries(st.sampled_from(["agent_id", "capabilities", "constitutional_hash", "x"]), JSON, max_size=2)
)
def test_no_task_of_a_peer_raises(request, requirements):
    task = records.task_record(
        task_id="t",
        task_type="cache_optimization",
        input_data={"request": request, "agent_id": "peer"},
        at_ms=NOW,
        requirements=requirements,
    )
    found = read_ask(task, FLEET)
    assert found is None or isinstance(found, (Ask, Refusal))
    if isinstance(found, Refusal):
        assert found.reason
        assert json.dumps(found.reason)


def test_a_service_that_nobody_looks_at_is_refused_by_its_mode():
    task = records.task_record(
        task_id="t", task_type="cache_optimization", input_data={"request": {"service_name": "quiet"}}, at_ms=NOW
    )
    found = read_ask(task, FLEET)
    assert isinstance(found, Refusal)
    assert "mode `off`" in found.reason


# --- Ballots of too many ------------------------------------------------------------------------------------------------


def cast(voter: str, at_ms: int, subject: str = "p-old") -> PeerBallot:
    item = f"{voter}-{subject}-{at_ms}"
    return PeerBallot(
        item_id=item, agent_id=voter, subject=subject, choice="reject", confidence=1.0, reason="", at_ms=at_ms
    )


def test_old_ballots_and_those_of_strangers_crowd_no_entitled_voter_out():
    old = [cast("ops", at) for at in range(20)]
    noise = [cast(f"s{at}", 10_000 + at, "a") for at in range(50)]
    live = [cast("ops", 5_000, "z-open"), cast("lab", 1, "z-open")]
    told = live_ballots([*old, *noise, *live], frozenset({"ops", "lab"}), 10)
    assert len(told) == 10
    assert set(live) <= set(told)
    assert sum(b.agent_id == "ops" for b in told) == 5
    assert list(told) == sorted(told, key=lambda b: (b.subject, b.agent_id, b.at_ms, b.item_id))
    assert live_ballots(live, frozenset(), 10) == tuple(sorted(live, key=lambda b: b.agent_id))
