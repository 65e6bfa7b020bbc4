"""Every run, died at every point and started again; and every event in every phase that it does not belong to."""

from __future__ import annotations

import pickle
from functools import cache

import pytest

from agents.actuator import Actuator
from agents.execution_table import STATE_OF, TABLE, Phase
from agents.recovery import NextMove, decide, read_journal
from cachewarden import machine as m
from cachewarden.baseline import Baseline
from cachewarden.errors import InvariantViolation
from cachewarden.messages import AuditRecord, ExecutionState, Lease
from tests.unit.agents.actuator_world import KNOBS, MIB, RULE, World, change, order, proposal

RUNS = {
    "direct": proposal(change("maxmemory-policy", "allkeys-lru")),
    "grow": proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 80 * MIB)),
    "shrink": proposal(change("maxmemory-policy", "allkeys-lru"), change("maxmemory", 20 * MIB), playbook="shrink"),
    "keep_hot_set": proposal(
        change("maxmemory-policy", "allkeys-lfu"),
        change("maxmemory", 50 * MIB),
        playbook="keep_hot_set",
        cost={"headroom_bytes": 3 * MIB},
    ),
    "ttl_rule": proposal(rules=(RULE,), playbook="ttl_rule"),
    "room": proposal(
        change("maxmemory-policy", "allkeys-lfu"),
        change("maxmemory", 40 * MIB, 40 * MIB),
        playbook="keep_hot_set",
        cost={"room_bytes": 6 * MIB},
    ),
    "tune": proposal(change("maxmemory-samples", 10), playbook="tune"),
    "grow_and_rewrite": proposal(change("maxmemory", 80 * MIB), playbook="grow", service="pages"),
    "reencode": proposal(
        change("hash-max-listpack-entries", 512),
        playbook="reencode",
        cost={"keys_touched": 5_000.0},
        service="pages",
    ),
    "both": proposal(change("maxmemory-policy", "allkeys-lru"), rules=(RULE,)),
}
TWIN = Baseline(control="pages", control_hit_ratio=0.9)
ENDINGS = {"change_kept": "kept", "change_rolled_back": "rolled_back", "change_abandoned": "abandoned"}


def play(wanted, ratio, crash_at=None):
    world = World(crash_at=crash_at)
    world.caches[wanted.service].ratio = lambda c: ratio
    world.caches[wanted.service].passes_per_round = 2
    world.tell(order(wanted))
    return world.run(until=lambda: bool(world.reports) and world.last.state.final)


@cache
def effects_of(name, ratio):
    return len(play(RUNS[name], ratio).performed)


def assert_whole(world, wanted):
    """The cache is all before or all after, and journal and report say which."""
    cache = world.caches[wanted.service]
    after = {**KNOBS, **{c.knob: c.after for c in wanted.knob_changes}}
    if not world.reports:
        # No intention was in the journal yet, so nobody was told of a change either.
        assert set(world.kinds) <= {"change_abandoned"}
        assert cache.knobs == KNOBS
        return
    state = world.last.state
    endings = [ENDINGS[k] for k in world.kinds if k in ENDINGS]
    if "not confirmed by the journal" in world.last.reason:
        assert set(world.kinds) <= {"change_abandoned"}
        assert state is ExecutionState.ABANDONED
        assert cache.knobs == KNOBS
        return
    assert endings, world.kinds
    assert endings[-1] == state.value
    if state is ExecutionState.KEPT:
        assert cache.knobs == after
        assert bool(cache.extended) == bool(wanted.ttl_rules)
        assert (cache.file == after) is (wanted.service == "pages")
    else:
        assert state in (ExecutionState.ROLLED_BACK, ExecutionState.ABANDONED)
        assert cache.knobs == KNOBS
        assert not cache.extended
        assert cache.file is None or cache.file == KNOBS


@pytest.mark.parametrize("ratio", [0.95, 0.60])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_dies_anywhere_is_finished_or_taken_back_by_the_next_life(name, ratio):
    for crash_at in range(2 * effects_of(name, ratio) + 2):
        assert_whole(play(RUNS[name], ratio, crash_at), RUNS[name])


@pytest.mark.parametrize("name", ["shrink", "both"])
def test_a_run_may_die_again_while_it_is_being_recovered(name):
    for first in range(0, 2 * effects_of(name, 0.60), 5):
        for second in range(first + 2, first + 40, 7):
            world = World(crash_at=first)
            world.cache.ratio = lambda c: 0.60
            world.tell(order(RUNS[name]))
            world.run(until=lambda w=world, n=first: 2 * len(w.performed) > n + 1)
            world.crash_at = second
            world.run(until=lambda w=world: bool(w.reports) and w.last.state.final)
            assert_whole(world, RUNS[name])


def test_a_change_that_was_being_observed_is_observed_afresh():
    world = World()
    world.tell(order(RUNS["direct"]))
    world.run(7_000, until=lambda: False)
    world.start()
    world.run()
    assert world.last.state is ExecutionState.KEPT
    assert world.last.execution_id == "e-p-1-1"


def test_recovery_takes_a_new_epoch_and_waits_for_the_lease_of_the_life_before():
    world = World()
    world.tell(order(RUNS["direct"]))
    world.run(1_000, until=lambda: False)
    world.start()
    world.run(1_000, until=lambda: False)
    # The new life is another holder, so the lease of the old one is waited for.
    assert not world.last.state.final
    assert world.cache.fence == 1
    world.run()
    assert world.cache.fence == 2


def test_what_somebody_else_did_meanwhile_is_left_alone():
    world = World()
    world.tell(order(RUNS["direct"]))
    world.run(1_000, until=lambda: False)
    world.cache.knobs["maxmemory-policy"] = "volatile-ttl"
    world.start()
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "`maxmemory-policy` is `volatile-ttl`" in world.last.reason


def test_an_intention_that_cannot_be_read_is_told_to_a_person():
    world = World()
    world._do_Record(
        m.Record(kind="change_intended", service="sessions", subject_id="p-9", payload={"execution_id": "e-9"})
    )
    world.start()
    assert world.kinds[-1] == "rollback_failed"
    assert "cannot be read" in world.journal[-1].payload["reason"]


def test_doubled_records_change_nothing_for_recovery():
    world = play(RUNS["shrink"], 0.60)
    unfinished = [r for r in world.journal if r.kind not in ("rollback_intended", "change_rolled_back")]
    doubled = [
        AuditRecord(
            seq=i,
            at_ms=r.at_ms,
            kind=r.kind,
            agent=r.agent,
            service=r.service,
            subject_id=r.subject_id,
            payload=r.payload,
        )
        for i, r in enumerate((r for r in unfinished for _ in range(2)), 1)
    ]
    (one,), (two,) = read_journal(unfinished).unfinished, read_journal(doubled).unfinished
    assert (one.applied, one.rules) == (two.applied, two.rules)
    assert decide(one, {"maxmemory": str(20 * MIB), "maxmemory-policy": "allkeys-lru"})[0] is NextMove.OBSERVE
    assert decide(one, {"maxmemory": str(35651584), "maxmemory-policy": "allkeys-lru"})[0] is NextMove.TAKE_BACK
    assert decide(one, {"maxmemory": KNOBS["maxmemory"], "maxmemory-policy": "noeviction"})[0] is NextMove.ABANDON
    assert decide(one, {"maxmemory": "12345678", "maxmemory-policy": "noeviction"})[0] is NextMove.ABANDON
    assert decide(one, {"maxmemory-policy": "noeviction"})[0] is NextMove.ABANDON


# --- The table -------------------------------------------------------------------------------------------------------


def answers(ref):
    record = AuditRecord(seq=1, at_ms=0, kind="k", agent="a", service=None, subject_id="s")
    lease = Lease(service="sessions", holder="x", epoch=9, expires_at_ms=0)
    return [
        m.LeaseGranted(ref=ref, lease=lease),
        m.LeaseDenied(ref=ref, service="sessions", holder=None, reason="r"),
        m.KnobsRead(ref=ref, service="sessions", values={}),
        m.KnobsWritten(ref=ref, service="sessions", values={}),
        m.Recorded(ref=ref, record=record),
        m.TimerFired(ref=ref),
        m.HotKeysCollected(ref=ref, service="sessions", keys=1),
        m.SpreadMeasured(ref=ref, service="sessions", examined=1, above=1),
        m.KeysReencoded(ref=ref, service="sessions", cursor=0, examined=1, reencoded=1, bytes_moved=1),
        m.ConfigRewritten(ref=ref, service="sessions", rewritten=True, reason=""),
        m.TtlsExtended(ref=ref, service="sessions", cursor=0, examined=0, extended=0, commands=0),
        m.Observed(ref=ref, service="sessions", observation=World().cache.observe("sessions", 1)),
        m.EffectFailed(ref=ref, effect="e", kind="k", reason="r"),
    ]


class Spy(World):
    """Hands every illegal event to a copy of the actuator at every point of a run."""

    def __init__(self, **other):
        self.phases: set[Phase] = set()
        self.refused = 0
        super().__init__(**other)

    def _step(self, event):
        super()._step(event)
        for run in self.actuator._runs.values():
            if run.awaiting is None:
                continue
            self.phases.add(run.phase)
            image = pickle.dumps(self.actuator)
            for wrong in answers(run.awaiting):
                if type(wrong) in TABLE[run.phase]:
                    continue
                copy: Actuator = pickle.loads(image)
                before = pickle.dumps(copy)
                with pytest.raises(InvariantViolation):
                    copy.step(wrong, self.now_ms)
                assert pickle.dumps(copy) == before
                self.refused += 1


@pytest.mark.slow
def test_every_illegal_event_raises_and_changes_nothing():
    phases: set[Phase] = set()
    for wanted in RUNS.values():
        for ratio in (0.95, 0.60):
            spy = Spy()
            spy.caches[wanted.service].ratio = lambda c, r=ratio: r
            spy.caches[wanted.service].passes_per_round = 2
            spy.tell(order(wanted, baseline=TWIN))
            spy.run()
            assert spy.refused
            phases |= spy.phases
    expected = set(Phase) - {
        Phase.DONE,
        Phase.GOVERNING,
        Phase.READING_BACK,
        Phase.REFENCING,
        Phase.RECOVERING,
        Phase.UNDO_REFENCING,
        Phase.UNDO_PERSISTING,
    }
    assert phases == expected


def test_the_table_knows_every_phase_and_leads_only_to_phases():
    assert set(TABLE) == set(STATE_OF) == set(Phase)
    for row in TABLE.values():
        for targets in row.values():
            assert targets
            assert targets <= set(Phase)


def test_every_phase_can_be_reached_and_every_phase_has_a_way_out():
    reachable = {Phase.LEASING, Phase.ENDING}
    while True:
        more = reachable | {t for p in reachable for targets in TABLE[p].values() for t in targets}
        if more == reachable:
            break
        reachable = more
    assert reachable == set(Phase)
    for phase in set(Phase) - {Phase.DONE, Phase.GOVERNING}:
        assert any(t is not phase for targets in TABLE[phase].values() for t in targets)
