"""The embedding facade on real servers with traffic: the specification's test pattern in our form."""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
from collections.abc import Iterator

import pytest
import pytest_asyncio

from cachewarden.errors import (
    ConstitutionalComplianceError,
    JournalUnavailable,
    RequestError,
    TargetUnavailable,
    UnknownService,
)
from cachewarden.fleet import Fleet, Service
from cachewarden.messages import Mode, RecordKind
from cachewarden.models import CacheMetrics, CacheOptimizationRequest
from cluster.optimizer import DEFAULT_SERVICE, CachePerformanceOptimizer
from coordination.redis_journal import RedisJournal
from tests.constitutional_case import ConstitutionalTestCase
from tests.facade_world import CACHE_BYTES, World, embedded_world

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
PATIENCE_S = 50.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world():
    """A cache that only gets advice, so that whoever asks leaves it as it was."""
    async with embedded_world(mode=Mode.ADVISE) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def optimizer(world: World):
    async with CachePerformanceOptimizer(world.settings, world.fleet) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def journal(world: World):
    reader = RedisJournal(world.settings.blackboard_url, prefix=world.settings.key_prefix)
    yield reader
    await reader.close()


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """URL of a port that is taken and answers nobody."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


async def measured(optimizer: CachePerformanceOptimizer, at_least: float = 0.0) -> CacheMetrics:
    """Return the metrics of the first window with a hit rate of at least so much."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            metrics = await optimizer.metrics()
            if metrics.hit_rate is not None and metrics.hit_rate >= at_least:
                return metrics
            await asyncio.sleep(0.1)


class TestCachePerformanceOptimizer(ConstitutionalTestCase):
    @pytest.mark.constitutional
    async def test_an_answer_carries_the_hash_and_a_judgement_and_is_in_the_journal(self, optimizer, journal):
        assert optimizer.constitutional_hash == self.constitutional_hash
        result = await optimizer.optimize_cache_configuration(self.sample_request)
        self.assert_decided_constitutionally(result)
        record = self.assert_audited(
            await journal.read_back(), RecordKind.REQUEST_DECIDED, subject_id=result.decision_id
        )
        assert record.payload["state"] == result.state
        assert record.payload["will_execute"] is False

    @pytest.mark.constitutional
    async def test_the_standing_plan_is_judged_by_every_principle_at_each_request(self, optimizer):
        async with asyncio.timeout(PATIENCE_S):
            while True:
                result = await optimizer.optimize_cache_configuration(self.sample_request)
                if result.optimization_plan.id is not None:
                    break
                await asyncio.sleep(0.1)
        self.assert_decided_constitutionally(result)
        assert result.state == "advised"
        assert result.constitutional_compliance["judged"] is True
        assert len(result.constitutional_compliance["checks"]) >= 4
        assert result.optimization_applied is False

    @pytest.mark.constitutional
    async def test_a_wrong_hash_is_refused_and_recorded_and_does_nothing_else(self, world, optimizer, journal):
        request = CacheOptimizationRequest(service_name=self.service_name, constitutional_hash="deadbeef" * 20)
        stranger = CachePerformanceOptimizer(world.settings, world.fleet)
        try:
            with pytest.raises(ConstitutionalComplianceError, match="deadbeef"):
                await stranger.optimize_cache_configuration(request)
            assert not stranger._running
        finally:
            await stranger.close()
        record = self.assert_audited(await journal.read_back(), RecordKind.REQUEST_REFUSED)
        assert record.payload["where"] == "body"
        assert record.payload["received"].startswith("deadbeef")
        assert len(record.payload["received"]) <= 64

    @pytest.mark.performance
    async def test_how_long_a_decision_takes_with_its_durable_record(self, optimizer, capsys):
        await measured(optimizer)
        states = set()

        async def ask() -> None:
            states.add((await optimizer.optimize_cache_configuration(self.sample_request, apply="never")).state)

        latencies_ms = await self.latencies_ms(ask, 200)
        cuts = statistics.quantiles(latencies_ms, n=100)
        with capsys.disabled():
            sys.stdout.write(f"\nfacade, {len(latencies_ms)} calls: P50 {cuts[49]:.2f} ms, P99 {cuts[98]:.2f} ms\n")
        assert states <= {"advised", "nothing_to_do"}

    async def test_metrics_are_those_of_the_real_server(self, optimizer):
        metrics = await measured(optimizer)
        assert metrics.hit_rate + metrics.miss_rate == pytest.approx(1.0)
        assert CACHE_BYTES / 2 < metrics.memory_usage_bytes < CACHE_BYTES * 1.2
        assert metrics.eviction_rate > 0
        assert metrics.p99_latency_ms > 0

    async def test_an_unknown_service_names_the_known_ones(self, optimizer):
        with pytest.raises(UnknownService, match=self.service_name):
            await optimizer.optimize_cache_configuration(CacheOptimizationRequest(service_name="constitutional_al"))
        with pytest.raises(UnknownService):
            await optimizer.metrics("constitutional_al")

    async def test_without_a_context_it_starts_with_the_first_question_and_ends_for_good_with_close(self, world):
        lazy = CachePerformanceOptimizer(world.settings, world.fleet)
        try:
            answers = await asyncio.gather(*(lazy.optimize_cache_configuration(self.sample_request) for _ in range(3)))
            assert len({a.decision_id for a in answers}) == 3
        finally:
            await lazy.close()
        await lazy.close()
        with pytest.raises(RequestError, match="closed"):
            await lazy.optimize_cache_configuration(self.sample_request)

    async def test_without_a_fleet_the_cache_at_redis_url_gets_advice(self, world):
        settings = world.settings.model_copy(update={"redis_url": world.caches[self.service_name].url})
        async with CachePerformanceOptimizer(settings) as alone:
            assert alone.services == (DEFAULT_SERVICE,)
            result = await alone.optimize_cache_configuration(CacheOptimizationRequest(service_name=DEFAULT_SERVICE))
            assert result.optimization_applied is False
            assert (await alone.metrics()).memory_usage_bytes > CACHE_BYTES / 2

    async def test_without_a_journal_nothing_is_decided_and_a_wrong_hash_is_still_refused(self, world, nobody_listens):
        settings = world.settings.model_copy(update={"journal_url": nobody_listens, "redis_timeout": 1.0})
        deaf = CachePerformanceOptimizer(settings, world.fleet)
        try:
            with pytest.raises(JournalUnavailable):
                await deaf.optimize_cache_configuration(self.sample_request)
            wrong = self.sample_request.model_copy(update={"constitutional_hash": "x"})
            with pytest.raises(ConstitutionalComplianceError):
                await deaf.optimize_cache_configuration(wrong)
        finally:
            await deaf.close()

    async def test_a_cache_that_does_not_answer_has_no_metrics_and_no_plan(self, world, nobody_listens):
        fleet = Fleet(services=(Service(name="gone", url=nobody_listens, mode=Mode.AUTO),))
        async with CachePerformanceOptimizer(world.settings, fleet) as optimizer:
            with pytest.raises(TargetUnavailable, match="gone"):
                await optimizer.metrics()
            result = await optimizer.optimize_cache_configuration(CacheOptimizationRequest(service_name="gone"))
        assert result.state == "nothing_to_do"
        assert "not observed" in result.reason
        assert set(result.performance_improvement.values()) == {None}


class TestImprovement(ConstitutionalTestCase):
    @pytest.mark.cache_performance
    async def test_a_cache_that_is_too_small_grows_until_the_measured_hit_rate_is_above_the_target(self):
        async with (
            embedded_world() as world,
            CachePerformanceOptimizer(world.settings, world.fleet, wait_s=20.0) as optimizer,
        ):
            baseline = await measured(optimizer)
            request = CacheOptimizationRequest(
                service_name=self.service_name, target_metrics={"cache_hit_rate": 0.95}, force_optimization=True
            )
            async with asyncio.timeout(PATIENCE_S):
                while not (result := await optimizer.optimize_cache_configuration(request)).optimization_applied:
                    await asyncio.sleep(0.1)
            self.assert_decided_constitutionally(result)
            after = await measured(optimizer, at_least=0.95)
            await self.assert_judged_before_it_was_changed(world, result.optimization_plan.id)
        assert baseline.hit_rate < 0.95 <= after.hit_rate
        assert after.memory_usage_bytes > CACHE_BYTES
        assert result.performance_improvement["cache_hit_rate"] > baseline.hit_rate
        assert result.prediction_basis["cache_hit_rate"] in ("predicted", "realised")

    async def assert_judged_before_it_was_changed(self, world: World, plan_id: str | None) -> None:
        reader = RedisJournal(world.settings.blackboard_url, prefix=world.settings.key_prefix)
        try:
            records = [r for r in await reader.read_back() if r.subject_id == plan_id]
        finally:
            await reader.close()
        judged = self.assert_audited(records, RecordKind.JUDGED)
        intended = self.assert_audited(records, RecordKind.CHANGE_INTENDED)
        assert judged.payload["decision"] == "allow"
        assert all(finding["decision"] == "allow" for finding in judged.payload["findings"])
        assert judged.seq < intended.seq
