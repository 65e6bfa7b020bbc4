"""What other agents say on the blackboard that they do with our caches, as plans and as intents of ours.

Peers write `cache_optimization_plan` and `optimization_activity` in the form in which we write them
(`docs/INTEROP.md`), or with less: a plan that does not say what it changes counts as changing everything of the caches
that it names. Values are taken as the server would read them (`64MB` is 67108864). Only what bears on caches of our
fleet is taken up. Nothing is judged here.

A record that names a cache of ours but cannot be read further holds the whole of it until it ends or expires.

INVARIANT: whatever a record holds, reading it gives a value: a plan, None where it does not concern us, `Refused` for
another constitutional hash, or a `BadRecord`. Nothing unbounded and nothing unprintable comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cachewarden.board_records import ConflictRecord, KnowledgeRecord
from cachewarden.claims import ANYTHING, BUDGET, TTL_PREFIX, direction_of
from cachewarden.knobs import as_server_reads
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, Intent
from coordination.blackboard_records import SEVERITY_SCORE, BadRecord, record_id, time_ms

__all__ = [
    "HOLD_MS_MAX",
    "PeerPlan",
    "PlanState",
    "Refused",
    "Touch",
    "intents_of",
    "newest",
    "plan_of",
    "read_plan",
    "refused",
    "word",
]

HOLD_MS_MAX: Final = 3_600_000
"""No plan of a peer holds a cache for longer than an hour after it was written; whoever needs longer writes it anew."""
_WORD_CHARS_MAX: Final = 200
_LIST_MAX: Final = 50
_TOUCHES_MAX: Final = 200
_AMOUNT_MAX: Final = 1 << 60


class PlanState(StrEnum):
    """WANTED: it is going to be done; ACTIVE: being done or observed; DONE: it is in force; ENDED: it came to
    nothing."""

    WANTED = "wanted"
    ACTIVE = "active"
    DONE = "done"
    ENDED = "ended"


_STATES: Final[Mapping[str, PlanState]] = {
    **dict.fromkeys(
        ("", "approved", "open", "pending", "planned", "proposed", "scheduled", "waiting"), PlanState.WANTED
    ),
    **dict.fromkeys(
        ("active", "applying", "executing", "in_progress", "observing", "rolling_back", "running", "stepping"),
        PlanState.ACTIVE,
    ),
    **dict.fromkeys(("applied", "completed", "done", "kept"), PlanState.DONE),
    **dict.fromkeys(
        (
            "abandoned", "aborted", "advised", "cancelled", "canceled", "closed", "denied", "ended", "error", "expired",
            "failed", "rejected", "reverted", "rolled_back", "skipped", "superseded", "withdrawn", "yielded",
        ),
        PlanState.ENDED,
    ),
}  # fmt: skip
"""Any other word may mean that it is being done."""
_UNDONE: Final = frozenset({"aborted", "failed", "reverted", "rolled_back"})
"""Words for an ending after which the old values may be back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Touch:
    """One thing that a plan touches: `resource` as in `Intent`, values as texts, empty where the plan is silent."""

    service: str
    resource: str
    direction: int = 0
    before: str = ""
    after: str = ""
    amount: int = 0
    """Bytes by which the shared memory grows; only for `budget`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPlan:
    """What one agent does or wants to do; `priority` 1..5, 1 goes first. `until_ms`: when it stops to count."""

    agent_id: str
    plan_id: str
    item_id: str
    state: PlanState
    priority: int
    at_ms: int
    until_ms: int
    touches: tuple[Touch, ...]
    since_ms: int | None = None
    """When it was announced first, None where that is `at_ms`; of equal priorities the older goes first."""
    undone: bool = False
    """Whether it says that it was given up after it had begun; of a plan that never began it is an empty word."""
    trouble: str = ""
    """Why the record could not be read further; it then holds its caches as a whole."""

    @property
    def key(self) -> tuple[str, str]:
        """What tells plans apart: two agents may name theirs alike."""
        return self.agent_id, self.plan_id

    @property
    def first_ms(self) -> int:
        return self.at_ms if self.since_ms is None else self.since_ms

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(sorted({touch.service for touch in self.touches}))

    def in_force(self, now_ms: int) -> bool:
        """Whether it holds what it touches."""
        return now_ms < self.until_ms and self.state in (PlanState.WANTED, PlanState.ACTIVE)


@dataclass(frozen=True, slots=True)
class Refused:
    """A record with another constitutional hash than ours: whatever it says does not count."""

    agent_id: str
    received: str


def word(value: Any) -> str | None:
    """Return a short printable text; None for anything else."""
    if not isinstance(value, str) or not 0 < len(value) <= _WORD_CHARS_MAX or not value.isprintable():
        return None
    return value


def refused(item: KnowledgeRecord) -> Refused | None:
    """Return that an item of knowledge carries another constitutional hash, None where it carries ours or none."""
    received = item["content"].get("constitutional_hash", CONSTITUTIONAL_HASH)
    if received == CONSTITUTIONAL_HASH:
        return None
    shown = str(received)[:64]
    return Refused(word(item["agent_id"]) or "unprintable", shown if shown.isprintable() else "unprintable")


def _texts(value: Any, name: str) -> tuple[str, ...] | BadRecord:
    if value is None or value == {}:
        return ()
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or len(value) > _LIST_MAX:
        return BadRecord(f"`{name}` must be a list of at most {_LIST_MAX} texts")
    found = tuple(dict.fromkeys(text for v in value if (text := word(v)) is not None))
    return found if len(found) == len(set(map(str, value))) else BadRecord(f"`{name}` must be a list of short texts")


def read_plan(item: KnowledgeRecord, fleet: frozenset[str], now_ms: int) -> PeerPlan | Refused | BadRecord | None:
    """Return the plan in a parsed item of knowledge; None where it is ours or touches no cache of `fleet`."""
    if item["agent_id"] == AGENT_ID:
        return None
    other = refused(item)
    if other is not None:
        return other
    content = _given(item["content"])
    found = _plan(item, content, fleet, now_ms)
    named = _named(content, fleet) if isinstance(found, BadRecord) else ()
    if not isinstance(found, BadRecord) or not named:
        return found
    status = content.get("status")
    state = _STATES.get(status.lower(), PlanState.ACTIVE) if isinstance(status, str) else PlanState.ACTIVE
    at_ms, until_ms = _span(item, content, now_ms)
    return PeerPlan(
        agent_id=word(item["agent_id"]) or "unnamed",
        plan_id=word(content.get("plan_id")) or record_id("peer_plan", str(item["id"])),
        item_id=item["id"],
        # How urgent it is cannot be weighed either, so it is not only wanted.
        state=PlanState.ACTIVE if state is PlanState.WANTED else state,
        priority=item["priority"],
        at_ms=at_ms,
        until_ms=until_ms,
        touches=tuple(Touch(service=name, resource=ANYTHING) for name in named),
        trouble=found.reason,
    )


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a peer has said: null says nothing."""
    return {name: value for name, value in fields.items() if value is not None}


def _whole(value: Any) -> Any:
    """Return a whole number that was written with a decimal point as such, anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _named(content: Mapping[str, Any], fleet: frozenset[str]) -> tuple[str, ...]:
    """Return the caches of ours that a record names anywhere where one may be named, whatever form it has."""
    changes = content.get("changes")
    places: list[Any] = [content.get("service"), content.get("affected_services")]
    places += [
        c.get("service") for c in (changes if isinstance(changes, list) else [changes]) if isinstance(c, Mapping)
    ]
    flat = [v for place in places for v in (place if isinstance(place, (list, Mapping)) else [place])]
    return tuple(sorted({v for v in flat if isinstance(v, str)} & fleet))


def _span(item: KnowledgeRecord, content: Mapping[str, Any], now_ms: int) -> tuple[int, int]:
    """Return from when until when a plan counts."""
    # A clock that runs ahead must not hold a cache longer, nor win by seeming older.
    at_ms = min(time_ms(item["timestamp"]) or 0, now_ms)
    ends = [at_ms + HOLD_MS_MAX, time_ms(item["expires_at"]), time_ms(content.get("until"))]
    return at_ms, min(end for end in ends if end is not None)


def _plan(
    item: KnowledgeRecord, content: Mapping[str, Any], fleet: frozenset[str], now_ms: int
) -> PeerPlan | BadRecord | None:
    agent, plan_id = word(item["agent_id"]), word(content.get("plan_id", item["id"]))
    status = content.get("status", "")
    if agent is None or plan_id is None or not isinstance(status, str):
        return BadRecord("`agent_id`, `plan_id` and `status` must be short texts")
    named = _texts(content.get("affected_services"), "affected_services")
    keys = _texts(content.get("affected_keys"), "affected_keys")
    if isinstance(named, BadRecord):
        return named
    if isinstance(keys, BadRecord):
        return keys
    single = word(content.get("service"))
    services = tuple(s for s in dict.fromkeys((*named, *((single,) if single else ()))) if s in fleet)
    touches = _touches(content, services, keys, fleet)
    if isinstance(touches, BadRecord):
        return touches
    if not touches:
        return None
    priority = _whole(content.get("priority", item["priority"]))
    if not isinstance(priority, int) or isinstance(priority, bool) or not 1 <= priority <= 5:
        return BadRecord("`priority` must be a whole number from 1 to 5")
    at_ms, until_ms = _span(item, content, now_ms)
    return PeerPlan(
        agent_id=agent,
        plan_id=plan_id,
        item_id=item["id"],
        state=_STATES.get(status.lower(), PlanState.ACTIVE),
        priority=priority,
        at_ms=at_ms,
        until_ms=until_ms,
        since_ms=None if (since_ms := time_ms(content.get("since"))) is None else min(since_ms, at_ms),
        touches=touches,
        undone=status.lower() in _UNDONE,
    )


def _touches(
    content: Mapping[str, Any], services: tuple[str, ...], keys: tuple[str, ...], fleet: frozenset[str]
) -> tuple[Touch, ...] | BadRecord:
    changes = content.get("changes")
    changes = [] if changes is None or changes == {} else changes
    if not isinstance(changes, list) or len(changes) > _LIST_MAX:
        return BadRecord(f"`changes` must be a list of at most {_LIST_MAX} objects")
    found: list[Touch] = []
    for change in changes:
        touched = _touch(change, services, fleet)
        if isinstance(touched, BadRecord):
            return touched
        found += touched
    patterns = {t.resource for t in found}
    for key in keys:
        resource = f"{TTL_PREFIX}{key}"
        found += [Touch(service=s, resource=resource) for s in services if resource not in patterns]
    if len(found) > _TOUCHES_MAX:
        return BadRecord(f"a plan may touch {_TOUCHES_MAX} things; write several plans")
    if not found and not changes:
        found = [Touch(service=s, resource=ANYTHING) for s in services]
    delta = _whole(content.get("memory_delta_bytes", 0))
    if not isinstance(delta, int) or isinstance(delta, bool) or abs(delta) > _AMOUNT_MAX:
        return BadRecord("`memory_delta_bytes` must be a whole number of bytes")
    if not delta:
        # Who says only the new limit says how much it is too, if it says the old one.
        grown = [int(t.after) - int(t.before) for t in found if t.resource == "maxmemory" and t.direction]
        delta = max(-_AMOUNT_MAX, min(_AMOUNT_MAX, sum(grown)))
    if delta and services:
        found.append(Touch(service=services[0], resource=BUDGET, direction=1 if delta > 0 else -1, amount=abs(delta)))
    return tuple(dict.fromkeys(found))


def _touch(change: Any, services: tuple[str, ...], fleet: frozenset[str]) -> list[Touch] | BadRecord:
    if not isinstance(change, Mapping):
        return BadRecord("each of `changes` must be an object")
    change = _given(change)
    own = word(change.get("service")) if "service" in change else None
    targets = services if "service" not in change else tuple(s for s in (own,) if s is not None and s in fleet)
    pattern, knob = word(change.get("pattern")), word(change.get("knob"))
    if (pattern is None) == (knob is None):
        return BadRecord("each of `changes` must name either a `knob` or a `pattern`")
    if pattern is not None:
        before, after = _value(change.get("ttl_ms_before")), _value(change.get("ttl_ms_after"))
        resource = f"{TTL_PREFIX}{pattern}"
    else:
        resource = str(knob).lower().replace("_", "-")
        before, after = (_setting(resource, change.get(name)) for name in ("before", "after"))
    if before is None or after is None:
        return BadRecord("the values of a change must be numbers or short texts, of a knob such as the server takes")
    direction = direction_of(before, after)
    return [Touch(service=s, resource=resource, direction=direction, before=before, after=after) for s in targets]


def _setting(knob: str, value: Any) -> str | None:
    """Return the value of a knob as CONFIG GET prints it, "" where nothing is said, None for what is no value of it."""
    text = _value(value)
    return as_server_reads(knob, text) if text else text


def _value(value: Any) -> str | None:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    value = _whole(value)
    if isinstance(value, float):
        return str(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return str(value) if abs(value) <= _AMOUNT_MAX else None
    text = word(value)
    # Peers may write sizes with more digits than any server takes; such a number is no value.
    return None if text is None or (text.isdecimal() and (not text.isascii() or len(text) > 19)) else text


def newest(plans: Iterable[PeerPlan]) -> tuple[PeerPlan, ...]:
    """Return each plan once, as it was written last: one plan stands on the blackboard under two types."""
    found: dict[tuple[str, str], PeerPlan] = {}
    for plan in sorted(plans, key=lambda p: (p.at_ms, p.item_id)):
        found[plan.key] = plan
    return tuple(found[key] for key in sorted(found))


def intents_of(plan: PeerPlan, now_ms: int) -> tuple[Intent, ...]:
    """Return what the plan holds now; one that is being carried out or observed holds its caches as a whole."""
    if not plan.in_force(now_ms):
        return ()
    touches = list(plan.touches)
    if plan.state is PlanState.ACTIVE:
        touches += [Touch(service=s, resource=ANYTHING) for s in plan.services]
    return tuple(
        Intent(
            holder=plan.agent_id,
            service=t.service,
            resource=t.resource,
            direction=t.direction,
            amount=t.amount,
            until_ms=plan.until_ms,
        )
        for t in dict.fromkeys(touches)
    )


def plan_of(conflict: ConflictRecord, services: tuple[str, ...], now_ms: int) -> PeerPlan:
    """Return a conflict that a peer has reported against us as the plan that it stands for: hands off `services`."""
    at_ms = min(time_ms(conflict["created_at"]) or 0, now_ms)
    others = sorted(a for agent in conflict["involved_agents"] if agent != AGENT_ID and (a := word(agent)) is not None)
    return PeerPlan(
        agent_id=others[0] if others else "unnamed",
        plan_id=f"objection-{conflict['id'][:_WORD_CHARS_MAX]}",
        item_id=conflict["id"],
        state=PlanState.WANTED,
        priority=SEVERITY_SCORE.get(conflict["severity"], 3),
        at_ms=at_ms,
        until_ms=at_ms + HOLD_MS_MAX,
        touches=tuple(Touch(service=s, resource=ANYTHING) for s in services),
    )
