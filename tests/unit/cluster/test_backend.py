"""What the API stands on, with a coordinator that is only data."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from cachewarden.errors import OperatingError, SettingsError
from cachewarden.protocol import FleetState, SetPaused
from cachewarden.settings import CacheOptimizerSettings
from cluster import backend as backend_module
from cluster.backend import AgentBackend, OrderNotTaken
from cluster.wiring import Plan, make_plan, without_password
from tests.unit.serve.serve_world import NOW_MS, fleet, state


class Agents:
    """A runtime whose coordinator takes orders, or loses them; answers may be held back."""

    def __init__(self) -> None:
        self.known: FleetState = state()
        self.loses = False
        self.gone = False
        self.held: list[asyncio.Future[None]] = []

    async def send(self, sender: str, to: str, message: object) -> None:
        if isinstance(message, SetPaused) and not self.loses:
            reason = message.reason if message.paused else ""
            self.known = dataclasses.replace(self.known, paused=message.paused, pause_reason=reason)

    async def query(self, agent: str, method: str, now_ms: int) -> FleetState:
        if self.gone:
            raise OperatingError("agent `coordinator` does not answer")
        answer = dataclasses.replace(self.known, at_ms=now_ms)
        if self.held:
            await self.held.pop(0)
        return answer


@pytest.fixture
def plan(tmp_path) -> Plan:
    return plan_of(tmp_path)


def plan_of(state_dir, **changes: object) -> Plan:
    return make_plan(fleet(), CacheOptimizerSettings(_env_file=None, state_dir=state_dir, **changes))


@pytest.fixture
async def served(plan: Plan, monkeypatch):
    monkeypatch.setattr(backend_module, "_ORDER_S", 0.05)
    agents = Agents()
    backend = AgentBackend(plan, agents)
    yield backend, agents
    await backend.close()


async def test_a_pause_is_answered_once_the_coordinator_says_that_it_stands(served):
    backend, agents = served
    await backend.set_paused(SetPaused(paused=True, by="admin", reason="maintenance", kill=True))
    assert agents.known.paused
    await backend.set_paused(SetPaused(paused=False, by="admin", reason="all is well"))
    assert not agents.known.paused


@pytest.mark.parametrize("fault", ["loses", "gone"])
async def test_a_lost_kill_switch_is_never_taken_for_a_pulled_one(served, fault: str):
    backend, agents = served
    setattr(agents, fault, True)
    with pytest.raises(OrderNotTaken, match="give it again"):
        await backend.set_paused(SetPaused(paused=True, by="admin", reason="maintenance", kill=True))


async def test_a_clock_that_jumps_back_does_not_freeze_the_state(served, monkeypatch):
    backend, agents = served
    times = iter([NOW_MS, NOW_MS - 3_600_000])
    monkeypatch.setattr(backend, "now_ms", lambda: next(times))
    await backend.refresh()
    agents.known = dataclasses.replace(agents.known, cycle=99)
    await backend.refresh()
    monkeypatch.setattr(backend, "start", _nothing)
    assert (await backend.state()).cycle == 99


async def test_the_late_answer_to_an_earlier_question_does_not_replace_a_newer_one(served, monkeypatch):
    backend, agents = served
    monkeypatch.setattr(backend, "start", _nothing)
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    agents.held.append(gate)
    early = asyncio.create_task(backend.refresh())
    await asyncio.sleep(0)
    agents.known = dataclasses.replace(agents.known, cycle=99)
    await backend.refresh()
    gate.set_result(None)
    await early
    assert (await backend.state()).cycle == 99


async def _nothing() -> None:
    return None


def test_a_spoilt_checkpoint_is_said_before_any_agent_starts(tmp_path):
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(SettingsError, match="restore it"):
        plan_of(tmp_path)


def test_an_empty_hash_secret_is_no_secret(tmp_path):
    (tmp_path / "hash_secret").touch()
    with pytest.raises(SettingsError, match="is empty"):
        plan_of(tmp_path)


@pytest.mark.parametrize("name", ["blackboard_url", "journal_url"])
@pytest.mark.parametrize("url", ["nonsense", "redis://:hunter2@host:99999/0"])
def test_a_url_that_no_client_can_use_is_named_and_not_shown(tmp_path, name: str, url: str):
    with pytest.raises(SettingsError, match=name) as caught:
        plan_of(tmp_path, **{name: url})
    assert "hunter2" not in str(caught.value)


def test_a_password_that_the_environment_lacks_is_said_before_any_agent_starts(tmp_path):
    found = fleet()
    lacking = found.services[0].model_copy(update={"password_env": "CACHEWARDEN_TEST_UNSET"})
    changed = found.model_copy(update={"services": (lacking, *found.services[1:])})
    with pytest.raises(SettingsError, match="CACHEWARDEN_TEST_UNSET"):
        make_plan(changed, CacheOptimizerSettings(_env_file=None, state_dir=tmp_path))


def test_a_url_is_shown_without_its_secrets():
    assert without_password("rediss://u:hunter2@host:1/0?password=hunter2") == "rediss://host:1/0"
    assert without_password(None) is None
