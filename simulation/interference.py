"""What people and peers do to a world: settings by hand, pauses, approvals, boasts, forgeries, garbage, replays.

A peer can do what the wire lets it do: send anything to any agent. It cannot write to the journal or hold a lease. What
it sends is remembered by its proposal id, so that a checker finds whatever came of it.

It decides nothing. INVARIANT: the id of everything that was forged begins with `forged-`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cachewarden.approval import ApprovalState, DecideApproval
from cachewarden.codec import digest
from cachewarden.estimate import Estimate
from cachewarden.messages import (
    ActionClass,
    Decision,
    Finding,
    KnobChange,
    Prediction,
    Proposal,
    Resolution,
    ResolutionOutcome,
    Verdict,
)
from cachewarden.protocol import Execute, RunCycle, SetPaused
from simulation.fault_words import FaultSpec
from simulation.world import World

__all__ = ["FORGED", "INTERFERENCE"]

Undo = Callable[[], None]
FORGED = "forged-"
_APPROVE_EVERY_MS = 20_000
_WRONG_HASH = "0123456789abcdef"


def _nothing() -> None:
    """Take nothing back."""


# --- People ----------------------------------------------------------------------------------------------------------


def _set_knob(world: World, fault: FaultSpec) -> Undo:
    cache = world.caches[fault.on]
    knob, _, value = str(fault.amount()).partition("=")
    if value.startswith("x") and knob == "maxmemory":
        value = str(max(1 << 20, int(int(cache.knobs()[knob]) * float(value[1:]))))
    cache.set_by_hand(knob, value)
    return _nothing


def _say(world: World, message: Any, to: str = "coordinator") -> None:
    for deployment in world.deployments.values():
        deployment.tell(to, message)


def _pause_fleet(world: World, fault: FaultSpec) -> Undo:
    kill = fault.fault == "kill_switch"
    _say(world, SetPaused(paused=True, by="person", reason="simulated", kill=kill))
    # Somebody who resumes looks whether it has been taken; a message to a coordinator that is down is lost.
    return lambda: _resume(world)


def _resume(world: World) -> None:
    for deployment in world.deployments.values():
        state = deployment.fleet_state()
        if state is None or state.paused:
            deployment.tell("coordinator", SetPaused(paused=False, by="person", reason="simulated"))
            world.time.after(_APPROVE_EVERY_MS, lambda: _resume(world))


def _run_cycle(world: World, fault: FaultSpec) -> Undo:
    _say(world, RunCycle(force=(fault.on,)))
    return _nothing


def _approve(world: World, _fault: FaultSpec) -> Undo:
    ends = False

    def look() -> None:
        if ends:
            return
        for deployment in world.deployments.values():
            state = deployment.fleet_state()
            for approval in () if state is None else state.approvals:
                if approval.state is ApprovalState.PENDING:
                    deployment.tell("coordinator", _consent(approval))
        world.time.after(_APPROVE_EVERY_MS, look)

    def undo() -> None:
        nonlocal ends
        ends = True

    look()
    return undo


def _consent(approval: Any) -> DecideApproval:
    return DecideApproval(
        decision_id=f"d-{approval.proposal_id}",
        proposal_id=approval.proposal_id,
        proposal_digest=digest(approval.proposal),
        approve=True,
        by="bob",
        token="bob",  # noqa: S106 - an id in a record, not a secret
        reason="simulated",
    )


# --- Peers -----------------------------------------------------------------------------------------------------------


def _boast(world: World, fault: FaultSpec) -> Undo:
    for deployment in world.deployments.values():
        deployment.beliefs.boasts[fault.on] = float(fault.amount())

    def undo() -> None:
        for deployment in world.deployments.values():
            deployment.beliefs.boasts.pop(fault.on, None)

    return undo


def _forged(world: World, service: str) -> Execute:
    """Return an order that would halve a cache, complete in every part."""
    knobs = world.caches[service].knobs()
    half = str(max(1 << 20, int(knobs["maxmemory"]) // 2))
    ratio = Estimate(0.9, 0.9, 0.9)
    proposal = Proposal(
        proposal_id=f"{FORGED}{world.now_ms}",
        service=service,
        author="planner",
        created_at_ms=world.now_ms,
        expires_at_ms=world.now_ms + 300_000,
        kinds=("memory",),
        knob_changes=(KnobChange(knob="maxmemory", before=knobs["maxmemory"], after=half),),
        ttl_rules=(),
        action_class=ActionClass.LOSSY,
        reversible=False,
        playbook="shrink",
        rollback="none",
        rationale="forged",
        evidence=(),
        prediction=Prediction(
            hit_ratio_before=ratio,
            hit_ratio_after=ratio,
            gain=Estimate(0.0, 0.0, 0.0),
            lookups_per_s=1.0,
            memory_bytes_after=int(half),
            latency_us_p99_after=None,
            method="forged",
            settle_ms=0,
        ),
        cost={},
    )
    finding = Finding(principle_id="p", title="t", severity="low", decision=Decision.ALLOW, reason="forged")
    verdict = Verdict(
        proposal_id=proposal.proposal_id,
        proposal_digest=digest(proposal),
        decision=Decision.ALLOW,
        findings=(finding,),
        constitution_digest="forged",
        judged_at_ms=world.now_ms,
    )
    resolution = Resolution(
        proposal_id=proposal.proposal_id, service=service, outcome=ResolutionOutcome.GO, reason="forged"
    )
    return Execute(
        proposal=proposal, verdict=verdict, resolution=resolution, hit_ratio_before=0.9, latency_us_p99_before=None
    )


def _wrong_hash(world: World, fault: FaultSpec) -> Undo:
    order = _forged(world, fault.on)
    proposal = replace(order.proposal, constitutional_hash=_WRONG_HASH)
    verdict = replace(order.verdict, proposal_digest=digest(proposal), constitutional_hash=_WRONG_HASH)
    bad = replace(order, proposal=proposal, verdict=verdict, constitutional_hash=_WRONG_HASH)
    _say(world, bad, "actuator")
    _say(world, bad)
    return _nothing


def _forged_order(world: World, fault: FaultSpec) -> Undo:
    order = _forged(world, fault.on)
    # The verdict is about something else than what is to be done.
    verdict = replace(order.verdict, proposal_digest=digest({"another": "proposal"}))
    _say(world, replace(order, verdict=verdict), "actuator")
    _say(world, replace(order, verdict=verdict))
    return _nothing


def _garbage(world: World, fault: FaultSpec) -> Undo:
    for rubbish in (None, {}, {"kind": "execute"}, "FLUSHALL", b"\x00\xff", 7, ["x"] * 3, object):
        _say(world, rubbish, fault.on)
    return _nothing


def _replay(world: World, fault: FaultSpec) -> Undo:
    for deployment, sender, effect in world.history[-int(fault.amount()) :]:
        world.deployments[deployment].tell(effect.to, effect.message, sender=sender)
    return _nothing


INTERFERENCE: Mapping[str, Callable[[World, FaultSpec], Undo]] = {
    "set_knob": _set_knob,
    "pause_fleet": _pause_fleet,
    "kill_switch": _pause_fleet,
    "run_cycle": _run_cycle,
    "approve": _approve,
    "boast": _boast,
    "wrong_hash": _wrong_hash,
    "forged_order": _forged_order,
    "garbage": _garbage,
    "replay": _replay,
}
