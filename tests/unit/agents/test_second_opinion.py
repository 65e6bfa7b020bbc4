"""The second opinion: it can add a no, never a yes; what does not come in time or under our hash is none."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.validator import Validator
from cachewarden.codec import digest
from cachewarden.machine import EffectFailed, Received, Send, SetTimer, TimerFired
from cachewarden.messages import Decision, Mode
from cachewarden.peer_messages import PeerReport
from cachewarden.peering import AskOpinion, Opinion, OpinionGiven
from cachewarden.policy.second_opinion import SECOND_OPINION, acted_on, carried, content_of, context_of, with_opinion
from cachewarden.protocol import Judge, Judged
from tests.unit.agents.settlements import verdict
from tests.unit.policy.builders import NOW_MS, SETTINGS, SHIPPED, fleet, proposal, resize, service, snapshot, ttl_rule

pytestmark = pytest.mark.constitutional

AGREES = Opinion(compliant=True, score=0.91)
OBJECTS = Opinion(compliant=False, score=0.1, violated=("non-maleficence",), reasoning=("it harms",))


class Desk:
    """A validator that asks, and what it sent."""

    def __init__(self, mode="required", *services):
        settings = SETTINGS.model_copy(update={"constitutional_ai_mode": mode})
        given = services or (service("cart"), service("search"))
        self.validator = Validator(SHIPPED, fleet(*given), settings)
        self.snapshots = tuple(snapshot(s.name) for s in given)
        self.judged: list[Judged] = []
        self.asked: list[AskOpinion] = []
        self.reports: list[PeerReport] = []
        self.timers: list[SetTimer] = []

    def judge(self, *proposals, cycle=1, now_ms=NOW_MS):
        self.asked.clear()
        question = Judge(cycle=cycle, proposals=proposals, snapshots=self.snapshots)
        self.take(Received(sender="coordinator", message=question), now_ms)

    def take(self, event, now_ms=NOW_MS):
        for effect in self.validator.step(event, now_ms):
            if isinstance(effect, AskOpinion):
                self.asked.append(effect)
            elif isinstance(effect, SetTimer):
                self.timers.append(effect)
            else:
                assert isinstance(effect, Send)
                kept = self.reports if isinstance(effect.message, PeerReport) else self.judged
                kept.append(effect.message)

    def say(self, opinion, number=0):
        self.take(OpinionGiven(ref=self.asked[number].ref, opinion=opinion))

    def fail(self, kind="PeerUnavailable", number=0, **details):
        told = {"reason": "answered 500", **details}
        self.take(EffectFailed(ref=self.asked[number].ref, effect="AskOpinion", kind=kind, reason="x", details=told))

    @property
    def verdict(self):
        (found,) = self.judged[-1].verdicts
        return found

    @property
    def finding(self):
        return next(f for f in self.verdict.findings if f.principle_id == SECOND_OPINION)


def test_without_a_second_opinion_nobody_is_asked_and_the_answer_is_at_once():
    desk = Desk("off")
    desk.judge(proposal())
    assert desk.asked == []
    assert all(f.principle_id != SECOND_OPINION for f in desk.verdict.findings)


@pytest.mark.parametrize("mode", ["advisory", "required"])
def test_agreement_is_recorded_in_the_verdict_and_the_change_stays_allowed(mode):
    desk = Desk(mode)
    desk.judge(proposal())
    assert desk.judged == []
    desk.say(AGREES)
    assert desk.verdict.decision is Decision.ALLOW
    assert desk.finding.reason == "agrees, score 0.91"


def test_an_objection_denies_where_an_opinion_is_required():
    desk = Desk("required")
    desk.judge(proposal())
    desk.say(OBJECTS)
    assert desk.verdict.denied_by == (SECOND_OPINION,)
    assert "non-maleficence" in desk.finding.reason


def test_an_objection_is_a_remark_where_it_is_advice():
    desk = Desk("advisory")
    desk.judge(proposal())
    desk.say(OBJECTS)
    assert desk.verdict.decision is Decision.ALLOW
    assert "objects" in desk.finding.reason
    assert "the local constitution decides" in desk.finding.reason


@pytest.mark.parametrize(
    ("kind", "why"),
    # What an error that nobody expected says is not for strangers.
    [("PeerUnavailable", "answered 500"), ("PeerRefused", "answered 500"), ("RuntimeError", "cannot be asked")],
)
def test_no_opinion_denies_where_one_is_required_and_says_why(kind, why):
    desk = Desk("required")
    desk.judge(proposal())
    desk.fail(kind)
    assert desk.verdict.decision is Decision.DENY
    assert desk.finding.reason == f"no opinion: it {why}; an opinion is required, which denies"
    assert not desk.finding.evaluated


def test_no_opinion_leaves_the_decision_to_the_local_constitution_where_it_is_advice():
    desk = Desk("advisory")
    desk.judge(proposal())
    desk.fail()
    assert desk.verdict.decision is Decision.ALLOW
    assert not desk.finding.evaluated


@pytest.mark.parametrize(("mode", "decision"), [("required", Decision.DENY), ("advisory", Decision.ALLOW)])
def test_an_answer_with_another_hash_is_no_opinion_and_is_counted_as_a_violation(mode, decision):
    desk = Desk(mode)
    desk.judge(proposal())
    desk.fail("PeerViolation", received="0123456789abcdef")
    assert desk.verdict.decision is decision
    assert "another constitutional hash (`0123456789abcdef`)" in desk.finding.reason
    (peer,) = desk.reports[-1].peers
    assert (peer.violations, peer.circuit, peer.healthy) == (1, "open", False)


def test_a_slow_peer_is_not_waited_for_beyond_the_deadline_and_its_late_word_changes_nothing():
    desk = Desk("required")
    desk.judge(proposal())
    timer = desk.timers[-1]
    assert timer.due_ms - NOW_MS == SETTINGS.constitutional_ai_timeout_ms + 1_000
    desk.take(TimerFired(ref=timer.ref), timer.due_ms)
    assert desk.verdict.decision is Decision.DENY
    assert "gave no answer within" in desk.finding.reason
    answered = len(desk.judged)
    desk.say(AGREES)
    desk.take(TimerFired(ref=timer.ref), timer.due_ms + 1)
    assert len(desk.judged) == answered


def test_a_newer_round_takes_the_place_of_an_open_one():
    desk = Desk("required")
    desk.judge(proposal(), cycle=1)
    first = desk.asked[0]
    desk.judge(proposal("search"), cycle=2)
    desk.take(OpinionGiven(ref=first.ref, opinion=AGREES))
    assert desk.judged == []
    desk.say(AGREES)
    assert desk.judged[-1].cycle == 2


def test_the_constitutions_no_is_final_and_nobody_is_asked_about_it():
    desk = Desk("required")
    desk.judge(proposal(rationale=""))
    assert desk.asked == []
    assert desk.verdict.decision is Decision.DENY
    assert SECOND_OPINION not in desk.verdict.denied_by


@pytest.mark.parametrize("mode", ["advise"])
def test_nobody_is_asked_about_advice(mode):
    desk = Desk("required", service("cart", mode=mode))
    desk.judge(proposal())
    assert desk.asked == []
    assert desk.judged[-1].verdicts[0].decision is Decision.ALLOW


def test_what_may_be_carried_out_once_approved_is_asked_about_too():
    desk = Desk("required", service("cart", mode="approve"))
    desk.judge(proposal())
    assert len(desk.asked) == 1


def test_verdicts_keep_their_order_whichever_answer_comes_first():
    desk = Desk("required")
    desk.judge(proposal("cart"), proposal("search"))
    desk.say(OBJECTS, 1)
    desk.say(AGREES, 0)
    assert [v.decision for v in desk.judged[-1].verdicts] == [Decision.ALLOW, Decision.DENY]


def test_the_same_words_are_asked_about_once_in_five_minutes():
    desk = Desk("required")
    desk.judge(proposal())
    desk.say(AGREES)
    desk.judge(proposal(), cycle=2, now_ms=NOW_MS + 60_000)
    assert desk.asked == []
    assert desk.finding.reason == "agrees, score 0.91"
    desk.judge(proposal(), cycle=3, now_ms=NOW_MS + 299_999)
    assert desk.asked == []


def test_a_peer_that_keeps_failing_is_not_asked_and_required_fails_closed():
    desk = Desk("required")
    for cycle in range(5):
        desk.judge(proposal(), cycle=cycle)
        desk.fail()
    desk.judge(proposal(), cycle=9)
    assert desk.asked == []
    assert desk.verdict.decision is Decision.DENY
    assert "it was not asked" in desk.finding.reason
    # Once the pause is over one trial goes out, and no more.
    desk.judge(proposal("cart"), proposal("search"), cycle=10, now_ms=NOW_MS + 6_000)
    assert len(desk.asked) == 1


def test_a_round_asks_about_a_bounded_number_of_changes():
    services = tuple(service(f"s{n:03}") for n in range(50))
    desk = Desk("required", *services)
    desk.judge(*(proposal(s.name) for s in services))
    allowed = len(desk.asked)
    assert 0 < allowed <= 32


@given(
    decisions=st.sampled_from([(), ("budget",)]),
    said=st.sampled_from([AGREES, OBJECTS, "no answer"]),
    mode=st.sampled_from(["off", "advisory", "required"]),
)
def test_a_second_opinion_never_turns_a_no_into_a_yes(decisions, said, mode):
    before = verdict(proposal(), *decisions)
    after = with_opinion(before, said, mode)
    if before.decision is Decision.DENY:
        assert after.decision is Decision.DENY
    if mode == "required" and said is not AGREES:
        assert after.decision is Decision.DENY
    if mode != "required":
        assert after.decision is before.decision


def test_what_was_said_in_deliberation_holds_for_exactly_the_proposal_it_was_said_of():
    plan = proposal()
    standing = with_opinion(verdict(plan), AGREES, "required")
    now = verdict(plan)
    assert carried(now, standing, "required", Mode.AUTO).decision is Decision.ALLOW
    other = verdict(proposal(rationale="another"))
    assert carried(other, standing, "required", Mode.AUTO).decision is Decision.DENY
    assert carried(now, None, "required", Mode.AUTO).decision is Decision.DENY
    assert carried(now, None, "advisory", Mode.AUTO).decision is Decision.ALLOW
    assert carried(now, None, "required", Mode.ADVISE) is now
    assert carried(now, None, "off", Mode.AUTO) is now


def test_the_question_names_the_change_and_no_key_pattern():
    plan = proposal(ttl_rules=(ttl_rule("session:secret-"),))
    text = content_of(plan) + str(context_of(plan))
    assert "secret" not in text
    assert "15000 to 600000" in text
    assert content_of(resize()) == content_of(resize(gain=0.07))
    assert content_of(plan) != content_of(proposal(ttl_rules=(ttl_rule("cart:"),)))


def test_a_lossy_change_is_asked_about_as_a_high_risk():
    assert context_of(resize(after_mib=8))["high_risk"]
    assert not context_of(proposal())["high_risk"]


def test_only_what_the_constitution_allows_and_somebody_may_do_is_acted_on():
    assert not acted_on(None, Mode.AUTO)
    assert not acted_on(verdict(proposal(), "no"), Mode.AUTO)
    assert acted_on(verdict(proposal()), Mode.AUTO)
    assert not acted_on(verdict(proposal()), Mode.ADVISE)


def test_a_verdict_with_an_opinion_still_names_its_proposal():
    plan = proposal()
    assert with_opinion(verdict(plan), AGREES, "required").proposal_digest == digest(plan)


def test_it_can_be_sent_to_another_process():
    desk = Desk("required")
    assert isinstance(pickle.loads(pickle.dumps(desk.validator)), Validator)
