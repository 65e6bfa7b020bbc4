"""Modes on real servers: a cache in `advise` is never written to, as its user and its own command statistics prove, and
a mode that is changed at run time counts from then on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from cachewarden.fleet import KeyPattern, Origin
from cachewarden.messages import ExecutionState, Mode, ResolutionOutcome
from cluster.backend import AgentBackend
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.test_acl import acl_lines
from tests.integration.world import CacheSpec, World, traffic, until

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


@pytest.mark.constitutional
@pytest.mark.parametrize(
    ("engine", "user"),
    [
        ("redis", "cachewarden-observer"),
        ("valkey", "cachewarden-observer"),
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
        "origin": Origin(kind="file", url=str(values)),
    }
    spec = CacheSpec(engine=engine, eviction_policy="noeviction", load=traffic("shop"), wishes=wishes)
    async with World(tmp_path, spec) as world:
        monkeypatch.setenv("SHOP_PASSWORD", user_of(world, user, engine))
        admin = world.client("shop")
        admin.execute_command("ACL", "LOG", "RESET")
        admin.config_resetstat()
        async with world.agents() as agents, Site(world, agents, tmp_path) as site:
            # There is something to do, and it stays advice (or is denied, where its user could not do it)
            async def advised() -> bool:
                state = await world.state()
                standing = None if state is None else state.standing.get("shop")
                resolution = None if standing is None else standing.resolution
                return resolution is not None and resolution.outcome is not ResolutionOutcome.GO

            await until(advised, 90, "advice")
            for kind in ("comprehensive", "ttl", "memory", "hotspot"):
                body = {"service_name": "shop", "optimization_type": kind, "force_optimization": True}
                answer = await site.client.post("/api/v1/cache/optimize?apply=auto", json=body)
                assert answer.json()["optimization_applied"] is False, answer.text
            for query in ("", "?wait=false", "?dry_run=true"):
                body = {"service_name": "shop", "cache_keys": ["k:warm"]}
                warmed = await site.client.post(f"/api/v1/cache/warm{query}", json=body)
                assert warmed.status_code in (200, 202), warmed.text
            state = await world.state()
            plan = state.standing["shop"].proposal.proposal_id
            for verb in ("approve", "reject", "rollback"):
                body = {"reason": "let us see"}
                assert (await site.client.post(f"/api/v1/cache/plans/{plan}/{verb}", json=body)).status_code >= 400
            cycle = state.cycle

            async def later() -> bool:
                return (await world.state()).cycle > cycle + 2

            await until(later, 60, "three more cycles")
        # Its own statistics name everything that was ever asked of it
        found = calls(world)
        assert not set(found) - LOOKS - OF_THE_APPLICATION - OF_AN_ADMINISTRATOR, found
        assert not admin.exists("k:warm")
        assert not admin.exists("cachewarden:fence")
        # and nothing was even tried that the user may not do.
        assert admin.execute_command("ACL", "LOG") == []
        assert await world.records("change_intended", "step_intended") == []


async def test_a_mode_is_changed_while_it_runs_and_counts_from_then_on(tmp_path):
    spec = CacheSpec(eviction_policy="noeviction", load=traffic("shop"), wishes={"mode": Mode.ADVISE})
    async with World(tmp_path, spec, lead_ms=60_000) as world:
        async with world.agents() as agents, Site(world, agents, tmp_path) as site:

            async def advised() -> bool:
                state = await world.state()
                return (
                    state is not None
                    and state.standing.get("shop") is not None
                    and state.standing["shop"].resolution is not None
                )

            await until(advised, 90, "advice")
            assert world.config_sets() == 0

            async def mode(wanted: str, query: str = "") -> dict:
                body = {"service_name": "shop", "mode": wanted, "reason": "a test"}
                answer = await site.client.post(f"/api/v1/control/mode{query}", json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()

            tried = await mode("auto", "?dry_run=true")
            assert (tried["before"], tried["dry_run"]) == ("advise", True)
            assert (await site.client.get("/api/v1/cache/services/shop")).json()["service"]["mode"] == "advise"
            await mode("auto")
            assert (await site.client.get("/api/v1/cache/services/shop")).json()["service"]["mode"] == "auto"
            kept = await world.reached(ExecutionState.KEPT, 60)
            assert kept.proposal.knob_changes
            await mode("advise")
            state = await world.state()
            assert state.modes == {}
            writes, fence = world.config_sets(), calls(world).get("eval", 0)
            cycle = state.cycle

            async def later() -> bool:
                return (await world.state()).cycle > cycle + 3

            await until(later, 60, "four more cycles")
            assert world.config_sets() == writes
            # Leading the cache needs its fence renewed; in `advise` it is not.
            assert calls(world).get("eval", 0) <= fence + 1
            off = await mode("off")
            assert "not looked at" in off["consequences"][0]
        # A new life takes the mode over from the journal.
        async with world.agents():

            async def known() -> bool:
                state = await world.state()
                return state is not None and state.modes == {"shop": "off"}

            await until(known, 30, "the mode of the journal")
        kinds = [(r.payload["before"], r.payload["mode"], r.payload["by"]) for r in await world.records("mode_changed")]
        assert kinds == [("advise", "auto", "ann"), ("auto", "advise", "ann"), ("advise", "off", "ann")]
        await world.assert_sound()
