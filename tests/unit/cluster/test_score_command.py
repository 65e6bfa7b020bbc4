"""`python -m cluster score`: the table and the JSON of one score."""

from __future__ import annotations

import json

from cachewarden.cachemodel.scoring import Outcome, score
from cachewarden.estimate import Estimate
from cluster.score_command import score_json, score_lines

METHOD = "observed hit ratio plus modelled difference, from reuse times of a capture of 5 s; and more words than fit"


def _outcome(number: int, realised: float, *, comparable: bool = True) -> Outcome:
    return Outcome(
        proposal_id=f"p-{number}",
        service="api",
        at_ms=number,
        method=METHOD,
        kinds=("memory",),
        predicted=Estimate(0.8, 0.75, 0.85),
        realised=realised,
        kept=True,
        comparable=comparable,
    )


def test_the_table_shows_errors_in_points_and_coverage_with_its_interval():
    lines = score_lines(score([_outcome(1, 0.82), _outcome(2, 0.70), _outcome(3, 0.1, comparable=False)]))
    assert lines[1].split() == ["all", "2", "-4.00", "6.00", "0.50", "(0.12", "to", "0.88)", "0.50", "1.00"]
    assert [line.split()[0] for line in lines[1:4]] == ["all", "memory", "observed"]
    assert len({line.index(" 2 ") for line in lines[1:4]}) == 1
    assert "1 outcomes left out" in lines[4]
    assert lines[-1].startswith("interval factor 1.00: 2 outcomes are too few")


def test_an_empty_journal_gives_no_figures():
    lines = score_lines(score([]))
    assert len(lines) == 2
    assert "too few" in lines[-1]


def test_the_json_carries_the_score_and_every_outcome():
    outcomes = (_outcome(1, 0.82), _outcome(2, 0.70))
    told = json.loads(json.dumps(score_json(score(outcomes), outcomes)))
    assert told["score"]["overall"]["outcomes"] == 2
    assert told["outcomes"][0]["realised"] == 0.82
    assert told["constitutional_hash"] == "cdd01ef066bc6cf2"
