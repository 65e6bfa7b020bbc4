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
from cachewarden.peer_messages import BallotNews, PeerBallot, PeerBallots
from cachewarden.protocol import History, RunCycle, Settle, Settled
from cachewarden.settings import CacheOptimizerSettings, load_settings
from coordination.ballot_records import ballot_told, conflict_id_of
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

    def vote(self, choice=APPROVE, voter="ops", subject="p-cart", item="i-1", confidence=1.0, at_ms=None) -> None:
        ballot = PeerBallot(
            item_id=item,
            agent_id=voter,
            subject=subject,
            choice=choice,
            confidence=confidence,
            reason="so",
            at_ms=self.now_ms if at_ms is None else at_ms,
        )
        self.look(ballot)

    def look(self, *ballots: PeerBallot) -> None:
        """The coordinator has read the blackboard."""
        self.step(Received(sender="coordinator", message=PeerBallots(ballots=ballots, read_at_ms=self.now_ms)))

    def run_out(self, milliseconds: int = 20_000) -> None:
        """The deadline passes, and the blackboard is looked at once more."""
        self.pass_time(milliseconds)
        self.now_ms += 1
        self.look()

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


@pytest.mark.parametrize("quorum", [0.0, 0.5, 1.0])
def test_our_own_three_votes_approve_nothing_while_the_peer_is_silent(quorum):
    chamber = Chamber(ballot_quorum=quorum)
    chamber.settle(growth())
    chamber.pass_time(19_999)
    assert chamber.settle(growth())["p-cart"].outcome is WAIT
    chamber.run_out(1)
    assert chamber.news[-1].outcome.state is MotionState.FAILED
    resolution = chamber.settle(growth())["p-cart"]
    assert resolution.outcome is YIELD
    assert "no quorum: 0 of 1 peers voted, 1 are needed; silent: `ops`" in resolution.reason


def test_a_peer_that_abstains_approves_nothing_either():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.vote("abstain")
    assert "no peer has voted: `ops` abstained" in chamber.settle(growth())["p-cart"].reason


def test_a_vote_that_was_cast_after_the_deadline_does_not_count_and_is_written_down():
    chamber = Chamber()
    chamber.settle(growth())
    chamber.pass_time(20_000)
    chamber.now_ms += 1
    chamber.vote(APPROVE)
    assert chamber.kinds() == ["ballot_opened", "ballot_closed"]
    assert chamber.news[-1].outcome.state is MotionState.FAILED
    assert "after the deadline" in chamber.news[-1].outcome.ballots[-1].note


def test_a_vote_cast_in_time_counts_if_the_first_look_after_the_deadline_shows_it():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    chamber.vote(APPROVE, voter="lab")
    cast_ms = chamber.now_ms + 19_000
    chamber.pass_time(20_000)
    assert chamber.kinds() == ["ballot_opened"]
    chamber.now_ms += 3_000
    chamber.vote("reject", item="i-2", at_ms=cast_ms)
    assert [e.ballot.choice for e in chamber.news[-1].outcome.ballots if e.ballot.voter_id == "ops"] == ["reject"]
    # Two peers against each other, and our three thirds: the late reject would have been a full approval without it.
    assert chamber.news[-1].outcome.score < 0.7


def test_a_timely_reject_is_not_turned_into_an_approval_by_a_restart_across_the_deadline():
    before = Chamber()
    before.settle(growth())
    after = Chamber()
    after.now_ms = before.now_ms + 21_000
    after.step(Started(records=tuple(before.journal)))
    after.pass_time(0)
    assert after.kinds() == []
    after.vote("reject", at_ms=before.now_ms + 1_000)
    assert after.news[-1].outcome.winner == "reject"


def test_a_vote_cast_before_the_motion_was_opened_does_not_count_if_it_is_seen_after_the_deadline():
    chamber = Chamber()
    opened_ms = chamber.now_ms
    chamber.settle(growth())
    chamber.pass_time(20_000)
    chamber.now_ms += 1
    chamber.vote(APPROVE, at_ms=opened_ms - 1)
    assert chamber.news[-1].outcome.state is MotionState.FAILED


def test_without_a_look_after_the_deadline_a_motion_fails_once_its_grace_is_over():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    chamber.vote(APPROVE)
    chamber.pass_time(20_000)
    chamber.pass_time(2 * chamber.settings.blackboard_poll_ms - 1)
    assert chamber.kinds() == ["ballot_opened"]
    chamber.pass_time(1)
    assert "could not be read after the deadline" in chamber.settle(growth())["p-cart"].reason
    assert chamber.news[-1].outcome.winner is None


def test_a_look_that_was_begun_before_the_deadline_closes_nothing():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    chamber.vote(APPROVE)
    begun_ms = chamber.now_ms + 20_000
    chamber.pass_time(20_500)
    chamber.step(Received(sender="coordinator", message=PeerBallots(ballots=(), read_at_ms=begun_ms)))
    assert chamber.kinds() == ["ballot_opened"]
    chamber.look()
    assert chamber.news[-1].outcome.winner == APPROVE


def test_a_ballot_that_its_voter_rewrites_in_place_is_its_last_word():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    chamber.vote(APPROVE)
    chamber.now_ms += 1_000
    chamber.vote("reject")
    chamber.vote("reject", voter="lab", item="i-2")
    assert chamber.news[-1].outcome.winner == "reject"


def test_a_ballot_that_is_rewritten_after_the_deadline_stays_as_it_was():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    chamber.vote("reject")
    chamber.pass_time(20_000)
    chamber.now_ms += 1
    chamber.vote(APPROVE)
    told = [(e.ballot.choice, e.standing.value) for e in chamber.news[-1].outcome.ballots if e.ballot.voter_id == "ops"]
    assert told == [("reject", "counted"), (APPROVE, "refused")]


@pytest.mark.parametrize("voter", [AGENT_ID, f"{AGENT_ID}:validator", f"{AGENT_ID}:planner", "stranger", "OPS"])
def test_who_is_not_entitled_or_speaks_in_our_name_is_written_down_and_not_counted(voter):
    chamber = Chamber()
    chamber.settle(growth())
    chamber.vote("reject", voter=voter)
    chamber.run_out()
    outcome = chamber.news[-1].outcome
    assert outcome.state is MotionState.FAILED
    [forged] = [e for e in outcome.ballots if e.ballot.item_id == "i-1"]
    assert forged.standing is Standing.REFUSED
    assert "not entitled" in forged.note


def test_who_votes_twice_has_one_vote_and_a_vote_for_nobody_is_none():
    chamber = Chamber(ballot_voters="ops:agent:1,lab:agent:1")
    chamber.settle(growth())
    for item in ("i-1", "i-2", "i-3"):
        chamber.vote("reject", item=item, confidence=0.6)
    chamber.vote("perhaps", voter="lab", item="i-4")
    chamber.run_out()
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
    after.vote(APPROVE, subject="p-pages")
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
            if (name, algorithm) != ("consensus_change", Algorithm.MARGINAL_BENEFIT):
                assert getattr(load_settings(_env_file=None, **{name: algorithm.value}), name) == algorithm.value


def test_a_rule_that_ignores_votes_is_refused_for_votes():
    from cachewarden.errors import SettingsError

    with pytest.raises(SettingsError, match="ignores the votes of peers"):
        load_settings(_env_file=None, consensus_change="marginal_benefit")


def test_a_peer_whose_name_begins_like_ours_is_told_as_involved():
    twin = f"{AGENT_ID}_two"
    chamber = Chamber(ballot_voters=f"{twin}:agent:1")
    chamber.settle(growth())
    [_, report] = ballot_told(chamber.news[0], NOW_MS)
    assert report.arguments["conflict"]["involved_agents"] == [AGENT_ID, twin]
