"""What our agents tell each other of peers: who lives, who has voted, and how a vote ended.

It decides nothing. INVARIANT: values of peers are bounded before they come here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachewarden.balloting import Outcome
from cachewarden.messages import Message, Proposal

__all__ = ["BallotNews", "PeerBallot", "PeerBallots", "PeerHealth", "PeerReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerHealth(Message):
    """How we stand with one HTTP peer, or with the blackboard. `detail` is said to strangers, so it holds no address.

    `lag_records` and `lag_ms` (age of the oldest record that is not delivered) are None where nothing is delivered to
    this peer or it is not known. Counts are since the start of the agent that reports.
    """

    name: str
    healthy: bool
    detail: str = ""
    circuit: str = "closed"
    lag_records: int | None = None
    lag_ms: int | None = None
    done: int = 0
    """Records delivered, opinions given, greetings answered."""
    failures: int = 0
    violations: int = 0
    """Answers with another constitutional hash."""
    bad_records: int = 0
    """Records that could not be used, each counted once; only the blackboard has some."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What else is counted, by name: tasks, plans and conflicts on the blackboard."""
    conflicts: tuple[str, ...] = ()
    """The newest conflicts with peers' plans, each in a sentence that begins with its outcome; newest last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport(Message):
    """Whoever speaks to HTTP peers tells the coordinator so, when it changes and every few seconds."""

    peers: tuple[PeerHealth, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBallot(Message):
    """One vote that another agent has put onto the blackboard (`cache_optimization_ballot`, space `performance`).

    Bounded and free of control characters, but not judged: whether `agent_id` may vote, on what, and whether it came in
    time is for whoever counts. A voter that changes its mind writes another item or rewrites this one (`item_id`).
    """

    item_id: str
    agent_id: str
    subject: str
    """Id of a proposal or of a conflict."""
    choice: str
    confidence: float
    """0..1."""
    reason: str
    at_ms: int
    """When the voter says that it voted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBallots(Message):
    """All live ballots of peers, by (subject, agent, time, item), at most 1,000, of too many the newest of each voter
    that is entitled first; told again with each look. `read_at_ms` is when the last complete round of looks began.

    The coordinator, which reads the blackboard, sends it to the consensus. None of them carries our agent id or another
    constitutional hash.
    """

    ballots: tuple[PeerBallot, ...]
    read_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BallotNews(Message):
    """The consensus tells the coordinator that a proposal was put to the vote, or how the vote ended."""

    outcome: Outcome
    proposal: Proposal
