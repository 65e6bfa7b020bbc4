"""Every prediction beside what then happened: how far off, how often inside the interval, how much wider it should be.

Outcomes come from the journal (`change_intended` holds the prediction; `change_kept` and `change_rolled_back` what was
measured; `observed` whether the traffic was still that of the prediction) or from executions as they end. What cannot
be held against a prediction (too few lookups, other traffic, nothing measured) is left out and counted, never guessed.

Two biases remain and are not corrected: a change is kept as soon as it reaches its promise, often before it has
settled, so errors lean towards less than promised; a change that was taken back on request may not have settled either.

Intervals that hold more than they promise are not narrowed: outcomes are those of changes that were chosen for their
predictions, and say little of what was not chosen.

INVARIANT: the same outcomes give the same score; the factor lies within 1 to `FACTOR_MAX`, and is 1 with fewer than
`OUTCOMES_MIN` outcomes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from pydantic import ValidationError

from cachewarden.cachemodel.passive_curve import PASSIVE_METHOD
from cachewarden.codec import decode
from cachewarden.estimate import Estimate
from cachewarden.messages import AuditRecord, Execution, ExecutionState, Prediction, Proposal, RecordKind

__all__ = [
    "FACTOR_EVIDENCE",
    "FACTOR_MAX",
    "LOOKUPS_MIN",
    "OUTCOMES_MAX",
    "OUTCOMES_MIN",
    "RECORD_KINDS",
    "GroupScore",
    "Outcome",
    "Score",
    "comparable_window",
    "factor_of",
    "interval_factor",
    "method_family",
    "outcome_of",
    "outcomes_from_records",
    "score",
]

OUTCOMES_MIN: Final = 10
"""Below that the tenth that may miss is less than one outcome."""
OUTCOMES_MAX: Final = 200
"""The newest that count: what models of a year ago promised is no measure of today's."""
FACTOR_MAX: Final = 3.0
"""Intervals that need more than this are wrong in kind, not in width: wider ones would only stop everything."""
LOOKUPS_MIN: Final = 100
"""Lookups below which a window proves nothing: at 100 the standard error of a hit ratio is up to 0.05."""
COVERAGE_PROMISED: Final = 0.9
FACTOR_EVIDENCE: Final = "interval_factor"
"""Name of the evidence in which a proposal says by how much its interval was widened."""
RECORD_KINDS: Final = (
    RecordKind.CHANGE_INTENDED.value,
    RecordKind.OBSERVED.value,
    RecordKind.CHANGE_KEPT.value,
    RecordKind.CHANGE_ROLLED_BACK.value,
)
_ROUNDING: Final = 1e-9
_NORMAL_90: Final = 1.6449


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One prediction of a hit ratio (0..1) after a change, and the one measured over the last window.

    `widened_by` is the factor that was in the predicted interval already. `comparable`: the last window had enough
    lookups and the traffic of the prediction.
    """

    proposal_id: str
    service: str
    at_ms: int
    method: str
    kinds: tuple[str, ...]
    predicted: Estimate
    realised: float
    kept: bool
    widened_by: float = 1.0
    comparable: bool = True
    noise: float = 0.0
    """Half a 90 % interval of what the traffic may have done to `realised` by itself."""
    noise_within: bool = False
    """The predicted interval allows for an unsteady workload already."""

    @property
    def error(self) -> float:
        """Return realised minus predicted: above 0 it went better than promised."""
        return self.realised - self.predicted.value

    @property
    def inside(self) -> bool:
        """Say whether the interval as it was stated held the outcome, what the traffic did by itself allowed for."""
        return self._unexplained <= self._width

    @property
    def inside_as_measured(self) -> bool:
        """Say whether the interval held the outcome, whoever made the error."""
        return abs(self.error) <= self._width

    @property
    def stretch_as_measured(self) -> float | None:
        """Return the factor by which the interval before any correction would just hold the outcome, whoever made the
        error; None on a side without any width."""
        width = self._width / self.widened_by
        return None if width == 0.0 else abs(self.error) / width

    @property
    def stretch(self) -> float | None:
        """Return by how much the interval before any widening would have to be stretched to hold the outcome.

        0 on a side that ends at a bound of the hit ratio, which no outcome exceeds; None on a side without any width,
        which no factor mends.
        """
        if self._unexplained == 0.0 or (self.inside and self._bound in (0.0, 1.0)):
            return 0.0
        width = self._width / self.widened_by
        return None if width == 0.0 else self._unexplained / width

    @property
    def _bound(self) -> float:
        return self.predicted.low if self.realised < self.predicted.value else self.predicted.high

    @property
    def _width(self) -> float:
        return abs(self._bound - self.predicted.value)

    @property
    def _unexplained(self) -> float:
        """The error that the traffic does not explain: independent errors add up by their squares. Where the interval
        allows for the traffic itself, either it or what was seen of the traffic explains an error, and not their sum.
        """
        if self.noise_within:
            return 0.0 if abs(self.error) <= self.noise else abs(self.error)
        return math.sqrt(max(self.error**2 - self.noise**2, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """Some outcomes together. Errors are differences of hit ratios, realised minus predicted; `coverage` is the share
    inside their intervals, what the traffic does by itself allowed for, `coverage_as_measured` the share without that,
    each with its own 90 % interval (Wilson).
    """

    name: str
    outcomes: int
    mean_error: float
    mean_absolute_error: float
    coverage: Estimate
    coverage_as_measured: Estimate
    interval_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """`overall` is None without outcomes; `left_out` counts those that could not be held against a prediction."""

    overall: GroupScore | None
    by_method: tuple[GroupScore, ...]
    by_kind: tuple[GroupScore, ...]
    left_out: int
    interval_factor: float
    reason: str
    """How the factor was come by, in words."""


def comparable_window(lookups: int, problem: str | None, *, traffic_shifted: bool) -> bool:
    """Say whether a window can be held against a prediction."""
    return problem is None and lookups >= LOOKUPS_MIN and not traffic_shifted


def method_family(method: str) -> str:
    """Return a method without the figures of the single case, so that like is counted with like."""
    return re.sub(r"\b\d[\d.,]*\b", "n", method)


def score(outcomes: Iterable[Outcome]) -> Score:
    """Return the score of the newest OUTCOMES_MAX outcomes; the order in which they are given does not matter."""
    given = sorted(outcomes, key=lambda o: (o.at_ms, o.proposal_id))[-OUTCOMES_MAX:]
    counted = [o for o in given if o.comparable]
    factor = interval_factor(counted)
    methods = sorted({method_family(o.method) for o in counted})
    kinds = sorted({kind for o in counted for kind in o.kinds})
    return Score(
        overall=_group("all", counted) if counted else None,
        by_method=tuple(_group(name, [o for o in counted if method_family(o.method) == name]) for name in methods),
        by_kind=tuple(_group(name, [o for o in counted if name in o.kinds]) for name in kinds),
        left_out=len(given) - len(counted),
        interval_factor=factor,
        reason=_reason(counted, factor),
    )


def interval_factor(outcomes: Sequence[Outcome]) -> float:
    """Return by how much future intervals have to be widened so that nine of ten of these outcomes would have been
    inside; within 1 to FACTOR_MAX, 1 below OUTCOMES_MIN outcomes.

    It is the empirical 0.9 quantile of the stretches, of which those that no widening mends are no part.
    """
    stretches = sorted(stretch for o in outcomes if (stretch := o.stretch) is not None)
    if len(stretches) < OUTCOMES_MIN:
        return 1.0
    # ceil(0.9 n) in integers: the number that has to be inside.
    needed = stretches[-(-9 * len(stretches) // 10) - 1] * (1.0 + _ROUNDING)
    return min(max(needed, 1.0), FACTOR_MAX)


def _group(name: str, outcomes: Sequence[Outcome]) -> GroupScore:
    n = len(outcomes)
    return GroupScore(
        name=name,
        outcomes=n,
        mean_error=math.fsum(o.error for o in outcomes) / n,
        mean_absolute_error=math.fsum(abs(o.error) for o in outcomes) / n,
        coverage=Estimate.of_share(sum(o.inside for o in outcomes), n),
        coverage_as_measured=Estimate.of_share(sum(o.inside_as_measured for o in outcomes), n),
        interval_factor=interval_factor(outcomes),
    )


def _reason(outcomes: Sequence[Outcome], factor: float) -> str:
    measured = sum(o.stretch is not None for o in outcomes)
    if measured < OUTCOMES_MIN:
        return f"{measured} outcomes are too few to correct intervals by, {OUTCOMES_MIN} are needed"
    inside = sum(o.inside for o in outcomes) / len(outcomes)
    told = (
        f"{inside:.2f} of {len(outcomes)} outcomes fell inside intervals that promise {COVERAGE_PROMISED:.1f}, "
        "what the traffic does by itself allowed for"
    )
    if factor == 1.0:
        return f"{told}: intervals are left as they are"
    bound = ", the most that is permitted" if factor == FACTOR_MAX else ""
    return f"{told}: future ones are {factor:.2f} times as wide as the models give them{bound}"


# --- Where outcomes come from ----------------------------------------------------------------------------------------


def factor_of(proposal: Proposal) -> float:
    """Return by how much the intervals of a proposal were stretched when it was made; 1 where it does not say."""
    for fact in proposal.evidence:
        if fact.name == FACTOR_EVIDENCE and isinstance(fact.value, int | float) and fact.value >= 1.0:
            return float(fact.value)
    return 1.0


def outcome_of(execution: Execution) -> Outcome | None:
    """Return the outcome of an execution that was kept or taken back; None while it goes on, or nothing was measured.

    A change that set again what a restart took away promised nothing, so it has no outcome. What the cache did while a
    change was being taken back is no part of it: the last window before that counts.
    """
    realised = execution.hit_ratio_after
    ended = execution.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK)
    if not ended or not _is_ratio(realised) or execution.proposal.reapplies is not None:
        return None
    return _outcome(
        execution.proposal,
        execution.updated_at_ms,
        _without_drift(realised, execution.control_drift),
        kept=execution.state is ExecutionState.KEPT,
        comparable=execution.comparable is not False,
        hit_ratio_step=execution.hit_ratio_step,
    )


def _without_drift(realised: float, drift: Any) -> float:
    """Return a hit ratio without what the unchanged twin gained or lost meanwhile, 0..1."""
    return min(max(realised - (drift if isinstance(drift, int | float) else 0.0), 0.0), 1.0)


def _outcome(
    proposal: Proposal, at_ms: int, realised: float, *, kept: bool, comparable: bool, hit_ratio_step: Any
) -> Outcome:
    prediction: Prediction = proposal.prediction
    return Outcome(
        proposal_id=proposal.proposal_id,
        service=proposal.service,
        at_ms=at_ms,
        method=prediction.method,
        kinds=proposal.kinds,
        predicted=prediction.hit_ratio_after,
        realised=realised,
        kept=kept,
        widened_by=factor_of(proposal),
        comparable=comparable,
        noise=_NORMAL_90 * hit_ratio_step if _is_ratio(hit_ratio_step) else 0.0,
        noise_within=prediction.method.startswith(PASSIVE_METHOD),
    )


def outcomes_from_records(records: Iterable[AuditRecord]) -> tuple[Outcome, ...]:
    """Return one outcome per change that was kept or taken back after something was measured, oldest first.

    `records` in the order of the journal, of any kinds; those of RECORD_KINDS are read. A change whose TTL rules were
    revoked later keeps the outcome under which it was kept. Records of a newer version that cannot be read are skipped.
    """
    proposals: dict[str, Proposal] = {}
    windows: dict[str, bool] = {}
    outcomes: dict[str, Outcome] = {}
    for record in records:
        key = record.subject_id
        if record.kind == RecordKind.CHANGE_INTENDED:
            try:
                proposals[key] = decode(Proposal, record.payload.get("proposal"))
            except ValidationError:
                continue
        elif record.kind == RecordKind.OBSERVED:
            windows[key] = _comparable(record.payload)
        elif record.kind in (RecordKind.CHANGE_KEPT, RecordKind.CHANGE_ROLLED_BACK):
            realised = record.payload.get("hit_ratio_after")
            if key in outcomes or key not in proposals or not _is_ratio(realised) or proposals[key].reapplies:
                continue
            outcomes[key] = _outcome(
                proposals[key],
                record.at_ms,
                _without_drift(float(realised), record.payload.get("control_drift")),
                kept=record.kind == RecordKind.CHANGE_KEPT,
                # A guardrail does not wait for a window's end; what it saw has passed the same test of enough lookups.
                comparable=record.payload.get("comparable", windows.get(key, True)) is not False,
                hit_ratio_step=record.payload.get("hit_ratio_step"),
            )
    return tuple(outcomes.values())


def _comparable(window: Mapping[str, Any]) -> bool:
    lookups, problem = window.get("lookups"), window.get("problem")
    known = lookups if isinstance(lookups, int) else 0
    return comparable_window(known, problem, traffic_shifted=window.get("traffic_shifted") is True)


def _is_ratio(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0
