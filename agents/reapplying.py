"""Setting again what a restart or failover took away: a proposal that carries an old decision over, nothing more.

It proposes only settings that are still agreed (`coordination/settings_watch.py` says which), with the prediction,
the playbook and the evidence of the decision that they come from. It promises nothing anew: the cache that it comes to
is cold, so the effect is not judged again; guardrails are.

INVARIANT: it names no knob and no value that the old decision did not name.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.drafting import room_bytes, with_room
from agents.playbook_tables.book import playbook_for
from cachewarden.approval import PLANNER, needs_approval
from cachewarden.codec import digest
from cachewarden.fleet import Service
from cachewarden.knobs import action_class_of_change
from cachewarden.messages import Evidence, KnobChange, Proposal
from cachewarden.observation import Snapshot
from cachewarden.protocol import LostSetting
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["reapplied"]


def reapplied(
    lost: Sequence[LostSetting], snapshot: Snapshot, service: Service, settings: CacheOptimizerSettings, now_ms: int
) -> Proposal | None:
    """Return the proposal that sets lost settings again, those of the newest decision first; None where none is lost.

    Settings of several decisions are set again one decision after the other.
    """
    still = [one for one in lost if snapshot.knobs.get(one.knob) == one.now]
    if not still:
        return None
    newest = max((one.proposal for one in still), key=lambda p: (p.created_at_ms, p.proposal_id))
    changes = tuple(
        KnobChange(knob=one.knob, before=one.now, after=one.value)
        for one in still
        if one.proposal.proposal_id == newest.proposal_id and one.now != one.value
    )
    if not changes:
        return None
    playbook = playbook_for(changes)
    cost = dict(newest.cost)
    if playbook == "keep_hot_set":
        changes = with_room(changes, snapshot)
        size = next((int(c.after) for c in changes if c.knob == "maxmemory"), 0)
        cost["room_bytes"] = float(room_bytes(snapshot, size, service.minimum_memory_bytes))
    action_class = max(action_class_of_change(c.knob, c.before, c.after) for c in changes)
    lives_ms = settings.proposal_ttl_ms
    if needs_approval(action_class, service.mode, settings):
        lives_ms = max(lives_ms, settings.approval_ttl_ms)
    words = ", ".join(f"`{c.knob}` to `{c.after}`" for c in changes if c.before != c.after)
    content = {"service": service.name, "changes": changes, "reapplies": newest.proposal_id, "at_ms": now_ms}
    return Proposal(
        proposal_id=f"p-{digest(content)[:16]}",
        service=service.name,
        author=PLANNER,
        created_at_ms=now_ms,
        expires_at_ms=now_ms + lives_ms,
        kinds=newest.kinds,
        knob_changes=changes,
        ttl_rules=(),
        action_class=action_class,
        reversible=newest.reversible,
        playbook=playbook,
        rollback="set back " + ", ".join(f"`{c.knob}` to `{c.before}`" for c in changes),
        rationale=(
            f"Another server process answers, and {words} is gone; {newest.proposal_id} decided it and nobody has set "
            "it since, so it is set again"
        ),
        evidence=(*newest.evidence, Evidence(name="reapplies", value=newest.proposal_id, source="the journal")),
        prediction=newest.prediction,
        cost=cost,
        reapplies=newest.proposal_id,
    )
