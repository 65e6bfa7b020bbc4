"""What the API stands on, with a coordinator that is only data."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

import pytest

from cachewarden.errors import OperatingError, SettingsError
from cachewarden.fed_accesses import FeedBatch
from cachewarden.protocol import FleetState, RunCycle, SetPaused
from cachewarden.settings import CacheOptimizerSettings
from cachewarden.state_parcel import OtherVersion
from cluster import backend as backend_module
from cluster.backend import AgentBackend, OrderNotTaken
from cluster.wiring import Plan, make_plan, without_password
from coordination.state_feed import StateFeed, beat_of, delta_of
from tests.unit.serve.serve_world import NOW_MS, fleet, snapshot, state


class Agents:
    """A runtime whose coordinator takes orders, or loses them; an answer may be held back until it is let go."""

    def __init__(self) -> None:
        self.known: FleetState = state(life_ms=1)
        self.feed = StateFeed()
        self.other_version = False
        self.loses = False
        self.gone = False
        self.sent: list[object] = []
        self.step = asyncio.Event()

    def becomes(self, **changes: object) -> None:
        self.known = dataclasses.replace(self.known, version=self.known.version + 1, **changes)
        self.step.set()

    async def send(self, sender: str, to: str, message: object) -> None:
        self.sent.append(message)
        if isinstance(message, SetPaused) and not self.loses:
            self.becomes(paused=message.paused, pause_reason=message.reason if message.paused else "")

    async def query(self, agent: str, method: str, *_: object) -> object:
        raise AssertionError("nobody else is asked")

    async def watch(self, agent: str, seen: tuple[int, int], timeout_s: float) -> object:
        while not self.gone and seen == (self.known.life_ms, self.known.version):
            self.step.clear()
            try:
                await asyncio.wait_for(self.step.wait(), timeout_s)
            except TimeoutError:
                break
        if self.gone:
            raise OperatingError("agent `coordinator` does not answer")
        if self.other_version:
            raise OtherVersion("0123456789abcdef")
        return self.feed.news(self.known, seen)


def nothing_fed() -> FeedBatch:
    """Return a batch of a second in which a recorder saw nothing."""
    columns = ("at_ms", "key", "op", "size_bytes", "ttl_ms", "pattern", "missed")
    moment = {"from_ms": 0, "to_ms": 1_000, "sent_ms": 1_000, "lookups": 0, "hits": 0, "misses": 0}
    who = {"service": "api_gateway", "recorder": "r", "seq": 1, "spatial_rate": 1.0}
    return FeedBatch.of(columns=dict.fromkeys(columns, ()), patterns=0, **who, **moment)


async def until(holds: Callable[[], bool], patience_s: float = 5.0) -> bool:
    end_s = time.monotonic() + patience_s
    while not holds() and time.monotonic() < end_s:
        await asyncio.sleep(0.005)
    return holds()


@pytest.fixture
def plan(tmp_path) -> Plan:
    return plan_of(tmp_path)


def plan_of(state_dir, **changes: object) -> Plan:
    return make_plan(fleet(), CacheOptimizerSettings(_env_file=None, state_dir=state_dir, **changes))


@pytest.fixture
async def served(plan: Plan, monkeypatch):
    monkeypatch.setattr(backend_module, "_ORDER_S", 0.05)
    monkeypatch.setattr(backend_module, "_FIRST_S", 0.05)
    monkeypatch.setattr(backend_module, "_BEAT_S", 0.01)
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


async def test_what_the_coordinator_learns_arrives_as_a_difference(served):
    backend, agents = served
    assert (await backend.state()).version == agents.known.version
    agents.becomes(snapshots={**agents.known.snapshots, "api_gateway": snapshot("api_gateway", hits=1)})
    await backend.changed(5.0)
    now = await backend.state()
    assert now.snapshots["api_gateway"].hits == 1
    assert now.snapshots.keys() == agents.known.snapshots.keys()
    assert now.version == agents.known.version


async def test_a_coordinator_that_began_a_new_life_is_believed_although_it_counts_from_the_start_again(served):
    backend, agents = served
    agents.becomes()
    await backend.state()
    agents.known = state(life_ms=2, version=1, paused=True, pause_reason="maintenance")
    agents.step.set()
    await backend.changed(5.0)
    assert (await backend.state()).paused


async def test_the_state_of_a_coordinator_that_is_gone_grows_old_by_a_clock_that_cannot_be_set(served, monkeypatch):
    backend, agents = served
    assert backend.state_age_s() is None
    await backend.state()
    assert backend.state_age_s() < 1.0
    agents.gone = True
    begun = time.monotonic()
    monkeypatch.setattr(backend_module.time, "monotonic", lambda: begun + 60.0)
    monkeypatch.setattr(backend, "now_ms", lambda: NOW_MS - 3_600_000)
    assert backend.state_age_s() > 30.0


async def test_an_answer_that_lay_about_while_the_replica_was_stalled_counts_from_when_it_was_asked_for(served):
    backend, _ = served
    await backend.state()
    await backend.close()
    asked_s = time.monotonic() - 20.0
    assert backend._take(beat_of(backend._state), asked_s)
    assert backend.state_age_s() >= 20.0


async def test_what_does_not_fit_is_asked_for_as_a_whole(served):
    backend, _ = served
    await backend.state()
    await backend.close()
    strange = delta_of(state(life_ms=1, version=7), state(life_ms=1, version=8))
    assert not backend._take(strange, 0.0)
    assert backend._state is None


async def test_a_coordinator_of_another_version_is_not_understood_until_it_is_of_ours_again(served):
    backend, agents = served
    known = await backend.state()
    assert backend.contact_problem() is None
    agents.other_version = True
    agents.becomes(paused=True, pause_reason="nobody here can read it")
    assert await until(lambda: backend.contact_problem() is not None)
    assert "another version" in backend.contact_problem()
    assert backend.newest_state() is known
    agents.other_version = False
    agents.becomes()
    assert await until(lambda: backend.contact_problem() is None)
    assert (await backend.state()).version == agents.known.version


async def test_whose_first_word_is_of_another_version_is_not_waited_for(served, monkeypatch):
    backend, agents = served
    monkeypatch.setattr(backend_module, "_FIRST_S", 60.0)
    agents.other_version = True
    for _ in range(2):
        assert await asyncio.wait_for(backend.state(), 5.0) is None
    assert "another version" in backend.contact_problem()


async def test_one_that_is_gone_is_not_said_to_be_of_another_version(served):
    backend, agents = served
    agents.other_version = True
    await backend.state()
    agents.other_version, agents.gone = False, True
    assert await until(lambda: backend.contact_problem() is None)


@pytest.mark.constitutional
async def test_to_a_coordinator_of_another_version_only_a_pause_is_sent_and_nothing_is_taken_for_confirmed(served):
    backend, agents = served
    await backend.state()
    agents.other_version = True
    agents.becomes()
    assert await until(lambda: backend.contact_problem() is not None)
    with pytest.raises(OrderNotTaken, match="another version"):
        await backend.set_paused(SetPaused(paused=False, by="admin", reason="it was not paused when last heard of"))
    with pytest.raises(OrderNotTaken, match="another version"):
        await backend.run_cycle(RunCycle())
    with pytest.raises(OrderNotTaken, match="another version"):
        await backend.feed(nothing_fed())
    assert agents.sent == []
    with pytest.raises(OrderNotTaken, match="another version"):
        await backend.set_paused(SetPaused(paused=True, by="admin", reason="maintenance", kill=True))
    assert [type(message) for message in agents.sent] == [SetPaused]


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
