"""How fast a standing TTL rule goes round its keyspace.

A rule stands as long as its change is kept: keys that the application writes anew must be found before the TTL that
it gave them runs out. This decides only when the next pass is due and how many keys it may look at; it never sends a
command.

INVARIANT: over any stretch of time no more than `keys_per_s` keys per second are examined.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachewarden.machine import TtlsExtended
from cachewarden.messages import Proposal, TtlRule

__all__ = ["IDLE_EVIDENCE", "RuleRounds", "idle_known_ms"]

IDLE_EVIDENCE = "idle_times_true_ms"
"""For how long the looks before the plan have seen that idle times are true."""
_EVIDENCE_AGE_MAX_MS = 300_000
"""As long as two looks may be apart (`coordination/idle_trust.py`)."""


_PASS_KEYS_MAX = 5_000
_PAUSE_MIN_MS = 250
_PAUSE_MAX_MS = 5_000
_PAUSE_UNREAD_MAX_MS = 60_000


@dataclass(slots=True, kw_only=True)
class RuleRounds:
    """Progress of one rule. `cursor` 0: a new round begins; `in_flight`: a pass was asked for and has not been
    answered."""

    rule: TtlRule
    keys_per_s: int
    cursor: int = 0
    round_started_ms: int = 0
    round_ms: int | None = None
    rounds: int = 0
    extended: int = 0
    failures: int = 0
    resting: str = ""
    """Why the last pass did not come about; empty where it did."""
    in_flight: bool = False
    retired: bool = False
    """A newer change governs the same pattern."""
    peak_before: float | None = None
    """Share of deadlines in the busiest second that the first pass found, 0..1; None where it met too few."""
    peak_now: float | None = None
    """What the passes since then have left, the newest that met enough."""

    @property
    def pass_keys(self) -> int:
        """Keys of one pass: at most what the budget gives for the longest pause."""
        return max(1, min(_PASS_KEYS_MAX, self.keys_per_s * _PAUSE_MAX_MS // 1000))

    @property
    def keeps_up(self) -> bool | None:
        """Whether the last round was short enough to find a key before its written TTL ran out; None before the first
        round."""
        return None if self.round_ms is None else self.round_ms < self.rule.revisit_ms

    def note_pass(self, done: TtlsExtended, now_ms: int) -> int:
        """Take the result of one pass and return when the next one is due, in milliseconds since the epoch.

        Within a round the pause is what the budget asks for. After a round it is half the written TTL less what the
        round took, so that a key is visited at least twice in its written life, bounded to 0.25..5 s; for a rule about
        keys that nobody reads a sixteenth of that time, up to a minute.
        """
        self.in_flight = False
        self.failures, self.resting = 0, ""
        self.cursor = done.cursor
        self.extended += done.extended
        self.peak_before = done.peak_found if self.peak_before is None else self.peak_before
        self.peak_now = self.peak_now if done.peak_left is None else done.peak_left
        budget_ms = -(-done.examined * 1000 // self.keys_per_s)
        if done.cursor:
            return now_ms + max(_PAUSE_MIN_MS, budget_ms)
        self.rounds += 1
        self.round_ms = max(0, now_ms - self.round_started_ms)
        spare_ms = self.rule.revisit_ms // 2 - self.round_ms
        longest_ms = _PAUSE_MAX_MS
        if self.rule.unread_ms:
            longest_ms = min(_PAUSE_UNREAD_MAX_MS, max(_PAUSE_MAX_MS, self.rule.unread_ms // 16))
        pause_ms = max(budget_ms, _PAUSE_MIN_MS, min(longest_ms, spare_ms))
        self.round_started_ms = now_ms + pause_ms
        return now_ms + pause_ms

    def note_failure(self, now_ms: int, reason: str = "") -> int:
        """Take a failed pass, whose outcome does not matter since a pass may be repeated; return when to try again."""
        self.in_flight = False
        self.resting = reason
        self.failures += 1
        return now_ms + int(min(30_000, _PAUSE_MIN_MS * 2 ** min(self.failures, 10)))


def idle_known_ms(proposal: Proposal, now_ms: int) -> int:
    """Return for how long, by the evidence of a plan, idle times have been true now; 0 where it is too old to say.

    Whoever carries the plan out has not looked at the cache meanwhile, and would have to wait for as long again.
    """
    age_ms = now_ms - proposal.created_at_ms
    if not 0 <= age_ms <= _EVIDENCE_AGE_MAX_MS:
        return 0
    told = next((e.value for e in proposal.evidence if e.name == IDLE_EVIDENCE), None)
    return int(told) + age_ms if isinstance(told, (int, float)) else 0
