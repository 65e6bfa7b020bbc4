"""Modes on real servers: a cache in `advise` is never written to, as its user and its own command statistics prove, and
a mode that is changed at run time counts from then on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest

from cachewarden.fleet import KeyPattern, Origin
from cachewarden.messages import ExecutionState, Mode
from cluster.backend import AgentBackend
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.test_acl import acl_lines
from tests.integration.world import CacheSpec, World, order_for, until

pytestmark = pytest.mark.integration

OF_THE_APPLICATION = {
    "get",
    "set",
    "mget",
    "mset",
    "del",
    "ping",
    "client|setname",
    "client|setinfo",
    "hello",
    "select",
    "auth",
}
OF_AN_ADMINISTRATOR = {"acl|setuser", "acl|log", "config|resetstat", "info", "config|get", "exists", "dbsize"}
LOOKS = {
    *(
        "ping",
        "info",
        "select",
        "auth",
        "hello",
        "config|get",
        "latency|histogram",
        "randomkey",
        "pttl",
        "memory|usage",
    ),
    *("object|idletime", "object|freq", "object|encoding", "client|setname", "client|setinfo", "client|info"),
    *("client|no-touch", "acl|whoami", "acl|dryrun", "command|info"),
    *("monitor", "time", "client|id", "client|list"),
}
"""What the README gives to the observer, and what a client says on connecting."""


def user_of(world: World, name: str, engine: str) -> str:
    """Make one of the README's users in the cache; returns its password."""
    words = [w for w in acl_lines()[name] if engine == "valkey" or w != "+client|no-touch"]
    # What the README adds for captures: it looks, and writes nothing.
    words += ["+monitor", "+time", "+client|id", "+client|list"]
    world.client("shop").execute_command(*words)
    return next(word[1:] for word in words if word.startswith(">"))


def calls(world: World) -> Mapping[str, int]:
    """Return how often the cache has carried out or refused each command."""
    stats = world.client("shop").info("commandstats")
    return {
        name.removeprefix("cmdstat_"): int(s["calls"]) + int(s.get("rejected_calls", 0)) for name, s in stats.items()
    }


class Site:
    def __init__(self, world: World, agents: object, state_dir: Path) -> None:
        self.backend = AgentBackend(world.plan, agents)
        token = create_token(state_dir, "ann", ("admin",))
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=create_app(self.backend, TokenStore(state_dir), wait_s=2.0)),
            base_url="http://api",
            timeout=60,
            headers={"Authorization": f"Bearer {token}"},
        )

    async def __aenter__(self) -> Site:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self.backend.close()


@contextlib.asynccontextmanager
async def used(world: World) -> AsyncIterator[None]:
    """Let an application use the cache for as long as the body runs."""
    cache = world.client("shop")

    async def work() -> None:
        while True:
            with cache.pipeline(transaction=False) as pipe:
                for number in range(100):
                    pipe.get(f"k:{number}")
                pipe.execute()
            await asyncio.sleep(0.1)

    for number in range(90):
        cache.set(f"k:{number}", "v" * 100)
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def cycles(world: World, number: int) -> None:
    """Wait for so many more cycles."""
    begun = (await world.state()).cycle

    async def later() -> bool:
        return (await world.state()).cycle >= begun + number

    await until(later, 60, f"{number} more cycles")


SAMPLES = [("maxmemory-samples", "7")]


@pytest.mark.constitutional
@pytest.mark.parametrize(
    ("engine", "user"),
    [
        ("redis", "cachewarden-observer"),
        ("valkey", "cachewarden-observer"),
        ("redis", "cachewarden-actuator"),
        ("valkey", "cachewarden-actuator"),
    ],
)
async def test_a_cache_in_advise_is_never_written_to_whatever_is_asked_and_whatever_the_user_may(
    tmp_path, monkeypatch, engine, user
):
    values = tmp_path / "values.json"
    values.write_text('{"k:warm": "value"}')
    wishes = {
        "mode": Mode.ADVISE,
        "username": user,
        "password_env": "SHOP_PASSWORD",
        "patterns": (KeyPattern(prefix="k:", max_staleness_s=3_600),),
        "default_ttl_s": 60,
        "origin": Origin(kind="file", url=str(values), keep_warm=True, refresh_ahead=True),
    }
    async with World(tmp_path, CacheSpec(engine=engine, wishes=wishes)) as world:
        monkeypatch.setenv("SHOP_PASSWORD", user_of(world, user, engine))
        admin = world.client("shop")
        admin.execute_command("ACL", "LOG", "RESET")
        admin.config_resetstat()
        async with used(world), world.agents() as agents, Site(world, agents, tmp_path) as site:
            state = await world.seen(timeout_s=60)
            for kind in ("comprehensive", "ttl", "memory", "hotspot"):
                body = {"service_name": "shop", "optimization_type": kind, "force_optimization": True}
                answer = await site.client.post("/api/v1/cache/optimize?apply=auto", json=body)
                assert answer.json()["optimization_applied"] is False, answer.text
            for query in ("", "?wait=false", "?dry_run=true"):
                body = {"service_name": "shop", "cache_keys": ["k:warm"]}
                warmed = await site.client.post(f"/api/v1/cache/warm{query}", json=body)
                assert warmed.status_code in (200, 202), warmed.text
                assert warmed.json().get("counts", {}).get("warmed", 0) == 0
            if user == "cachewarden-actuator":
                # Even an order that everybody has agreed to is not carried out.
                await agents.send("api", "coordinator", order_for(world, state, SAMPLES))
                execution = await world.finished("p-crafted")
                assert execution.state is ExecutionState.ABANDONED
                assert "`advise`, nothing is written" in execution.reason
            await cycles(world, 2)
        # Its own statistics name everything that was ever asked of it,
        found = calls(world)
        more = set(found) - LOOKS - OF_THE_APPLICATION - OF_AN_ADMINISTRATOR
        assert not more, {name: found[name] for name in more}
        assert found["set"] == 90
        assert admin.dbsize() == 90
        # and nothing was even tried that the user may not do.
        assert admin.execute_command("ACL", "LOG") == []
        assert await world.records("step_intended") == []


async def test_a_mode_is_changed_while_it_runs_and_counts_from_then_on(tmp_path):
    async with World(tmp_path, CacheSpec(wishes={"mode": Mode.ADVISE}), lead_ms=60_000) as world:
        async with used(world), world.agents() as agents, Site(world, agents, tmp_path) as site:
            state = await world.seen(timeout_s=60)

            async def mode(wanted: str, query: str = "") -> dict:
                body = {"service_name": "shop", "mode": wanted, "reason": "a test"}
                answer = await site.client.post(f"/api/v1/control/mode{query}", json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()

            async def shown() -> str:
                return (await site.client.get("/api/v1/cache/services/shop")).json()["service"]["mode"]

            tried = await mode("auto", "?dry_run=true")
            assert (tried["before"], tried["dry_run"]) == ("advise", True)
            assert await shown() == "advise"
            await mode("auto")
            assert await shown() == "auto"
            await agents.send("api", "coordinator", order_for(world, state, SAMPLES, promised=0.9))
            execution = await world.finished("p-crafted", timeout_s=80)
            assert execution.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK), execution.reason
            assert world.config_sets() >= 1
            await mode("advise")
            assert (await world.state()).modes == {}
            # A renewal that was on its way may still arrive; after that the fence of a led cache is left to run out.
            await cycles(world, 1)
            before = (world.config_sets(), calls(world).get("eval", 0))
            await cycles(world, 4)
            assert (world.config_sets(), calls(world).get("eval", 0)) == before
            off = await mode("off")
            assert "not looked at" in off["consequences"][0]

            async def written() -> bool:
                return len(await world.records("mode_changed")) == 3

            # It is in force at once, and survives this life once it is written down.
            await until(written, 30, "the record of the mode")
        # A new life takes the mode over from the journal.
        async with world.agents():

            async def known() -> bool:
                state = await world.state()
                return state is not None and state.modes == {"shop": "off"}

            await until(known, 30, "the mode of the journal")
        kinds = [(r.payload["before"], r.payload["mode"], r.payload["by"]) for r in await world.records("mode_changed")]
        assert kinds == [("advise", "auto", "ann"), ("auto", "advise", "ann"), ("advise", "off", "ann")]
        await world.assert_sound()
