"""How a decision is told: the parts of an optimisation answer, from the proposal, the verdict and what was measured.

It words and arranges; it decides nothing and measures nothing. INVARIANT: every level says what it rests on, and a
level that is neither measured nor predicted is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cachewarden.fleet import Service
from cachewarden.messages import (
    CONSTITUTIONAL_HASH,
    ActionClass,
    Decision,
    Execution,
    Finding,
    Proposal,
    TtlRule,
    Verdict,
)
from cachewarden.models import OptimizationPlan, PredictionBasis
from cachewarden.observation import Snapshot
from cachewarden.protocol import Sizing
from serve.sizing import size_in_words
from serve.timestamps import iso

__all__ = [
    "Checks",
    "Telling",
    "changes_in_words",
    "checks_of",
    "compliance_of",
    "impact_of",
    "improvement_of",
    "plan_of",
    "risk_of",
    "target_notes",
    "telling_of",
]

_TYPES = {"ttl": "ttl_optimization", "memory": "memory_optimization", "hotspot": "hotspot_mitigation"}

Risk = Literal["low", "medium", "high"]


def risk_of(proposal: Proposal | None) -> Risk:
    """Return the risk by action class: 0 and 1 low, 2 medium, 3 and 4 high; low where nothing is changed."""
    if proposal is None or proposal.action_class <= ActionClass.REVERSIBLE:
        return "low"
    return "medium" if proposal.action_class is ActionClass.GROWTH else "high"


def _duration(ms: int) -> str:
    for unit, size in (("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= size and ms % size == 0:
            return f"{ms // size} {unit}"
    return f"{ms / 1000:g} s"


def _bytes(text: str) -> str:
    return f"{int(text) / 1_048_576:.1f} MiB" if text.isdigit() and int(text) >= 1 << 20 else text


def _rule_in_words(rule: TtlRule) -> str:
    if rule.unread_ms:
        return f"let keys of `{rule.pattern}` end after {_duration(rule.extended_ttl_ms)}, {rule.terms}"
    return (
        f"let keys of `{rule.pattern}` live {_duration(rule.extended_ttl_ms)} "
        f"instead of {_duration(rule.written_ttl_ms)} "
        f"(their owner permits {_duration(rule.max_staleness_ms)}){f', {rule.terms}' if rule.terms else ''}"
    )


def changes_in_words(proposal: Proposal) -> list[str]:
    """Return one sentence for each change of a proposal."""
    words = [
        f"set `{c.knob}` of `{proposal.service}` from {_bytes(c.before)} to {_bytes(c.after)}"
        if c.knob == "maxmemory"
        else f"set `{c.knob}` of `{proposal.service}` from `{c.before}` to `{c.after}`"
        for c in proposal.knob_changes
    ]
    return words + [_rule_in_words(rule) for rule in proposal.ttl_rules]


def _priority(proposal: Proposal, service: Service, snapshot: Snapshot | None) -> str:
    """High below the service's own floor or for 5 points and more, medium from 1 point, else low."""
    below_floor = (
        snapshot is not None and snapshot.hit_ratio is not None and snapshot.hit_ratio < service.hit_ratio_floor
    )
    gain = proposal.prediction.gain.value
    if below_floor or gain >= 0.05:
        return "high"
    return "medium" if gain >= 0.01 else "low"


def plan_of(
    proposal: Proposal | None, service: Service, snapshot: Snapshot | None, verdict: Verdict | None
) -> OptimizationPlan:
    """Return the plan of the specification; a proposal is one opportunity, since it is carried out whole or not at
    all."""
    if proposal is None:
        return OptimizationPlan(
            opportunities=[],
            estimated_total_improvement=0.0,
            implementation_priority="none",
            rationale="nothing is changed",
        )
    gain = proposal.prediction.gain
    opportunity: dict[str, Any] = {
        "type": _TYPES.get(proposal.kinds[0] if proposal.kinds else "memory", "memory_optimization"),
        "kinds": list(proposal.kinds),
        "target": "; ".join(changes_in_words(proposal)),
        "estimated_improvement": gain.value,
        "estimated_improvement_low": gain.low,
        "estimated_improvement_high": gain.high,
        "risk_level": risk_of(proposal),
        "action_class": int(proposal.action_class),
        "playbook": proposal.playbook,
        "changes": [{"knob": c.knob, "before": c.before, "after": c.after} for c in proposal.knob_changes],
        "ttl_rules": [
            {
                "pattern": r.pattern,
                "written_ttl_ms": r.written_ttl_ms,
                "extended_ttl_ms": r.extended_ttl_ms,
                "max_staleness_ms": r.max_staleness_ms,
                "only_read": r.only_read,
                "jitter_ms": r.jitter_ms,
                "unread_ms": r.unread_ms,
                "terms": r.terms,
            }
            for r in proposal.ttl_rules
        ],
        "method": proposal.prediction.method,
        "evidence": [
            {"name": e.name, "value": e.value, "source": e.source, "window_ms": e.window_ms} for e in proposal.evidence
        ],
        "needs": list(proposal.needs),
    }
    return OptimizationPlan(
        id=proposal.proposal_id,
        affected_services=[proposal.service],
        opportunities=[opportunity],
        estimated_total_improvement=gain.value,
        implementation_priority=_priority(proposal, service, snapshot),
        rollback_strategy="immediate" if proposal.reversible else "immediate, but not everything can be undone",
        constitutional_validation=verdict is not None and verdict.decision is Decision.ALLOW,
        rollback=proposal.rollback,
        rationale=proposal.rationale,
        expires_at=iso(proposal.expires_at_ms),
    )


def improvement_of(
    proposal: Proposal | None, snapshot: Snapshot | None, execution: Execution | None
) -> tuple[dict[str, float | None], dict[str, PredictionBasis]]:
    """Return the levels after the plan and, for each, what it rests on.

    `latency_reduction_ms` is server-side P99 before minus after: 0 without a plan, null where the plan's effect is
    not predicted.
    """
    levels: dict[str, float | None] = {}
    basis: dict[str, PredictionBasis] = {}

    def put(name: str, value: float | None, rests_on: PredictionBasis) -> None:
        levels[name] = value
        basis[name] = "unknown" if value is None else rests_on

    hit_ratio = None if snapshot is None else snapshot.hit_ratio
    p99_us = None if snapshot is None else snapshot.latency_us_p99
    p99_ms = None if p99_us is None else p99_us / 1000
    if execution is not None and execution.hit_ratio_after is not None:
        put("cache_hit_rate", execution.hit_ratio_after, "realised")
    elif proposal is not None:
        put("cache_hit_rate", proposal.prediction.hit_ratio_after.value, "predicted")
    else:
        put("cache_hit_rate", hit_ratio, "current")
    put("memory_efficiency", None if snapshot is None else snapshot.memory_efficiency, "current")
    after_us = None if proposal is None else proposal.prediction.latency_us_p99_after
    if after_us is not None:
        put("p99_latency_ms", after_us / 1000, "predicted")
        put("latency_reduction_ms", None if p99_ms is None else p99_ms - after_us / 1000, "predicted")
    else:
        put("p99_latency_ms", p99_ms, "current")
        put("latency_reduction_ms", 0.0 if proposal is None and p99_ms is not None else None, "current")
    return levels, basis


def impact_of(proposal: Proposal | None) -> dict[str, float]:
    """Return the predicted effect and cost: hit ratio gain with its interval, hits per second, bytes, CPU and time to
    settle."""
    if proposal is None:
        return {}
    predicted = proposal.prediction
    return {
        "hit_ratio_gain": predicted.gain.value,
        "hit_ratio_gain_low": predicted.gain.low,
        "hit_ratio_gain_high": predicted.gain.high,
        "hit_ratio_before": predicted.hit_ratio_before.value,
        "hit_ratio_after": predicted.hit_ratio_after.value,
        "hits_per_s_gain": predicted.gain.value * predicted.lookups_per_s,
        "memory_delta_bytes": float(proposal.memory_delta_bytes),
        "settle_s": predicted.settle_ms / 1000,
        **{f"cost_{name}": float(value) for name, value in sorted(proposal.cost.items())},
    }


@dataclass(frozen=True, slots=True)
class Telling:
    """What is told of a plan whoever asks: nothing of it depends on the request or on its time."""

    proposal: Proposal | None
    execution: Execution | None
    levels: dict[str, float | None]
    basis: dict[str, PredictionBasis]
    words: tuple[str, ...]
    plan: OptimizationPlan
    risk: Risk
    impact: dict[str, float]


def telling_of(
    proposal: Proposal | None,
    execution: Execution | None,
    service: Service,
    snapshot: Snapshot | None,
    verdict: Verdict | None,
) -> Telling:
    """Return the words on a plan; of the verdict only its decision counts."""
    levels, basis = improvement_of(proposal, snapshot, execution)
    return Telling(
        proposal=proposal,
        execution=execution,
        levels=levels,
        basis=basis,
        words=() if proposal is None else tuple(changes_in_words(proposal)),
        plan=plan_of(proposal, service, snapshot, verdict),
        risk=risk_of(proposal),
        impact=impact_of(proposal),
    )


@dataclass(frozen=True, slots=True)
class Checks:
    """The findings of a verdict as they are told."""

    findings: tuple[Finding, ...]
    told: list[dict[str, Any]]
    denied_by: list[str]


def checks_of(verdict: Verdict | None) -> Checks:
    """Return the findings of a verdict as they are told; none where nothing was judged."""
    if verdict is None:
        return Checks((), [], [])
    told = [
        {
            "check_type": f.principle_id,
            "title": f.title,
            "severity": f.severity,
            "compliant": f.decision is Decision.ALLOW,
            "evaluated": f.evaluated,
            "details": f.reason,
        }
        for f in verdict.findings
    ]
    return Checks(verdict.findings, told, list(verdict.denied_by))


def compliance_of(
    proposal: Proposal | None, verdict: Verdict | None, checks: Checks, constitution_digest: str, now_ms: int
) -> dict[str, Any]:
    """Return what the constitution says of the plan, principle by principle; `checks` are those of the verdict.

    Without a plan there was nothing to judge; a plan without a verdict is not compliant.
    """
    return {
        "compliant": proposal is None if verdict is None else verdict.decision is Decision.ALLOW,
        "checks": checks.told,
        "denied_by": checks.denied_by,
        "judged": verdict is not None,
        "constitution_digest": constitution_digest,
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "validation_timestamp": iso(now_ms if verdict is None else verdict.judged_at_ms),
    }


def _current_levels(snapshot: Snapshot | None) -> dict[str, float | None]:
    if snapshot is None:
        return {}
    p99_us = snapshot.latency_us_p99
    return {
        "cache_hit_rate": snapshot.hit_ratio,
        "memory_efficiency": snapshot.memory_efficiency,
        "p99_latency_ms": None if p99_us is None else p99_us / 1000,
    }


def target_notes(
    targets: Mapping[str, float],
    snapshot: Snapshot | None,
    levels: Mapping[str, float | None],
    sizing: Sizing | None = None,
    now_ms: int = 0,
    changed_ms: int | None = None,
) -> tuple[bool, list[str]]:
    """Say whether every target is met now (unmeasured is not met), which the plan's `levels` will not meet, and what
    memory a hit ratio takes by the `sizing` of the service, which was changed last at `changed_ms`."""
    now = _current_levels(snapshot)
    met = bool(targets)
    notes: list[str] = []
    for name, target in sorted(targets.items()):
        less_is_better = name == "p99_latency_ms"
        current, after = now.get(name), levels.get(name)
        if current is None:
            met = False
            notes.append(f"whether `{name}` meets its target {target:g} is not known, it is not measured")
            continue
        there = current <= target if less_is_better else current >= target
        met = met and there
        if after is not None and (after > target if less_is_better else after < target):
            notes.append(
                f"`{name}` is {current:.4g} and would be {after:.4g} after the plan, "
                f"its target {target:g} needs more than that"
            )
        if name == "cache_hit_rate" and snapshot is not None and not there and (after is None or after < target):
            size = size_in_words(sizing, target, snapshot.maxmemory_bytes, now_ms=now_ms, changed_ms=changed_ms)
            notes += [] if size is None else [size]
    return met, notes
