"""Standing by: what is told of others' changes, when one is taken up, and how long a cache is led."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.obstacles import find_obstacle
from agents.recovery import read_journal
from agents.standby import Leads, Standby
from cachewarden import machine as m
from cachewarden.messages import AuditRecord, ExecutionState, Lease, RecordKind, ResolutionOutcome
from cachewarden.protocol import ExecutionReport, History, PauseUnread, SetPaused
from coordination.fleet_memory import LED_REST_MS, FleetMemory
from tests.unit.agents.actuator_world import FLEET, SETTINGS, T0, World, change, order, proposal
from tests.unit.agents.settlements import Table, verdict
from tests.unit.agents.test_actuator import done
from tests.unit.policy import builders

SWITCH = (change("maxmemory-policy", "allkeys-lru"),)
TTL_MS = 6_000


def journal_of_a_change() -> list[AuditRecord]:
    return done(World(), proposal(*SWITCH)).journal


def half() -> list[AuditRecord]:
    return [r for r in journal_of_a_change() if r.kind != RecordKind.CHANGE_KEPT]


class Watcher:
    """One who stands by and reads the journal that a test writes."""

    def __init__(
        self,
        working: set[str] = frozenset(),
        upheld: set[str] = frozenset(),
        ended_ms: dict[str, int] | None = None,
        busy: set[str] = frozenset(),
    ) -> None:
        ended = ended_ms or {}
        running = working | upheld
        self.standby = Standby(
            TTL_MS, FLEET.names, working.__contains__, running.__contains__, ended.get, busy.__contains__
        )
        self.standby.start((), T0)
        self.journal: list[AuditRecord] = []

    def read(self, records, step="read", now_ms=T0) -> object:
        """Let `records` come to the journal, those under taken numbers instead of what stands there, and be read."""
        records = list(records)
        self.journal = [r for r in self.journal if not records or r.seq < records[0].seq] + records
        return self.take(self.standby.look(step), now_ms)

    def take(self, question: m.ReadJournal, now_ms=T0) -> object:
        found = [r for r in self.journal if r.seq > question.after_seq][: question.limit]
        turn = self.standby.step(m.JournalRead(ref=question.ref, records=tuple(found)), now_ms)
        again = [e for e in turn.effects if isinstance(e, m.ReadJournal)]
        return self.take(again[0], now_ms) if again else turn

    @staticmethod
    def told(turn) -> list[ExecutionState]:
        return [e.message.execution.state for e in turn.effects if isinstance(e, m.Send)]

    @staticmethod
    def tries(turn) -> list[m.AcquireLease]:
        return [e for e in turn.effects if isinstance(e, m.AcquireLease)]


def grant(effect: m.AcquireLease, epoch: int = 9) -> m.LeaseGranted:
    lease = Lease(service=effect.service, holder="we", epoch=epoch, expires_at_ms=T0 + TTL_MS)
    return m.LeaseGranted(ref=effect.ref, lease=lease)


def test_an_open_change_of_another_deployment_is_told_once_and_its_lease_is_tried_for_each_time():
    watcher = Watcher()
    turn = watcher.read(half())
    assert watcher.told(turn) == [ExecutionState.STEPPING]
    assert [t.service for t in watcher.tries(turn)] == ["sessions"]
    again = watcher.read(())
    assert (watcher.told(again), len(watcher.tries(again))) == ([], 1)


def test_a_change_that_has_ended_is_told_once_and_forgotten_after_a_while():
    watcher = Watcher()
    turn = watcher.read(journal_of_a_change())
    assert watcher.told(turn) == [ExecutionState.KEPT]
    assert watcher.tries(turn) == []
    assert watcher.told(watcher.read(())) == []
    assert len(watcher.standby.lately(T0)) == 1
    watcher.read((), now_ms=T0 + 3_600_000)
    assert watcher.standby._records == {}


def test_a_change_whose_ending_the_journal_has_lost_is_open_again():
    watcher = Watcher()
    journal = journal_of_a_change()
    for record in journal:
        watcher.read([replace(record, hash=f"h{record.seq}")])
    other = AuditRecord(
        seq=journal[-1].seq, at_ms=T0, kind="observed", agent="a", service=None, subject_id="x", hash="y"
    )
    turn = watcher.read([other])
    assert watcher.told(turn) == [ExecutionState.STEPPING]
    assert len(watcher.tries(turn)) == 1


def test_nothing_is_taken_up_while_its_leader_lives():
    watcher = Watcher()
    [effect] = watcher.tries(watcher.read(half()))
    denied = m.LeaseDenied(ref=effect.ref, service="sessions", holder="they", reason="held by `they`")
    assert watcher.standby.step(denied, T0).effects == ()


def test_a_change_is_taken_up_only_if_it_is_still_open_after_the_lease_was_granted():
    watcher = Watcher()
    [effect] = watcher.tries(watcher.read(half()))
    [check] = watcher.standby.step(grant(effect), T0).effects
    assert isinstance(check, m.ReadJournal)
    turn = watcher.read((), check.ref.removeprefix("standby:"))
    assert turn.adopt is not None
    assert turn.adopt.proposal.proposal_id == "p-1"


def test_a_change_that_ended_just_before_the_grant_is_left_alone_and_the_lease_given_back():
    watcher = Watcher()
    [effect] = watcher.tries(watcher.read(half()))
    [check] = watcher.standby.step(grant(effect), T0).effects
    turn = watcher.read(journal_of_a_change()[-1:], check.ref.removeprefix("standby:"))
    assert turn.adopt is None
    assert [type(e) for e in turn.effects if not isinstance(e, m.Send)] == [m.ReleaseLease]


def test_changes_of_our_own_and_services_that_we_are_changing_are_left_to_themselves():
    [key] = {r.payload["execution_id"] for r in half()}
    assert Watcher.tries(Watcher(working={key}).read(half())) == []
    assert Watcher.tries(Watcher(ended_ms={key: T0}).read(half(), now_ms=T0 + 59_000)) == []
    assert Watcher.tries(Watcher(busy={"sessions"}).read(half())) == []


def test_a_change_of_our_own_whose_confirmed_ending_the_journal_has_lost_is_found_open():
    [key] = {r.payload["execution_id"] for r in half()}
    watcher = Watcher(ended_ms={key: T0})
    late_ms = T0 + 60_000
    turn = watcher.read(half(), now_ms=late_ms)
    # Nobody else carries it out, so nobody is told of it.
    assert watcher.told(turn) == []
    # Nor does it keep us from changing the cache.
    assert watcher.standby.unended("sessions") is None
    [effect] = watcher.tries(turn)
    [check] = watcher.standby.step(grant(effect), late_ms).effects
    turn = watcher.read((), check.ref.removeprefix("standby:"), now_ms=late_ms)
    assert turn.adopt is not None
    assert (turn.adopt.execution_id, turn.lease.epoch) == (key, 9)


def test_a_rule_that_we_uphold_whose_ending_the_journal_has_lost_is_found_too():
    [key] = {r.payload["execution_id"] for r in half()}
    watcher = Watcher(upheld={key}, ended_ms={key: T0})
    assert watcher.tries(watcher.read(half(), now_ms=T0 + 59_000)) == []
    assert len(watcher.tries(watcher.read((), now_ms=T0 + 60_000))) == 1
    # While it is being taken back it ends by itself.
    assert Watcher.tries(Watcher(working={key}, ended_ms={key: T0}).read(half(), now_ms=T0 + 60_000)) == []


def test_an_ending_of_our_own_that_an_old_answer_did_not_hold_is_found_by_the_look_after_the_lease():
    [key] = {r.payload["execution_id"] for r in half()}
    watcher = Watcher(ended_ms={key: T0})
    late_ms = T0 + 300_000
    [effect] = watcher.tries(watcher.read(half(), now_ms=late_ms))
    [check] = watcher.standby.step(grant(effect), late_ms).effects
    turn = watcher.read(journal_of_a_change()[-1:], check.ref.removeprefix("standby:"), now_ms=late_ms)
    assert turn.adopt is None
    assert [type(e) for e in turn.effects] == [m.ReleaseLease]


def test_changes_of_another_fleet_on_the_same_journal_are_none_of_ours():
    turn = Watcher().read([replace(r, service="elsewhere") for r in half()])
    assert (Watcher.told(turn), Watcher.tries(turn)) == ([], [])


def test_a_journal_that_is_gone_is_looked_at_again_later():
    failed = m.EffectFailed(ref="standby:read", effect="ReadJournal", kind="JournalUnavailable", reason="gone")
    [timer] = Watcher().standby.step(failed, T0).effects
    assert isinstance(timer, m.SetTimer)
    assert timer.due_ms == T0 + TTL_MS


def test_the_last_word_of_a_writer_that_was_fenced_off_does_not_count():
    records = half()
    taken_over = replace(records[-1], seq=100, payload={**records[-1].payload, "epoch": 7})
    last_word = replace(
        records[-1],
        seq=101,
        kind="change_abandoned",
        payload={**records[-1].payload, "epoch": 1, "reason": "superseded"},
    )
    [change_now] = read_journal([*records, taken_over, last_word]).unfinished
    assert change_now.epoch == 7
    # By itself it would have been an end.
    assert read_journal([*records, last_word]).unfinished == ()


# --- Leading ------------------------------------------------------------------------------------------------------------


def lease_of(service: str = "sessions") -> Lease:
    return Lease(service=service, holder="we", epoch=1, expires_at_ms=T0)


def test_a_lease_is_kept_after_a_change_and_renewed_until_somebody_else_has_it():
    leads = Leads(60_000, lambda _: False)
    kept = leads.keep(m.ReleaseLease(lease=lease_of()))
    assert isinstance(kept, m.AcquireLease)
    assert kept.ttl_ms == 60_000
    [timer] = leads.step(grant(kept), T0)
    assert timer.due_ms == T0 + 20_000
    [renewal] = leads.step(m.TimerFired(ref=timer.ref), T0)
    assert isinstance(renewal, m.AcquireLease)
    # Between two changes nothing of ours is to be let in, so the fence of the last one stands.
    assert not kept.fenced
    assert not renewal.fenced
    assert leads.step(m.LeaseDenied(ref=renewal.ref, service="sessions", holder="they", reason="r"), T0) == ()
    assert not leads.leads(lease_of())


def test_while_a_change_renews_the_lease_by_itself_leading_does_not():
    leads = Leads(60_000, lambda _: True)
    kept = leads.keep(m.ReleaseLease(lease=lease_of()))
    [effect] = leads.step(m.TimerFired(ref=kept.ref), T0)
    assert isinstance(effect, m.SetTimer)


def test_a_deployment_that_is_not_to_lead_gives_every_lease_back():
    release = m.ReleaseLease(lease=lease_of())
    assert Leads(0, lambda _: False).keep(release) is release


def test_a_cache_that_another_leads_is_left_to_it_for_a_while_and_the_try_costs_no_budget():
    memory = FleetMemory(FLEET, SETTINGS)
    world = done(World(), proposal(*SWITCH))
    refused = replace(world.last, state=ExecutionState.ABANDONED, held_by="they", updated_at_ms=T0)
    memory.note_execution(refused, T0)
    history = memory.history(T0)["sessions"]
    assert (history.led_by, history.led_until_ms, history.changes_last_hour) == ("they", T0 + LED_REST_MS, 0)
    assert memory.history(T0 + LED_REST_MS)["sessions"].led_by is None


@pytest.mark.parametrize(("passed_ms", "outcome"), [(0, ResolutionOutcome.WAIT), (LED_REST_MS, None)])
def test_the_consensus_waits_while_another_leads(passed_ms, outcome):
    table = Table("cart")
    given = builders.proposal("cart")
    table.history["cart"] = History(led_by="they", led_until_ms=builders.NOW_MS + LED_REST_MS)
    obstacle = find_obstacle(given, verdict(given), table.situation, table.settings, builders.NOW_MS + passed_ms)
    assert (obstacle and obstacle.outcome) == outcome


# --- With the actuator --------------------------------------------------------------------------------------------------


def checked(world: World) -> list[m.Effect]:
    """The journal says that the change whose lease was tried for has ended."""
    return list(world.actuator.step(m.JournalRead(ref="standby:check:e-old", records=()), world.now_ms))


def granted_to_stand_by(world: World) -> None:
    lease = world._do_AcquireLease(m.AcquireLease(ref="r", service="sessions", ttl_ms=TTL_MS)).lease
    world.actuator.step(m.LeaseGranted(ref="standby:take:e-old", lease=lease), world.now_ms)


def test_a_lease_that_was_got_for_an_ended_change_is_kept_where_a_change_of_ours_needs_it_by_now():
    world = World()
    granted_to_stand_by(world)
    world.tell(order(proposal(*SWITCH)))
    assert not [e for e in checked(world) if isinstance(e, m.ReleaseLease)]
    world.run(until=lambda: world.written != [])
    granted_to_stand_by(world)
    assert not [e for e in checked(world) if isinstance(e, m.ReleaseLease)]


def test_a_lease_that_was_got_for_an_ended_change_is_kept_where_we_lead_the_cache():
    world = done(World(settings=SETTINGS.model_copy(update={"lead_ms": 60_000})), proposal(*SWITCH))
    granted_to_stand_by(world)
    assert not [e for e in checked(world) if isinstance(e, m.ReleaseLease)]


def test_a_lease_that_nobody_needs_is_given_back():
    world = World()
    granted_to_stand_by(world)
    assert [e for e in checked(world) if isinstance(e, m.ReleaseLease)]


def read_word(world: World, kind: str, at_ms: int = T0, **payload: object) -> None:
    """Let the journal get a word of another deployment, and be read."""
    write_word(world, kind, at_ms, **payload)
    read_on(world)


def write_word(world: World, kind: str, at_ms: int = T0, **payload: object) -> None:
    seq = len(world.journal) + 1
    world.journal.append(
        AuditRecord(seq=seq, at_ms=at_ms, kind=kind, agent="api", service=None, subject_id="op", payload=payload)
    )


def read_on(world: World) -> tuple[m.Effect, ...]:
    [question] = world.actuator.step(m.TimerFired(ref="standby:timer"), world.now_ms)
    effects = world.actuator.step(world._do(question), world.now_ms)
    for effect in effects:
        if not isinstance(effect, m.Send) or isinstance(effect.message, ExecutionReport):
            world._perform(effect)
    return effects


def read_words(world: World, resumed_ms: int) -> None:
    write_word(world, "paused", kill=True, reason="smoke")
    read_word(world, "resumed", resumed_ms)


def test_what_another_deployment_killed_stays_killed_although_all_was_resumed_before_we_read_of_it():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.run(until=lambda: world.written != [])
    read_words(world, world.now_ms + 1)
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "smoke" in world.last.reason
    assert not world.actuator._paused


def test_a_change_that_began_after_the_resumption_is_not_killed():
    world = World()
    world.now_ms += 10_000
    world.tell(order(proposal(*SWITCH)))
    world.run(until=lambda: world.written != [])
    read_words(world, T0 + 5_000)
    world.run()
    assert world.last.state is ExecutionState.KEPT


def test_a_resumption_from_before_our_own_pause_does_not_end_it_however_late_it_is_read():
    world = World()
    world.tell(SetPaused(paused=True, by="op", reason="look first", order_id="o-2"))
    read_word(world, "resumed", order_id="o-1")
    assert world.actuator._paused
    write_word(world, "paused", order_id="o-2")
    read_word(world, "resumed")
    assert not world.actuator._paused


def test_a_pause_that_is_told_after_it_was_read_does_not_outlive_the_resumption_of_another_deployment():
    world = World()
    write_word(world, "paused", order_id="o-1")
    read_word(world, "resumed")
    world.tell(SetPaused(paused=True, by="op", reason="late", order_id="o-1"))
    assert not world.actuator._paused


def test_the_coordinator_is_told_of_a_pause_that_the_journal_does_not_have_until_it_has_it():
    world = World()
    paused = SetPaused(paused=True, by="op", reason="look first", order_id="old-life:1")
    world.tell(paused)
    told = [e.message for e in read_on(world) if isinstance(e, m.Send)]
    assert told == [PauseUnread(order=paused)]
    write_word(world, "paused", order_id="old-life:1")
    assert not [e for e in read_on(world) if isinstance(e, m.Send)]
