"""Putting changes to the vote: opened once, waited for so long, counted whatever comes, and in the journal first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.ballot_box import REST_MS
from agents.consensus import Consensus
from agents.own_ballots import own_ballots
from cachewarden.balloting import APPROVE, MotionState, Standing, parse_voters
from cachewarden.consensus_rules import Algorithm
from cachewarden.machine import EffectFailed, Received, Record, Recorded, Send, SetTimer, Started, TimerFired
from cachewarden.messages import AGENT_ID, AuditRecord, Evidence, RecordKind, ResolutionOutcome
from cachewarden.protocol import BallotNews, History, PeerBallot, PeerBallots, RunCycle, Settle, Settled
from cachewarden.settings import CacheOptimizerSettings, load_settings
from coordination.ballot_records import conflict_id_of
from tests.unit.agents.settlements import verdict
from tests.unit.policy.builders import MIB, NOW_MS, fleet, proposal, resize, service

GO, WAIT, YIELD = ResolutionOutcome.GO, ResolutionOutcome.WAIT, ResolutionOutcome.YIELD
SETTINGS = CacheOptimizerSettings(
    _env_file=None, blackboard_url="redis://blackboard:6379/1", ballot_voters="ops:agent:1", ballot_wait_ms=20_000
)


class Chamber:
    """The consensus with a journal that takes everything, and a clock that the test moves."""

    def __init__(self, settings=SETTINGS, **more):
        self.settings = settings.model_copy(update=more)
        self.fleet = fleet(service("cart"), service("pages"), total_memory_bytes=200 * MIB)
        self.agent = Consensus(self.fleet, self.settings)
        self.now_ms = NOW_MS
        self.journal: list[AuditRecord] = []
        self.timers: dict[str, int] = {}
        self.sent: list[Send] = []
        self.journal_up = True

    def step(self, event) -> None:
        for effect in self.agent.step(event, self.now_ms):
            if isinstance(effect, SetTimer):
                self.timers[effect.ref] = effect.due_ms
            elif isinstance(effect, Send):
                self.sent.append(effect)
            elif not self.journal_up:
                self.step(EffectFailed(ref=effect.ref, effect="Record", kind="JournalUnavailable", reason="down"))
            else:
                assert isinstance(effect, Record)
                record = AuditRecord(
                    seq=len(self.journal) + 1,
                    at_ms=self.now_ms,
                    kind=effect.kind,
                    agent="consensus",
                    service=effect.service,
                    subject_id=effect.subject_id,
                    payload=effect.payload,
                )
                self.journal.append(record)
                self.step(Recorded(ref=effect.ref, record=record))

    def pass_time(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        for ref in sorted(r for r, due in self.timers.items() if due <= self.now_ms):
            del self.timers[ref]
            self.step(TimerFired(ref=ref))

    def settle(self, *proposals, history=None):
        question = Settle(
            cycle=1,
            proposals=proposals,
            verdicts=tuple(verdict(p) for p in proposals),
            history=history or {},
            memory_bytes={"cart": 16 * MIB, "pages": 16 * MIB},
            intents=(),
            budget_bytes=200 * MIB,
        )
        self.step(Received(sender="coordinator", message=question))
        answer = next(s.message for s in reversed(self.sent) if isinstance(s.message, Settled))
        return {r.proposal_id: r for r in answer.resolutions}

    def vote(self, choice=APPROVE, voter="ops", subject="p-cart", item="i-1", confidence=1.0) -> None:
        ballot = PeerBallot(
            item_id=item,
            agent_id=voter,
            subject=subject,
            choice=choice,
            confidence=confidence,
            reason="so",
            at_ms=self.now_ms,
        )
        self.step(Received(sender="coordinator", message=PeerBallots(ballots=(ballot,), read_at_ms=self.now_ms)))

    @property
    def news(self) -> list[BallotNews]:
        return [s.message for s in self.sent if isinstance(s.message, BallotNews)]

    def kinds(self) -> list[str]:
        return [r.kind for r in self.journal]


def growth(**more):
    return resize("cart", 16, 20, **more)


def test_where_no_peer_may_vote_nothing_is_asked():
    chamber = Chamber(ballot_voters="")
    assert chamber.settle(growth())["p-cart"].outcome is GO
    assert chamber.journal == []


def test_a_change_below_the_class_is_not_put_to_the_vote():
    assert Chamber().settle(proposal("cart"))["p-cart"].outcome is GO


def test_a_change_waits_until_the_peer_has_voted_and_then_goes_ahead():
    chamber = Chamber()
    resolution = chamber.settle(growth())["p-cart"]
    assert (resolution.outcome, resolution.awaits_ballot) == (WAIT, True)
    assert "open until" in chamber.settle(growth())["p-cart"].reason
    chamber.vote(APPROVE)
    assert chamber.kinds() == ["ballot_opened", "ballot_closed"]
    assert [n.outcome.state for n in chamber.news] == [MotionState.OPEN, MotionState.DECIDED]
    assert isinstance(chamber.sent[-1].message, RunCycle)
    assert chamber.settle(growth())["p-cart"].outcome is GO


def test_the_same_wish_with_other_figures_is_the_same_question():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.vote(APPROVE)
    newer = resize("cart", 16, 21, proposal_id="p-newer")
    assert chamber.settle(newer)["p-newer"].outcome is GO
    other_way = resize("cart", 16, 40, proposal_id="p-larger")
    assert chamber.settle(other_way)["p-larger"].outcome is WAIT


def test_a_peer_that_objects_wins_against_our_three_votes_together():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.vote("reject")
    resolution = chamber.settle(growth())["p-cart"]
    assert resolution.outcome is YIELD
    assert "voted down" in resolution.reason
    chamber.pass_time(REST_MS + 1)
    fresh = growth(expires_at_ms=chamber.now_ms + 300_000)
    assert chamber.settle(fresh)["p-cart"].awaits_ballot


def test_a_peer_that_never_votes_is_waited_for_until_the_deadline_and_no_longer():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.pass_time(19_999)
    assert chamber.settle(growth())["p-cart"].outcome is WAIT
    chamber.pass_time(1)
    assert chamber.news[-1].outcome.winner == APPROVE
    assert chamber.settle(growth())["p-cart"].outcome is GO


def test_without_the_quorum_silence_approves_nothing():
    chamber = Chamber(ballot_quorum=1.0)
    chamber.settle(growth())
    chamber.pass_time(20_000)
    assert chamber.news[-1].outcome.state is MotionState.FAILED
    assert "no quorum" in chamber.settle(growth())["p-cart"].reason


def test_a_late_vote_changes_nothing():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.pass_time(20_000)
    chamber.vote("reject")
    assert chamber.settle(growth())["p-cart"].outcome is GO
    assert chamber.kinds() == ["ballot_opened", "ballot_closed"]


@pytest.mark.parametrize("voter", [AGENT_ID, f"{AGENT_ID}:validator", f"{AGENT_ID}:planner", "stranger", "OPS"])
def test_who_is_not_entitled_or_speaks_in_our_name_is_written_down_and_not_counted(voter):
    chamber = Chamber()
    chamber.settle(growth())
    chamber.vote("reject", voter=voter)
    chamber.pass_time(20_000)
    outcome = chamber.news[-1].outcome
    assert outcome.winner == APPROVE
    [forged] = [e for e in outcome.ballots if e.ballot.item_id == "i-1"]
    assert forged.standing is Standing.REFUSED
    assert "not entitled" in forged.note


def test_who_votes_twice_has_one_vote_and_a_vote_for_nobody_is_none():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    for item in ("i-1", "i-2", "i-3"):
        chamber.vote("reject", item=item, confidence=0.6)
    chamber.vote("perhaps", voter="lab", item="i-4")
    chamber.pass_time(20_000)
    outcome = chamber.news[-1].outcome
    assert [e.standing.value for e in outcome.ballots if e.ballot.voter_id == "ops"] == ["replaced"] * 2 + ["counted"]
    assert [e.standing.value for e in outcome.ballots if e.ballot.voter_id == "lab"] == ["refused"]
    # 0.6 of one vote against almost three thirds of ours.
    assert outcome.winner == APPROVE


def test_a_flood_of_ballots_is_bounded_and_keeps_no_voter_out():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    for number in range(500):
        chamber.vote("reject", voter=f"stranger{number}", item=f"s-{number}")
    for number in range(50):
        chamber.vote(APPROVE, item=f"o-{number}")
    chamber.vote("reject", voter="lab", item="l-1")
    outcome = chamber.news[-1].outcome
    assert outcome.state is MotionState.DECIDED
    assert len(outcome.ballots) == 3 + 200 + 20 + 1
    assert len(chamber.journal[-1].payload["outcome"]["ballots"]) == 100
    counted = {e["ballot"]["voter_id"] for e in chamber.journal[-1].payload["outcome"]["ballots"]}
    assert {"ops", "lab"} <= counted


def test_a_ballot_may_name_the_conflict_instead_of_the_plan():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.vote("reject", subject=conflict_id_of("p-cart"))
    assert chamber.news[-1].outcome.winner == "reject"


def test_nothing_rests_on_a_vote_that_the_journal_does_not_have():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.journal_up = False
    chamber.vote(APPROVE)
    assert "is being recorded" in chamber.settle(growth())["p-cart"].reason
    chamber.journal_up = True
    chamber.pass_time(1_000)
    assert chamber.settle(growth())["p-cart"].outcome is GO


def test_a_motion_that_the_journal_did_not_take_is_opened_anew_and_nobody_was_told():
    chamber = Chamber()
    chamber.journal_up = False
    assert chamber.settle(growth())["p-cart"].outcome is WAIT
    assert chamber.news == []
    chamber.journal_up = True
    chamber.settle(growth())
    assert chamber.kinds() == ["ballot_opened"]


def test_a_new_life_takes_open_motions_and_outcomes_over_from_the_journal():
    before = Chamber()
    before.settle(growth(), resize("pages", 16, 20))
    before.vote(APPROVE)
    after = Chamber()
    after.now_ms = before.now_ms + 5_000
    after.step(Started(records=tuple(before.journal)))
    assert after.settle(growth())["p-cart"].outcome is GO
    assert "open until" in after.settle(resize("pages", 16, 20))["p-pages"].reason
    after.pass_time(15_000)
    assert after.kinds() == ["ballot_closed"]
    assert after.settle(resize("pages", 16, 20))["p-pages"].outcome is GO


def test_a_motion_of_a_newer_version_is_put_to_the_vote_anew():
    before = Chamber()
    before.settle(growth())
    spoilt = [replace(r, payload={**r.payload, "motion": {"algorithm": "telepathy"}}) for r in before.journal]
    after = Chamber()
    after.step(Started(records=tuple(spoilt)))
    assert after.settle(growth())["p-cart"].awaits_ballot


def test_a_vote_is_good_for_one_change():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.vote(APPROVE)
    done = {"cart": History(last_change_ms=chamber.now_ms + 60_000, changes_last_hour=1)}
    chamber.now_ms += 240_000
    assert chamber.settle(growth(), history=done)["p-cart"].awaits_ballot


def test_a_denied_change_is_never_put_to_the_vote():
    chamber = Chamber()
    given = growth()
    question = Settle(
        cycle=1,
        proposals=(given,),
        verdicts=(verdict(given, "the-floor"),),
        history={},
        memory_bytes={},
        intents=(),
        budget_bytes=200 * MIB,
    )
    chamber.step(Received(sender="coordinator", message=question))
    assert chamber.journal == []


def test_rivals_for_one_service_are_elected_by_the_rule_of_the_settings_and_it_is_written_down_once():
    best = proposal("cart", proposal_id="p-a", gain=0.05)
    other = proposal("cart", proposal_id="p-b", gain=0.02)
    plain = Chamber(ballot_voters="").settle(best, other)
    chamber = Chamber(ballot_voters="", consensus_service="weighted_vote")
    voted = chamber.settle(best, other)
    assert [plain[p].outcome for p in ("p-a", "p-b")] == [voted[p].outcome for p in ("p-a", "p-b")]
    chamber.settle(best, other)
    assert chamber.kinds() == [RecordKind.BALLOT_CLOSED.value]
    assert chamber.journal[0].payload["outcome"]["winner"] == "p-a"


# --- Our own votes ------------------------------------------------------------------------------------------------------


def test_each_of_our_agents_votes_from_its_own_evidence():
    planner, validator, collector = own_ballots("p-cart", growth(), verdict(growth()), NOW_MS)
    assert (planner.choice, validator.choice, collector.choice) == (APPROVE, APPROVE, APPROVE)
    assert planner.confidence > 0.99
    assert "30000 lookups" in collector.reason


def test_a_denying_verdict_is_a_veto_and_a_missing_one_too():
    for given in (verdict(growth(), "the-floor"), None):
        assert own_ballots("p-cart", growth(), given, NOW_MS)[1].choice == "reject"


def test_an_agent_without_evidence_abstains():
    blind = growth(evidence=(Evidence(name="guess", value=1.0, source="nowhere"),))
    assert own_ballots("p-cart", blind, verdict(blind), NOW_MS)[2].choice == "abstain"
    donor = resize("cart", 20, 16, gain=-0.01)
    assert own_ballots("p-cart", donor, verdict(donor), NOW_MS)[0].choice == "abstain"


# --- Settings -----------------------------------------------------------------------------------------------------------


def test_voters_are_named_with_type_and_weight():
    ops, lab = parse_voters("ops:coordinator:2.5,lab")
    assert (ops.voter_type, ops.weight, lab.voter_type, lab.weight) == ("coordinator", 2.5, "agent", 1.0)


@pytest.mark.parametrize(
    "text", ["ops lab", "ops::", "ops:agent:-1", ",", "ops:agent:x", "ops,ops", AGENT_ID, "ops,,lab"]
)
def test_voters_that_cannot_be_read_are_refused_at_the_start(text):
    from cachewarden.errors import SettingsError

    with pytest.raises(SettingsError, match="ballot_voters"):
        load_settings(_env_file=None, ballot_voters=text)


def test_the_rules_of_the_settings_are_those_that_there_are():
    for name in ("consensus_change", "consensus_service"):
        for algorithm in Algorithm:
            assert getattr(load_settings(_env_file=None, **{name: algorithm.value}), name) == algorithm.value
