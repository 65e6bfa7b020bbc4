"""An ending that the journal confirmed and then lost is written down again, and nothing of the change is done again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cachewarden.messages import ExecutionState, RecordKind
from cachewarden.protocol import SetPaused
from tests.unit.agents.actuator_world import MIB, RULE, World, change, order, proposal

GROWTH = change("maxmemory", 80 * MIB)


def ended(world: World, first, state: ExecutionState) -> World:
    world.tell(order(first))
    world.run()
    assert world.last.state is state
    return world


def lose_the_ending(world: World) -> None:
    """Let the server die within the second: its newest record is gone."""
    lost = world.journal.pop()
    assert lost.kind in (RecordKind.CHANGE_KEPT, RecordKind.CHANGE_ROLLED_BACK)


def later(world: World, *changes, **more) -> None:
    """Carry out another change, from now on, to its end."""
    now_ms = world.now_ms
    times = {"created_at_ms": now_ms, "expires_at_ms": now_ms + 300_000}
    world.tell(order(proposal(*changes, proposal_id="p-2", **times, **more)))
    world.run(until=lambda: world.last.proposal.proposal_id == "p-2" and world.last.state.final)


def wait(world: World, ms: int = 300_000) -> None:
    world.run(ms, until=lambda: False)


def endings(world: World) -> list[tuple[str, str]]:
    kinds = (RecordKind.CHANGE_KEPT, RecordKind.CHANGE_ROLLED_BACK, RecordKind.CHANGE_ABANDONED)
    return [(r.subject_id, r.kind) for r in world.journal if r.kind in kinds]


def test_it_is_written_once_more_and_the_cache_is_not_written_to():
    world = ended(World(), proposal(GROWTH), ExecutionState.KEPT)
    lose_the_ending(world)
    written, told = list(world.written), len(world.reports)
    wait(world)
    assert endings(world) == [("p-1", "change_kept")]
    assert (world.written, len(world.reports)) == (written, told)


def test_a_rollback_is_not_carried_out_on_what_a_later_change_has_set():
    world = World()
    world.cache.ratio = lambda _cache: 0.5
    ended(world, proposal(GROWTH), ExecutionState.ROLLED_BACK)
    lose_the_ending(world)
    world.cache.ratio = lambda _cache: 0.95
    wait(world, 5_000)
    later(world, change("maxmemory", 60 * MIB))
    assert world.last.state is ExecutionState.KEPT
    wait(world)
    assert world.cache.knobs["maxmemory"] == str(60 * MIB)
    assert sorted(endings(world)) == [("p-1", "change_rolled_back"), ("p-2", "change_kept")]


def test_a_kill_switch_takes_back_nothing_that_was_kept_before():
    world = ended(World(), proposal(GROWTH), ExecutionState.KEPT)
    lose_the_ending(world)
    wait(world, 10_000)
    world.tell(SetPaused(paused=True, by="ann", reason="fire", kill=True, order_id="1"))
    wait(world)
    assert world.cache.knobs["maxmemory"] == str(80 * MIB)
    assert endings(world) == [("p-1", "change_kept")]


def test_a_rule_that_is_upheld_is_ended_again_and_upheld_on():
    world = ended(World(), proposal(rules=(RULE,), playbook="ttl_rule"), ExecutionState.KEPT)
    lose_the_ending(world)
    wait(world)
    assert endings(world) == [("p-1", "change_kept")]
    world.cache.passes.clear()
    wait(world, 60_000)
    assert world.cache.passes


def test_a_rule_that_a_newer_one_has_displaced_is_not_upheld_again():
    world = ended(World(), proposal(rules=(RULE,), playbook="ttl_rule"), ExecutionState.KEPT)
    lose_the_ending(world)
    wait(world, 30_000)
    later(world, rules=(replace(RULE, extended_ttl_ms=300_000),), playbook="ttl_rule")
    wait(world)
    world.cache.passes.clear()
    wait(world, 120_000)
    assert {p.rule.extended_ttl_ms for p in world.cache.passes} == {300_000}
    assert sorted(endings(world)) == [("p-1", "change_kept"), ("p-2", "change_kept")]


@pytest.mark.parametrize("lease_ttl_ms", [6_000, 80_000])
def test_a_later_change_never_waits_for_an_ending_that_was_only_not_read_yet(lease_ttl_ms):
    world = World()
    world = World(settings=world.settings.model_copy(update={"lease_ttl_ms": lease_ttl_ms}))
    ended(world, proposal(GROWTH), ExecutionState.KEPT)
    wait(world, 62_000)
    later(world, change("maxmemory-policy", "allkeys-lru"))
    assert world.last.state is ExecutionState.KEPT
    assert endings(world) == [("p-1", "change_kept"), ("p-2", "change_kept")]
