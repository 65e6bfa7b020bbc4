"""Predictions beside what then happened: errors, coverage, and the factor that intervals are corrected by."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.cachemodel.scoring import (
    FACTOR_EVIDENCE,
    FACTOR_MAX,
    OUTCOMES_MAX,
    OUTCOMES_MIN,
    RECORD_KINDS,
    Outcome,
    comparable_window,
    interval_factor,
    method_family,
    outcome_of,
    outcomes_from_records,
    score,
)
from cachewarden.codec import to_jsonable
from cachewarden.estimate import Estimate
from cachewarden.messages import (
    ActionClass,
    AuditRecord,
    Evidence,
    Execution,
    ExecutionState,
    Prediction,
    Proposal,
    RecordKind,
)

RATIO = Estimate(0.8, 0.75, 0.85)


def _outcome(number: int = 0, realised: float = 0.8, predicted: Estimate = RATIO, **changes: object) -> Outcome:
    outcome = Outcome(
        proposal_id=f"p-{number}",
        service="api",
        at_ms=number,
        method="observed hit ratio plus modelled difference, from reuse times of a capture of 5 s",
        kinds=("memory",),
        predicted=predicted,
        realised=realised,
        kept=True,
    )
    return replace(outcome, **changes)  # type: ignore[arg-type]


def _proposal(number: int = 0, factor: float | None = None) -> Proposal:
    evidence = () if factor is None else (Evidence(name=FACTOR_EVIDENCE, value=factor, source="score"),)
    return Proposal(
        proposal_id=f"p-{number}",
        service="api",
        author="planner",
        created_at_ms=0,
        expires_at_ms=1,
        kinds=("ttl",),
        knob_changes=(),
        ttl_rules=(),
        action_class=ActionClass.REVERSIBLE,
        reversible=True,
        playbook="direct",
        rollback="",
        rationale="",
        evidence=evidence,
        cost={},
        prediction=Prediction(
            hit_ratio_before=Estimate(0.7, 0.7, 0.7),
            hit_ratio_after=RATIO,
            gain=Estimate(0.1, 0.05, 0.15),
            lookups_per_s=100,
            memory_bytes_after=1,
            latency_us_p99_after=None,
            method="replay",
            settle_ms=1,
        ),
    )


def _record(kind: RecordKind, seq: int, payload: dict[str, object], subject: str = "p-0") -> AuditRecord:
    return AuditRecord(
        seq=seq,
        at_ms=1_000 + seq,
        kind=kind.value,
        agent="actuator",
        service="api",
        subject_id=subject,
        payload=payload,
        prev_hash="",
        hash="",
    )


def _intended(seq: int = 1, factor: float | None = None) -> AuditRecord:
    return _record(RecordKind.CHANGE_INTENDED, seq, {"proposal": to_jsonable(_proposal(factor=factor))})


# --- Figures


def test_errors_are_realised_minus_predicted_and_coverage_counts_what_fell_inside():
    found = score([_outcome(1, 0.82), _outcome(2, 0.74), _outcome(3, 0.90), _outcome(4, 0.80)])
    assert found.overall is not None
    assert found.overall.mean_error == pytest.approx((0.02 - 0.06 + 0.10) / 4)
    assert found.overall.mean_absolute_error == pytest.approx(0.18 / 4)
    assert found.overall.coverage.value == 0.5
    assert 0.0 < found.overall.coverage.low < 0.5 < found.overall.coverage.high < 1.0


def test_methods_are_told_apart_without_the_figures_of_the_single_case():
    longer = "observed hit ratio plus modelled difference, from reuse times of a capture of 60 s"
    found = score([_outcome(1), _outcome(2, method=longer), _outcome(3, method="modelled", kinds=("memory", "ttl"))])
    assert [(g.name, g.outcomes) for g in found.by_kind] == [("memory", 3), ("ttl", 1)]
    assert [g.outcomes for g in found.by_method] == [1, 2]
    assert method_family(longer).endswith("a capture of n s")


def test_what_cannot_be_compared_is_left_out_and_counted():
    found = score([_outcome(1), _outcome(2, 0.1, comparable=False)])
    assert found.overall is not None
    assert (found.overall.outcomes, found.left_out, found.overall.coverage.value) == (1, 1, 1.0)


def test_without_outcomes_there_is_no_figure_and_no_correction():
    found = score([])
    assert (found.overall, found.by_method, found.interval_factor) == (None, (), 1.0)
    assert "too few" in found.reason


def test_only_the_newest_outcomes_count():
    old = [_outcome(n, 0.1) for n in range(300)]
    new = [_outcome(1_000 + n) for n in range(OUTCOMES_MAX)]
    found = score([*new, *old])
    assert found.overall is not None
    assert (found.overall.outcomes, found.overall.coverage.value) == (OUTCOMES_MAX, 1.0)


# --- The factor


def test_a_few_misses_are_too_few_to_correct_by():
    assert interval_factor([_outcome(n, 0.5) for n in range(OUTCOMES_MIN - 1)]) == 1.0


def test_intervals_that_hold_nine_of_ten_are_left_as_they_are():
    outcomes = [_outcome(n) for n in range(9)] + [_outcome(9, 0.2)]
    assert interval_factor(outcomes) == 1.0
    assert "left as they are" in score(outcomes).reason


def test_intervals_that_are_half_as_wide_as_they_should_be_are_doubled():
    outcomes = [_outcome(n, 0.8 - 0.01 * n) for n in range(11)]
    assert interval_factor(outcomes) == pytest.approx(0.09 / 0.05)


def test_the_factor_has_a_bound_and_says_so():
    outcomes = [_outcome(n, 0.2) for n in range(12)]
    found = score(outcomes)
    assert found.interval_factor == FACTOR_MAX
    assert "the most that is permitted" in found.reason


def test_a_correction_in_force_is_not_taken_for_a_better_model():
    # Given outcomes 1.8 times outside of what the models gave
    raw = [_outcome(n, 0.8 - 0.01 * n) for n in range(11)]
    factor = interval_factor(raw)
    # When the same outcomes meet intervals that were widened by that factor
    widened = [replace(o, predicted=o.predicted.stretched(factor, 0, 1), widened_by=factor) for o in raw]
    # Then they fall inside, and the factor stays
    assert score(widened).overall.coverage.value >= 0.9  # type: ignore[union-attr]
    assert interval_factor(widened) == pytest.approx(factor)


def test_an_interval_that_ends_at_a_bound_needs_no_widening_there():
    near_one = Estimate(0.99, 0.95, 1.0)
    assert _outcome(0, 1.0, near_one, widened_by=3.0).stretch == 0.0
    assert _outcome(0, 0.97, near_one).stretch == pytest.approx(0.5)


def test_a_side_without_width_is_a_miss_that_no_factor_mends():
    one_sided = Estimate(0.8, 0.7, 0.8)
    outcomes = [_outcome(n, 0.85, one_sided) for n in range(20)]
    assert outcomes[0].stretch is None
    assert interval_factor(outcomes) == 1.0
    assert score(outcomes).overall.coverage.value == 0.0  # type: ignore[union-attr]


RATIOS = st.floats(0.0, 1.0).map(lambda x: round(x, 6))
OUTCOMES = st.lists(st.tuples(RATIOS, RATIOS, RATIOS, RATIOS), min_size=OUTCOMES_MIN, max_size=60).map(
    lambda rows: [
        _outcome(n, realised, Estimate(*(sorted(three)[i] for i in (1, 0, 2))))
        for n, (realised, *three) in enumerate(rows)
    ]
)


@given(OUTCOMES)
def test_with_the_factor_nine_of_ten_outcomes_would_have_been_inside(outcomes: list[Outcome]):
    factor = interval_factor(outcomes)
    assert 1.0 <= factor <= FACTOR_MAX
    mendable = [o for o in outcomes if o.stretch is not None]
    inside = sum(o.predicted.stretched(factor, 0.0, 1.0).holds(o.realised) for o in mendable)
    assert factor == FACTOR_MAX or len(mendable) < OUTCOMES_MIN or 10 * inside >= 9 * len(mendable)


@given(OUTCOMES, st.randoms(use_true_random=False))
def test_the_order_of_outcomes_does_not_matter(outcomes: list[Outcome], shuffler):
    shuffled = list(outcomes)
    shuffler.shuffle(shuffled)
    assert score(shuffled) == score(outcomes)


# --- Where outcomes come from


def test_a_kept_change_is_scored_from_its_records():
    records = [
        _intended(),
        _record(RecordKind.OBSERVED, 2, {"lookups": 5_000, "problem": None, "traffic_shifted": False}),
        _record(RecordKind.CHANGE_KEPT, 3, {"hit_ratio_after": 0.79, "comparable": True}),
    ]
    (outcome,) = outcomes_from_records(records)
    assert (outcome.predicted, outcome.realised, outcome.kept, outcome.kinds) == (RATIO, 0.79, True, ("ttl",))
    assert (outcome.at_ms, outcome.widened_by, outcome.comparable, outcome.inside) == (1_003, 1.0, True, True)
    assert {r.kind for r in records} <= set(RECORD_KINDS)


def test_a_change_that_was_taken_back_is_scored_by_its_last_window():
    ending = _record(RecordKind.CHANGE_ROLLED_BACK, 2, {"hit_ratio_after": 0.6})
    (outcome,) = outcomes_from_records([_intended(factor=1.5), ending])
    assert (outcome.kept, outcome.inside, outcome.widened_by) == (False, False, 1.5)


def test_a_change_of_which_nothing_was_measured_has_no_outcome():
    ending = _record(RecordKind.CHANGE_ROLLED_BACK, 2, {"hit_ratio_after": None})
    assert outcomes_from_records([_intended(), ending]) == ()
    assert outcomes_from_records([_record(RecordKind.CHANGE_KEPT, 1, {"hit_ratio_after": 0.5})]) == ()
    broken = _record(RecordKind.CHANGE_INTENDED, 1, {"proposal": {"written": "by a newer version"}})
    assert outcomes_from_records([broken, _record(RecordKind.CHANGE_KEPT, 2, {"hit_ratio_after": 0.5})]) == ()


def test_rules_that_are_revoked_later_do_not_change_the_outcome():
    kept = _record(RecordKind.CHANGE_KEPT, 2, {"hit_ratio_after": 0.8})
    revoked = _record(RecordKind.CHANGE_ROLLED_BACK, 3, {"hit_ratio_after": 0.8})
    (outcome,) = outcomes_from_records([_intended(), kept, revoked])
    assert outcome.kept


@pytest.mark.parametrize(
    "window",
    [
        {"lookups": 5_000, "problem": None, "traffic_shifted": True},
        {"lookups": 99, "problem": None, "traffic_shifted": False},
        {"lookups": 5_000, "problem": "the server restarted", "traffic_shifted": False},
    ],
)
def test_a_window_that_proves_nothing_is_not_held_against_the_prediction(window: dict[str, object]):
    ending = _record(RecordKind.CHANGE_KEPT, 3, {"hit_ratio_after": 0.2})
    (outcome,) = outcomes_from_records([_intended(), _record(RecordKind.OBSERVED, 2, window), ending])
    assert not outcome.comparable
    assert not comparable_window(window["lookups"], window["problem"], traffic_shifted=window["traffic_shifted"])  # type: ignore[arg-type]


def test_an_execution_gives_the_outcome_that_its_records_give():
    execution = Execution(
        execution_id="e",
        proposal=_proposal(factor=2.0),
        state=ExecutionState.KEPT,
        started_at_ms=0,
        updated_at_ms=1_002,
        hit_ratio_after=0.81,
        comparable=False,
        hit_ratio_step=0.02,
    )
    payload = {"hit_ratio_after": 0.81, "comparable": False, "hit_ratio_step": 0.02}
    ending = _record(RecordKind.CHANGE_KEPT, 2, payload)
    assert outcome_of(execution).noise == pytest.approx(0.0329, abs=1e-4)  # type: ignore[union-attr]
    assert (outcome_of(execution),) == outcomes_from_records([_intended(factor=2.0), ending])
    assert outcome_of(replace(execution, state=ExecutionState.OBSERVING)) is None
    assert outcome_of(replace(execution, hit_ratio_after=None)) is None


# --- Estimates


@given(st.tuples(RATIOS, RATIOS, RATIOS).map(sorted), st.floats(1.0, 5.0))
def test_a_widened_estimate_holds_the_old_one_and_keeps_its_bounds(ends: list[float], factor: float):
    estimate = Estimate(ends[1], ends[0], ends[2])
    wide = estimate.stretched(factor, 0.0, 1.0)
    assert wide.value == estimate.value
    assert 0.0 <= wide.low <= estimate.low <= estimate.high <= wide.high <= 1.0


def test_a_narrowed_estimate_keeps_its_value_and_a_share_needs_a_whole():
    narrow = RATIO.stretched(0.5, 0.0, 1.0)
    assert (narrow.value, narrow.low, narrow.high) == pytest.approx((0.8, 0.775, 0.825))
    with pytest.raises(ValueError, match="above 0"):
        RATIO.stretched(0.0)
    with pytest.raises(ValueError, match="no share"):
        Estimate.of_share(2, 1)
    assert Estimate.of_share(9, 10).low == pytest.approx(0.652, abs=0.001)


def _spread(count: int, error: float, **changes: object) -> list[Outcome]:
    """Outcomes that miss by up to `error`, evenly."""
    return [_outcome(n, 0.8 + error * n / count, **changes) for n in range(count)]  # type: ignore[arg-type]


def test_intervals_that_prove_too_wide_are_left_as_they_are():
    found = score(_spread(100, 0.03))
    assert found.interval_factor == 1.0
    assert "left as they are" in found.reason


def test_outcomes_without_any_width_are_scored_too():
    sure = [_outcome(n, 1.0, Estimate(1.0, 0.998, 1.0)) for n in range(45)]
    bare = [_outcome(100 + n, 0.81, Estimate(0.8, 0.8, 0.8), noise=0.02) for n in range(40)]
    for outcomes in (sure, bare, [*sure, *bare]):
        assert 1.0 <= score(outcomes).interval_factor <= FACTOR_MAX


def test_coverage_is_told_as_measured_beside_what_is_allowed_for():
    found = score([_outcome(n, 0.74, noise=0.05) for n in range(3)] + [_outcome(9)])
    assert found.overall is not None
    assert (found.overall.coverage.value, found.overall.coverage_as_measured.value) == (1.0, 0.25)


def test_an_interval_that_allows_for_the_traffic_is_not_given_it_twice():
    allowed = {"noise": 0.05, "noise_within": True}
    assert _outcome(realised=0.74, noise=0.05).inside
    assert not _outcome(realised=0.74, **allowed).inside
    assert _outcome(realised=0.745, noise=0.06, noise_within=True).inside
    passive = replace(_proposal().prediction, method="observed hit ratio plus the passive curve, from 1000 residents")
    kept = _record(RecordKind.CHANGE_KEPT, 2, {"hit_ratio_after": 0.79, "hit_ratio_step": 0.02})
    intended = _record(
        RecordKind.CHANGE_INTENDED, 1, {"proposal": to_jsonable(replace(_proposal(), prediction=passive))}
    )
    (outcome,) = outcomes_from_records([intended, kept])
    assert outcome.noise_within


def test_what_the_traffic_does_by_itself_is_not_held_against_a_prediction():
    assert not _outcome(realised=0.74).inside
    assert _outcome(realised=0.74, noise=0.05).inside
    assert _outcome(realised=0.84, noise=0.05).stretch == 0.0
    assert _outcome(realised=0.70, noise=0.06).stretch == pytest.approx(0.08 / 0.05)


def test_on_an_unsteady_service_good_predictions_do_not_widen_the_intervals():
    narrow = Estimate(0.8, 0.79, 0.81)
    noisy = [_outcome(n, realised=0.8 + (0.06 if n % 2 else -0.06), predicted=narrow) for n in range(20)]
    assert interval_factor(noisy) == FACTOR_MAX
    assert interval_factor([replace(o, noise=0.07) for o in noisy]) == 1.0
