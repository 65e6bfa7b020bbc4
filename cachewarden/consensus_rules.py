"""The rules by which votes make a decision: ACGS's seven by their names, and one that needs no votes.

Each rule is a function of options, counted votes (one per voter), the number of participants and thresholds, and gives
a winner with its score, or none with the reason. ACGS's rules are kept where they are sound and made safe where they
are not (`docs/INTEROP.md` lists the differences): an even split never succeeds for whoever voted first, a tie for the
first place has no winner, and no number of votes outweighs the constitution. It knows neither time nor who is entitled
(`balloting.py` does).

INVARIANT: the order of options and votes changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from cachewarden.messages import Message

__all__ = ["AUTHORITY", "EXPERTS", "RULES", "Algorithm", "Option", "Tally", "Thresholds", "Vote"]

AUTHORITY: Final[Mapping[str, int]] = MappingProxyType(
    {"coordinator": 100, "human_expert": 80, "senior_agent": 60, "agent": 40, "automated_system": 20}
)
"""Level of each type of voter in `hierarchical_override`, as in ACGS; any other type has none."""
EXPERTS: Final = frozenset({"human", "human_expert"})

_NEAR: Final = 1e-9
"""Sums of shares that differ by less are the same."""


class Algorithm(StrEnum):
    """The seven of ACGS's consensus engine, and `marginal_benefit`."""

    MAJORITY_VOTE = "majority_vote"
    WEIGHTED_VOTE = "weighted_vote"
    RANKED_CHOICE = "ranked_choice"
    CONSENSUS_THRESHOLD = "consensus_threshold"
    HIERARCHICAL_OVERRIDE = "hierarchical_override"
    CONSTITUTIONAL_PRIORITY = "constitutional_priority"
    EXPERT_MEDIATION = "expert_mediation"
    MARGINAL_BENEFIT = "marginal_benefit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option(Message):
    """What can be voted for. `benefit`: weighted hits per second that it is predicted to bring."""

    option_id: str
    description: str = ""
    constitutional_score: float = 0.5
    """0..1, weighted share of the principles that allow it."""
    benefit: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds(Message):
    """What each rule demands; ACGS's defaults."""

    weighted: float = 0.5
    ranked_margin: float = 0.6
    consensus: float = 0.8
    override_level: int = 60
    constitutional_score: float = 0.7
    experts: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One counted vote: no abstention, weight >= 0, confidence 0..1."""

    voter_id: str
    voter_type: str
    weight: float
    option_id: str
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Winner and its score, or None and who should look at it."""

    winner: str | None
    score: float
    reason: str
    escalate: str = ""


Rule = Callable[[Sequence[Option], Sequence[Vote], int, Thresholds], Tally]


def _sums(options: Sequence[Option], votes: Sequence[Vote], worth: Callable[[Vote], float]) -> dict[str, float]:
    sums = dict.fromkeys(sorted(o.option_id for o in options), 0.0)
    # Sorted, so that sums of floats do not depend on the order of the votes.
    for vote in sorted(votes, key=lambda v: v.voter_id):
        sums[vote.option_id] += worth(vote)
    return sums


def _leaders(sums: Mapping[str, float]) -> list[str]:
    top = max(sums.values())
    return [option for option, value in sums.items() if top - value <= _NEAR * max(1.0, abs(top))]


def _tied(leaders: Sequence[str]) -> Tally:
    names = ", ".join(f"`{option}`" for option in leaders)
    return Tally(winner=None, score=0.0, reason=f"a tie between {names}", escalate="human_review")


def _heads(_vote: Vote) -> float:
    return 1.0


def _strength(vote: Vote) -> float:
    return vote.weight * vote.confidence


def majority_vote(options: Sequence[Option], votes: Sequence[Vote], _participants: int, _least: Thresholds) -> Tally:
    """More than half of the votes cast, by heads."""
    sums = _sums(options, votes, _heads)
    winner = _leaders(sums)[0]
    share = sums[winner] / len(votes)
    told = f"`{winner}` has {int(sums[winner])} of {len(votes)} votes"
    if share > 0.5:
        return Tally(winner=winner, score=share, reason=told)
    return Tally(winner=None, score=0.0, reason=f"{told}, not more than half", escalate="human_review")


def weighted_vote(options: Sequence[Option], votes: Sequence[Vote], _participants: int, least: Thresholds) -> Tally:
    """The largest sum of weight times confidence, at least `least.weighted` of all; an even split has no winner."""
    sums = _sums(options, votes, _strength)
    total, leaders = sum(sums.values()), _leaders(sums)
    if total <= 0:
        return Tally(winner=None, score=0.0, reason="no vote has any weight", escalate="human_review")
    if len(leaders) > 1:
        return _tied(leaders)
    share = sums[leaders[0]] / total
    told = f"`{leaders[0]}` has {share:.2f} of weight times confidence"
    if share >= least.weighted:
        return Tally(winner=leaders[0], score=share, reason=told)
    return Tally(winner=None, score=0.0, reason=f"{told}, {least.weighted:g} are needed", escalate="human_review")


def ranked_choice(options: Sequence[Option], votes: Sequence[Vote], _participants: int, least: Thresholds) -> Tally:
    """The largest sum of confidence times weight, ahead of the second by at least `least.ranked_margin` of itself."""
    sums = _sums(options, votes, _strength)
    ranking = sorted(sums.items(), key=lambda entry: (-entry[1], entry[0]))
    (winner, top), second = ranking[0], (ranking[1][1] if len(ranking) > 1 else 0.0)
    if top <= 0:
        return Tally(winner=None, score=0.0, reason="no vote has any weight", escalate="human_review")
    margin = 1.0 if len(ranking) == 1 else (top - second) / top
    told = f"`{winner}` leads by {margin:.2f} of its sum"
    if margin >= least.ranked_margin:
        return Tally(winner=winner, score=margin, reason=told)
    return Tally(winner=None, score=0.0, reason=f"{told}, {least.ranked_margin:g} are needed", escalate="human_review")


def consensus_threshold(
    options: Sequence[Option], votes: Sequence[Vote], participants: int, least: Thresholds
) -> Tally:
    """The largest sum of confidence, over all participants (whoever is silent counts, whoever abstains does not)."""
    sums = _sums(options, votes, lambda vote: vote.confidence)
    leaders = _leaders(sums)
    if len(leaders) > 1:
        return _tied(leaders)
    score = sums[leaders[0]] / max(participants, len(votes), 1)
    told = f"`{leaders[0]}` has a mean confidence of {score:.2f} over {participants} participants"
    if score >= least.consensus:
        return Tally(winner=leaders[0], score=score, reason=told)
    # As in ACGS: it stays failed, nobody is called.
    return Tally(winner=None, score=0.0, reason=f"{told}, {least.consensus:g} are needed")


def hierarchical_override(
    options: Sequence[Option], votes: Sequence[Vote], participants: int, least: Thresholds
) -> Tally:
    """What the highest level wants, if that is at least `least.override_level`; else a majority of several."""
    level = max((AUTHORITY.get(v.voter_type, 0) for v in votes), default=0)
    if level >= least.override_level:
        highest = [v for v in votes if AUTHORITY.get(v.voter_type, 0) == level]
        sums = _sums(options, highest, _strength)
        leaders = _leaders(sums)
        if len(leaders) > 1 or sums[leaders[0]] <= 0:
            return _tied(leaders)
        types = ", ".join(sorted({v.voter_type for v in highest}))
        return Tally(winner=leaders[0], score=level / 100.0, reason=f"`{leaders[0]}` by the level of {types}")
    if len(votes) < 2:
        return Tally(winner=None, score=0.0, reason="nobody has the level to decide, and one vote is no majority")
    found = majority_vote(options, votes, participants, least)
    return Tally(winner=found.winner, score=found.score, reason=f"nobody has the level to decide; {found.reason}")


def constitutional_priority(
    options: Sequence[Option], votes: Sequence[Vote], _participants: int, least: Thresholds
) -> Tally:
    """0.7 of the constitutional score plus 0.3 of the share of the votes; the winner's score must be high by itself.

    ACGS adds the bare sum of the votes, which a crowd can raise above any score; the share cannot be.
    """
    sums = _sums(options, votes, _strength)
    total = sum(sums.values())
    scores = {
        o.option_id: 0.7 * o.constitutional_score + (0.3 * sums[o.option_id] / total if total > 0 else 0.0)
        for o in sorted(options, key=lambda o: o.option_id)
    }
    leaders = _leaders(scores)
    if len(leaders) > 1:
        return _tied(leaders)
    winner = next(o for o in options if o.option_id == leaders[0])
    told = f"`{winner.option_id}` has {scores[winner.option_id]:.2f}, its constitutional score is "
    told += f"{winner.constitutional_score:.2f}"
    if winner.constitutional_score >= least.constitutional_score:
        return Tally(winner=winner.option_id, score=scores[winner.option_id], reason=told)
    needed = f"{told}, {least.constitutional_score:g} are needed"
    return Tally(winner=None, score=0.0, reason=needed, escalate="human_review")


def expert_mediation(options: Sequence[Option], votes: Sequence[Vote], _participants: int, least: Thresholds) -> Tally:
    """What at least `least.experts` of the human experts want, by heads."""
    experts = [v for v in votes if v.voter_type in EXPERTS]
    if not experts:
        return Tally(winner=None, score=0.0, reason="no expert has voted")
    sums = _sums(options, experts, _heads)
    leaders = _leaders(sums)
    share = sums[leaders[0]] / len(experts)
    told = f"`{leaders[0]}` has {int(sums[leaders[0]])} of {len(experts)} experts"
    if len(leaders) == 1 and share >= least.experts:
        return Tally(winner=leaders[0], score=share, reason=told)
    return Tally(winner=None, score=0.0, reason=f"{told}, a share of {least.experts:g} is needed", escalate="experts")


def marginal_benefit(
    options: Sequence[Option], _votes: Sequence[Vote], _participants: int, _least: Thresholds
) -> Tally:
    """The option with the most weighted hits per second; votes do not matter. Ties go to the id that sorts first."""
    best = min(options, key=lambda o: (-o.benefit, o.option_id))
    return Tally(
        winner=best.option_id, score=best.benefit, reason=f"`{best.option_id}` brings {best.benefit:+.2f} hits/s"
    )


RULES: Final[Mapping[Algorithm, Rule]] = MappingProxyType(
    {
        Algorithm.MAJORITY_VOTE: majority_vote,
        Algorithm.WEIGHTED_VOTE: weighted_vote,
        Algorithm.RANKED_CHOICE: ranked_choice,
        Algorithm.CONSENSUS_THRESHOLD: consensus_threshold,
        Algorithm.HIERARCHICAL_OVERRIDE: hierarchical_override,
        Algorithm.CONSTITUTIONAL_PRIORITY: constitutional_priority,
        Algorithm.EXPERT_MEDIATION: expert_mediation,
        Algorithm.MARGINAL_BENEFIT: marginal_benefit,
    }
)
