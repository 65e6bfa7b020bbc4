"""From a choice to a proposal: the exact knob changes, what they rest on, what they cost, how they are taken back.

It decides no numbers of its own: what to change and what it is worth comes in. INVARIANT: a proposal names every
knob with the value it
has now, and never a knob or a value outside the knob table.
"""

from __future__ import annotations

from agents.choice import Choice
from agents.playbook_tables.book import playbook_for
from agents.playbook_tables.keep_hot_set import TOUCH_KEYS_PER_S, TOUCH_TIMES, hot_keys_wanted
from cachewarden.approval import PLANNER, needs_approval
from cachewarden.cachemodel.scoring import FACTOR_EVIDENCE
from cachewarden.codec import digest
from cachewarden.fleet import Service
from cachewarden.knobs import action_class_of_change, check_value, supported
from cachewarden.messages import ActionClass, Evidence, KnobChange, Prediction, Proposal
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["draft", "expiry_of", "knob_changes", "measured_evidence", "room_bytes", "with_room"]

_CONFIG_SET_CPU_MS = 0.2
_KEY_PASS_CPU_US = 6.0
"""RANDOMKEY and OBJECT cost 2 + 1 us, SCAN, PEXPIRETIME and PEXPIREAT about the same per key (measured on Redis
7.0.15)."""
_SETTLE_MS_MIN = 15_000
_SETTLE_MS_MAX = 600_000
_TOUCH_CPU_US = 1.0
_TOUCHED_PER_COMMAND = 10.0
"""50 keys in one TOUCH, with the four commands that hold it to the fence."""
_LEARNING_S = 10.0
"""Collecting and checking, beside the touching itself."""
_ROOM_SHARE_MIN = 0.02
_ROOM_SHARE_MAX = 0.20
_BINDING = {
    "refused": "Writes are refused because the cache is full and may evict nothing: what is asked for is not stored. ",
    "evicted": "Keys are evicted before they are asked for again. ",
    "expired": "Keys expire before they are asked for again, although their owner allows them to be older. ",
    "cold": "Most misses are first accesses, which no configuration avoids. ",
    "none": "",
}


def knob_changes(choice: Choice, snapshot: Snapshot) -> tuple[KnobChange, ...]:
    """Return the changes that lead from what the server has to what the choice wants; only knobs that this server
    has."""
    wanted = {
        "maxmemory": str(choice.configuration.maxmemory_bytes),
        "maxmemory-policy": choice.configuration.eviction_policy,
    }
    if choice.configuration.eviction_policy.endswith("-lfu"):
        wanted["lfu-log-factor"] = str(choice.configuration.lfu_log_factor)
        wanted["lfu-decay-time"] = str(choice.configuration.lfu_decay_time_min)
    server = snapshot.capabilities
    changes = []
    for knob, after in sorted(wanted.items()):
        before = snapshot.knobs.get(knob)
        if before is None or before == after or not supported(knob, server.server, server.version):
            continue
        changes.append(KnobChange(knob=knob, before=before, after=check_value(knob, after)))
    return tuple(changes)


def draft(
    snapshot: Snapshot,
    choice: Choice,
    service: Service,
    why: str,
    settings: CacheOptimizerSettings,
    now_ms: int,
    *,
    author: str = PLANNER,
    takes_back: str | None = None,
    exactly: tuple[KnobChange, ...] | None = None,
) -> Proposal:
    """Return the proposal that carries out `choice`; `why` is the fleet's reason for a change of size, if there is
    one.

    One that needs approval lives as long as an approval may. `takes_back` is the kept proposal whose old values
    `choice` sets again, where `author`, a person, wants them back; `exactly` the knob changes that a person asked for.
    """
    changes = knob_changes(choice, snapshot) if exactly is None else exactly
    shrinks = any(c.knob == "maxmemory" and int(c.after) < int(c.before) for c in changes)
    to_lfu = any(
        c.knob == "maxmemory-policy" and c.after.endswith("-lfu") and not c.before.endswith("-lfu") for c in changes
    )
    if to_lfu:
        changes = with_room(changes, snapshot)
    playbook = playbook_for(changes)
    classes = [action_class_of_change(c.knob, c.before, c.after) for c in changes]
    classes += [rule.action_class for rule in choice.ttl_rules]
    kinds = (["memory"] if changes else []) + (["ttl"] if choice.ttl_rules else []) + (["hotspot"] if to_lfu else [])
    content = {"service": service.name, "changes": changes, "ttl_rules": choice.ttl_rules, "at_ms": now_ms}
    if author != PLANNER:
        content["author"] = author
    action_class = max(classes, default=ActionClass.OBSERVE)
    return Proposal(
        proposal_id=f"p-{digest(content)[:16]}",
        service=service.name,
        author=author,
        created_at_ms=now_ms,
        expires_at_ms=expiry_of(action_class, service, settings, now_ms, author),
        kinds=tuple(kinds),
        knob_changes=changes,
        ttl_rules=choice.ttl_rules,
        action_class=action_class,
        reversible=not shrinks,
        playbook=playbook,
        rollback=_rollback(changes, choice, shrinks, to_lfu),
        rationale=_rationale(snapshot, choice, why),
        evidence=(*measured_evidence(snapshot), *_widening(choice)),
        prediction=_prediction(snapshot, choice),
        cost=_cost(snapshot, choice, playbook, len(changes), service, settings),
        takes_back=takes_back,
    )


def expiry_of(
    action_class: ActionClass, service: Service, settings: CacheOptimizerSettings, now_ms: int, author: str = PLANNER
) -> int:
    """Return when a proposal is stale, in milliseconds; one that needs approval lives as long as an approval may."""
    awaits = author != PLANNER or needs_approval(action_class, service.mode, settings)
    return now_ms + max(settings.proposal_ttl_ms, settings.approval_ttl_ms if awaits else 0)


def with_room(changes: tuple[KnobChange, ...], snapshot: Snapshot) -> tuple[KnobChange, ...]:
    """Return the changes with maxmemory among them, at the value that it has where it is to stay: the playbook lowers
    it for a while, and sets nothing that its proposal does not name."""
    size = snapshot.knobs.get("maxmemory", "0")
    if size == "0" or any(c.knob == "maxmemory" for c in changes):
        return changes
    same = KnobChange(knob="maxmemory", before=size, after=size)
    return tuple(sorted((*changes, same), key=lambda c: c.knob))


def room_bytes(snapshot: Snapshot, size_bytes: int, minimum_bytes: int) -> int:
    """Return the room that a switch to LFU needs while the hot keys get their counters: twice what the application
    writes in that time, 2 to 20 % of the cache, and never so much that less than its minimum is left.

    A full cache evicts what it is given, so the evicted keys per second and their size say what is written.
    """
    if size_bytes <= 0:
        return 0
    keys = hot_keys_wanted(snapshot.resident_keys)
    learning_s = _LEARNING_S + keys * TOUCH_TIMES / TOUCH_KEYS_PER_S
    entry_bytes = max(snapshot.used_memory_bytes - snapshot.fixed_overhead_bytes, 0) / max(snapshot.resident_keys, 1)
    written_per_s = max(snapshot.evicted_per_s, snapshot.refused_per_s) * entry_bytes
    wanted = min(max(2.0 * written_per_s * learning_s, _ROOM_SHARE_MIN * size_bytes), _ROOM_SHARE_MAX * size_bytes)
    return max(0, min(int(wanted), size_bytes - minimum_bytes))


def _rollback(changes: tuple[KnobChange, ...], choice: Choice, shrinks: bool, to_lfu: bool) -> str:
    parts = []
    if changes:
        parts.append(
            "set back " + ", ".join(f"`{c.knob}` to `{c.before}`" for c in changes) + " in one fenced CONFIG SET"
        )
    if choice.ttl_rules:
        parts.append("stop the TTL rule and shorten what it extended to the TTL as written")
    if shrinks:
        parts.append("keys evicted meanwhile come back only as the application loads them again")
    elif to_lfu:
        parts.append("access frequencies counted meanwhile are lost")
    elif any(c.knob == "maxmemory-policy" for c in changes):
        parts.append("keys evicted under the new eviction policy come back only as the application loads them again")
    return "; ".join(parts)


def _rationale(snapshot: Snapshot, choice: Choice, why: str) -> str:
    split = snapshot.miss_split
    binding = "" if split is None else _BINDING[split.binding]
    size = f" Size: {why}." if why else ""
    return f"{binding}{choice.words[:1].upper()}{choice.words[1:]}: {choice.method}.{size}"


def measured_evidence(snapshot: Snapshot) -> tuple[Evidence, ...]:
    """Return what was measured of the cache that a proposal is for."""
    window = snapshot.window_ms
    facts = [
        Evidence(
            name="hit_ratio",
            value=snapshot.hit_ratio,
            source="INFO keyspace_hits, keyspace_misses without own probes",
            window_ms=window,
        ),
        Evidence(name="lookups_per_s", value=round(snapshot.lookups_per_s, 1), source="INFO deltas", window_ms=window),
        Evidence(
            name="evicted_per_s", value=round(snapshot.evicted_per_s, 2), source="INFO evicted_keys", window_ms=window
        ),
        Evidence(
            name="expired_per_s", value=round(snapshot.expired_per_s, 2), source="INFO expired_keys", window_ms=window
        ),
        Evidence(
            name="refused_per_s", value=round(snapshot.refused_per_s, 2), source="INFO errorstat_OOM", window_ms=window
        ),
        Evidence(name="resident_keys", value=snapshot.resident_keys, source="INFO keyspace"),
        Evidence(name="used_memory_bytes", value=snapshot.used_memory_bytes, source="INFO memory"),
    ]
    if snapshot.eviction_age_ms is not None:
        facts.append(
            Evidence(name="eviction_age_ms", value=snapshot.eviction_age_ms, source="idle times of sampled keys")
        )
    if snapshot.miss_split is not None:
        facts.append(
            Evidence(
                name="misses_bound_by",
                value=snapshot.miss_split.binding,
                source=snapshot.miss_split.source,
                window_ms=window,
            )
        )
    if snapshot.sample is not None:
        facts.append(Evidence(name="sampled_keys", value=len(snapshot.sample), source="RANDOMKEY sample"))
    if snapshot.access is not None:
        trace = snapshot.access.trace
        source = f"hashed {snapshot.access.source} at spatial rate {snapshot.access.spatial_rate:g}"
        facts.append(Evidence(name="captured_accesses", value=len(trace), source=source, window_ms=trace.duration_ms))
    return tuple(facts)


def _widening(choice: Choice) -> tuple[Evidence, ...]:
    """Say by how much the interval was widened, so that its outcome can be scored as the models gave it."""
    if choice.interval_factor == 1.0:
        return ()
    return (Evidence(name=FACTOR_EVIDENCE, value=round(choice.interval_factor, 4), source="score of past predictions"),)


def _prediction(snapshot: Snapshot, choice: Choice) -> Prediction:
    return Prediction(
        hit_ratio_before=choice.before,
        hit_ratio_after=choice.after,
        gain=choice.gain,
        lookups_per_s=snapshot.lookups_per_s,
        memory_bytes_after=choice.configuration.maxmemory_bytes,
        latency_us_p99_after=None,
        method=choice.method,
        settle_ms=_settle_ms(snapshot, choice),
    )


def _settle_ms(snapshot: Snapshot, choice: Choice) -> int:
    """Return how long the effect needs: a cache is refilled only as fast as it misses."""
    misses_per_s = max(snapshot.lookups_per_s * (snapshot.miss_ratio or 0.0), 0.1)
    entries = max(snapshot.resident_keys, 1)
    entry_bytes = max((snapshot.used_memory_bytes - snapshot.fixed_overhead_bytes) / entries, 1.0)
    growth = max(choice.configuration.maxmemory_bytes - snapshot.maxmemory_bytes, 0) / entry_bytes
    exchanged = entries if choice.configuration.eviction_policy != snapshot.knobs.get("maxmemory-policy") else 0
    refill_ms = (growth + exchanged) / misses_per_s * 1000
    lifetimes = [r.written_ttl_ms * 2 for r in choice.ttl_rules]
    return int(min(max(refill_ms, _SETTLE_MS_MIN, *lifetimes), _SETTLE_MS_MAX))


def _cost(
    snapshot: Snapshot,
    choice: Choice,
    playbook: str,
    changes: int,
    service: Service,
    settings: CacheOptimizerSettings,
) -> dict[str, float]:
    shrink = max(snapshot.maxmemory_bytes - choice.configuration.maxmemory_bytes, 0)
    steps = (
        1 + int(shrink / max(snapshot.maxmemory_bytes * settings.memory_step_share, 1.0)) if playbook == "shrink" else 1
    )
    keys, touches, room = 0.0, 0.0, 0
    if playbook == "keep_hot_set":
        keys = float(min(hot_keys_wanted(snapshot.resident_keys), max(snapshot.resident_keys, 1)))
        touches = keys * TOUCH_TIMES
        room = room_bytes(snapshot, choice.configuration.maxmemory_bytes, service.minimum_memory_bytes)
    if choice.ttl_rules:
        keys += snapshot.resident_keys
    return {
        "commands": float(8 * steps * max(changes, 1) + keys + touches / _TOUCHED_PER_COMMAND),
        "keys_touched": keys,
        "server_cpu_ms": _CONFIG_SET_CPU_MS * steps + (keys * _KEY_PASS_CPU_US + touches * _TOUCH_CPU_US) / 1000,
        "bytes_moved": 0.0,
        "steps": float(steps),
        "keys_per_s_while_kept": float(settings.ttl_keys_per_s) if choice.ttl_rules else 0.0,
        "headroom_bytes": 0.0,
        "room_bytes": float(room),
    }
