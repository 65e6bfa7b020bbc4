"""Ballots: what is voted on, who may vote, and which of the votes that came count.

A motion names its options, its electorate, its rule (`consensus_rules.py`) and its deadline; `count` says how it
stands. It keeps nothing, reads no clock, and casts no vote for anybody: silence is no vote, and an abstention is
neither a yes nor a no. Votes that do not count are kept with the reason, so that the journal can show all of them.

INVARIANT: at most one ballot of a voter counts, whatever the order in which ballots come in; a motion is open only
before its deadline, and for the look that shows what was cast until then; where peers are entitled, nothing is decided
without them, save by a veto.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from cachewarden.consensus_rules import RULES, Algorithm, Option, Thresholds, Vote
from cachewarden.messages import AGENT_ID, Message

__all__ = [
    "ABSTAIN",
    "APPROVE",
    "CLOCK_SKEW_MS_MAX",
    "REJECT",
    "Ballot",
    "CountedBallot",
    "Motion",
    "MotionState",
    "Outcome",
    "Standing",
    "Voter",
    "count",
    "is_own",
    "parse_voters",
]

APPROVE: Final = "approve"
REJECT: Final = "reject"
ABSTAIN: Final = "abstain"

_VOTER: Final = re.compile(r"([\w.-]{1,64})(?::([a-z_]{1,32})(?::(\d{1,3}(?:\.\d{1,3})?))?)?")

CLOCK_SKEW_MS_MAX: Final = 60_000
"""How far ahead of ours the clock of a voter may be; a ballot from further ahead is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter(Message):
    """One who may vote. `veto`: its `reject` ends the motion at once, whatever the others say."""

    voter_id: str
    voter_type: str = "agent"
    """As in ACGS: coordinator, human_expert, senior_agent, agent, automated_system, human."""
    weight: float = 1.0
    veto: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot(Message):
    """One vote as it came. `cast_at_ms` is what the voter says, `seen_at_ms` when we first saw it, by our clock."""

    subject: str
    voter_id: str
    choice: str
    """The id of an option, or `abstain`."""
    confidence: float
    reason: str
    cast_at_ms: int
    seen_at_ms: int
    item_id: str = ""
    """Knowledge item on the blackboard; empty for our own agents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion(Message):
    """What is voted on. `subjects` are the ids under which ballots name it: its own, and that of its conflict."""

    motion_id: str
    kind: str
    """Kind of conflict, which chose the algorithm: `change` or `service`."""
    service: str
    options: tuple[Option, ...]
    electorate: tuple[Voter, ...]
    algorithm: Algorithm
    quorum: float
    """Share of the peers in the electorate, by heads, that must have cast a ballot, abstentions included; 0..1. Of them
    at least one must have voted. Without peers, of the electorate."""
    opened_at_ms: int
    deadline_ms: int
    grace_ms: int = 0
    """How long after the deadline a ballot that was cast before it may be seen first."""
    subjects: tuple[str, ...] = ()
    thresholds: Thresholds = field(default_factory=Thresholds)


class Standing(StrEnum):
    """What became of one ballot."""

    COUNTED = "counted"
    ABSTAINED = "abstained"
    REPLACED = "replaced"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedBallot(Message):
    """A ballot and whether it counts; `note` says why not."""

    ballot: Ballot
    standing: Standing
    note: str = ""


class MotionState(StrEnum):
    """OPEN: waits for voters. DECIDED: `winner` has it. FAILED: closed without a winner, which approves nothing."""

    OPEN = "open"
    DECIDED = "decided"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Message):
    """How a motion stands, with every ballot. `escalate` names who should look where the rule found no winner."""

    motion: Motion
    state: MotionState
    winner: str | None
    score: float
    """Of the winner, as its rule counts; 0 where there is none."""
    reason: str
    ballots: tuple[CountedBallot, ...]
    counted_at_ms: int
    escalate: str = ""


def is_own(voter_id: str) -> bool:
    """Say whether a voter is one of our agents; no peer can have such an id (`parse_voters`)."""
    return voter_id == AGENT_ID or voter_id.startswith(f"{AGENT_ID}:")


def count(motion: Motion, ballots: Iterable[Ballot], now_ms: int, looked_ms: int | None = None) -> Outcome:
    """Return how the motion stands at `now_ms`; `looked_ms` is when the ballots of peers were last read.

    It is closed by the ballots of the whole electorate, by a veto, or by a look that was begun after its deadline,
    whichever comes first. Without such a look it fails once its grace is over: nobody knows what was cast by then.
    """
    screened = _screened(motion, ballots)
    cast = {e.ballot.voter_id: e for e in screened if e.standing in (Standing.COUNTED, Standing.ABSTAINED)}
    voters = {v.voter_id: v for v in motion.electorate}
    vetoes = [
        e for i, e in sorted(cast.items()) if voters[i].veto and e.ballot.choice == REJECT and _has(motion, REJECT)
    ]
    if vetoes:
        told = vetoes[0].ballot
        why = f"vetoed by `{told.voter_id}`: {told.reason or 'no reason given'}"
        return _outcome(motion, screened, now_ms, MotionState.DECIDED, REJECT, told.confidence, why)
    peers = [v.voter_id for v in motion.electorate if not is_own(v.voter_id)]
    missing = [v.voter_id for v in motion.electorate if v.voter_id not in cast]
    looked = not peers or (looked_ms is not None and looked_ms > motion.deadline_ms)
    if missing and (now_ms < motion.deadline_ms or (not looked and now_ms < motion.deadline_ms + motion.grace_ms)):
        return _outcome(motion, screened, now_ms, MotionState.OPEN, None, 0.0, f"waits for {_names(missing)}")
    failure = "the blackboard could not be read after the deadline" if missing and not looked else None
    failure = failure or _short_of_quorum(motion, cast, peers)
    if failure is not None:
        return _outcome(motion, screened, now_ms, MotionState.FAILED, None, 0.0, failure, "human_review")
    votes = tuple(
        Vote(
            voter_id=i,
            voter_type=voters[i].voter_type,
            weight=voters[i].weight,
            option_id=e.ballot.choice,
            confidence=e.ballot.confidence,
        )
        for i, e in sorted(cast.items())
        if e.standing is Standing.COUNTED
    )
    if not votes and motion.algorithm is not Algorithm.MARGINAL_BENEFIT:
        why = "everybody who voted abstained"
        return _outcome(motion, screened, now_ms, MotionState.FAILED, None, 0.0, why, "human_review")
    abstained = sum(1 for e in cast.values() if e.standing is Standing.ABSTAINED)
    found = RULES[motion.algorithm](motion.options, votes, len(motion.electorate) - abstained, motion.thresholds)
    state = MotionState.FAILED if found.winner is None else MotionState.DECIDED
    return _outcome(motion, screened, now_ms, state, found.winner, found.score, found.reason, found.escalate)


def _names(voters: Sequence[str]) -> str:
    return f"{', '.join(f'`{v}`' for v in voters[:5])}{' and others' if len(voters) > 5 else ''}"


def _short_of_quorum(motion: Motion, cast: Mapping[str, CountedBallot], peers: Sequence[str]) -> str | None:
    """Return what the quorum lacks. Our own agents always vote, so among peers they do not count towards it."""
    members = peers or [v.voter_id for v in motion.electorate]
    silent = [m for m in members if m not in cast]
    needed = max(1, math.ceil(motion.quorum * len(members) - 1e-9))
    voted = len(members) - len(silent)
    if voted < needed:
        what = f"{len(members)} peers" if peers else f"{len(members)}"
        return f"no quorum: {voted} of {what} voted, {needed} are needed; silent: {_names(silent)}"
    if peers and all(cast[m].standing is Standing.ABSTAINED for m in peers if m in cast):
        told = f"; silent: {_names(silent)}" if silent else ""
        return f"no peer has voted: {_names([m for m in peers if m in cast])} abstained{told}"
    return None


def _outcome(
    motion: Motion,
    ballots: tuple[CountedBallot, ...],
    now_ms: int,
    state: MotionState,
    winner: str | None,
    score: float,
    reason: str,
    escalate: str = "",
) -> Outcome:
    return Outcome(
        motion=motion,
        state=state,
        winner=winner,
        score=score,
        reason=f"{motion.algorithm.value}: {reason}",
        ballots=ballots,
        counted_at_ms=now_ms,
        escalate=escalate,
    )


def parse_voters(text: str) -> tuple[Voter, ...]:
    """Return the peers that `BALLOT_VOTERS` entitles: `agent_id[:type[:weight]]`, separated by commas, each once.

    Raises ValueError for what is no voter, for one that is named twice, and for ourselves: our agents vote anyway.
    """
    voters: list[Voter] = []
    for entry in text.split(",") if text.strip() else ():
        match = _VOTER.fullmatch(entry.strip())
        if match is None:
            raise ValueError(f"`{entry.strip()[:80]}` is no voter, write `agent_id:type:weight`, weight 0 to 999.999")
        name, kind, weight = match.groups()
        if name == AGENT_ID:
            raise ValueError(f"`{name}` is ourselves, name other agents")
        voters.append(Voter(voter_id=name, voter_type=kind or "agent", weight=float(weight or 1.0)))
    if len({v.voter_id for v in voters}) < len(voters):
        raise ValueError("a voter may be named once")
    return tuple(voters)


def _has(motion: Motion, option_id: str) -> bool:
    return any(option.option_id == option_id for option in motion.options)


def _screened(motion: Motion, ballots: Iterable[Ballot]) -> tuple[CountedBallot, ...]:
    """Return every ballot once with its standing, in an order that does not depend on how they came in."""
    entitled: Mapping[str, Voter] = {v.voter_id: v for v in motion.electorate}
    once = {
        (b.voter_id, b.item_id, b.cast_at_ms, b.choice, b.subject): b for b in sorted(ballots, key=_order, reverse=True)
    }
    entries: list[CountedBallot] = []
    valid: dict[str, CountedBallot] = {}
    for ballot in sorted(once.values(), key=_order):
        why = _refusal(motion, entitled, ballot)
        if why is not None:
            entries.append(CountedBallot(ballot=ballot, standing=Standing.REFUSED, note=why))
            continue
        standing = Standing.ABSTAINED if ballot.choice == ABSTAIN else Standing.COUNTED
        earlier = valid.pop(ballot.voter_id, None)
        if earlier is not None:
            note = f"replaced by the ballot `{ballot.item_id}` of the same voter"
            entries.append(replace(earlier, standing=Standing.REPLACED, note=note))
        valid[ballot.voter_id] = CountedBallot(ballot=ballot, standing=standing)
    entries.extend(valid.values())
    return tuple(sorted(entries, key=lambda e: _order(e.ballot)))


def _order(ballot: Ballot) -> tuple[str, int, str, str, str, float, int]:
    # The last one that a voter has cast counts, as in ACGS; two of one moment are told apart by their ids.
    return (
        ballot.voter_id,
        ballot.cast_at_ms,
        ballot.item_id,
        ballot.choice,
        ballot.subject,
        ballot.confidence if math.isfinite(ballot.confidence) else -1.0,
        ballot.seen_at_ms,
    )


def _refusal(motion: Motion, entitled: Mapping[str, Voter], ballot: Ballot) -> str | None:
    if ballot.subject != motion.motion_id and ballot.subject not in motion.subjects:
        return f"it is about `{ballot.subject}`"
    if ballot.voter_id not in entitled:
        return f"`{ballot.voter_id}` is not entitled to vote"
    if ballot.choice != ABSTAIN and not _has(motion, ballot.choice):
        return f"it votes for nobody: `{ballot.choice}` is none of {', '.join(o.option_id for o in motion.options)}"
    if not 0.0 <= ballot.confidence <= 1.0:
        return f"its confidence `{ballot.confidence}` lies outside 0 to 1"
    if ballot.cast_at_ms > motion.deadline_ms or ballot.seen_at_ms > motion.deadline_ms + motion.grace_ms:
        return "it came after the deadline"
    if ballot.seen_at_ms > motion.deadline_ms and ballot.cast_at_ms < motion.opened_at_ms:
        # Seen in time, a voter whose clock is behind is heard; seen late, its own time has to speak for it.
        return "it was seen after the deadline and claims to have been cast before the vote was opened"
    if ballot.cast_at_ms > ballot.seen_at_ms + CLOCK_SKEW_MS_MAX:
        return "it claims to have been cast in the future"
    return None
