"""The specification's models and settings: names, defaults and the hash, and what they refuse."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cachewarden.errors import SettingsError
from cachewarden.messages import AGENT_ID, CAPABILITIES
from cachewarden.models import CacheMetrics, CacheOptimizationRequest, CacheOptimizationResponse, OptimizationPlan
from cachewarden.settings import CacheOptimizerSettings, load_settings
from tests.constitutional_case import ConstitutionalTestCase

SPECIFIED_SETTINGS = {
    "target_cache_hit_rate": 0.95,
    "target_memory_efficiency": 0.85,
    "target_p99_latency_ms": 2.0,
    "redis_url": "redis://localhost:6389",
    "redis_max_connections": 50,
    "redis_timeout": 5.0,
    "blackboard_url": "redis://localhost:6389/1",
    "agent_heartbeat_interval": 30,
    "constitutional_ai_url": "http://localhost:8001",
    "integrity_service_url": "http://localhost:8002",
}


class TestModels(ConstitutionalTestCase):
    @pytest.mark.constitutional
    @pytest.mark.parametrize("model", [CacheOptimizationRequest, CacheOptimizationResponse, CacheOptimizerSettings])
    def test_the_hash_of_the_specification_is_the_default(self, model):
        assert model.model_fields["constitutional_hash"].default == self.constitutional_hash

    @pytest.mark.constitutional
    def test_a_request_without_a_hash_has_ours_and_one_with_another_keeps_it_to_be_refused(self):
        self.assert_carries_hash(CacheOptimizationRequest(service_name="a"))
        assert CacheOptimizationRequest(service_name="a", constitutional_hash="x").constitutional_hash == "x"

    @pytest.mark.constitutional
    def test_settings_with_another_hash_cannot_be_loaded(self):
        with pytest.raises(SettingsError, match=self.constitutional_hash):
            load_settings(_env_file=None, constitutional_hash="deadbeef")

    @pytest.mark.constitutional
    def test_a_plan_says_that_it_was_validated_only_because_somebody_set_it(self):
        plan = OptimizationPlan(opportunities=[], estimated_total_improvement=0.0, implementation_priority="none")
        assert plan.rollback_strategy == "immediate"
        assert "constitutional_validation" not in plan.model_fields_set

    @pytest.mark.parametrize(("name", "value"), SPECIFIED_SETTINGS.items())
    def test_a_setting_has_the_name_and_the_default_of_the_specification(self, name, value):
        assert CacheOptimizerSettings.model_fields[name].default == value

    def test_a_request_has_the_defaults_of_the_specification(self):
        request = self.sample_request
        assert request.optimization_type == "comprehensive"
        assert request.force_optimization is False
        assert request.target_metrics == {"cache_hit_rate": 0.95, "memory_efficiency": 0.85, "p99_latency_ms": 2.0}

    @pytest.mark.parametrize(
        "fields",
        [
            {"optimization_type": "magic"},
            {"target_metrics": {"cache_hit_rate": 1.5}},
            {"target_metrics": {"cache_hit_ratio": 0.9}},
            {"force_optimization": "yes"},
            {"forced": True},
            {"service_name": ""},
        ],
        ids=str,
    )
    def test_what_would_be_a_typing_error_is_refused(self, fields):
        with pytest.raises(ValidationError):
            CacheOptimizationRequest(**{"service_name": "a", **fields})

    def test_an_assignment_is_checked_like_a_new_request(self):
        request = self.sample_request
        with pytest.raises(ValidationError):
            request.optimization_type = "magic"

    @pytest.mark.cache_performance
    @pytest.mark.parametrize("field", ["hit_rate", "miss_rate", "memory_efficiency", "constitutional_compliance_score"])
    def test_a_rate_is_a_share_or_unknown(self, field):
        known = {
            "hit_rate": 0.5,
            "miss_rate": 0.5,
            "memory_usage_bytes": 1,
            "memory_efficiency": 0.5,
            "p99_latency_ms": 0.1,
            "eviction_rate": 0.0,
            "hotspot_count": 0,
            "constitutional_compliance_score": 1.0,
        }
        assert getattr(CacheMetrics(**{**known, field: None}), field) is None
        with pytest.raises(ValidationError):
            CacheMetrics(**{**known, field: 1.01})

    @pytest.mark.constitutional
    def test_we_are_the_agent_that_the_specification_names(self):
        assert AGENT_ID == "cache_performance_optimizer"
        assert list(CAPABILITIES) == [
            "cache_performance_analysis",
            "memory_optimization",
            "latency_reduction",
            "constitutional_cache_validation",
        ]
