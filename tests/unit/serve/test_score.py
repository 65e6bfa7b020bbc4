"""GET /api/v1/cache/score: how past predictions turned out."""

from __future__ import annotations

from dataclasses import replace

from serve_world import Site

from cachewarden.cachemodel.scoring import Outcome, score
from cachewarden.estimate import Estimate


def _outcomes() -> list[Outcome]:
    return [
        Outcome(
            proposal_id=f"p-{n}",
            service="api",
            at_ms=n,
            method="replay",
            kinds=("memory",),
            predicted=Estimate(0.8, 0.75, 0.85),
            realised=0.8 - 0.01 * n,
            kept=True,
        )
        for n in range(11)
    ]


async def test_the_score_of_the_state_is_shown_to_whoever_may_read(site: Site):
    site.backend.known = replace(site.backend.known, score=score(_outcomes()))
    answer = await site.ask("GET", "/api/v1/cache/score", token="read")
    assert answer.status_code == 200
    told = answer.json()
    assert told["overall"]["outcomes"] == 11
    assert told["overall"]["coverage_low"] < told["overall"]["coverage"] < told["overall"]["coverage_high"]
    assert told["overall"]["coverage_as_measured"] == told["overall"]["coverage"]
    assert 1.79 < told["interval_factor"] < 1.81
    assert [group["name"] for group in told["by_kind"]] == ["memory"]


async def test_before_the_first_outcome_there_are_no_figures(site: Site):
    told = (await site.ask("GET", "/api/v1/cache/score", token="read")).json()
    assert (told["overall"], told["interval_factor"]) == (None, 1.0)
    assert "too few" in told["reason"]


async def test_without_a_token_nothing_is_shown(site: Site):
    assert (await site.ask("GET", "/api/v1/cache/score", token=None)).status_code == 401
