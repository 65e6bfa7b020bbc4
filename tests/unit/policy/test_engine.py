"""Judging fails closed: whatever is not a plain yes is a no, with the reason."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.codec import digest
from cachewarden.messages import Decision
from cachewarden.policy.constitution import Check, Constitution, Principle
from cachewarden.policy.engine import evaluate, refusal
from cachewarden.policy.vocabulary import EXAMPLE
from tests.unit.policy.builders import NOW_MS, SHIPPED, proposal

pytestmark = pytest.mark.constitutional
FACTS = {name: value for name, value in EXAMPLE.items() if name not in ("now_ms", "snapshot_age_ms", "expires_in_ms")}


def rule(expression, name="rule", message="no: {gain}", applies_to=()):
    return Principle(
        id=name, title="a rule", rationale="because", severity="high", check=Check.SAFETY, applies_to=applies_to,
        expression=expression, message=message,
    )  # fmt: skip


def constitution(*principles):
    return Constitution(version="1", title="test", principles=principles, digest="d" * 64)


def judged(*principles, facts=FACTS, subject=None):
    return evaluate(constitution(*principles), subject or proposal(), facts, NOW_MS)


def test_a_proposal_is_allowed_if_every_principle_holds():
    verdict = judged(rule("gain > 0.0"), rule("changes == 1", "other"))
    assert verdict.decision is Decision.ALLOW
    assert [f.decision for f in verdict.findings] == [Decision.ALLOW, Decision.ALLOW]


def test_one_no_denies_and_its_message_has_the_facts():
    verdict = judged(rule("gain > 0.0"), rule("gain > 1.0", "greedy", "gains {gain:.2f} only"))
    assert verdict.denied_by == ("greedy",)
    assert verdict.findings[1].reason == "gains 0.08 only"
    assert verdict.findings[1].evaluated


@pytest.mark.parametrize(
    "expression",
    ["gane > 0.0", "gain + 1 > 0.0", "changes / 0 == 1", "namespaces[7] == 'x'", "hit_ratio_measured > 0.5"],
)
def test_a_principle_that_cannot_be_evaluated_denies(expression):
    verdict = judged(rule(expression), facts=FACTS | {"hit_ratio_measured": None})
    assert verdict.decision is Decision.DENY
    assert not verdict.findings[0].evaluated
    assert "could not be evaluated, which denies" in verdict.findings[0].reason


@pytest.mark.parametrize("expression", ["gain", "service", "changes", "null", "[true]"])
def test_an_answer_that_is_no_yes_or_no_denies(expression):
    finding = judged(rule(expression)).findings[0]
    assert (finding.decision, finding.evaluated) == (Decision.DENY, False)
    assert "instead of true or false" in finding.reason


def test_a_missing_fact_denies():
    facts = {name: value for name, value in FACTS.items() if name != "gain"}
    assert not judged(rule("gain > 0.0"), facts=facts).findings[0].evaluated


def test_facts_that_cannot_be_handed_over_deny_everything():
    verdict = judged(rule("gain > 0.0"), rule("changes > 0", "other"), facts=FACTS | {"gain": object()})
    assert verdict.denied_by == ("rule", "other")


def test_no_principles_deny():
    verdict = judged()
    assert (verdict.decision, verdict.findings) == (Decision.DENY, ())


def test_principles_of_which_none_applies_deny():
    verdict = judged(rule("gain > 0.0", applies_to=("ttl_rule",)))
    assert verdict.decision is Decision.DENY
    assert "no principle applies" in verdict.findings[0].reason


def test_a_principle_of_another_scope_does_not_stand_in_the_way():
    verdict = judged(rule("gain > 1.0", applies_to=("ttl_rule", "ttl")), rule("gain > 0.0", "other"))
    assert verdict.decision is Decision.ALLOW
    assert verdict.findings[0].reason == "does not apply to this kind of change"


@pytest.mark.parametrize("scope", ["memory", "direct"])
def test_a_scope_is_a_kind_or_a_playbook(scope):
    assert judged(rule("gain > 1.0", applies_to=(scope,))).decision is Decision.DENY


def test_a_proposal_that_cannot_be_written_down_is_denied():
    for bad in (math.nan, math.inf):
        verdict = judged(rule("gain > 0.0"), subject=proposal(cost={"commands": bad}))
        assert (verdict.decision, verdict.proposal_digest) == (Decision.DENY, "")


def test_a_verdict_is_on_exactly_one_content():
    subject = proposal()
    verdict = judged(rule("gain > 0.0"), subject=subject)
    assert verdict.proposal_digest == digest(subject)
    assert verdict.proposal_digest != digest(replace(subject, rationale="another"))
    assert (verdict.constitution_digest, verdict.judged_at_ms) == ("d" * 64, NOW_MS)


def test_the_engine_adds_the_facts_of_time():
    facts = FACTS | {"snapshot_taken_at_ms": NOW_MS - 7, "expires_at_ms": NOW_MS + 9}
    assert (
        judged(rule(f"now_ms == {NOW_MS} && snapshot_age_ms == 7 && expires_in_ms == 9"), facts=facts).decision
        is Decision.ALLOW
    )


def test_a_message_with_an_unknown_number_is_told_as_it_stands():
    finding = judged(
        rule("gain > 1.0", message="P99 {latency_us_p99_after:.0f}"), facts=FACTS | {"latency_us_p99_after": None}
    ).findings[0]
    assert finding.reason == "P99 {latency_us_p99_after:.0f}"
    finding = judged(
        rule("gain > 1.0", message="P99 {latency_us_p99_after}"), facts=FACTS | {"latency_us_p99_after": None}
    ).findings[0]
    assert finding.reason == "P99 unknown"


def test_lists_and_truth_values_are_told_in_words():
    facts = FACTS | {"namespaces": ["a:", "b:"], "knobs_valid": False}
    assert (
        judged(rule("gain > 1.0", message="{namespaces} {knobs_valid}"), facts=facts).findings[0].reason == "a:, b: no"
    )


def test_a_refusal_has_a_finding_for_each_principle():
    verdict = refusal(SHIPPED, proposal(), NOW_MS, "nobody looked")
    assert len(verdict.findings) == len(SHIPPED.principles)
    assert not any(f.evaluated for f in verdict.findings)
    assert verdict.decision is Decision.DENY


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2)
)


@given(
    st.dictionaries(st.sampled_from(sorted(FACTS)), VALUES, max_size=6),
    st.sets(st.sampled_from(sorted(FACTS)), max_size=2),
)
def test_whatever_the_facts_are_there_is_a_verdict_and_never_an_exception(changed, dropped):
    facts = {name: value for name, value in (FACTS | changed).items() if name not in dropped}
    verdict = evaluate(SHIPPED, proposal(), facts, NOW_MS)
    assert len(verdict.findings) == len(SHIPPED.principles)
    assert (verdict.decision is Decision.ALLOW) == all(
        f.decision is Decision.ALLOW and f.evaluated for f in verdict.findings
    )
