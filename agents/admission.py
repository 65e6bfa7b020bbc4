"""Whether an order to change a cache may be begun at all.

It is checked again here, right before acting, what others have checked before: the hash, the verdict and that it is
about exactly this proposal, the resolution, the time, the approval where one is needed, the knob table. It never
looks at a cache.

INVARIANT: an order that is admitted names only knobs of the table, with values that can be set and with old values
that can be set back.
"""

from __future__ import annotations

from cachewarden.approval import needs_approval, refusal_of_approval
from cachewarden.codec import digest
from cachewarden.errors import SettingsError
from cachewarden.fleet import Fleet
from cachewarden.freeze import frozen_until, parse_freezes
from cachewarden.knobs import KNOBS, action_class_of_change, check_value
from cachewarden.messages import (
    CONSTITUTIONAL_HASH,
    ActionClass,
    Decision,
    KnobChange,
    Proposal,
    ResolutionOutcome,
)
from cachewarden.modes import acts
from cachewarden.protocol import Execute
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["refusal_of"]


def refusal_of(order: Execute, fleet: Fleet, settings: CacheOptimizerSettings, now_ms: int) -> str | None:
    """Return why the order is refused, None if it may be begun."""
    proposal, verdict, resolution = order.proposal, order.verdict, order.resolution
    for name, message in (("order", order), ("proposal", proposal), ("verdict", verdict), ("resolution", resolution)):
        if message.constitutional_hash != CONSTITUTIONAL_HASH:
            return f"the {name} carries the constitutional hash `{message.constitutional_hash[:64]}`, not ours"
    if proposal.service not in fleet.names:
        return f"`{proposal.service[:100]}` is no service of the fleet"
    if not acts(fleet, proposal.service):
        return f"the mode of `{proposal.service}` is `{fleet.service(proposal.service).mode.value}`, nothing is written"
    if verdict.decision is not Decision.ALLOW:
        return f"the constitution does not allow it: {', '.join(verdict.denied_by) or 'no findings'}"
    if verdict.proposal_id != proposal.proposal_id or verdict.proposal_digest != digest(proposal):
        return "the verdict is about another proposal"
    if resolution.proposal_id != proposal.proposal_id or resolution.service != proposal.service:
        return "the resolution is about another proposal"
    if resolution.outcome is not ResolutionOutcome.GO:
        return f"it was not resolved to go ahead but `{resolution.outcome.value}`: {resolution.reason}"
    frozen = frozen_until((*parse_freezes(settings.freeze), *fleet.service(proposal.service).freeze), now_ms)
    if frozen is not None:
        return f"changes are frozen now (`{frozen[1]}`, UTC)"
    if now_ms >= proposal.expires_at_ms:
        return f"the proposal expired {now_ms - proposal.expires_at_ms} ms ago"
    if needs_approval(proposal.action_class, fleet.service(proposal.service).mode, settings):
        why = refusal_of_approval(order.approval, proposal, now_ms)
        if why is not None:
            return f"the mode of `{proposal.service}` is `{fleet.service(proposal.service).mode.value}`: {why}"
    return _refusal_of_changes(proposal)


def _refusal_of_changes(proposal: Proposal) -> str | None:
    if proposal.action_class is ActionClass.FORBIDDEN:
        return "changes of this class are never carried out"
    names = [c.knob for c in proposal.knob_changes]
    if len(set(names)) != len(names):
        return "a knob is named twice"
    for change in proposal.knob_changes:
        why = _refusal_of_change(change, proposal.action_class)
        if why is not None:
            return why
    return None


def _refusal_of_change(change: KnobChange, declared: ActionClass) -> str | None:
    try:
        wanted = check_value(change.knob, change.after)
        kept = check_value(change.knob, change.before)
    except SettingsError as error:
        return str(error)
    if wanted != change.after or kept != change.before:
        return f"`{change.knob}` must be given as the server prints it: `{kept}` to `{wanted}`"
    if not KNOBS[change.knob].online:
        return f"`{change.knob}` cannot be changed while the server runs"
    actual = action_class_of_change(change.knob, change.before, change.after)
    if actual > declared:
        classes = f"`{actual.name.lower()}`, the proposal claims `{declared.name.lower()}`"
        return f"changing `{change.knob}` is of class {classes}"
    return None
