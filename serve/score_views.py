"""How past predictions turned out, as the API shows it. Nothing is scored here: `cachemodel/scoring.py` does that."""

from __future__ import annotations

from pydantic import BaseModel, Field

from cachewarden.cachemodel.scoring import GroupScore, Score
from cachewarden.messages import CONSTITUTIONAL_HASH

__all__ = ["ScoreGroup", "ScoreResponse", "score_view"]


class ScoreGroup(BaseModel):
    """Outcomes of one method or kind together; errors are realised minus predicted hit ratios."""

    name: str
    outcomes: int
    mean_error: float
    mean_absolute_error: float
    coverage: float = Field(
        description="share of outcomes inside their 90 % intervals, what the traffic does by itself allowed for"
    )
    coverage_low: float = Field(description="90 % interval of the coverage itself (Wilson)")
    coverage_high: float
    coverage_as_measured: float = Field(description="the same share with nothing allowed for")
    coverage_as_measured_low: float = Field(description="its own 90 % interval (Wilson)")
    coverage_as_measured_high: float
    interval_factor: float = Field(description="by how much this group alone would have to be stretched")


class ScoreResponse(BaseModel):
    """The newest 200 outcomes; `overall` is null before the first."""

    constitutional_hash: str = CONSTITUTIONAL_HASH
    overall: ScoreGroup | None
    by_method: list[ScoreGroup]
    by_kind: list[ScoreGroup]
    left_out: int = Field(description="outcomes that could not be held against their prediction")
    interval_factor: float = Field(description="by how much future intervals are stretched, 0.5 to 3")
    reason: str


def score_view(score: Score) -> ScoreResponse:
    """Return a score for the wire."""
    return ScoreResponse(
        overall=None if score.overall is None else _group(score.overall),
        by_method=[_group(group) for group in score.by_method],
        by_kind=[_group(group) for group in score.by_kind],
        left_out=score.left_out,
        interval_factor=score.interval_factor,
        reason=score.reason,
    )


def _group(group: GroupScore) -> ScoreGroup:
    return ScoreGroup(
        name=group.name,
        outcomes=group.outcomes,
        mean_error=group.mean_error,
        mean_absolute_error=group.mean_absolute_error,
        coverage=group.coverage.value,
        coverage_low=group.coverage.low,
        coverage_high=group.coverage.high,
        coverage_as_measured=group.coverage_as_measured.value,
        coverage_as_measured_low=group.coverage_as_measured.low,
        coverage_as_measured_high=group.coverage_as_measured.high,
        interval_factor=group.interval_factor,
    )
