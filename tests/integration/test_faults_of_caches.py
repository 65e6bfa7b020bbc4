"""What a fault of a managed cache does: it is told, nothing is half changed, and the other caches go on."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from cachewarden.messages import ExecutionState, Mode
from tests.integration.world import MIB, CacheSpec, World, order_for, traffic, until

pytestmark = pytest.mark.integration

QUIET = {"mode": Mode.AUTO, "capture": False, "minimum_memory_bytes": 2 * MIB}
"""The loop proposes and waits for a person, so that only what a test orders is done."""
SHRINK = [("maxmemory", str(3 * MIB))]
"""From 8 MiB in steps of at most 15 %: long enough for something to happen in the middle."""


def quiet_spec(**changes: Any) -> CacheSpec:
    plain: dict[str, Any] = {"maxmemory_bytes": 8 * MIB, "load": traffic("shop"), "wishes": QUIET}
    return CacheSpec(**{**plain, **changes})


async def order_shrink(world: World, agents: Any) -> None:
    """Order a staged change and return when its first step is in the journal."""
    await agents.send("test", "coordinator", order_for(world, await world.seen(lookups=400), SHRINK))
    await world.recorded("step_applied")


async def test_a_cache_that_is_down_at_the_start_is_told_and_the_others_are_managed(tmp_path):
    down = CacheSpec(name="down", wishes=QUIET)
    async with World(tmp_path, quiet_spec(), down, minimum_gain=1.0) as world:
        world.caches["down"].kill()
        async with world.agents() as agents:
            state = await world.seen(lookups=400)
            assert "down" in state.missing
            assert "not observed" in state.standing["down"].idle_reason
            await agents.send("test", "coordinator", order_for(world, state, [("maxmemory-samples", "10")]))
            assert (await world.finished("p-crafted")).state is ExecutionState.KEPT
            world.caches["down"].start()

            async def back():
                state = await world.state()
                return state is not None and "down" in state.snapshots and not state.missing

            await until(back, what="the cache that came up")
            await world.assert_sound()


async def test_a_cache_that_dies_in_the_middle_of_a_step_is_not_half_changed_when_it_is_back(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        await order_shrink(world, agents)
        await asyncio.to_thread(world.caches["shop"].kill)

        async def missing():
            state = await world.state()
            return state is not None and "shop" in state.missing

        await until(missing, what="the coordinator's word on the dead cache")
        await asyncio.to_thread(world.caches["shop"].start)
        execution = await world.finished("p-crafted", 60)
        assert execution.state in (ExecutionState.ROLLED_BACK, ExecutionState.ABANDONED), execution.reason
        assert world.knob("maxmemory") == str(8 * MIB)
        await world.assert_sound()


async def test_a_cache_that_restarts_with_its_old_settings_while_it_is_observed_is_told_apart(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        order = order_for(
            world, await world.seen(lookups=400), [("maxmemory-policy", "allkeys-lfu")], playbook="keep_hot_set"
        )
        await agents.send("test", "coordinator", order)
        await world.reached(ExecutionState.OBSERVING)
        await asyncio.to_thread(world.caches["shop"].kill)
        await asyncio.to_thread(world.caches["shop"].start)
        execution = await world.finished("p-crafted", 60)
        assert execution.state is ExecutionState.ABANDONED
        assert "restarted with other settings" in execution.reason
        assert world.knob("maxmemory-policy") == "allkeys-lru"
        await world.assert_sound()


async def test_a_value_that_an_administrator_sets_in_the_middle_is_left_as_it_is(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        await order_shrink(world, agents)
        theirs = str(11 * MIB)
        world.client("shop").config_set("maxmemory", theirs)
        execution = await world.finished("p-crafted", 60)
        assert execution.state is ExecutionState.ABANDONED, execution.reason
        assert theirs in execution.reason
        assert world.knob("maxmemory") == theirs
        await world.assert_sound()


async def limited_user(world: World, monkeypatch: pytest.MonkeyPatch, *rules: str) -> None:
    """Have the agents come as a user that may do all but what `rules` take away."""
    monkeypatch.setenv("LIMITED_PASSWORD", "let me in")
    world.client("shop").execute_command("ACL", "SETUSER", "limited", "on", ">let me in", "~*", "+@all", *rules)


@pytest.mark.parametrize(
    ("rules", "why"), [(["-config|set"], r"config set permitted: (false|no)\b"), (["-config"], "knobs is missing")]
)
async def test_a_cache_that_refuses_config_gets_advice_at_most(tmp_path, monkeypatch, rules, why):
    spec = CacheSpec(
        eviction_policy="noeviction",
        load=traffic("shop"),
        wishes={"username": "limited", "password_env": "LIMITED_PASSWORD"},
    )
    async with World(tmp_path, spec) as world:
        await limited_user(world, monkeypatch, *rules)
        async with world.agents():

            async def told():
                state = await world.state()
                standing = state.standing.get("shop") if state else None
                if standing is None:
                    return None
                reasons = [standing.idle_reason or ""]
                reasons += [f.reason for f in standing.verdict.findings] if standing.verdict else []
                return re.search(why, "; ".join(reasons).lower())

            await until(told, 40, f"a decision that says `{why}`")
        assert world.config_sets() == 0
        assert world.knob("maxmemory-policy") == "noeviction"
        assert await world.records("step_applied") == []
        await world.assert_sound()


async def test_a_permission_that_is_taken_away_in_the_middle_leaves_a_call_for_a_person_and_not_a_silent_half(
    tmp_path, monkeypatch
):
    spec = quiet_spec(wishes={**QUIET, "username": "limited", "password_env": "LIMITED_PASSWORD"})
    async with World(tmp_path, spec) as world:
        await limited_user(world, monkeypatch)
        async with world.agents() as agents:
            await order_shrink(world, agents)
            world.client("shop").execute_command("ACL", "SETUSER", "limited", "-config|set")
            await world.recorded("rollback_intended")
            world.client("shop").execute_command("ACL", "SETUSER", "limited", "+config|set")
            execution = await world.finished("p-crafted", 60)
            assert execution.state is ExecutionState.ROLLED_BACK, execution.reason
            assert world.knob("maxmemory") == str(8 * MIB)
            await world.assert_sound()


async def test_a_cache_that_hangs_in_the_middle_of_a_step_is_whole_when_it_answers_again(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        await order_shrink(world, agents)
        # Longer than a command may take and than a lease lasts, for every command.
        world.client("shop").execute_command("CLIENT", "PAUSE", "6000", "ALL")
        execution = await world.finished("p-crafted", 60)
        assert execution.state is not ExecutionState.FAILED, execution.reason
        assert world.knob("maxmemory") == str(3 * MIB if execution.state is ExecutionState.KEPT else 8 * MIB)
        await world.assert_sound()
