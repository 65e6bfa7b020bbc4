"""What is so: everything that a principle may look at, worked out of one proposal and what surrounds it.

Facts are plain JSON values with the names of `vocabulary.py`; they are computed here from what was observed and
declared, never taken on the author's word where they can be worked out (action class, knob ranges, memory, who pays
for whose gain). Nothing is judged here, and nothing raises: a proposal that is nonsense gets facts that say so.

INVARIANT: the same arguments give the same facts; no fact depends on the time, which the engine adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cachewarden.errors import SettingsError
from cachewarden.fleet import Fleet, Service
from cachewarden.knobs import KNOBS, action_class_of_change, check_value, supported
from cachewarden.messages import CONSTITUTIONAL_HASH, ActionClass, KnobChange, Proposal
from cachewarden.observation import Snapshot
from cachewarden.policy.surroundings import Surroundings, memory_change, server_address
from cachewarden.policy.vocabulary import EXAMPLE

__all__ = ["EXAMPLE", "TIMED", "facts_of", "knob_problems_of", "required_action_class", "time_facts"]

_COSTS = ("commands", "keys_touched", "server_cpu_ms", "bytes_moved")


def knob_problems_of(changes: tuple[KnobChange, ...]) -> list[str]:
    """Return what is wrong with knobs and values in words; empty if every knob is in the table, once, and in its
    range."""
    problems: list[str] = []
    seen: set[str] = set()
    for change in changes:
        if change.knob in seen:
            problems.append(f"`{change.knob}` stands twice")
        seen.add(change.knob)
        try:
            written = check_value(change.knob, change.after)
        except SettingsError as error:
            problems.append(str(error))
            continue
        if written != change.after:
            problems.append(
                f"`{change.knob}` must be written as CONFIG GET prints it: `{written}`, not `{change.after}`"
            )
        if change.knob == "maxmemory" and not change.before.isdecimal():
            problems.append(f"`maxmemory` before must be in bytes, not `{change.before}`")
    return problems


def required_action_class(proposal: Proposal, used_memory_bytes: int) -> ActionClass:
    """Return the class that the knob table gives to exactly these changes, whatever the author declares.

    A first limit below what is already used evicts at once, so it is lossy although the table calls a set maxmemory
    growth. What cannot be classified is out of bounds.
    """
    required = max((rule.action_class for rule in proposal.ttl_rules), default=ActionClass.OBSERVE)
    for change in proposal.knob_changes:
        if change.knob == "maxmemory" and not (change.before.isdecimal() and change.after.isdecimal()):
            return ActionClass.FORBIDDEN
        one = action_class_of_change(change.knob, change.before, change.after)
        if change.knob == "maxmemory" and int(change.before) == 0 and int(change.after) < used_memory_bytes:
            one = ActionClass.LOSSY
        required = max(required, one)
    return required


def _owner_facts(service: Service | None, proposal: Proposal, others: Surroundings) -> dict[str, Any]:
    if service is None:
        # A service that nobody declared has no owner who could have consented; `off` keeps every principle of consent
        # from holding.
        return {
            "service": proposal.service,
            "tenant": "",
            "region": "",
            "namespaces": [],
            "mode": "off",
            "weight": 1.0,
            "shares_blackboard_server": True,
            "hit_ratio_floor": 1.0,
            "minimum_memory_bytes": 0,
        }
    return {
        "service": service.name,
        "tenant": service.tenant,
        "region": service.region,
        "namespaces": [pattern.prefix for pattern in service.patterns],
        "mode": service.mode.value,
        "weight": float(service.weight),
        "shares_blackboard_server": server_address(service.url) in others.protected_servers,
        "hit_ratio_floor": float(service.hit_ratio_floor),
        "minimum_memory_bytes": service.minimum_memory_bytes,
    }


def _change_facts(proposal: Proposal, snapshot: Snapshot) -> dict[str, Any]:
    names = [c.knob for c in proposal.knob_changes]
    problems = knob_problems_of(proposal.knob_changes)
    server, version = snapshot.capabilities.server, snapshot.capabilities.version
    return {
        "playbook": proposal.playbook,
        "kinds": list(proposal.kinds),
        "action_class": int(proposal.action_class),
        "action_class_required": int(required_action_class(proposal, snapshot.used_memory_bytes)),
        "reversible": proposal.reversible,
        "irreversible_knobs": [name for name in names if name not in KNOBS or not KNOBS[name].reversible],
        "changes": len(proposal.knob_changes) + len(proposal.ttl_rules),
        "changed_knobs": names,
        "knobs_valid": not problems,
        "knob_problems": problems,
        "knobs_unsupported": [name for name in names if not supported(name, server, version)],
        "knobs_stale": [c.knob for c in proposal.knob_changes if snapshot.knobs.get(c.knob) != c.before],
        "can_config_set": snapshot.capabilities.config_set,
        "expires_at_ms": proposal.expires_at_ms,
        "takes_back": proposal.takes_back is not None,
    }


def _transparency_facts(proposal: Proposal, snapshot: Snapshot) -> dict[str, Any]:
    parts = (proposal, snapshot, proposal.prediction, *proposal.knob_changes, *proposal.ttl_rules, *proposal.evidence)
    return {
        "hashes_agree": all(part.constitutional_hash == CONSTITUTIONAL_HASH for part in parts),
        "rationale_given": bool(proposal.rationale.strip()),
        "rollback_given": bool(proposal.rollback.strip()),
        "evidence_count": len(proposal.evidence),
        "evidence_measured": sum(1 for e in proposal.evidence if e.value is not None),
        "evidence_names": [e.name for e in proposal.evidence],
        "prediction_method": proposal.prediction.method,
    }


def _prediction_facts(proposal: Proposal, snapshot: Snapshot, others: Surroundings) -> dict[str, Any]:
    prediction = proposal.prediction
    after = prediction.hit_ratio_after
    return {
        "hit_ratio_before": float(prediction.hit_ratio_before.value),
        "hit_ratio_after": float(after.value),
        "hit_ratio_after_low": float(after.low),
        "hit_ratio_after_high": float(after.high),
        "hit_ratio_measured": snapshot.hit_ratio,
        "gain": float(prediction.gain.value),
        "gain_low": float(prediction.gain.low),
        "gain_high": float(prediction.gain.high),
        "prediction_interval_width": float(after.high - after.low),
        "settle_ms": prediction.settle_ms,
        "freed_bytes_low": 0.0 if prediction.freed_bytes is None else float(prediction.freed_bytes.low),
        "spreads_expiries": prediction.peak_share is not None,
        "latency_measured": snapshot.latency_us_p99 is not None,
        "latency_predicted": prediction.latency_us_p99_after is not None,
        "latency_us_p99_before": snapshot.latency_us_p99,
        "latency_us_p99_after": prediction.latency_us_p99_after,
        "latency_us_p99_target": others.latency_us_p99_target,
    }


def _memory_facts(proposal: Proposal, snapshot: Snapshot, others: Surroundings) -> dict[str, Any]:
    before, after = memory_change(proposal) or (snapshot.maxmemory_bytes, snapshot.maxmemory_bytes)
    host_bytes = snapshot.host_memory_bytes
    return {
        "memory_bytes_before": before,
        "memory_bytes_after": after,
        "memory_delta_bytes": after - before,
        "memory_factor": after / before if before > 0 else 1.0,
        "used_memory_bytes": snapshot.used_memory_bytes,
        "host_memory_share_after": after / host_bytes if host_bytes else None,
        "shrinks_memory": after < before or (before == 0 and 0 < after < snapshot.used_memory_bytes),
        "fleet_memory_known": others.memory_known,
        "fleet_memory_bytes_before": others.memory_bytes_total,
        "fleet_memory_bytes_after": others.memory_bytes_total + others.group(proposal).memory_delta_bytes,
        "fleet_budget_bytes": others.budget_bytes,
    }


def _eviction_facts(proposal: Proposal, snapshot: Snapshot) -> dict[str, Any]:
    before = snapshot.knobs.get("maxmemory-policy", "")
    after = next((c.after for c in proposal.knob_changes if c.knob == "maxmemory-policy"), before)
    if after.startswith("allkeys-"):
        share = 1.0
    elif after.startswith("volatile-") and snapshot.resident_keys > 0:
        share = min(1.0, snapshot.keys_with_ttl / snapshot.resident_keys)
    else:
        share = 0.0
    return {
        "eviction_policy_before": before,
        "eviction_policy_after": after,
        "evictable_share_after": share,
        "switches_to_lfu": after.endswith("-lfu") and not before.endswith("-lfu"),
    }


def _ttl_facts(proposal: Proposal, service: Service | None) -> dict[str, Any]:
    declared = {} if service is None else {p.prefix: p.max_staleness_s for p in service.patterns}
    undeclared = [r.pattern for r in proposal.ttl_rules if r.pattern not in declared]
    too_stale = []
    for rule in proposal.ttl_rules:
        # What the owner declared counts, not the staleness that the rule carries along.
        staleness_s = declared.get(rule.pattern)
        longest_ms = max(rule.extended_ttl_ms, rule.max_staleness_ms)
        if staleness_s is None or longest_ms > staleness_s * 1000.0:
            too_stale.append(rule.pattern)
    consenting = set() if service is None else {p.prefix for p in service.patterns if p.shorten_ttl}
    return {
        "ttl_rules": len(proposal.ttl_rules),
        "ttl_patterns_shortened_unasked": [
            r.pattern for r in proposal.ttl_rules if r.shortens and r.pattern not in consenting
        ],
        "ttl_patterns_undeclared": undeclared,
        "ttl_patterns_too_stale": too_stale,
    }


def _group_facts(proposal: Proposal, others: Surroundings) -> dict[str, Any]:
    group = others.group(proposal)
    return {
        "group_size": len(group.proposals),
        "group_gives": list(group.gives),
        "group_gains": list(group.gains),
        "group_tenants": list(group.tenants),
        "group_regions": list(group.regions),
        "group_owners_declared": group.owners_declared,
        "group_memory_delta_bytes": group.memory_delta_bytes,
        "group_gain_hits_per_s": group.gain_hits_per_s,
        "group_gain_hits_per_s_low": group.gain_hits_per_s_low,
        "needs_missing": [needed for needed in proposal.needs if needed not in others.proposals],
    }


def _cost_facts(proposal: Proposal, snapshot: Snapshot, others: Surroundings) -> dict[str, Any]:
    costs = {name: float(proposal.cost.get(name, math.nan)) for name in _COSTS}
    total = others.lookups_per_s_total
    return {
        "cost_known": all(math.isfinite(cost) and cost >= 0.0 for cost in costs.values()),
        **{f"cost_{name}": cost for name, cost in costs.items()},
        "blast_radius": min(1.0, snapshot.lookups_per_s / total) if total > 0 else 1.0,
        "fleet_services": len(others.services),
    }


def _snapshot_facts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshot_role": snapshot.role,
        "snapshot_missing": sorted(snapshot.incomplete),
        "snapshot_lookups": snapshot.hits + snapshot.misses,
        "snapshot_window_ms": snapshot.window_ms,
        "snapshot_taken_at_ms": snapshot.taken_at_ms,
    }


def facts_of(proposal: Proposal, snapshot: Snapshot, fleet: Fleet, others: Surroundings) -> dict[str, Any]:
    """Return all facts about a proposal but those of time; `others` comes from `surroundings_of`, once per round.

    `snapshot` is the one of the proposal's own service. Ratios are 0..1, sizes bytes, times ms, latencies microseconds.
    """
    service = others.services.get(proposal.service)
    if service is None and proposal.service in fleet.names:
        service = fleet.service(proposal.service)
    return {
        **_owner_facts(service, proposal, others),
        **_change_facts(proposal, snapshot),
        **_transparency_facts(proposal, snapshot),
        **_prediction_facts(proposal, snapshot, others),
        **_memory_facts(proposal, snapshot, others),
        **_eviction_facts(proposal, snapshot),
        **_ttl_facts(proposal, service),
        **_group_facts(proposal, others),
        **_cost_facts(proposal, snapshot, others),
        **_snapshot_facts(snapshot),
    }


TIMED: Final = frozenset({"now_ms", "snapshot_age_ms", "expires_in_ms"})
"""The facts of time: all that `time_facts` returns."""


def time_facts(facts: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Return the facts that depend on when the others are judged; what is missing stays missing, which denies."""
    moment: dict[str, Any] = {"now_ms": now_ms}
    taken_at_ms, expires_at_ms = facts.get("snapshot_taken_at_ms"), facts.get("expires_at_ms")
    if isinstance(taken_at_ms, int):
        moment["snapshot_age_ms"] = now_ms - taken_at_ms
    if isinstance(expires_at_ms, int):
        moment["expires_in_ms"] = expires_at_ms - now_ms
    return moment
