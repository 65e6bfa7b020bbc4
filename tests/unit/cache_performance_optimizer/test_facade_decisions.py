"""What the facade answers, decided from plain data: the same functions as on real servers, without any server."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time

import pytest

from cachewarden.errors import ConstitutionalComplianceError
from cachewarden.messages import Decision, KnobChange, RecordKind
from cachewarden.policy.constitution import REQUIRED_CHECKS
from serve.admission import Admission
from serve.context import Context
from serve.courses import Asked
from serve.decide_request import optimize_request
from serve.decision import decide
from serve.docket import Docket
from serve.telemetry import Telemetry
from tests.constitutional_case import ConstitutionalTestCase
from tests.unit.serve.serve_world import (
    CONSTITUTION,
    MIB,
    NOW_MS,
    MemoryBackend,
    grounds,
    proposal,
    snapshot,
    standing,
    state,
)

PLAN = proposal()
KNOWN = state(standing=standing(PLAN))


def context_of(backend: MemoryBackend) -> Context:
    return Context(
        backend=backend,
        telemetry=Telemetry(),
        started_s=0.0,
        admission=Admission(rate_per_s=1_000.0, decisions_max=100, waiting_max=100),
        wait_s=0.0,
    )


class TestDecisions(ConstitutionalTestCase):
    def decided(self, known=KNOWN, **changes):
        request = self.sample_request.model_copy(update=changes)
        return decide(Asked(request=request, decision_id="d", caller="test"), known, grounds(), NOW_MS)

    @pytest.mark.constitutional
    def test_an_allowed_plan_has_a_finding_of_every_principle_and_of_all_four_checks(self):
        outcome = self.decided()
        self.assert_decided_constitutionally(outcome.response)
        assert outcome.verdict_complete
        asked = {c["check_type"] for c in outcome.response.constitutional_compliance["checks"]}
        guards = {p.check for p in CONSTITUTION.principles if p.id in asked}
        assert set(REQUIRED_CHECKS) <= guards
        assert len(asked) == len(CONSTITUTION.principles)

    @pytest.mark.constitutional
    def test_another_hash_is_refused_whatever_else_is_asked(self):
        with pytest.raises(ConstitutionalComplianceError):
            self.decided(constitutional_hash="cdd01ef066bc6cf3")

    @pytest.mark.constitutional
    @pytest.mark.parametrize(
        "changes",
        [
            {"rationale": ""},
            {"evidence": ()},
            {"knob_changes": (KnobChange(knob="maxmemory-samples", before="7", after="10"),)},
            {"knob_changes": (KnobChange(knob="maxmemory", before=str(40 * MIB), after=str(10 * MIB)),)},
        ],
        ids=["no rationale", "no evidence", "not the value in force", "a lossy change called reversible"],
    )
    def test_a_plan_against_a_principle_is_denied_and_never_executed(self, changes):
        broken = dataclasses.replace(PLAN, **changes)
        outcome = self.decided(state(standing=standing(broken)))
        assert outcome.verdict.decision is Decision.DENY
        assert outcome.execute is None
        assert outcome.response.state == "denied"
        assert outcome.response.constitutional_compliance["denied_by"]

    @pytest.mark.constitutional
    def test_a_plan_for_a_cache_that_is_not_seen_fails_closed(self):
        outcome = self.decided(state(standing=standing(PLAN), snapshots={}))
        assert outcome.execute is None
        assert not any(check["evaluated"] for check in outcome.response.constitutional_compliance["checks"])

    @pytest.mark.constitutional
    async def test_the_record_is_durable_before_anything_is_handed_over(self):
        backend = MemoryBackend(KNOWN)
        seen = []

        async def handed_over(command):
            seen.append([r.kind for r in backend.records])

        backend.execute = handed_over
        context = context_of(backend)
        asked = Asked(request=self.sample_request, decision_id="d", caller="test")
        answer = await optimize_request(context, asked)
        assert seen == [[RecordKind.REQUEST_DECIDED]]
        self.assert_decided_constitutionally(answer)
        self.assert_audited(backend.records, RecordKind.REQUEST_DECIDED, subject_id="d")

    @pytest.mark.cache_performance
    def test_the_answer_promises_the_level_and_not_the_gain(self):
        response = self.decided().response
        assert response.performance_improvement["cache_hit_rate"] == PLAN.prediction.hit_ratio_after.value
        assert response.prediction_basis["cache_hit_rate"] == "predicted"
        assert response.estimated_impact["hit_ratio_gain"] == PLAN.prediction.gain.value

    @pytest.mark.cache_performance
    def test_a_request_whose_own_targets_are_met_changes_nothing(self):
        met = {"service_name": self.service_name, "target_metrics": {"cache_hit_rate": 0.5}}
        request = type(self.sample_request)(**met)
        outcome = decide(Asked(request=request, decision_id="d", caller="test"), KNOWN, grounds(), NOW_MS)
        assert outcome.execute is None
        assert outcome.response.state == "targets_met"

    @pytest.mark.performance
    def test_how_long_a_decision_takes(self, capsys):
        ground, asked = grounds(), Asked(request=self.sample_request, decision_id="d", caller="test")
        docket = Docket(KNOWN, ground)
        took_ms, answers = [], []
        for _ in range(500):
            started_s = time.perf_counter()
            answers.append(decide(asked, KNOWN, ground, NOW_MS, docket))
            took_ms.append((time.perf_counter() - started_s) * 1000)
        cuts = statistics.quantiles(took_ms, n=100)
        with capsys.disabled():
            sys.stdout.write(f"\ndecision of plain data, 500 times: P50 {cuts[49]:.3f} ms, P99 {cuts[98]:.3f} ms\n")
        assert all(a.response == answers[0].response and a.execute == answers[0].execute for a in answers)

    @pytest.mark.performance
    def test_what_all_requests_on_one_state_share_is_worked_out_once(self):
        context = context_of(MemoryBackend(KNOWN))
        first = context.docket_of(KNOWN)
        assert context.docket_of(KNOWN) is first
        newer = state(standing=standing(PLAN), snapshots={"constitutional_ai": snapshot()})
        assert context.docket_of(newer) is not first
