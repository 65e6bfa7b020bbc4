"""Where a change of ours and a plan of another agent are in each other's way, and who goes first if nobody else says.

Pure functions of proposals and plans. Nothing is reported, waited for or remembered here (`conflict_desk.py` does).

INVARIANT: the same changes and plans give the same clashes in the same order; two plans that want the same value do not
clash; nothing of ours ever goes against a plan that is being carried out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cachewarden.claims import ANYTHING, BUDGET, TTL_PREFIX, direction_of, overlap, priority_of
from cachewarden.codec import digest
from cachewarden.messages import AGENT_ID, Proposal
from coordination.blackboard_records import record_id
from coordination.peer_plans import PeerPlan, PlanState, Touch

__all__ = [
    "Clash",
    "ClashKind",
    "by_priority",
    "clash_of",
    "clash_with_kept",
    "find_clashes",
    "matter_of",
    "own_rule",
]

_EXACT_MAX: Final = 1 << 10
_INSISTED_MAX: Final = 1
"""How often we set back what a peer has set before we leave the matter to people."""


class ClashKind(StrEnum):
    """What is wrong between two plans; the most telling one is named."""

    UNDOES = "undoes"
    """One would set back what the other has set."""
    OPPOSITE = "opposite_directions"
    OTHER_VALUE = "other_value"
    SAME_CACHE = "same_cache"
    """The peer says that it changes the cache, not what."""
    OBSERVATION_WINDOW = "observation_window"
    """Other things of one cache, but one change would spoil what is being measured of the other."""
    BUDGET = "memory_budget"
    OBJECTION = "objection"
    """A peer has reported the conflict itself."""


_ORDER: Final = tuple(ClashKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """Two plans that exclude each other on one service. `in_flight`: ours is being carried out already."""

    kind: ClashKind
    proposal: Proposal
    plan: PeerPlan
    resource: str
    reason: str
    in_flight: bool = False
    spare_bytes: int | None = None
    """What of the memory budget remains for the plan beside the growth of ours and of the plans that go before it; None
    where that is not known."""

    @property
    def service(self) -> str:
        return self.proposal.service

    @property
    def conflict_id(self) -> str:
        """The same for the same matter in each cycle, whatever id the proposal has; another once the plan or our value
        changes: an answer for one value is none for another."""
        touches = digest([[t.service, t.resource, t.before, t.after, t.amount] for t in self.plan.touches])
        undoes = "undoes" if self.kind is ClashKind.UNDOES else ""
        return record_id("peer_conflict", *self.plan.key, self.service, matter_of(self.proposal), touches, undoes)


def matter_of(ours: Proposal) -> str:
    """Return what a proposal wants, the same in each cycle whatever its id and however its sizes wander."""
    return digest([[resource, direction_of(b, a), _about(a)] for resource, b, a in sorted(_values(ours))])


def find_clashes(
    proposals: Iterable[Proposal],
    plans: Iterable[PeerPlan],
    free_bytes: int | None,
    now_ms: int,
    *,
    in_flight: bool = False,
) -> tuple[Clash, ...]:
    """Return at most one clash for each pair, by service, proposal, agent and plan.

    `free_bytes` is what is left of the memory budget, None where that is not known. Plans that want some of it are
    granted theirs in the order of priority and age; ours clashes with each that no longer finds room beside it, also
    where only all of them together are too much. With `in_flight` the proposals are being carried out or observed.
    """
    by_service: dict[str, list[PeerPlan]] = {}
    growing: list[PeerPlan] = []
    for plan in sorted(plans, key=lambda p: p.key):
        for service in plan.services:
            by_service.setdefault(service, []).append(plan)
        growing += [plan] if now_ms < plan.until_ms and _growth(plan) > 0 else []
    growing.sort(key=lambda p: (p.state is not PlanState.ACTIVE, p.priority, p.first_ms, p.key))
    granted = {plan.key: sum(map(_growth, growing[:place])) for place, plan in enumerate(growing)}
    found: list[Clash | None] = []
    for ours in sorted(proposals, key=lambda p: (p.service, p.proposal_id)):
        near = by_service.get(ours.service, [])
        # Only the memory budget reaches beyond a service.
        rivals = {p.key: p for p in (*near, *(growing if ours.memory_delta_bytes > 0 else ()))}
        for key in sorted(rivals):
            left = None if free_bytes is None else free_bytes - granted.get(key, 0)
            found.append(clash_of(ours, rivals[key], left, now_ms, in_flight=in_flight))
    return tuple(clash for clash in found if clash is not None)


def _growth(plan: PeerPlan) -> int:
    """Return by how much a plan that is not over grows the shared memory."""
    grows = plan.state in (PlanState.WANTED, PlanState.ACTIVE)
    return sum(t.amount for t in plan.touches if t.resource == BUDGET and t.direction > 0) if grows else 0


def clash_of(
    ours: Proposal, plan: PeerPlan, free_bytes: int | None, now_ms: int, *, in_flight: bool = False
) -> Clash | None:
    """Return why `ours` and `plan` exclude each other, None where they do not; `free_bytes` is what the plans that go
    before this one leave of the memory budget."""
    if now_ms >= plan.until_ms or plan.state is PlanState.ENDED:
        return None
    touches = [t for t in plan.touches if t.service == ours.service]
    if plan.state is PlanState.DONE:
        found = [_setting_back(ours, plan, touch) for touch in touches]
    else:
        found = [clash for touch in touches for clash in _on_resource(ours, plan, touch)]
        found += [_on_budget(ours, plan, touch, free_bytes) for touch in plan.touches if not in_flight]
        agreed = any(_agree(ours, touch) for touch in touches)
        if (plan.state is PlanState.ACTIVE or in_flight) and touches and not agreed:
            why = f"`{plan.agent_id}` is changing `{ours.service}` and measures what it does"
            if in_flight:
                why = f"`{ours.proposal_id}` on `{ours.service}` is being measured"
            found.append((ClashKind.OBSERVATION_WINDOW, ANYTHING, why))
    clashes = sorted((c for c in found if c is not None), key=lambda c: (_ORDER.index(c[0]), c[1], c[2]))
    if not clashes:
        return None
    kind, resource, reason = clashes[0]
    spare_bytes = None if free_bytes is None else max(0, free_bytes - max(0, ours.memory_delta_bytes))
    return Clash(
        kind=kind,
        proposal=ours,
        plan=plan,
        resource=resource,
        reason=reason,
        in_flight=in_flight,
        spare_bytes=spare_bytes,
    )


def _about(value: str) -> str:
    """Return a value as far as it tells matters apart: large numbers are measured anew in each cycle, so they count to
    four binary digits."""
    if not value.isdecimal() or int(value) < _EXACT_MAX:
        return value
    shift = int(value).bit_length() - 4
    return str(int(value) >> shift << shift)


_Found = tuple[ClashKind, str, str]


def _values(ours: Proposal) -> list[tuple[str, str, str]]:
    """Return (resource, before, after) of everything that a proposal sets."""
    knobs = [(c.knob, c.before, c.after) for c in ours.knob_changes]
    return knobs + [(f"{TTL_PREFIX}{r.pattern}", str(r.written_ttl_ms), str(r.extended_ttl_ms)) for r in ours.ttl_rules]


def _agree(ours: Proposal, touch: Touch) -> bool:
    return any(resource == touch.resource and after == touch.after for resource, _, after in _values(ours))


def _on_resource(ours: Proposal, plan: PeerPlan, touch: Touch) -> list[_Found]:
    found: list[_Found] = []
    for resource, before, after in _values(ours):
        if not overlap(resource, touch.resource) or (resource == touch.resource and after == touch.after):
            continue
        who = f"`{plan.agent_id}` plans"
        if touch.resource == ANYTHING:
            told = f"{who} a change of `{ours.service}` without saying which, ours sets `{resource}` to {after}"
            found.append((ClashKind.SAME_CACHE, resource, told))
            continue
        told = f"{who} `{touch.resource}` of `{ours.service}` = {touch.after or 'unsaid'}, ours is {after}"
        opposite = touch.direction * direction_of(before, after) < 0
        found.append((ClashKind.OPPOSITE if opposite else ClashKind.OTHER_VALUE, resource, told))
    return found


def _setting_back(ours: Proposal, plan: PeerPlan, touch: Touch) -> _Found | None:
    for resource, before, after in _values(ours):
        if resource == touch.resource and touch.before and (before, after) == (touch.after, touch.before):
            told = (
                f"ours would set `{resource}` of `{ours.service}` back to {after}, `{plan.agent_id}` set it to {before}"
            )
            return ClashKind.UNDOES, resource, told
    return None


def clash_with_kept(kept: Proposal, plan: PeerPlan, now_ms: int) -> Clash | None:
    """Return that a plan in force would set back what a kept change of ours has set, None where it does not."""
    if not plan.in_force(now_ms):
        return None
    for resource, before, after in _values(kept):
        for touch in plan.touches:
            same = touch.service == kept.service and touch.resource == resource
            if same and touch.after == before and touch.before in ("", after):
                told = f"`{plan.agent_id}` would set `{resource}` of `{kept.service}` back to {before}, ours is {after}"
                return Clash(kind=ClashKind.UNDOES, proposal=kept, plan=plan, resource=resource, reason=told)
    return None


def _on_budget(ours: Proposal, plan: PeerPlan, touch: Touch, free_bytes: int | None) -> _Found | None:
    growth = ours.memory_delta_bytes
    if touch.resource != BUDGET or touch.direction <= 0 or growth <= 0 or free_bytes is None:
        return None
    if growth + touch.amount <= free_bytes:
        return None
    told = (
        f"`{plan.agent_id}` plans {touch.amount} bytes more for `{touch.service}`, ours {growth} bytes, "
        f"{max(0, free_bytes)} of the budget are left for both"
    )
    return ClashKind.BUDGET, BUDGET, told


def by_priority(clash: Clash, ours_since_ms: int, insisted: int) -> tuple[bool, str]:
    """Return whether ours goes first by `highest_priority_wins`, and why; ties as in `own_rule`.

    This is what somebody else has answered: it may take a change of ours back, but nothing goes against what a peer is
    carrying out.
    """
    ours, theirs = priority_of(clash.proposal), clash.plan.priority
    if ours == theirs or (clash.plan.state is PlanState.ACTIVE and not clash.in_flight):
        return own_rule(clash, ours_since_ms, insisted)
    return ours < theirs, f"priority {min(ours, theirs)} goes before {max(ours, theirs)}"


def own_rule(clash: Clash, ours_since_ms: int, insisted: int) -> tuple[bool, str]:
    """Return whether ours goes first where nobody has answered, and why: the smaller priority number, then the older.

    `ours_since_ms` is when ours was announced first, `insisted` how often we set back already what this peer had set.
    It is ACGS's own `highest_priority_wins`; both sides find all of it on the blackboard, so a peer that goes by it
    comes to the same end, and never do both give way or both go ahead.
    """
    plan, ours = clash.plan, priority_of(clash.proposal)
    if plan.state is PlanState.ACTIVE and not clash.in_flight:
        return False, f"`{plan.plan_id}` of `{plan.agent_id}` is being carried out already"
    if clash.in_flight:
        return True, f"`{clash.proposal.proposal_id}` is being carried out already and stands until it is measured"
    if clash.kind is ClashKind.UNDOES and insisted >= _INSISTED_MAX:
        return False, f"`{clash.resource}` was set back and forth before, a person has to say what is wanted"
    if ours != plan.priority:
        return ours < plan.priority, f"priority {min(ours, plan.priority)} goes before {max(ours, plan.priority)}"
    if ours_since_ms != plan.first_ms:
        return ours_since_ms < plan.first_ms, f"both have priority {ours}, the older one goes first"
    first = min(AGENT_ID, plan.agent_id)
    return first == AGENT_ID, f"both have priority {ours} and came at the same moment, `{first}` comes first by name"
