"""Who may vote, which ballots count, when a motion is closed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachewarden.balloting import (
    APPROVE,
    CLOCK_SKEW_MS_MAX,
    REJECT,
    Ballot,
    Motion,
    MotionState,
    Standing,
    Voter,
    count,
)
from cachewarden.codec import decode, to_jsonable
from cachewarden.consensus_rules import Algorithm, Option
from cachewarden.messages import AGENT_ID

T0 = 1_800_000_000_000
DEADLINE = T0 + 10_000


def motion(algorithm=Algorithm.MAJORITY_VOTE, quorum=0.5, **more) -> Motion:
    fields = {
        "motion_id": "p-1",
        "kind": "change",
        "service": "shop",
        "options": (Option(option_id=APPROVE, constitutional_score=1.0), Option(option_id=REJECT)),
        "electorate": (Voter(voter_id="ann"), Voter(voter_id="bob"), Voter(voter_id="judge", veto=True)),
        "opened_at_ms": T0,
        "deadline_ms": DEADLINE,
        "subjects": ("c-1",),
    }
    return Motion(algorithm=algorithm, quorum=quorum, **(fields | more))


def ballot(voter="ann", choice=APPROVE, at=1, **more) -> Ballot:
    fields = {"subject": "p-1", "confidence": 1.0, "reason": "so", "cast_at_ms": T0 + at, "seen_at_ms": T0 + at}
    return Ballot(voter_id=voter, choice=choice, **(fields | {"item_id": f"{voter}-{at}"} | more))


def standings(outcome) -> dict[str, str]:
    return {e.ballot.item_id: e.standing.value for e in outcome.ballots}


def test_a_motion_is_open_until_everybody_has_voted():
    assert count(motion(), [ballot("ann"), ballot("bob")], T0 + 2).state is MotionState.OPEN
    done = count(motion(), [ballot("ann"), ballot("bob"), ballot("judge")], T0 + 2)
    assert (done.state, done.winner) == (MotionState.DECIDED, APPROVE)


def test_the_deadline_closes_a_motion_with_whoever_has_voted():
    outcome = count(motion(), [ballot("ann"), ballot("bob")], DEADLINE + 1, looked_ms=DEADLINE + 1)
    assert (outcome.state, outcome.winner) == (MotionState.DECIDED, APPROVE)


def test_our_own_voters_do_not_count_towards_the_quorum():
    own = [f"{AGENT_ID}:{name}" for name in ("planner", "validator", "collector")]
    voters = tuple(Voter(voter_id=name) for name in (*own, "ann", "bob"))
    ours = [ballot(name) for name in own]
    silent = count(motion(electorate=voters), ours, DEADLINE + 1, looked_ms=DEADLINE + 1)
    assert (silent.state, silent.winner) == (MotionState.FAILED, None)
    assert "silent: `ann`, `bob`" in silent.reason
    one = count(motion(electorate=voters), [*ours, ballot("ann")], DEADLINE + 1, looked_ms=DEADLINE + 1)
    assert one.winner == APPROVE


def test_without_a_quorum_nothing_is_approved():
    outcome = count(motion(quorum=0.9), [ballot("ann"), ballot("bob")], DEADLINE + 1, looked_ms=DEADLINE + 1)
    assert (outcome.state, outcome.winner, outcome.escalate) == (MotionState.FAILED, None, "human_review")
    assert "2 of 3 peers voted, 3 are needed; silent: `judge`" in outcome.reason


def test_nobody_at_all_is_no_quorum_even_where_none_is_demanded():
    assert count(motion(quorum=0.0), [], DEADLINE).state is MotionState.FAILED


def test_a_veto_ends_a_motion_at_once():
    outcome = count(motion(), [ballot("ann"), ballot("judge", REJECT)], T0 + 2)
    assert (outcome.state, outcome.winner) == (MotionState.DECIDED, REJECT)
    assert "vetoed by `judge`: so" in outcome.reason


def test_an_abstention_is_neither_a_yes_nor_a_no_but_counts_for_the_quorum():
    votes = [ballot("ann"), ballot("bob", "abstain"), ballot("judge", "abstain")]
    assert count(motion(quorum=1.0), votes, T0 + 2).winner == APPROVE
    everybody = [ballot(v, "abstain") for v in ("ann", "bob", "judge")]
    assert count(motion(), everybody, T0 + 2).state is MotionState.FAILED


def test_who_votes_twice_is_counted_once_with_the_last_ballot():
    votes = [ballot("ann", at=1), ballot("ann", REJECT, at=5), ballot("bob", REJECT, at=2), ballot("judge", at=2)]
    outcome = count(motion(), votes, T0 + 9)
    assert outcome.winner == REJECT
    assert standings(outcome) == {"ann-1": "replaced", "ann-5": "counted", "bob-2": "counted", "judge-2": "counted"}


def test_the_same_item_that_is_read_again_is_the_same_ballot():
    again = ballot("ann", seen_at_ms=T0 + 900)
    outcome = count(motion(), [ballot("ann"), again, ballot("ann")], T0 + 950)
    assert [e.ballot.seen_at_ms for e in outcome.ballots] == [T0 + 1]


def test_strangers_votes_for_nobody_late_and_future_votes_are_kept_but_do_not_count():
    votes = [
        ballot("stranger"),
        ballot("ann", "perhaps"),
        ballot("bob", at=20_000, seen_at_ms=DEADLINE + 10_000),
        ballot("judge", at=5_000, seen_at_ms=T0 - CLOCK_SKEW_MS_MAX),
    ]
    outcome = count(motion(), votes, DEADLINE)
    assert {e.standing for e in outcome.ballots} == {Standing.REFUSED}
    notes = " ".join(e.note for e in outcome.ballots)
    for word in ("not entitled", "for nobody", "after the deadline", "future"):
        assert word in notes
    assert outcome.state is MotionState.FAILED


def test_a_ballot_that_names_the_conflict_is_about_the_motion_too():
    assert count(motion(), [ballot("judge", REJECT, subject="c-1")], T0 + 2).winner == REJECT
    assert count(motion(), [ballot("judge", REJECT, subject="p-2")], T0 + 2).state is MotionState.OPEN


def test_a_confidence_that_is_no_share_does_not_count():
    for wrong in (1.5, -0.1, float("nan"), float("inf")):
        [entry] = count(motion(), [ballot("ann", confidence=wrong)], T0 + 2).ballots
        assert entry.standing is Standing.REFUSED


def test_an_outcome_survives_the_journal():
    outcome = count(motion(), [ballot("ann"), ballot("bob", "abstain")], DEADLINE)
    assert decode(type(outcome), to_jsonable(outcome)) == outcome


BALLOTS = st.lists(
    st.builds(
        ballot,
        voter=st.sampled_from(["ann", "bob", "judge", "stranger", ""]),
        choice=st.sampled_from([APPROVE, REJECT, "abstain", "", "*"]),
        at=st.integers(-100, 20_000),
        confidence=st.floats(allow_nan=True),
        subject=st.sampled_from(["p-1", "c-1", "p-2"]),
    ),
    max_size=12,
)


@given(BALLOTS, st.data(), st.integers(T0, DEADLINE + 5), st.sampled_from(list(Algorithm)))
def test_whatever_comes_in_whatever_order_the_outcome_is_the_same_and_nobody_counts_twice(
    ballots, data, now, algorithm
):
    one = count(motion(algorithm), ballots, now)
    # Compared as text, since a confidence that is no number equals nothing.
    assert repr(count(motion(algorithm), data.draw(st.permutations(ballots)), now)) == repr(one)
    cast = [e.ballot.voter_id for e in one.ballots if e.standing in (Standing.COUNTED, Standing.ABSTAINED)]
    assert len(cast) == len(set(cast))
    assert set(cast) <= {"ann", "bob", "judge"}
    assert (one.winner is None) == (one.state is not MotionState.DECIDED)
    if now >= DEADLINE:
        assert one.state is not MotionState.OPEN
