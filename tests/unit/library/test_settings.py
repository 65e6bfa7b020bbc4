"""Settings: every name of the specification, and errors that name the value and the range."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cachewarden.errors import SettingsError
from cachewarden.settings import CacheOptimizerSettings, load_settings

OF_THE_SPECIFICATION = {
    "constitutional_hash": "cdd01ef066bc6cf2",
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


def test_every_name_and_default_of_the_specification_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    values = CacheOptimizerSettings().model_dump()
    assert {name: values[name] for name in OF_THE_SPECIFICATION} == OF_THE_SPECIFICATION


def test_the_environment_counts_in_any_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("redis_TIMEOUT", "1.5")
    assert load_settings().redis_timeout == 1.5


def test_a_dotenv_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("CYCLE_INTERVAL_MS=7000\nSOMEBODY_ELSES=1\n")
    assert load_settings().cycle_interval_ms == 7000


def test_a_value_out_of_range_names_the_setting_the_range_and_the_value(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIMUM_GAIN", "7")
    with pytest.raises(SettingsError, match="`minimum_gain` input should be less than or equal to 1, got `7`"):
        load_settings()


@pytest.mark.constitutional
def test_another_constitutional_hash_stops_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CONSTITUTIONAL_HASH", "0000000000000000")
    with pytest.raises(SettingsError, match="must be `cdd01ef066bc6cf2`, got `0000000000000000`"):
        load_settings()


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        load_settings().redis_timeout = 3.0  # type: ignore[misc]
