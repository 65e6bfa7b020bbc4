"""The facade before it has started anything: what it refuses and what it takes for granted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachewarden.errors import ConstitutionError, FleetFileError, RequestError, UnknownService
from cachewarden.fleet import Fleet, Service
from cachewarden.messages import Mode
from cachewarden.models import CacheOptimizationRequest
from cachewarden.settings import CacheOptimizerSettings
from cluster.optimizer import DEFAULT_SERVICE, CachePerformanceOptimizer
from tests.constitutional_case import ConstitutionalTestCase


def settings(tmp_path: Path, **changes: object) -> CacheOptimizerSettings:
    return CacheOptimizerSettings(_env_file=None, state_dir=tmp_path, **changes)


class TestLifecycle(ConstitutionalTestCase):
    @pytest.mark.constitutional
    def test_it_carries_the_hash(self, tmp_path):
        self.assert_carries_hash(CachePerformanceOptimizer(settings(tmp_path)))

    def test_without_a_fleet_there_is_one_service_that_only_gets_advice(self, tmp_path):
        alone = CachePerformanceOptimizer(settings(tmp_path, redis_url="redis://elsewhere:6379"))
        (service,) = alone._plan.fleet.services
        assert (service.name, service.url, service.mode) == (DEFAULT_SERVICE, "redis://elsewhere:6379", Mode.ADVISE)

    def test_the_fleet_file_of_the_settings_is_used(self, tmp_path):
        path = tmp_path / "fleet.yaml"
        path.write_text("services:\n  - {name: cart, url: 'redis://cart:6379'}\n")
        assert CachePerformanceOptimizer(settings(tmp_path, fleet_path=path)).services == ("cart",)
        path.write_text("services: []\n")
        with pytest.raises(FleetFileError):
            CachePerformanceOptimizer(settings(tmp_path, fleet_path=path))

    @pytest.mark.constitutional
    def test_without_a_constitution_there_is_no_optimizer(self, tmp_path):
        with pytest.raises(ConstitutionError):
            CachePerformanceOptimizer(settings(tmp_path, constitution_path=tmp_path / "none.yaml"))

    def test_two_facades_are_two_writers(self, tmp_path):
        one, two = (CachePerformanceOptimizer(settings(tmp_path)) for _ in range(2))
        assert one._plan.holder != two._plan.holder

    async def test_an_unknown_service_starts_nothing(self, tmp_path):
        optimizer = CachePerformanceOptimizer(settings(tmp_path))
        with pytest.raises(UnknownService, match=DEFAULT_SERVICE):
            await optimizer.optimize_cache_configuration(CacheOptimizationRequest(service_name="test_service"))
        assert not optimizer._running

    async def test_metrics_of_several_services_need_a_name(self, tmp_path):
        fleet = Fleet(services=tuple(Service(name=n, url=f"redis://{n}:6379") for n in ("a", "b")))
        with pytest.raises(RequestError, match="a, b"):
            await CachePerformanceOptimizer(settings(tmp_path), fleet).metrics()

    async def test_closed_is_closed_even_before_it_was_started(self, tmp_path):
        optimizer = CachePerformanceOptimizer(settings(tmp_path))
        await optimizer.close()
        with pytest.raises(RequestError, match="make a new one"):
            await optimizer.optimize_cache_configuration(CacheOptimizationRequest(service_name=DEFAULT_SERVICE))
