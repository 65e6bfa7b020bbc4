"""How our own agents vote on a change: each from its own evidence, as the proposal and its verdict hold it.

The planner votes by its prediction, the validator by its verdict (and may veto), the collector by how well what the
proposal rests on was measured. None of them votes where it has nothing to go by: it abstains and says why. Together
they weigh as much as one peer, since they are one deployment.

INVARIANT: the same proposal and verdict give the same ballots; a denying verdict is always a veto.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachewarden.balloting import ABSTAIN, APPROVE, REJECT, Ballot, Motion, Voter, count
from cachewarden.balloting import Outcome as Counted
from cachewarden.consensus_rules import Algorithm, Option
from cachewarden.messages import AGENT_ID, Decision, Proposal, Verdict

__all__ = ["COLLECTOR", "OWN_VOTERS", "PLANNER", "VALIDATOR", "constitutional_score", "elect", "own_ballots"]

PLANNER, VALIDATOR, COLLECTOR = (f"{AGENT_ID}:{name}" for name in ("planner", "validator", "collector"))

_SHARE = 1.0 / 3.0
OWN_VOTERS: tuple[Voter, ...] = (
    Voter(voter_id=PLANNER, weight=_SHARE),
    Voter(voter_id=VALIDATOR, weight=_SHARE, veto=True),
    Voter(voter_id=COLLECTOR, voter_type="automated_system", weight=_SHARE),
)

_Z90 = 1.645


def constitutional_score(verdict: Verdict | None) -> float:
    """Return the share of findings that allow, 0 without a verdict."""
    if verdict is None or not verdict.findings:
        return 0.0
    return sum(f.decision is Decision.ALLOW for f in verdict.findings) / len(verdict.findings)


def own_ballots(subject: str, proposal: Proposal, verdict: Verdict | None, now_ms: int) -> tuple[Ballot, ...]:
    """Return the votes of planner, validator and collector on whether `proposal` is to be carried out."""
    votes = (
        (PLANNER, *_planner(proposal)),
        (VALIDATOR, *_validator(verdict)),
        (COLLECTOR, *_collector(proposal)),
    )
    return tuple(
        Ballot(
            subject=subject,
            voter_id=voter,
            choice=choice,
            confidence=confidence,
            reason=reason,
            cast_at_ms=now_ms,
            seen_at_ms=now_ms,
        )
        for voter, choice, confidence, reason in votes
    )


def _planner(proposal: Proposal) -> tuple[str, float, str]:
    gain = proposal.prediction.gain
    if gain.value < 0:
        return ABSTAIN, 0.0, f"it gives for others, itself it is predicted to lose {-gain.value:.4f} in hit ratio"
    chance = _chance_of_gain(gain.value, gain.low)
    told = f"predicted gain {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), {proposal.prediction.method}"
    return (APPROVE, chance, told) if chance >= 0.5 else (REJECT, 1.0 - chance, told)


def _chance_of_gain(value: float, low: float) -> float:
    """Return how likely the gain is above 0, with the lower half of its 90 % interval as that of a normal
    distribution."""
    deviation = (value - low) / _Z90
    if deviation <= 0:
        return 1.0 if value > 0 else 0.5
    return 0.5 * (1.0 + math.erf(value / deviation / math.sqrt(2.0)))


def _validator(verdict: Verdict | None) -> tuple[str, float, str]:
    if verdict is None:
        return REJECT, 1.0, "there is no verdict"
    if verdict.decision is Decision.DENY:
        return REJECT, 1.0, f"denied by {', '.join(verdict.denied_by) or 'no principle that could be asked'}"
    return APPROVE, 1.0, f"{len(verdict.findings)} principles allow it"


def _collector(proposal: Proposal) -> tuple[str, float, str]:
    """Say how likely the hit ratio was measured to within half of the gain that is promised (normal approximation)."""
    seen = next((e for e in proposal.evidence if e.name == "hit_ratio" and e.window_ms > 0), None)
    if seen is None or not isinstance(seen.value, (int, float)):
        return ABSTAIN, 0.0, "no measured hit ratio is among the evidence"
    lookups = proposal.prediction.lookups_per_s * seen.window_ms / 1000.0
    ratio = min(max(float(seen.value), 0.0), 1.0)
    if lookups < 1.0:
        return ABSTAIN, 0.0, "there were no lookups in the window that was measured"
    # One lookup more of either kind, so that a ratio of 0 or 1 in a short window is not taken for certain.
    smoothed = (ratio * lookups + 1.0) / (lookups + 2.0)
    error = math.sqrt(smoothed * (1.0 - smoothed) / lookups)
    certain = math.erf(abs(proposal.prediction.gain.value) / 2.0 / error / math.sqrt(2.0))
    told = f"the hit ratio was measured over {lookups:.0f} lookups, to about {_Z90 * error:.4f}"
    return (APPROVE, certain, told) if certain >= 0.5 else (ABSTAIN, 0.0, f"{told}, too coarse for the gain")


def elect(
    service: str,
    rivals: Sequence[tuple[Proposal, Verdict | None, float]],
    algorithm: Algorithm,
    now_ms: int,
) -> Counted:
    """Return which of several proposals for one service goes first, by the votes of our agents; `rivals` come with
    the weighted hits per second that each brings.

    The planner votes for the most hits, the collector for the best measured; the validator abstains, since all of them
    are lawful. It is closed at once.
    """
    options = tuple(
        Option(
            option_id=p.proposal_id,
            constitutional_score=constitutional_score(v),
            benefit=worth if math.isfinite(worth) else 1e18,
        )
        for p, v, worth in rivals
    )
    motion_id = f"rivals-{service}-{now_ms}"
    best = max(rivals, key=lambda r: (r[2], r[0].proposal_id))[0]
    measured = max(rivals, key=lambda r: (_collector(r[0])[1], r[2], r[0].proposal_id))[0]
    votes = (
        (PLANNER, best.proposal_id, *_planner(best)[1:]),
        (VALIDATOR, ABSTAIN, 0.0, "all of them are lawful"),
        (COLLECTOR, measured.proposal_id, *_collector(measured)[1:]),
    )
    motion = Motion(
        motion_id=motion_id,
        kind="service",
        service=service,
        options=options,
        electorate=OWN_VOTERS,
        algorithm=algorithm,
        quorum=0.0,
        opened_at_ms=now_ms,
        deadline_ms=now_ms,
    )
    ballots = tuple(
        Ballot(
            subject=motion_id,
            voter_id=voter,
            choice=choice,
            confidence=confidence,
            reason=reason,
            cast_at_ms=now_ms,
            seen_at_ms=now_ms,
        )
        for voter, choice, confidence, reason in votes
    )
    return count(motion, ballots, now_ms)
