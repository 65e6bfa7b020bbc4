"""ACGS's HTTP services beside the real loop: an Integrity Service that is hardly ever up, a second opinion that fails."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from cachewarden.circuit import CircuitRules
from cachewarden.messages import RecordKind
from cachewarden.policy.second_opinion import SECOND_OPINION
from cachewarden.ports import RecordDraft
from cachewarden.shell import AgentShell, Ports, end_tasks
from cluster.clock import SystemClock
from cluster.peers import make_peers
from cluster.wiring import agents_of, make_journal
from coordination.delivery import Delivery
from coordination.delivery_events import request_id_of
from coordination.envoy import ENVOY, Envoy
from tests.acgs_lookalike import Lookalike, serving
from tests.integration.world import CacheSpec, World, traffic, until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

QUICK = CircuitRules(open_ms=20, open_ms_max=80, backoff_ms=5, backoff_ms_max=20)


class _NoMail:
    async def send(self, sender, to, message):
        """Nobody listens."""


def _drafts(first: int, count: int) -> list[RecordDraft]:
    return [
        RecordDraft(at_ms=n, kind=RecordKind.OBSERVED.value, agent="a", service="shop", subject_id=f"s{n}", payload={})
        for n in range(first, first + count)
    ]


def _envoy(world: World, dice: random.Random) -> AgentShell:
    """The envoy as the composition root builds it, but with pauses that a test can wait for."""
    plan = world.plan
    envoy = Envoy(Delivery(rules=QUICK, page_records=20, poll_ms=20, claim_ms=1_000))
    journal = make_journal(plan)
    peers = make_peers(plan.settings, ENVOY, plan.journal_url, plan.holder)

    async def close() -> None:
        await asyncio.gather(journal.close(), peers.close())

    ports = Ports(clock=SystemClock(), mailbox=_NoMail(), journal=journal, peers=peers, draw=dice.random, close=close)
    return AgentShell(envoy, ports)


async def test_an_integrity_service_that_is_up_a_tenth_of_the_time_gets_all_in_order_across_restarts(tmp_path):
    dice = random.Random(11)
    acgs = Lookalike()
    acgs.fault = lambda: "ok" if dice.random() < 0.1 else dice.choice(["error", "tenant", "wrong_hash", "cut_after"])
    with serving(acgs):
        async with World(tmp_path, CacheSpec(), integrity_service_url=acgs.url) as world:
            journal = make_journal(world.plan)
            for round_ in range(5):
                await journal.append(_drafts(round_ * 6, 6))
                shell = asyncio.create_task(_envoy(world, dice).run())
                wanted = 5 * round_ + 2
                await until(lambda n=wanted: len({e.request_id for e in acgs.events}) >= n, 60, f"{wanted} events")
                # A crash of ours in the middle of it; the next life begins at once.
                await end_tasks([shell])
            acgs.fault = lambda: "ok"
            shell = asyncio.create_task(_envoy(world, dice).run())
            await until(lambda: len({e.request_id for e in acgs.events}) >= 30, 60, "all events")
            await end_tasks([shell])
            records = await journal.read(0, 1_000)
            await journal.close()
    expected = [request_id_of(record) for record in records]
    received = [event.request_id for event in acgs.events]
    assert list(dict.fromkeys(received)) == expected
    # Repetitions follow their first arrival directly: nothing newer was let by.
    places = [expected.index(name) for name in received]
    assert places == sorted(places)


async def test_a_deployment_delivers_registers_and_tells_how_it_stands(tmp_path):
    acgs = Lookalike()
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(acgs))
        port = int(acgs.url.rpartition(":")[2])
        async with World(tmp_path, CacheSpec(), integrity_service_url=acgs.url, acgs_coordinator_url=acgs.url) as world:
            assert agents_of(world.plan)[-1] == ENVOY
            async with world.agents():

                async def well():
                    state = await world.state()
                    peers = {} if state is None else state.peers
                    known = {"blackboard", "coordinator_http", "integrity"} <= peers.keys()
                    return known and all(p.healthy for p in peers.values()) and peers["integrity"].done > 0

                await until(well, 30, "healthy peers")
                assert world.runtime is not None
                stack.close()

                async def ill():
                    peers = (await world.state()).peers
                    return not peers["integrity"].healthy or not peers["coordinator_http"].healthy

                await until(ill, 60, "a peer that is told to be down")
                stack.enter_context(serving(acgs, port))
                await until(well, 90, "healthy peers again")
            records = await world.records()
    seqs = [event.metadata["journal_seq"] for event in acgs.events]
    assert sorted(set(seqs)) == list(range(1, max(seqs) + 1))
    assert max(seqs) <= records[-1].seq


async def test_a_required_opinion_that_cannot_be_had_changes_nothing_and_one_that_agrees_lets_it_go_ahead(tmp_path):
    acgs = Lookalike()
    acgs.fault = lambda: "error"
    spec = CacheSpec(eviction_policy="noeviction", load=traffic("shop"))
    with serving(acgs):
        async with World(tmp_path, spec, constitutional_ai_url=acgs.url, constitutional_ai_mode="required") as world:
            async with world.agents():

                async def denied():
                    for record in await world.records(RecordKind.JUDGED.value):
                        said = [f for f in record.payload["findings"] if f["principle_id"] == SECOND_OPINION]
                        if said and said[0]["decision"] == "deny":
                            return said[0]
                    return None

                finding = await until(denied, 60, "a denial for want of an opinion")
                assert "answered 500" in finding["reason"] or "was not asked" in finding["reason"]
                assert world.config_sets() == 0
                assert await world.records(RecordKind.CHANGE_INTENDED.value) == []
                state = await world.state()
                assert not state.peers["constitutional_ai"].healthy
                acgs.fault = lambda: "ok"
                intended = await world.recorded(RecordKind.CHANGE_INTENDED.value, 120)
            judged = [r for r in await world.records(RecordKind.JUDGED.value) if r.subject_id == intended.subject_id]
            (agreed,) = [f for f in judged[-1].payload["findings"] if f["principle_id"] == SECOND_OPINION]
            assert agreed["decision"] == "allow"
            assert agreed["reason"].startswith("agrees")
