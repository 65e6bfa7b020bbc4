"""The ballot box: puts changes to the vote of peers that are entitled to one, waits for a bounded time, and counts.

One motion per wish (`approval.alike`): the planner's figures wander from cycle to cycle, the question stays the same.
A motion is in the journal before anybody is told of it, and its outcome before anything rests on it. Ballots of peers
come again and again, as they are read; deadlines fire by a timer, whether anybody votes or not. After the deadline the
next look at the blackboard closes a motion, since only it shows what was cast until then; it is waited for so long.

It never votes for a peer, and what nobody voted on is not approved. INVARIANT: a change that needs a vote goes ahead
only while a motion on the same wish was decided in favour, is in the journal, and is not older than its term.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import ValidationError

from agents.obstacles import Obstacle, clock_words
from agents.own_ballots import OWN_VOTERS, constitutional_score, own_ballots
from cachewarden.approval import alike
from cachewarden.balloting import (
    APPROVE,
    REJECT,
    Ballot,
    Motion,
    MotionState,
    Outcome,
    Voter,
    count,
    is_own,
    parse_voters,
)
from cachewarden.codec import decode, record_id, to_jsonable
from cachewarden.consensus_rules import Algorithm, Option
from cachewarden.machine import Effect, Record, Send, SetTimer
from cachewarden.messages import AuditRecord, Proposal, RecordKind, ResolutionOutcome, Verdict
from cachewarden.peer_messages import BallotNews, PeerBallot, PeerBallots
from cachewarden.protocol import History, RunCycle
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["REST_MS", "BallotBox"]

REST_MS: Final = 600_000
"""How long a wish that was voted down, or on which there was no decision, is not put to the vote again."""

_REF: Final = "ballot:"
_RECORD_AGAIN_MS: Final = 1_000
_HELD_MAX: Final = 500
_RECORDED_MAX: Final = 100
"""Ballots that one record holds; those that count come first, the number of the others is told."""
_NOTED_CHARS_MAX: Final = 500
_LOOKS_WAITED_FOR: Final = 2
_GRACE_MS_MIN: Final = 2_000
_OF_ONE_VOTER_MAX: Final = 20
_OF_STRANGERS_MAX: Final = 200


@dataclass(slots=True)
class _Held:
    """One motion: `opened` and `closed` say whether the journal has it. `until_ms`: end of what its outcome is good
    for."""

    proposal: Proposal
    motion: Motion
    own: tuple[Ballot, ...]
    peers: dict[tuple[str, str, bool], Ballot] = field(default_factory=dict)
    """Voter, item and whether it was cast too late, to what the item says."""
    outcome: Outcome | None = None
    opened: bool = False
    closed: bool = False
    until_ms: int = 0
    looked_ms: int | None = None
    """When the ballots of peers were last read."""


class BallotBox:
    """States of a motion: opening (being recorded), open, closing (being recorded), closed."""

    replay_kinds = (RecordKind.BALLOT_OPENED.value, RecordKind.BALLOT_CLOSED.value)

    def __init__(self, settings: CacheOptimizerSettings, weight_of: dict[str, float]) -> None:
        self._settings = settings
        self._weights = weight_of
        self._peers: tuple[Voter, ...] = parse_voters(settings.ballot_voters)
        self._held: dict[str, _Held] = {}

    # --- Asking -----------------------------------------------------------------------------------------------------

    def obstacle(self, proposal: Proposal, now_ms: int) -> Obstacle | None:
        """Return what the vote has against a proposal now; None where it needs none or has won it."""
        if not self._peers or proposal.action_class < self._settings.ballot_action_class:
            return None
        held = self._of(proposal, now_ms)
        if held is None:
            names = ", ".join(f"`{v.voter_id}`" for v in self._peers[:5])
            return _wait(f"it is put to the vote, {names} may vote on it")
        motion, outcome = held.motion, held.outcome
        if outcome is None:
            return _wait(f"the vote on `{motion.motion_id}` is open until {clock_words(motion.deadline_ms)}")
        if not held.closed:
            return _wait(f"the outcome of the vote on `{motion.motion_id}` is being recorded")
        if outcome.state is MotionState.DECIDED and outcome.winner == APPROVE:
            return None
        what = "was voted down" if outcome.state is MotionState.DECIDED else "was not decided"
        return Obstacle(
            outcome=ResolutionOutcome.YIELD,
            reason=f"`{motion.motion_id}` {what} ({outcome.reason}), it rests until {clock_words(held.until_ms)}",
        )

    def _of(self, proposal: Proposal, now_ms: int) -> _Held | None:
        for key in [k for k, h in self._held.items() if h.closed and now_ms >= h.until_ms]:
            del self._held[key]
        same = (h for h in self._held.values() if h.proposal.author == proposal.author)
        return next((h for h in same if alike(h.proposal, proposal)), None)

    # --- Opening ----------------------------------------------------------------------------------------------------

    def open(self, proposal: Proposal, verdict: Verdict | None, now_ms: int) -> tuple[Effect, ...]:
        """Put a proposal to the vote, unless a motion on the same wish is held already."""
        if self._of(proposal, now_ms) is not None or len(self._held) >= _HELD_MAX:
            return ()
        motion_id = proposal.proposal_id
        weight = self._weights.get(proposal.service, 1.0)
        benefit = proposal.prediction.gain.value * proposal.prediction.lookups_per_s * weight
        motion = Motion(
            motion_id=motion_id,
            kind="change",
            service=proposal.service,
            options=(
                Option(
                    option_id=APPROVE,
                    description="carry it out",
                    constitutional_score=constitutional_score(verdict),
                    benefit=benefit,
                ),
                Option(option_id=REJECT, description="leave everything as it is", constitutional_score=1.0),
            ),
            electorate=(*OWN_VOTERS, *self._peers),
            algorithm=Algorithm(self._settings.consensus_change),
            quorum=self._settings.ballot_quorum,
            opened_at_ms=now_ms,
            deadline_ms=now_ms + self._settings.ballot_wait_ms,
            grace_ms=max(_GRACE_MS_MIN, _LOOKS_WAITED_FOR * self._settings.blackboard_poll_ms),
            subjects=(record_id("ballot", motion_id),),
        )
        held = _Held(proposal, motion, own_ballots(motion_id, proposal, verdict, now_ms))
        self._held[motion_id] = held
        payload = {"motion": motion, "proposal": proposal, "ballots": held.own}
        return (self._record(RecordKind.BALLOT_OPENED, held, "open", payload), self._timer(held, motion.deadline_ms))

    # --- Votes, time, journal -----------------------------------------------------------------------------------------

    def take(self, message: PeerBallots, now_ms: int) -> tuple[Effect, ...]:
        """Take what peers have written; what is about no open motion changes nothing.

        An item that its voter has rewritten is that voter's last word, unless it was rewritten after the deadline.
        """
        about = {subject: h for h in self._held.values() for subject in (h.motion.motion_id, *h.motion.subjects)}
        touched: dict[str, _Held] = {}
        for held in self._held.values():
            if held.outcome is None:
                held.looked_ms = message.read_at_ms
                if message.read_at_ms > held.motion.deadline_ms:
                    touched[held.motion.motion_id] = held
        for told in message.ballots:
            found = about.get(told.subject)
            if found is None or found.outcome is not None:
                continue
            ballot = _ballot(told, now_ms)
            late = ballot.cast_at_ms > found.motion.deadline_ms
            key = (told.agent_id, told.item_id, late)
            known = found.peers.get(key)
            if known is None and _flooded(found, told.agent_id):
                continue
            if known is None or replace(known, seen_at_ms=now_ms) != ballot:
                found.peers[key] = ballot
                touched[found.motion.motion_id] = found
        return tuple(effect for held in touched.values() for effect in self._counted(held, now_ms))

    def on_timer(self, ref: str, now_ms: int) -> tuple[Effect, ...]:
        """Close a motion whose deadline has come, or record its outcome once more."""
        held = self._held.get(ref.removeprefix(_REF)) if ref.startswith(_REF) else None
        if held is None or held.closed:
            return ()
        if held.outcome is not None:
            return (self._close_record(held),)
        closing = self._counted(held, now_ms)
        # Still open: the look that closes it is yet to come and may never come, or the journal does not have it yet.
        last_ms = max(held.motion.deadline_ms + held.motion.grace_ms, now_ms + _RECORD_AGAIN_MS)
        return closing or (self._timer(held, last_ms),)

    def _counted(self, held: _Held, now_ms: int) -> tuple[Effect, ...]:
        if not held.opened:
            # Not in the journal yet: it is counted once it is.
            return ()
        outcome = count(held.motion, (*held.own, *held.peers.values()), now_ms, held.looked_ms)
        if outcome.state is MotionState.OPEN:
            return ()
        held.outcome = outcome
        passed = outcome.winner == APPROVE
        held.until_ms = now_ms + (self._settings.proposal_ttl_ms if passed else REST_MS)
        return (self._close_record(held),)

    def recorded(self, ref: str, now_ms: int) -> tuple[Effect, ...]:
        """Go on once the journal has a motion or its outcome: tell of it, count, have the cycle look again."""
        step, _, motion_id = ref.removeprefix(_REF).partition(":")
        held = self._held.get(motion_id) if ref.startswith(_REF) else None
        if held is None:
            return ()
        if step == "open":
            held.opened = True
            now = count(held.motion, held.own, held.motion.opened_at_ms)
            told = Send(to="coordinator", message=BallotNews(outcome=now, proposal=held.proposal))
            return (told, *self._counted(held, now_ms))
        if held.outcome is None:
            return ()
        held.closed = True
        news = BallotNews(outcome=held.outcome, proposal=held.proposal)
        return (Send(to="coordinator", message=news), Send(to="coordinator", message=RunCycle()))

    def not_recorded(self, ref: str, now_ms: int) -> tuple[Effect, ...]:
        """Forget a motion that the journal did not take (the next cycle opens it anew); try an outcome again."""
        step, _, motion_id = ref.removeprefix(_REF).partition(":")
        held = self._held.get(motion_id) if ref.startswith(_REF) else None
        if held is None:
            return ()
        if step == "open":
            del self._held[motion_id]
            return ()
        return (self._timer(held, now_ms + _RECORD_AGAIN_MS),)

    def note_history(self, history: Mapping[str, History]) -> None:
        """Use up what was decided before the last change of its service: the same wish, later, is a new question."""
        for key, held in list(self._held.items()):
            last_ms, outcome = history.get(held.motion.service, History()).last_change_ms, held.outcome
            passed = held.closed and outcome is not None and outcome.winner == APPROVE
            if passed and outcome is not None and last_ms is not None and last_ms >= outcome.counted_at_ms:
                del self._held[key]

    # --- After a restart ----------------------------------------------------------------------------------------------

    def replay(self, records: Iterable[AuditRecord], now_ms: int) -> tuple[Effect, ...]:
        """Take motions over from the journal; peers' ballots are read again, a deadline that passed fires at once."""
        for record in records:
            try:
                if record.kind == RecordKind.BALLOT_OPENED:
                    held = _Held(
                        decode(Proposal, record.payload["proposal"]),
                        decode(Motion, record.payload["motion"]),
                        tuple(decode(Ballot, b) for b in record.payload["ballots"]),
                        opened=True,
                    )
                    self._held[held.motion.motion_id] = held
                elif record.kind == RecordKind.BALLOT_CLOSED and record.subject_id in self._held:
                    held = self._held[record.subject_id]
                    held.outcome, held.closed = decode(Outcome, record.payload["outcome"]), True
                    held.until_ms = int(record.payload["until_ms"])
            except (ValidationError, ValueError, KeyError, TypeError):
                # Written by a newer version. Nothing is approved by what cannot be read; it is put to the vote anew.
                self._held.pop(record.subject_id, None)
        waiting = [h for h in self._held.values() if not h.closed]
        self._held = {k: h for k, h in self._held.items() if not h.closed or now_ms < h.until_ms}
        return tuple(self._timer(held, max(now_ms, held.motion.deadline_ms)) for held in waiting)

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _timer(self, held: _Held, due_ms: int) -> Effect:
        return SetTimer(ref=f"{_REF}{held.motion.motion_id}", due_ms=due_ms)

    def _close_record(self, held: _Held) -> Effect:
        outcome = held.outcome
        shown = () if outcome is None else sorted(outcome.ballots, key=lambda e: e.standing.value)[:_RECORDED_MAX]
        payload = {
            "outcome": None if outcome is None else to_jsonable(outcome) | {"ballots": to_jsonable(tuple(shown))},
            "ballots_total": 0 if outcome is None else len(outcome.ballots),
            "until_ms": held.until_ms,
        }
        return self._record(RecordKind.BALLOT_CLOSED, held, "close", payload)

    def _record(self, kind: RecordKind, held: _Held, step: str, payload: dict[str, object]) -> Effect:
        return Record(
            ref=f"{_REF}{step}:{held.motion.motion_id}",
            kind=kind.value,
            service=held.proposal.service,
            subject_id=held.motion.motion_id,
            payload=to_jsonable(payload),
        )


def _ballot(told: PeerBallot, now_ms: int) -> Ballot:
    return Ballot(
        subject=told.subject,
        voter_id=f"{told.agent_id} (in our name)" if is_own(told.agent_id) else told.agent_id,
        choice=told.choice,
        confidence=told.confidence,
        reason=told.reason[:_NOTED_CHARS_MAX],
        cast_at_ms=told.at_ms,
        seen_at_ms=now_ms,
        item_id=told.item_id,
    )


def _flooded(held: _Held, agent_id: str) -> bool:
    """Say whether there are more ballots of this voter, or of strangers, than anybody needs to read."""
    entitled = {v.voter_id for v in held.motion.electorate}
    if agent_id in entitled:
        return sum(b.voter_id == agent_id for b in held.peers.values()) >= _OF_ONE_VOTER_MAX
    return sum(b.voter_id not in entitled for b in held.peers.values()) >= _OF_STRANGERS_MAX


def _wait(reason: str) -> Obstacle:
    return Obstacle(outcome=ResolutionOutcome.WAIT, reason=reason, awaits_ballot=True)
