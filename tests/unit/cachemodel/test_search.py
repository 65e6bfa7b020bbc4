"""The search: what it evaluates, whom it drops, when it stops, and that it prefers no change."""

from __future__ import annotations

from itertools import permutations

import pytest

from cachewarden.cachemodel.search import Conclusion, Evaluation, Finding, Search, SearchOutcome, run_search
from cachewarden.estimate import Estimate

ACCESSES = 1_000_000


def judge(gains: dict[str, float], margin: float = 0.01):
    """Return an evaluator that knows the true gains and whose interval shrinks with the root of the share."""

    def evaluate(evaluation: Evaluation[str]) -> Finding[str]:
        spread = margin / evaluation.share**0.5
        return Finding(evaluation, Estimate.around(gains[evaluation.candidate], spread))

    return evaluate


def run(search: Search[str], evaluate) -> SearchOutcome[str]:
    return run_search(search, lambda share, baseline: evaluate)


def search_of(*names: str, budget: int = 10**9, **options: object) -> Search[str]:
    return Search(("now", *names), accesses=ACCESSES, budget_accesses=budget, **options)  # type: ignore[arg-type]


GAINS = {"a": 0.01, "b": 0.05, "c": -0.02, "d": 0.02, "e": 0.0, "f": 0.03, "g": -0.1, "h": 0.005}


def test_where_the_budget_allows_every_candidate_is_evaluated_on_the_whole_sample() -> None:
    search = search_of(*GAINS)
    batch = search.next_batch()
    assert [e.candidate for e in batch] == list(GAINS)
    assert {e.share for e in batch} == {1.0}
    assert search.exhaustive
    outcome = run(search, judge(GAINS))
    assert (outcome.conclusion, outcome.best) == (Conclusion.CHANGE, "b")
    assert outcome.accesses == (len(GAINS) + 1) * ACCESSES


def test_a_tight_budget_halves_the_candidates_and_doubles_the_share() -> None:
    search = search_of(*GAINS, budget=4 * ACCESSES)
    rungs = []
    evaluate = judge(GAINS, margin=0.004)
    while batch := search.next_batch():
        rungs.append((len(batch), batch[0].share))
        search.told([evaluate(e) for e in batch])
    outcome = search.outcome()
    assert outcome.best == "b"
    assert not search.exhaustive
    assert outcome.accesses <= 4 * ACCESSES
    assert [n for n, _ in rungs] == sorted((n for n, _ in rungs), reverse=True)
    assert [s for _, s in rungs] == sorted(s for _, s in rungs)
    assert len(rungs) >= 2


def test_the_search_stops_as_soon_as_the_interval_of_the_best_excludes_the_rest() -> None:
    search = search_of("good", "bad", budget=ACCESSES)
    outcome = run(search, judge({"good": 0.2, "bad": -0.2}, margin=0.001))
    assert outcome.best == "good"
    assert outcome.accesses <= ACCESSES
    assert "surely below good" in outcome.trail[1].fate
    assert outcome.trail[1].share < 1.0


def test_it_stops_as_soon_as_nothing_can_gain_enough() -> None:
    outcome = run(search_of(*"abcd", budget=ACCESSES), judge(dict.fromkeys("abcd", 0.0), margin=0.0001))
    assert outcome.conclusion is Conclusion.NO_CHANGE
    assert outcome.best == "now"
    assert outcome.gain == Estimate(0.0, 0.0, 0.0)
    assert outcome.accesses <= ACCESSES


def test_no_change_is_preferred_when_the_interval_includes_the_minimum_gain() -> None:
    outcome = run(search_of("a"), judge({"a": 0.008}, margin=0.004))
    assert outcome.conclusion is Conclusion.NO_CHANGE
    assert "not surely more than the 0.50" in outcome.reason


def test_an_interval_too_wide_to_tell_is_not_enough_evidence_and_says_what_was_found() -> None:
    outcome = run(search_of("a"), judge({"a": 0.03}, margin=0.2))
    assert outcome.conclusion is Conclusion.NOT_ENOUGH_EVIDENCE
    assert outcome.best == "now"
    assert "+3.00 points (-17.00 to +23.00)" in outcome.reason


def test_what_cannot_be_evaluated_is_left_out_with_its_reason() -> None:
    search = search_of("a", "b")
    evaluations = search.next_batch()
    good = Estimate.around(0.1, 0.01)
    search.told([Finding(evaluations[0], None, "too few keys"), Finding(evaluations[1], good)])
    outcome = search.outcome()
    assert outcome.best == "b"
    assert outcome.trail[0].fate == "too few keys"


def test_without_any_finding_there_is_not_enough_evidence_and_the_reasons_are_given() -> None:
    search = search_of("a", "b")
    search.told([Finding(e, None, "too few keys") for e in search.next_batch()])
    outcome = search.outcome()
    assert (outcome.conclusion, outcome.reason) == (Conclusion.NOT_ENOUGH_EVIDENCE, "too few keys")


def test_a_handicap_must_be_made_good_before_a_candidate_is_taken() -> None:
    gains = {"lru": 0.050, "lfu": 0.058}
    assert run(search_of(*gains), judge(gains)).best == "lfu"
    held_back = search_of(*gains, handicap=lambda name: 0.01 if name == "lfu" else 0.0)
    assert run(held_back, judge(gains)).best == "lru"


def test_of_equals_the_first_is_taken() -> None:
    assert run(search_of("a", "b", "c"), judge(dict.fromkeys("abc", 0.1))).best == "a"


def test_a_deadline_ends_the_search_with_what_is_known_and_the_trail_says_so() -> None:
    search = search_of("a", "b")
    evaluations = search.next_batch()
    search.told([judge({"a": 0.1})(evaluations[0])])
    search.stop("the deadline of 5 s has passed")
    outcome = search.outcome()
    assert outcome.best == "a"
    assert outcome.trail[1].fate == "not evaluated: the deadline of 5 s has passed"
    assert search.next_batch() == ()


def test_a_cache_with_nothing_to_try_stays_as_it_is() -> None:
    search = search_of()
    assert search.next_batch() == ()
    assert search.outcome().conclusion is Conclusion.NO_CHANGE


def test_findings_may_come_in_any_order_and_the_outcome_is_the_same() -> None:
    outcomes = set()
    for order in permutations(range(4)):
        search = search_of(*"abcd", budget=2 * ACCESSES)
        while batch := search.next_batch():
            findings = [judge(GAINS, margin=0.005)(e) for e in batch]
            for place in order:
                if place < len(findings):
                    search.told([findings[place]])
        outcomes.add(search.outcome())
    assert len(outcomes) == 1


def test_a_finding_that_nobody_asked_for_is_refused_and_changes_nothing() -> None:
    search = search_of("a")
    (asked,) = search.next_batch()
    other = Evaluation(1, "a", "now", 0.5)
    with pytest.raises(ValueError, match="not asked for"):
        search.told([Finding(other, Estimate(0.1, 0.1, 0.1))])
    assert search.next_batch() == (asked,)
    with pytest.raises(ValueError, match="goes on"):
        search.outcome()


@pytest.mark.parametrize(
    ("candidates", "options"),
    [
        ((), {}),
        (("now", "a", "a"), {}),
        (("now", "a"), {"accesses": 0}),
        (("now", "a"), {"budget_accesses": 0}),
        (("now", "a"), {"minimum_gain": 2.0}),
        (("now", "a"), {"least_share": -0.1}),
    ],
)
def test_impossible_searches_are_refused(candidates: tuple[str, ...], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"candidates|sample|minimum"):
        Search(candidates, **{"accesses": 1, "budget_accesses": 1, **options})  # type: ignore[arg-type]
