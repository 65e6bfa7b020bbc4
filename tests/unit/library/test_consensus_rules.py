"""The rules that make a decision of votes: ACGS's winners where they are sound, no winner where they are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.consensus_rules import AUTHORITY, RULES, Algorithm, Option, Thresholds, Vote

A, B, C = (Option(option_id=name) for name in "abc")


def vote(voter: str, option: str, confidence: float = 1.0, kind: str = "agent", weight: float = 1.0) -> Vote:
    return Vote(voter_id=voter, voter_type=kind, weight=weight, option_id=option, confidence=confidence)


def tally(algorithm: Algorithm, *votes: Vote, options=(A, B), participants: int | None = None, least=None):
    return RULES[algorithm](options, votes, participants or len(votes), least or Thresholds())


def winner(algorithm: Algorithm, *votes: Vote, **more) -> str | None:
    return tally(algorithm, *votes, **more).winner


def test_a_majority_needs_more_than_half_of_the_votes():
    assert winner(Algorithm.MAJORITY_VOTE, vote("x", "a"), vote("y", "a"), vote("z", "b")) == "a"
    split = tally(Algorithm.MAJORITY_VOTE, vote("x", "a"), vote("y", "b"))
    assert (split.winner, split.escalate) == (None, "human_review")


def test_a_weighted_vote_counts_weight_times_confidence():
    assert winner(Algorithm.WEIGHTED_VOTE, vote("x", "a", 0.9, weight=3.0), vote("y", "b"), vote("z", "b")) == "a"


def test_an_even_weighted_split_succeeds_for_nobody_though_acgs_lets_the_first_voter_win():
    assert winner(Algorithm.WEIGHTED_VOTE, vote("x", "a"), vote("y", "b")) is None


def test_weight_zero_decides_nothing():
    assert winner(Algorithm.WEIGHTED_VOTE, vote("x", "a", weight=0.0)) is None
    assert winner(Algorithm.RANKED_CHOICE, vote("x", "a", 0.0)) is None


def test_ranked_choice_needs_a_clear_lead():
    assert winner(Algorithm.RANKED_CHOICE, vote("x", "a"), vote("y", "a"), vote("z", "b", 0.7)) == "a"
    assert winner(Algorithm.RANKED_CHOICE, vote("x", "a"), vote("y", "b", 0.7)) is None
    assert winner(Algorithm.RANKED_CHOICE, vote("x", "a", 0.1), options=(A,)) == "a"


def test_the_consensus_threshold_counts_whoever_is_silent():
    votes = (vote("x", "a"), vote("y", "a"))
    assert winner(Algorithm.CONSENSUS_THRESHOLD, *votes, participants=2) == "a"
    silent = tally(Algorithm.CONSENSUS_THRESHOLD, *votes, participants=3)
    assert (silent.winner, silent.escalate) == (None, "")


def test_the_highest_level_overrides_a_crowd():
    crowd = [vote(f"agent{i}", "a") for i in range(9)]
    assert winner(Algorithm.HIERARCHICAL_OVERRIDE, *crowd, vote("boss", "b", kind="coordinator")) == "b"


def test_two_of_the_highest_level_who_disagree_decide_nothing():
    votes = (vote("one", "a", kind="coordinator"), vote("two", "b", kind="coordinator"), vote("x", "a"))
    assert winner(Algorithm.HIERARCHICAL_OVERRIDE, *votes) is None


def test_without_a_high_level_a_majority_of_several_decides_and_a_single_vote_does_not():
    assert winner(Algorithm.HIERARCHICAL_OVERRIDE, vote("x", "a"), vote("y", "a")) == "a"
    assert winner(Algorithm.HIERARCHICAL_OVERRIDE, vote("x", "a")) is None
    assert winner(Algorithm.HIERARCHICAL_OVERRIDE, vote("x", "a", kind="stranger")) is None


def test_no_crowd_outvotes_the_constitution():
    lawful, unlawful = Option(option_id="a", constitutional_score=1.0), Option(option_id="b", constitutional_score=0.5)
    crowd = [vote(f"agent{i}", "b") for i in range(50)]
    assert winner(Algorithm.CONSTITUTIONAL_PRIORITY, *crowd, options=(lawful, unlawful)) == "a"


def test_a_winner_of_low_constitutional_score_does_not_win():
    low = Option(option_id="a", constitutional_score=0.6)
    assert winner(Algorithm.CONSTITUTIONAL_PRIORITY, vote("x", "a"), options=(low,)) is None


def test_only_human_experts_mediate():
    votes = [vote("ann", "a", kind="human_expert"), vote("bob", "a", kind="human"), vote("x", "b"), vote("y", "b")]
    assert winner(Algorithm.EXPERT_MEDIATION, *votes) == "a"
    assert winner(Algorithm.EXPERT_MEDIATION, *votes[2:]) is None
    split = tally(Algorithm.EXPERT_MEDIATION, *votes[:2], vote("cy", "b", kind="human"))
    assert (split.winner, split.escalate) == (None, "experts")


def test_marginal_benefit_asks_nobody():
    options = (Option(option_id="a", benefit=3.0), Option(option_id="b", benefit=5.0))
    assert winner(Algorithm.MARGINAL_BENEFIT, vote("x", "a"), options=options) == "b"


OPTIONS = [
    Option(option_id="a", constitutional_score=1.0, benefit=1.0),
    Option(option_id="b", constitutional_score=0.8, benefit=2.0),
    Option(option_id="c", constitutional_score=0.2, benefit=2.0),
]
VOTES = st.lists(
    st.builds(
        vote,
        voter=st.integers(0, 30).map(str),
        option=st.sampled_from("abc"),
        confidence=st.floats(0, 1),
        kind=st.sampled_from([*AUTHORITY, "human", "stranger"]),
        weight=st.floats(0, 5),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda v: v.voter_id,
)


@pytest.mark.parametrize("algorithm", list(Algorithm))
@given(votes=VOTES, data=st.data())
def test_the_order_of_votes_and_options_changes_nothing(algorithm, votes, data):
    shuffled = data.draw(st.permutations(votes))
    options = data.draw(st.permutations(OPTIONS))
    one = RULES[algorithm](OPTIONS, votes, len(votes), Thresholds())
    assert RULES[algorithm](options, shuffled, len(votes), Thresholds()) == one


@pytest.mark.parametrize("algorithm", [a for a in Algorithm if a is not Algorithm.MARGINAL_BENEFIT])
@given(votes=VOTES)
def test_what_everybody_rejects_never_wins_against_what_everybody_wants(algorithm, votes):
    unanimous = [vote(v.voter_id, "a", v.confidence, v.voter_type, v.weight) for v in votes]
    assert RULES[algorithm](OPTIONS, unanimous, len(votes), Thresholds()).winner in ("a", None)
