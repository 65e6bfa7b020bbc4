"""What stands in the way of one proposal by itself, whatever the others want: verdict, mode, a change in flight,
cool-down, budgets.

It looks at one proposal and at what has happened, never at competing proposals (`consensus.py` does). A refusal is a
value with a sentence that names the numbers; the sentence holds no time that runs, so that the same situation gives
the same words in every round.

INVARIANT: the change budget, damping, freeze windows and intents in force are never skipped; `force` skips the
cool-down and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cachewarden.approval import PLANNER, Approval, Rest, rest_over
from cachewarden.claims import ANYTHING, UNREAD_BOARD, overlap, touched
from cachewarden.codec import kept_digest
from cachewarden.freeze import Freeze, frozen_until, parse_freezes
from cachewarden.messages import (
    AGENT_ID,
    CONSTITUTIONAL_HASH,
    ActionClass,
    Decision,
    Intent,
    Mode,
    Proposal,
    ResolutionOutcome,
    Verdict,
)
from cachewarden.protocol import History
from cachewarden.settings import CacheOptimizerSettings

__all__ = [
    "DAMPING_MS",
    "DAMPING_MS_MAX",
    "Obstacle",
    "Situation",
    "clock_words",
    "damping_ms",
    "find_obstacle",
    "staged_signature",
]

DAMPING_MS = 600_000
"""How long a change that was taken back is not tried again; doubles each further time."""
DAMPING_MS_MAX = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a proposal cannot go ahead, and what it yields to or waits for."""

    outcome: ResolutionOutcome
    reason: str
    conflicts_with: tuple[str, ...] = ()
    awaits_approval: bool = False
    """Whether only the consent of another identity is missing."""
    awaits_ballot: bool = False
    """Whether only the vote of those who are entitled to one is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known when a round is settled, apart from the proposals. `modes` has every service of the fleet."""

    modes: Mapping[str, Mode]
    weights: Mapping[str, float]
    history: Mapping[str, History]
    memory_bytes: Mapping[str, int]
    intents: tuple[Intent, ...]
    budget_bytes: int
    budgeted: frozenset[str]
    """Services whose maxmemory must be known before anybody may grow."""
    force: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    """Proposals that are known to have been kept."""
    rollback_counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(service, change signature) to how often it was taken back; 1 where the history knows of one and nobody
    counted."""
    approvals: Mapping[str, Approval] = field(default_factory=dict)
    """Proposal id to its open approval."""
    rests: tuple[Rest, ...] = ()
    freezes: Mapping[str, tuple[Freeze, ...]] = field(default_factory=dict)
    """Service to the freeze windows of its owner; those of the operator are in the settings."""
    canaries: Mapping[str, str] = field(default_factory=dict)
    """Service to the one on which its lossy changes must have been kept first."""
    unvoted: Mapping[str, Obstacle] = field(default_factory=dict)
    """Proposal id to what the vote has against it; one that needs no vote, or has won it, is missing."""


def damping_ms(times: int) -> int:
    """Return how long a change rests after it was taken back for the `times`-th time: 10 minutes, doubling, at most a
    day."""
    doublings = min(max(times, 1) - 1, 10)
    return min(DAMPING_MS << doublings, DAMPING_MS_MAX)


def clock_words(at_ms: int) -> str:
    """Return a moment as reasons name it: UTC, to the second."""
    return datetime.fromtimestamp(at_ms / 1000.0, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _yield(reason: str, *conflicts_with: str) -> Obstacle:
    return Obstacle(outcome=ResolutionOutcome.YIELD, reason=reason, conflicts_with=conflicts_with)


def _wait(reason: str, *conflicts_with: str) -> Obstacle:
    return Obstacle(outcome=ResolutionOutcome.WAIT, reason=reason, conflicts_with=conflicts_with)


def _verdict_obstacle(
    proposal: Proposal, verdict: Verdict | None, now_ms: int, proposal_digest: str | None
) -> Obstacle | None:
    if verdict is None:
        return _yield("there is no verdict on it, and nothing goes ahead without one")
    if verdict.decision is Decision.DENY:
        return _yield(f"the constitution denies it: {', '.join(verdict.denied_by) or 'no principle could be asked'}")
    if proposal.constitutional_hash != CONSTITUTIONAL_HASH or verdict.constitutional_hash != CONSTITUTIONAL_HASH:
        return _yield("proposal or verdict carries another constitutional hash than ours")
    if verdict.proposal_digest != (kept_digest(proposal) if proposal_digest is None else proposal_digest):
        return _yield("the verdict is on another content than the proposal has now")
    if proposal.expires_at_ms <= now_ms:
        return _yield(f"it expired at {clock_words(proposal.expires_at_ms)}")
    return None


def _intent_obstacle(proposal: Proposal, intents: tuple[Intent, ...], now_ms: int) -> Obstacle | None:
    resources = touched(proposal)
    for intent in intents:
        if intent.service != proposal.service or (intent.until_ms and intent.until_ms <= now_ms):
            continue
        met = next((r for r in sorted(resources) if overlap(r, intent.resource)), None)
        if met is None:
            continue
        ours = resources[met]
        until = f" until {clock_words(intent.until_ms)}" if intent.until_ms else ""
        if intent.holder == AGENT_ID:
            return _wait(f"`{intent.resource}` of `{intent.service}` is being changed already{until}", intent.holder)
        if intent.holder == UNREAD_BOARD:
            return _wait(
                "the blackboard cannot be read, so other agents may be changing it; make it readable, or set "
                "`BLACKBOARD_POLL_MS=0` to run without it",
                intent.holder,
            )
        if intent.resource == ANYTHING:
            return _wait(f"`{intent.holder}` is changing `{intent.service}` as a whole{until}", intent.holder)
        if ours != intent.direction or ours == 0:
            ways = {1: "grow", -1: "shrink", 0: "switch"}
            return _yield(
                f"`{intent.holder}` intends to {ways.get(intent.direction, 'change')} `{intent.resource}` of "
                f"`{intent.service}`{until}, this would {ways[ours]} it",
                intent.holder,
            )
        return _wait(
            f"`{intent.holder}` changes `{intent.resource}` of `{intent.service}` the same way{until}", intent.holder
        )
    return None


def _history_obstacle(
    proposal: Proposal, situation: Situation, settings: CacheOptimizerSettings, now_ms: int
) -> Obstacle | None:
    service = proposal.service
    history = situation.history.get(service, History())
    if history.in_flight is not None:
        what = "it" if history.in_flight == proposal.proposal_id else f"`{history.in_flight}`"
        return _wait(f"{what} is being carried out on `{service}`, one change at a time", history.in_flight)
    if history.led_by is not None and now_ms < history.led_until_ms:
        return _wait(
            f"`{history.led_by}` leads `{service}`, we stand by and try again at {clock_words(history.led_until_ms)}",
            history.led_by,
        )
    signature = proposal.signature
    rolled_back_ms = history.rolled_back.get(signature)
    if rolled_back_ms is not None:
        times = max(1, situation.rollback_counts.get((service, signature), 1))
        rests_until_ms = rolled_back_ms + damping_ms(times)
        if now_ms < rests_until_ms:
            return _wait(
                f"exactly this change of `{service}` was taken back {times} time{'s' if times > 1 else ''}, last at "
                f"{clock_words(rolled_back_ms)}, and rests until {clock_words(rests_until_ms)}"
            )
    rest = rest_over(proposal, situation.rests, now_ms)
    if rest is not None:
        return _wait(
            f"`{rest.by}` turned this change of `{service}` down ({rest.reason}), it rests until "
            f"{clock_words(rest.until_ms)}"
        )
    if history.changes_last_hour >= settings.changes_per_hour:
        return _wait(
            f"`{service}` had {history.changes_last_hour} changes within the last hour, its change budget is "
            f"{settings.changes_per_hour}"
        )
    if history.last_change_ms is not None and service not in situation.force:
        cool_until_ms = history.last_change_ms + settings.cool_down_ms
        if now_ms < cool_until_ms:
            return _wait(
                f"`{service}` was changed at {clock_words(history.last_change_ms)} and cools down for "
                f"{settings.cool_down_ms // 1000} s, until {clock_words(cool_until_ms)}"
            )
    return None


def _frozen_obstacle(
    proposal: Proposal, situation: Situation, settings: CacheOptimizerSettings, now_ms: int
) -> Obstacle | None:
    own = situation.freezes.get(proposal.service, ())
    if not own and not settings.freeze:
        return None
    found = frozen_until((*parse_freezes(settings.freeze), *own), now_ms)
    if found is None:
        return None
    until_ms, text = found
    return _wait(f"changes of `{proposal.service}` are frozen (`{text}`) until {clock_words(until_ms)}")


def _people_obstacle(
    proposal: Proposal, situation: Situation, settings: CacheOptimizerSettings, now_ms: int
) -> Obstacle | None:
    """Leave alone what a person has set by hand; a person may of course change it again through a plan."""
    if proposal.author != PLANNER:
        return None
    by_hand = situation.history.get(proposal.service, History()).by_hand
    for change in proposal.knob_changes:
        seen_ms = by_hand.get(change.knob)
        if seen_ms is None or change.before == change.after:
            continue
        until_ms = seen_ms + settings.manual_change_rest_ms
        if now_ms < until_ms:
            return _wait(
                f"`{change.knob}` of `{proposal.service}` was set by hand at {clock_words(seen_ms)}, it is left alone "
                f"until {clock_words(until_ms)}"
            )
    return None


def _canary_obstacle(proposal: Proposal, situation: Situation) -> Obstacle | None:
    canary = situation.canaries.get(proposal.service)
    if canary is None or proposal.action_class < ActionClass.LOSSY or proposal.takes_back or proposal.reapplies:
        return None
    kept = situation.history.get(canary, History()).kept
    wanted = staged_signature(proposal.signature)
    if any(staged_signature(signature) == wanted for signature in kept):
        return None
    return _wait(f"`{canary}` is the canary of `{proposal.service}`: a change of this kind has to be kept there first")


def staged_signature(signature: str) -> str:
    """Return a change signature without sizes: two caches of one kind differ in memory."""
    parts = (part for part in signature.split(";") if not part.startswith("maxmemory="))
    return ";".join(parts) or "maxmemory"


def find_obstacle(
    proposal: Proposal,
    verdict: Verdict | None,
    situation: Situation,
    settings: CacheOptimizerSettings,
    now_ms: int,
    *,
    proposal_digest: str | None = None,
) -> Obstacle | None:
    """Return what keeps this proposal from going ahead by itself, or None; the first that binds is told.

    `proposal_digest` where the caller has worked it out of this very object already.
    """
    denied = _verdict_obstacle(proposal, verdict, now_ms, proposal_digest)
    if denied is not None:
        return denied
    mode = situation.modes.get(proposal.service)
    if mode is None:
        return _yield(f"`{proposal.service}` is not in the fleet file")
    if mode in (Mode.OFF, Mode.ADVISE):
        return Obstacle(
            outcome=ResolutionOutcome.ADVISE,
            reason=f"`{proposal.service}` is in mode `{mode.value}`, so this is advice and nothing is changed",
        )
    claimed = _intent_obstacle(proposal, situation.intents, now_ms)
    return (
        claimed
        or _frozen_obstacle(proposal, situation, settings, now_ms)
        or _people_obstacle(proposal, situation, settings, now_ms)
        or _history_obstacle(proposal, situation, settings, now_ms)
        or _canary_obstacle(proposal, situation)
    )
