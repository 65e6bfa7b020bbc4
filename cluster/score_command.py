"""`python -m cluster score`: how past predictions turned out, from the journal of a running or stopped deployment.

It only reads. INVARIANT: table and JSON are made of one score.
"""

from __future__ import annotations

import json
from typing import Any

import typer

from cachewarden.cachemodel.scoring import RECORD_KINDS, GroupScore, Outcome, Score, outcomes_from_records, score
from cachewarden.codec import to_jsonable
from cachewarden.messages import CONSTITUTIONAL_HASH
from cluster.audit_commands import with_journal

__all__ = ["print_score", "score_json", "score_lines"]

_NAME_WIDTH = 60


def score_lines(result: Score) -> list[str]:
    """Return the score as a table for a person; errors in points of hit ratio."""
    columns = f"{'n':>4} {'error':>7} {'abs.':>6}  {'inside 90 % interval':<22} {'as measured':<11} factor"
    lines = [f"{'predictions by':<{_NAME_WIDTH}} {columns}"]
    groups = () if result.overall is None else (result.overall,)
    lines += [_line(group) for group in (*groups, *result.by_kind, *result.by_method)]
    if result.left_out:
        lines.append(f"{result.left_out} outcomes left out: too few lookups, or other traffic than predicted for")
    return [*lines, f"interval factor {result.interval_factor:.2f}: {result.reason}"]


def _line(group: GroupScore) -> str:
    name = group.name if len(group.name) <= _NAME_WIDTH else f"{group.name[: _NAME_WIDTH - 1]}…"
    errors = f"{group.mean_error * 100:>+7.2f} {group.mean_absolute_error * 100:>6.2f}"
    coverage = f"{group.coverage.value:.2f} ({group.coverage.low:.2f} to {group.coverage.high:.2f})"
    raw = group.coverage_as_measured.value
    return (
        f"{name:<{_NAME_WIDTH}} {group.outcomes:>4} {errors}  {coverage:<22} {raw:<11.2f} {group.interval_factor:.2f}"
    )


def score_json(result: Score, outcomes: tuple[Outcome, ...]) -> dict[str, Any]:
    """Return the score and what it was made of, for a program."""
    return {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "score": to_jsonable(result),
        "outcomes": [to_jsonable(outcome) for outcome in outcomes],
    }


def print_score(url: str | None, *, as_json: bool) -> None:
    """Read the journal at `url` (or the settings' one) and print its score."""
    outcomes = outcomes_from_records(with_journal(url, lambda journal: journal.read_back(RECORD_KINDS)))
    result = score(outcomes)
    if as_json:
        typer.echo(json.dumps(score_json(result, outcomes), indent=2))
        return
    for line in score_lines(result):
        typer.echo(line)
