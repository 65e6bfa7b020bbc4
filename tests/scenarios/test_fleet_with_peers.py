"""An hour of two optimizers and three peers: nothing that excludes each other, nobody starves, nothing flaps."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cachewarden.messages import RecordKind
from coordination.peer_desk import PeerDesk
from coordination.release_gate import Passed
from tests.scenarios.fleet_with_peers import WITH_PEERS, FleetWithPeers

HOUR_MS = 3_600_000
MINUTE_MS = 60_000
PEERS = ("honest", "selfish", "flapping")


def hour(seed: int, peers=PEERS, milliseconds=HOUR_MS, restless=True) -> FleetWithPeers:
    world = FleetWithPeers(seed, peers)
    dice = random.Random(seed)
    end_ms = world.now_ms + milliseconds
    while world.now_ms < end_ms:
        world.run(min(10 * MINUTE_MS, end_ms - world.now_ms))
        if restless:
            # What is wanted changes, else there would be nothing left to do.
            world.nodes[dice.choice("ab")].wants = dice.choice(("5", "6", "7", "10"))
    return world


def untraceable(world: FleetWithPeers) -> list[str]:
    """Return what happened without a record that says who decided it and why."""
    found: list[str] = []
    kinds: dict[str, set[str]] = {}
    for record in world.journal:
        kinds.setdefault(record.subject_id, set()).add(record.kind)
        if record.kind == RecordKind.CHANGE_INTENDED:
            missing = {"proposed", "judged", "resolved"} - kinds[record.subject_id]
            found += [f"{record.subject_id} begun without {missing}"] if missing else []
        if record.kind in (RecordKind.RESOLVED, RecordKind.CONFLICT_SETTLED):
            words = record.payload.get("reason") or record.payload.get("reasoning")
            found += [] if words else [f"{record.subject_id} {record.kind} without a reason"]
        if record.kind == RecordKind.CONFLICT_SETTLED and RecordKind.CONFLICT_REPORTED not in kinds[record.subject_id]:
            found.append(f"{record.subject_id} settled and never reported")
    return found


WHOLE = [pytest.param(seed, HOUR_MS, marks=pytest.mark.slow) for seed in range(1, 4)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "milliseconds"), [(0, HOUR_MS), *WHOLE])
def test_an_hour_of_conflicting_plans_of_two_optimizers_and_three_peers(seed, milliseconds):
    world = hour(seed, milliseconds=milliseconds)
    begun = Counter(peer for _, peer, _, _ in world.begun)
    assert set(begun) == set(PEERS), "a peer never came to its turn"
    assert world.ours(), "nothing of ours ever went ahead"
    # No knob changes more often than the budget allows; a change is one write and at most one to take it back.
    for cache in world.caches:
        intended = [r.at_ms for r in world.journal if r.kind == RecordKind.CHANGE_INTENDED and r.service == cache]
        assert len(intended) <= WITH_PEERS.changes_per_hour
    assert untraceable(world) == []
    reported = {r.subject_id: r.at_ms for r in world.journal if r.kind == RecordKind.CONFLICT_REPORTED}
    settled = {r.subject_id for r in world.journal if r.kind == RecordKind.CONFLICT_SETTLED}
    assert reported, "no plan was ever in our way"
    # No livelock: whatever was in conflict is settled within the wait and two looks.
    late = [i for i, at in reported.items() if i not in settled and world.now_ms - at > 2 * MINUTE_MS]
    assert late == []


def test_the_same_seed_gives_the_same_hour_and_another_one_another():
    runs = [hour(seed, milliseconds=5 * MINUTE_MS) for seed in (3, 3, 4)]
    first, again, other = [(run.writes, run.begun) for run in runs]
    assert first == again != other


@pytest.mark.timeout(900)
def test_without_a_look_after_the_announcement_both_would_begin(monkeypatch):
    """That the harness sees what the gate prevents. Rare since events bring looks of their own: two of sixty seeds."""

    def at_once(desk, order, now_ms):
        desk._unwatched.append(Passed(order, now_ms))
        return ()

    monkeypatch.setattr(PeerDesk, "announce", at_once)

    def until_they_meet():
        for seed in range(30, 60):
            hour(seed, milliseconds=20 * MINUTE_MS)

    with pytest.raises(AssertionError, match=r"is changing|begins another"):
        until_they_meet()


def test_a_rogue_that_looks_at_nothing_ends_our_change_and_starts_no_fight():
    world = hour(0, ("honest", "rogue"), 30 * MINUTE_MS)
    assert untraceable(world) == []
    for cache in world.caches:
        times = [at for at, where, _ in world.ours() if where == cache]
        assert len(times) <= 2 * WITH_PEERS.changes_per_hour
        assert len(world.open_changes(cache)) <= 1


@pytest.mark.timeout(900)
def test_optimizers_that_die_and_come_back_beside_peers_exclude_each_other_too():
    world = FleetWithPeers(11, PEERS)
    dice = random.Random(11)
    for _ in range(8):
        world.run(dice.randrange(MINUTE_MS, 6 * MINUTE_MS))
        node = world.nodes[dice.choice("ab")]
        if node.dead:
            world.revive(node.name)
        elif dice.random() < 0.5:
            world.kill(node.name)
        else:
            world.stall(node.name, dice.randrange(100, MINUTE_MS))
    assert world.ours()
    assert untraceable(world) == []
