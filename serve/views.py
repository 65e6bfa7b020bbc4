"""State as the API shows it: services, plans, agents, fleet metrics. Pure functions of what is known.

Nothing is judged here. INVARIANT: a fleet figure is computed from the services that were measured, and null if none
was.
"""

from __future__ import annotations

from typing import Any

from cachewarden.fleet import Fleet, Service
from cachewarden.messages import AGENT_ID, CAPABILITIES, Execution, Proposal, Resolution, Verdict
from cachewarden.observation import MissSplit, Snapshot
from cachewarden.protocol import FleetState, History
from serve.answers import risk_of
from serve.peer_views import peers_view
from serve.schemas import AgentsResponse, AgentView, FleetMetricsResponse, PlanView, ServiceView, SourceView
from serve.timestamps import iso

__all__ = ["agents_view", "compliance_rate", "fleet_metrics", "plan_view", "plans_view", "rules_view", "service_view"]


def compliance_rate(state: FleetState, decisions: int, compliant: int) -> float | None:
    """Return the share of decisions with a valid, complete verdict, the agents' and this replica's; None before the
    first."""
    total = state.decisions + decisions
    return None if total == 0 else (state.decisions_compliant + compliant) / total


def _situation(state: FleetState, name: str) -> tuple[str, str, str | None]:
    running = next((e for e in reversed(state.executions) if e.proposal.service == name and not e.state.final), None)
    if running is not None:
        return running.state.value, running.reason or "a change is in flight", running.proposal.proposal_id
    standing = state.standing.get(name)
    if standing is None:
        return "unexamined", "no cycle has looked at it yet", None
    if standing.proposal is None:
        return "nothing_to_do", standing.idle_reason or "no change is worth it now", None
    if standing.verdict is not None and standing.verdict.denied_by:
        return "denied", f"denied by {', '.join(standing.verdict.denied_by)}", standing.proposal.proposal_id
    if standing.resolution is not None:
        return standing.resolution.outcome.value, standing.resolution.reason, standing.proposal.proposal_id
    return "proposed", standing.proposal.rationale, standing.proposal.proposal_id


def _shares(split: MissSplit) -> dict[str, Any]:
    return {name: getattr(split, name) for name in ("cold", "expired", "evicted", "refused", "source")}


def service_view(service: Service, state: FleetState, score: float | None) -> ServiceView:
    """Return one service; `score` is the compliance rate, which is one for the whole deployment."""
    snapshot: Snapshot | None = state.snapshots.get(service.name)
    situation, reason, plan_id = _situation(state, service.name)
    history = state.history.get(service.name, History())
    view = ServiceView(
        hit_rate=None,
        miss_rate=None,
        memory_usage_bytes=0,
        memory_efficiency=None,
        p99_latency_ms=None,
        eviction_rate=0.0,
        hotspot_count=0,
        constitutional_compliance_score=score,
        name=service.name,
        mode=service.mode.value,
        tenant=service.tenant,
        region=service.region,
        observed=snapshot is not None,
        missing_reason=state.missing.get(service.name),
        hit_ratio_before=state.first_hit_ratio.get(service.name),
        hit_ratio_floor=service.hit_ratio_floor,
        state=situation,
        reason=reason,
        plan_id=plan_id,
        set_by_hand={knob: iso(at_ms) for knob, at_ms in sorted(history.by_hand.items())},
        set_by_peer=dict(sorted(history.by_peer.items())),
        drift={knob: dict(nodes) for knob, nodes in sorted(history.drift.items())},
        lost_settings={one.knob: one.value for one in history.lost},
    )
    if snapshot is None:
        return view
    split = snapshot.miss_split
    measured = {
        "hit_rate": snapshot.hit_ratio,
        "miss_rate": snapshot.miss_ratio,
        "memory_usage_bytes": snapshot.used_memory_bytes,
        "memory_efficiency": snapshot.memory_efficiency,
        "p99_latency_ms": None if snapshot.latency_us_p99 is None else snapshot.latency_us_p99 / 1000,
        "eviction_rate": snapshot.evicted_per_s,
        "hotspot_count": snapshot.hotspot_count,
        "incomplete": dict(snapshot.incomplete),
        "taken_at": iso(snapshot.taken_at_ms),
        "window_s": snapshot.window_ms / 1000,
        "lookups_per_s": snapshot.lookups_per_s,
        "refused_writes_per_s": snapshot.refused_per_s,
        "maxmemory_bytes": snapshot.maxmemory_bytes,
        "memory_usage": snapshot.memory_usage,
        "eviction_age_s": None if snapshot.eviction_age_ms is None else snapshot.eviction_age_ms / 1000,
        "round_trip_ms": None if snapshot.round_trip_us is None else snapshot.round_trip_us / 1000,
        "resident_keys": snapshot.resident_keys,
        "misses": None if split is None else _shares(split),
        "sources": [
            SourceView(
                name=source.name,
                used=source.used,
                reason=source.reason,
                cost=source.cost,
                expected_error=source.expected_error,
                error_basis=source.error_basis,
                coverage=source.coverage,
            )
            for source in snapshot.sources
        ],
        "knobs": dict(snapshot.knobs),
    }
    return view.model_copy(update=measured)


def fleet_metrics(
    fleet: Fleet, state: FleetState, now_ms: int, *, requests_per_s: float, decisions: int, compliant: int
) -> FleetMetricsResponse:
    """Return the prescribed metrics over the fleet; definitions are in the fields of the schema."""
    score = compliance_rate(state, decisions, compliant)
    seen = [state.snapshots[name] for name in fleet.names if name in state.snapshots]
    lookups = sum(s.hits + s.misses for s in seen)
    weighed = [(s.memory_efficiency, s.used_memory_bytes) for s in seen if s.memory_efficiency is not None]
    used_bytes = sum(used for _, used in weighed)
    latencies_us = [s.latency_us_p99 for s in seen if s.latency_us_p99 is not None]
    return FleetMetricsResponse(
        cache_hit_rate=sum(s.hits for s in seen) / lookups if lookups else None,
        memory_efficiency=sum(value * used for value, used in weighed) / used_bytes if used_bytes else None,
        p99_latency_ms=max(latencies_us) / 1000 if latencies_us else None,
        optimization_requests_per_second=requests_per_s,
        constitutional_compliance_rate=score,
        last_optimization_timestamp=None if state.last_change_ms is None else iso(state.last_change_ms),
        state_age_s=max(0, now_ms - state.at_ms) / 1000,
        paused=state.paused,
        decisions=state.decisions + decisions,
        hotspot_count=sum(s.hotspot_count for s in seen),
        services={service.name: service_view(service, state, score) for service in fleet.services},
    )


def rules_view(proposal: Proposal) -> list[dict[str, Any]]:
    """Return the TTL rules of a plan."""
    return [
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
    ]


def plan_view(
    proposal: Proposal,
    execution: Execution | None,
    verdict: Verdict | None = None,
    resolution: Resolution | None = None,
) -> PlanView:
    """Return one plan with its predicted and, once measured, its realised effect."""
    predicted = proposal.prediction
    gain = None if execution is None else execution.realised_gain
    realised: dict[str, float | None] | None = None
    if execution is not None and execution.hit_ratio_after is not None:
        realised = {
            "hit_ratio_before": execution.hit_ratio_before,
            "hit_ratio_after": execution.hit_ratio_after,
            "gain": gain,
            "freed_bytes": execution.freed_bytes,
            "peak_share": execution.peak_share,
        }
    state, reason = "proposed", proposal.rationale
    if execution is not None:
        state, reason = execution.state.value, execution.reason
    elif verdict is not None and verdict.denied_by:
        state, reason = "denied", "; ".join(f.reason for f in verdict.findings if f.principle_id in verdict.denied_by)
    elif resolution is not None:
        state, reason = resolution.outcome.value, resolution.reason
    return PlanView(
        id=proposal.proposal_id,
        service=proposal.service,
        state=state,
        reason=reason,
        created_at=iso(proposal.created_at_ms),
        expires_at=iso(proposal.expires_at_ms),
        action_class=int(proposal.action_class),
        risk_level=risk_of(proposal),
        kinds=list(proposal.kinds),
        playbook=proposal.playbook,
        changes=[{"knob": c.knob, "before": c.before, "after": c.after} for c in proposal.knob_changes],
        ttl_rules=rules_view(proposal),
        rationale=proposal.rationale,
        rollback=proposal.rollback,
        verdict=None if verdict is None else verdict.decision.value,
        denied_by=[] if verdict is None else list(verdict.denied_by),
        resolution=None if resolution is None else resolution.outcome.value,
        predicted={
            "hit_ratio_before": predicted.hit_ratio_before.value,
            "hit_ratio_after": predicted.hit_ratio_after.value,
            "hit_ratio_after_low": predicted.hit_ratio_after.low,
            "hit_ratio_after_high": predicted.hit_ratio_after.high,
            "gain": predicted.gain.value,
            "gain_low": predicted.gain.low,
            "gain_high": predicted.gain.high,
            "latency_us_p99_after": predicted.latency_us_p99_after,
            "memory_bytes_after": float(predicted.memory_bytes_after),
            "freed_bytes": None if predicted.freed_bytes is None else predicted.freed_bytes.value,
            "freed_bytes_low": None if predicted.freed_bytes is None else predicted.freed_bytes.low,
            "freed_bytes_high": None if predicted.freed_bytes is None else predicted.freed_bytes.high,
            "peak_share": predicted.peak_share,
            "settle_s": predicted.settle_ms / 1000,
        },
        realised=realised,
        inside_interval=None if gain is None else predicted.gain.holds(gain),
        step=None if execution is None else execution.step,
        steps=None if execution is None else execution.steps,
        updated_at=None if execution is None else iso(execution.updated_at_ms),
    )


def plans_view(state: FleetState) -> list[PlanView]:
    """Return the plans at hand and those that were carried out, newest first."""
    executed = {e.proposal.proposal_id: e for e in state.executions}
    views: dict[str, PlanView] = {}
    for name in sorted(state.standing):
        standing = state.standing[name]
        if standing.proposal is not None:
            key = standing.proposal.proposal_id
            views[key] = plan_view(standing.proposal, executed.get(key), standing.verdict, standing.resolution)
    for key, execution in executed.items():
        order = state.handed_over.get(key)
        if order is None:
            views.setdefault(key, plan_view(execution.proposal, execution))
        else:
            views.setdefault(key, plan_view(execution.proposal, execution, order.verdict, order.resolution))
    return sorted(views.values(), key=lambda view: (view.created_at, view.id), reverse=True)


def agents_view(state: FleetState) -> AgentsResponse:
    """Return the agents as the coordinator last saw them."""
    return AgentsResponse(
        agent_id=AGENT_ID,
        capabilities=list(CAPABILITIES),
        cycle=state.cycle,
        phase=state.phase,
        agents=[
            AgentView(name=a.name, alive=a.alive, restarts=a.restarts, last_seen=iso(a.last_seen_ms), detail=a.detail)
            for _, a in sorted(state.agents.items())
        ],
        peers=peers_view(state),
    )
