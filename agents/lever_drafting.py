"""Changes that are worth it for something else than hits: memory that keys need less, expiries that come apart.

It asks models that say what each lever gives and turns the first that is surely worth it into a proposal: expiries
that come together are spread, collections get a compact form, keys that nobody reads end, overdue keys are freed
sooner, fragments are put together. It is asked only where nothing is to be gained in hits.

INVARIANT: no lever without its owner's permission, and none that could not give `MINIMUM_MEMORY_GAIN` of the memory in
use: by the low end of what it frees, or, of overdue keys and fragments, of which nobody knows how much is won, by what
there is to win. No key ends by an idle time that may be a counter of LFU, and none where the cache is full: there what
is freed is taken up again. Expiries are only spread where the busiest second would ask the origin for more than twice
what it is asked now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from agents.drafting import expiry_of, measured_evidence
from agents.playbook_tables.book import playbook_for
from agents.prefix_evidence import residents_of
from agents.ttl_governor import IDLE_EVIDENCE
from agents.ttl_review import jitter_for, memory_held_for_nothing, residents_among, stampede_among
from cachewarden.approval import PLANNER
from cachewarden.cachemodel.dead_memory import lookups_of_unread, unread_memory
from cachewarden.cachemodel.encoding_layout import layout_of
from cachewarden.cachemodel.encoding_whatif import LimitSaving, limit_savings
from cachewarden.codec import digest
from cachewarden.estimate import Estimate
from cachewarden.fleet import Service
from cachewarden.knobs import action_class_of_change, check_value, supported
from cachewarden.messages import ActionClass, Evidence, KnobChange, Prediction, Proposal, TtlRule
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["PEAK_EVIDENCE", "UNREAD_MS", "lever_proposal"]

PEAK_EVIDENCE = "busiest_second_share"
UNREAD_MS = 600_000
"""Keys that were not touched for less than this are not told to be unread."""
_FULL_FROM = 0.95
"""Share of maxmemory from which on a cache counts as full."""
_SEED = 1
_PEAK_OVER_LOADS = 2.0
"""Times the misses per second of now: a busiest second below it is nothing that the origin would notice."""
_DEFRAG_BYTES_MIN = 100 * 1024 * 1024
_DEFRAG_SHARE_MIN = 0.10
"""`active-defrag-ignore-bytes` and `active-defrag-threshold-lower` as servers ship them: below, nothing is put
together."""
_EFFORT_STEP = 3
_EFFORT_MAX = 10
_KEY_CPU_US = 10.0
"""SCAN, TYPE, OBJECT and MEMORY USAGE of one key; and of PEXPIREAT with its look (measured on Redis 7.0.15)."""
_STORED_CPU_US = 60.0
"""DUMP and RESTORE of a collection of some hundred members."""
_SETTLE_MS = 15_000
_UNSURE = 0.002
"""Hit ratio that a change which is not about hits may still move."""
_NO_HITS = Estimate(0.0, -_UNSURE, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lever:
    """What one lever would change, and what it gives."""

    words: str
    method: str
    changes: tuple[KnobChange, ...] = ()
    rules: tuple[TtlRule, ...] = ()
    gain: Estimate = _NO_HITS
    freed_bytes: Estimate | None = None
    peak_share: float | None = None
    playbook: str = ""
    keys: float = 0.0
    stored_keys: float = 0.0
    bytes_moved: float = 0.0
    evidence: tuple[Evidence, ...] = ()
    settle_ms: int = _SETTLE_MS


def lever_proposal(
    snapshot: Snapshot,
    service: Service,
    settings: CacheOptimizerSettings,
    in_force: tuple[TtlRule, ...],
    now_ms: int,
) -> Proposal | None:
    """Return the proposal of the first lever that is worth it, None where none is.

    `in_force` are the TTL rules that stand: what they do is not done again.
    """
    if snapshot.hit_ratio is None or snapshot.used_memory_bytes <= 0:
        return None
    least = settings.minimum_memory_gain * snapshot.used_memory_bytes
    for lever in (
        _spread(snapshot, service, in_force),
        _compact(snapshot, service, least),
        _unread(snapshot, service, in_force, least),
        _overdue(snapshot, least),
        _fragments(snapshot, least),
    ):
        if lever is not None:
            return _proposal(lever, snapshot, service, settings, now_ms)
    return None


# --- Levers ----------------------------------------------------------------------------------------------------------


def _spread(snapshot: Snapshot, service: Service, in_force: tuple[TtlRule, ...]) -> _Lever | None:
    """Spread the expiries of the pattern whose busiest second is the worst: longer within the staleness where there is
    room, else shorter where the owner permits it."""
    sample = snapshot.sample
    if sample is None or len(sample) == 0 or snapshot.hit_ratio is None:
        return None
    standing = {rule.pattern: rule for rule in in_force if not rule.unread_ms}
    loads_per_s = snapshot.lookups_per_s * (1.0 - snapshot.hit_ratio)
    found: list[tuple[float, _Lever]] = []
    for stats in snapshot.patterns:
        rule, longest_ms = standing.get(stats.pattern), service.staleness_ms.get(stats.pattern)
        written_ms = stats.written_ttl_ms if rule is None else rule.written_ttl_ms
        if longest_ms is None or not written_ms or written_ms > longest_ms or (rule is not None and rule.jitter_ms):
            continue
        mine = residents_of(sample, stats.pattern)
        risk = stampede_among(snapshot, sample, mine)
        if isinstance(risk, str) or not risk.aligned:
            continue
        if risk.loads_per_s_peak.low <= _PEAK_OVER_LOADS * max(loads_per_s, risk.loads_per_s_mean):
            continue
        lives_ms = written_ms if rule is None else rule.extended_ttl_ms
        may_shorten = any(p.prefix == stats.pattern and p.shorten_ttl for p in service.patterns)
        remaining = sample.ttl_ms[mine & (sample.ttl_ms >= 0)]
        jitter = jitter_for(risk, remaining, written_ms // 2 if may_shorten else max(longest_ms - written_ms, 0))
        if isinstance(jitter, str) or jitter.jitter_ms == 0:
            continue
        wanted = TtlRule(
            pattern=stats.pattern,
            written_ttl_ms=written_ms,
            extended_ttl_ms=max(lives_ms, min(written_ms + jitter.jitter_ms, longest_ms)),
            max_staleness_ms=longest_ms,
            jitter_ms=jitter.jitter_ms,
        )
        found.append(
            (risk.loads_per_s_peak.low, _spread_lever(snapshot, wanted, risk.busiest_share, jitter.peak_share))
        )
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _spread_lever(snapshot: Snapshot, rule: TtlRule, busiest: Estimate, peak_share: float) -> _Lever:
    ratio, lost = snapshot.hit_ratio or 0.0, 0.0
    shortest_ms = rule.extended_ttl_ms - rule.jitter_ms / 2
    if shortest_ms < rule.written_ttl_ms:
        # A key that is asked for at rate r hits rT / (1 + rT); over all keys that falls by at most h (1 - h) for each
        # unit of ln T, h the hit ratio, since h (1 - h) is concave (Jensen).
        lost = ratio * (1.0 - ratio) * math.log(rule.written_ttl_ms / shortest_ms)
    return _Lever(
        words=f"spread the expiries of `{rule.pattern}` over {rule.jitter_ms / 1000:g} s (its keys live "
        f"{(rule.extended_ttl_ms - rule.jitter_ms) / 1000:g} to {rule.extended_ttl_ms / 1000:g} s)",
        method=f"{busiest.value:.1%} of its sampled deadlines lie in one second, {peak_share:.1%} would",
        rules=(rule,),
        gain=Estimate(-lost / 2, -lost - _UNSURE, 0.0) if lost else Estimate(0.0, -_UNSURE, _UNSURE),
        peak_share=peak_share,
        playbook="ttl_rule",
        keys=float(snapshot.resident_keys),
        evidence=(Evidence(name=PEAK_EVIDENCE, value=busiest.value, source="remaining TTLs of sampled keys"),),
        settle_ms=min(600_000, 2 * rule.written_ttl_ms),
    )


def _compact(snapshot: Snapshot, service: Service, least: float) -> _Lever | None:
    """Raise the limits of the small encoding that surely saves the most."""
    if snapshot.values is None:
        return None
    server = snapshot.capabilities
    layout = layout_of(server.server, server.version, snapshot.allocator)
    answers = limit_savings(snapshot.values, layout, snapshot.knobs, snapshot.resident_keys, _SEED)
    worth = [a for _, a in answers if isinstance(a, LimitSaving) and a.recommended and a.saved_bytes.low >= least]
    if not worth:
        return None
    best = max(worth, key=lambda saving: saving.saved_bytes.low)
    changes = tuple(
        KnobChange(knob=knob, before=snapshot.knobs[knob], after=check_value(knob, str(value)))
        for knob, value in sorted(best.limits.items())
        if snapshot.knobs.get(knob) not in (None, str(value)) and supported(knob, server.server, server.version)
    )
    if not changes:
        return None
    again = service.reencode and bool(service.patterns)
    share = best.collections / max(len(snapshot.values), 1)
    stored = share * snapshot.resident_keys if again else 0.0
    when = "existing keys are stored again" if again else "as keys are written anew; `reencode: true` would do it now"
    large_bytes = best.saved_bytes.value / max(best.saved_share.value, 0.01)
    return _Lever(
        words=f"compact {best.kind.value}s of up to {', '.join(f'`{c.knob}` {c.after}' for c in changes)}: {when}",
        method=f"memory of {best.collections} measured collections under the layout of this server",
        changes=changes,
        freed_bytes=best.saved_bytes,
        playbook="reencode" if again else playbook_for(changes),
        keys=float(snapshot.resident_keys) if again else 0.0,
        stored_keys=stored,
        bytes_moved=2.0 * large_bytes if again else 0.0,
    )


def _unread(snapshot: Snapshot, service: Service, in_force: tuple[TtlRule, ...], least: float) -> _Lever | None:
    """End the keys of the pattern of which the most is unread, where its owner permits it and idle times are known."""
    sample = snapshot.sample
    if sample is None or len(sample) == 0 or not snapshot.capabilities.object_idletime or _is_full(snapshot):
        return None
    known_ms = sample.idle_known_ms
    if known_ms is None or known_ms < UNREAD_MS:
        # The policy may have been LFU until lately, and then old counters are read as idle times.
        return None
    sample = replace(sample, idle_ms=np.minimum(sample.idle_ms, known_ms))
    standing = {rule.pattern for rule in in_force}
    found: list[tuple[float, _Lever]] = []
    for pattern in service.patterns:
        if not pattern.shorten_ttl or pattern.max_staleness_s is None or pattern.prefix in standing:
            continue
        residents = residents_among(snapshot, sample, residents_of(sample, pattern.prefix))
        held = unread_memory(residents, _SEED, idle_from_ms=UNREAD_MS)
        reads_per_s = lookups_of_unread(residents, snapshot.resident_keys / len(sample), UNREAD_MS)
        if isinstance(held, str) or isinstance(reads_per_s, str) or held.held_bytes.low < least:
            continue
        lost = reads_per_s / max(snapshot.lookups_per_s, 1e-9)
        longest_ms = int(pattern.max_staleness_s * 1000)
        rule = TtlRule(
            pattern=pattern.prefix,
            written_ttl_ms=0,
            extended_ttl_ms=min(UNREAD_MS, longest_ms),
            max_staleness_ms=longest_ms,
            unread_ms=UNREAD_MS,
        )
        lever = _Lever(
            words=f"keys of `{pattern.prefix}` that nobody touched for {UNREAD_MS // 60_000} minutes end "
            f"{rule.extended_ttl_ms / 1000:g} s later",
            method=f"{held.method}; of them at most {reads_per_s:.2f} a second are read again",
            rules=(rule,),
            gain=Estimate(-lost / 2, -lost - _UNSURE, 0.0),
            freed_bytes=held.held_bytes,
            playbook="ttl_rule",
            keys=float(snapshot.resident_keys),
            evidence=(Evidence(name=IDLE_EVIDENCE, value=known_ms, source="eviction policy in each look"),),
            settle_ms=min(600_000, rule.extended_ttl_ms),
        )
        found.append((held.held_bytes.low, lever))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _is_full(snapshot: Snapshot) -> bool:
    limit = snapshot.maxmemory_bytes
    return snapshot.evicted_per_s > 0 or (limit > 0 and snapshot.used_memory_bytes >= _FULL_FROM * limit)


def _overdue(snapshot: Snapshot, least: float) -> _Lever | None:
    """Let the server look for expired keys more often."""
    _, expired = memory_held_for_nothing(snapshot)
    effort = snapshot.knobs.get("active-expire-effort", "")
    if isinstance(expired, str) or expired.held_bytes.low < least or not effort.isdecimal():
        return None
    if int(effort) >= _EFFORT_MAX:
        return None
    after = str(min(_EFFORT_MAX, int(effort) + _EFFORT_STEP))
    # How much of it one step of effort finds is not modelled: what is overdue now is the most that it can give.
    most = expired.held_bytes
    return _Lever(
        words=f"look for expired keys more often: `active-expire-effort` {effort} to {after}",
        method=f"{expired.method}; at most that much can be freed",
        changes=(KnobChange(knob="active-expire-effort", before=effort, after=after),),
        freed_bytes=Estimate(most.value / 2, 0.0, most.high),
        playbook="tune",
    )


def _fragments(snapshot: Snapshot, least: float) -> _Lever | None:
    """Try active defragmentation where much is lost between the pieces."""
    wasted = snapshot.memory_figures.get("allocator_frag_bytes")
    if wasted is None or wasted / 4 < least or snapshot.knobs.get("activedefrag") != "no":
        return None
    if wasted < max(_DEFRAG_BYTES_MIN, _DEFRAG_SHARE_MIN * snapshot.used_memory_bytes):
        return None
    return _Lever(
        words="put fragments together: `activedefrag` no to yes, where the server takes it",
        method="`allocator_frag_bytes` of INFO; how much of it a defragmentation wins back is not modelled",
        changes=(KnobChange(knob="activedefrag", before="no", after="yes"),),
        freed_bytes=Estimate(wasted / 2, 0.0, wasted),
        playbook="tune",
    )


# --- The proposal ----------------------------------------------------------------------------------------------------


def _proposal(
    lever: _Lever, snapshot: Snapshot, service: Service, settings: CacheOptimizerSettings, now_ms: int
) -> Proposal:
    classes = [action_class_of_change(c.knob, c.before, c.after) for c in lever.changes]
    action_class = max([*classes, *(rule.action_class for rule in lever.rules)], default=ActionClass.OBSERVE)
    content = {"service": service.name, "changes": lever.changes, "ttl_rules": lever.rules, "at_ms": now_ms}
    lossy = action_class is ActionClass.LOSSY
    return Proposal(
        proposal_id=f"p-{digest(content)[:16]}",
        service=service.name,
        author=PLANNER,
        created_at_ms=now_ms,
        expires_at_ms=expiry_of(action_class, service, settings, now_ms),
        kinds=("ttl",) if lever.rules else ("memory",),
        knob_changes=lever.changes,
        ttl_rules=lever.rules,
        action_class=action_class,
        reversible=not lossy,
        playbook=lever.playbook,
        rollback=_rollback(lever),
        rationale=f"{lever.words[:1].upper()}{lever.words[1:]}: {lever.method}.",
        evidence=(*measured_evidence(snapshot), *lever.evidence),
        prediction=_prediction(lever, snapshot),
        cost={
            "commands": 8.0 * max(len(lever.changes), 1) + 2.0 * lever.keys / 50 + lever.keys + 8.0 * lever.stored_keys,
            "keys_touched": lever.keys,
            "server_cpu_ms": 0.2 + (lever.keys * _KEY_CPU_US + lever.stored_keys * _STORED_CPU_US) / 1000,
            "bytes_moved": lever.bytes_moved,
            "steps": 1.0,
            "keys_per_s_while_kept": float(settings.ttl_keys_per_s) if lever.rules else 0.0,
            "headroom_bytes": 0.0,
            "room_bytes": 0.0,
        },
    )


def _prediction(lever: _Lever, snapshot: Snapshot) -> Prediction:
    ratio = snapshot.hit_ratio or 0.0
    low, value, high = (min(max(ratio + g, 0.0), 1.0) for g in (lever.gain.low, lever.gain.value, lever.gain.high))
    return Prediction(
        hit_ratio_before=Estimate(ratio, ratio, ratio),
        hit_ratio_after=Estimate(value, low, high),
        gain=Estimate(value - ratio, low - ratio, high - ratio),
        lookups_per_s=snapshot.lookups_per_s,
        memory_bytes_after=snapshot.maxmemory_bytes,
        latency_us_p99_after=None,
        method=lever.method,
        settle_ms=lever.settle_ms,
        freed_bytes=lever.freed_bytes,
        peak_share=lever.peak_share,
    )


def _rollback(lever: _Lever) -> str:
    parts = []
    if lever.changes:
        parts.append("set back " + ", ".join(f"`{c.knob}` to `{c.before}`" for c in lever.changes))
        if lever.playbook in ("encoding", "reencode"):
            parts.append("keys that became compact stay so until each is written again, then it grows")
    for rule in lever.rules:
        if rule.extended_ttl_ms > rule.written_ttl_ms and not rule.unread_ms:
            parts.append("stop the TTL rule and shorten what it extended to the TTL as written")
        else:
            parts.append("stop the TTL rule; keys that ended sooner come back only as the application loads them")
    return "; ".join(parts)
