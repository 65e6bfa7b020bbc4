"""What a scenario file says: the fleet, its loads, the faults and when they come, what has to be seen in the end.

The vocabulary of faults is in `faults.py`, the mixes that are drawn from a seed in `mixes.py`; docs/SIMULATION.md shows
how to write a scenario. It decides nothing. INVARIANT: a scenario that loads can be run, whatever the seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from cachewarden.errors import ConfigurationError, SettingsError
from cachewarden.fleet import Bytes, Fleet, KeyPattern, Service
from cachewarden.knobs import check_value
from cachewarden.messages import Mode
from cachewarden.settings import CacheOptimizerSettings
from cachewarden.yaml_lines import load_yaml, validate_yaml
from simulation.durations import DurationMs
from simulation.fault_words import FaultSpec
from simulation.load_model import LoadModel

__all__ = [
    "Expectation",
    "Load",
    "Scenario",
    "ScenarioError",
    "SimulatedSettings",
    "load_scenario",
    "parse_scenario",
    "scenario_files",
]

_SCENARIOS = Path(__file__).resolve().parent / "scenarios"


class ScenarioError(ConfigurationError):
    """A scenario cannot be used; says file and line."""


class SimulatedSettings(CacheOptimizerSettings):
    """Settings of a simulated deployment: what the scenario says and defaults, never the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out everything that a run could differ by from machine to machine."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Load(_Strict):
    """One service: how its cache is configured, what its owner wants, and what it is asked for."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    maxmemory: Bytes = Field(12 << 20, ge=0)
    eviction_policy: str = "noeviction"
    lookups_per_s: float = Field(500.0, ge=0.0, le=1e6)
    keys: int = Field(30_000, ge=100, le=1_000_000)
    skew: float = Field(0.9, ge=0.2, le=2.0)
    entry_bytes: int = Field(1_000, ge=64, le=1_000_000)
    once_share: float = Field(0.02, ge=0.0, le=0.9)
    lfu_bonus: float = Field(0.0, ge=-0.9, le=0.9)
    ttl_share: float = Field(0.0, ge=0.0, le=1.0)
    ttl_gain: float = Field(0.0, ge=0.0, le=0.9)
    written_ttl: DurationMs = 0
    max_staleness: DurationMs = 0
    mode: Mode = Mode.AUTO
    weight: float = Field(1.0, gt=0.0, le=1_000.0)
    hit_ratio_floor: float = Field(0.0, ge=0.0, lt=1.0)
    minimum_memory: Bytes = Field(2 << 20, ge=1 << 20)

    @model_validator(mode="after")
    def _whole(self) -> Load:
        try:
            check_value("maxmemory-policy", self.eviction_policy)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        if (self.ttl_gain > 0.0) != (0 < self.written_ttl < self.max_staleness):
            raise ValueError("`ttl_gain` needs `written_ttl` and a longer `max_staleness`, and the other way round")
        return self

    def service(self) -> Service:
        """Return the service of the fleet file."""
        staleness_s = self.max_staleness / 1000.0 if self.max_staleness else None
        patterns = (KeyPattern(prefix="key:", max_staleness_s=staleness_s),)
        return Service(
            name=self.name,
            url=f"redis://{self.name}:6379/0",
            mode=self.mode,
            weight=self.weight,
            hit_ratio_floor=self.hit_ratio_floor,
            minimum_memory_bytes=self.minimum_memory,
            patterns=patterns,
        )

    def model(self) -> LoadModel:
        """Return what its hit ratios follow from."""
        return LoadModel(
            keys=self.keys,
            skew=self.skew,
            entry_bytes=self.entry_bytes,
            once_share=self.once_share,
            ttl_share=self.ttl_share,
            ttl_gain=self.ttl_gain,
            lfu_bonus=self.lfu_bonus,
        )


class Expectation(_Strict):
    """What the end of a run has to show; bounds on how many changes ended in which way, over all services."""

    kept_min: int | None = Field(None, ge=0)
    kept_max: int | None = Field(None, ge=0)
    rolled_back_min: int | None = Field(None, ge=0)
    rolled_back_max: int | None = Field(None, ge=0)
    abandoned_min: int | None = Field(None, ge=0)
    failed_max: int | None = Field(None, ge=0)
    writes_max: int | None = Field(None, ge=0, description="fenced writes to caches")


class Scenario(_Strict):
    """A world to be run. `minutes` with faults, then `quiet_minutes` without, after which everything must be whole."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,120}$")
    about: str = Field("", max_length=2_000)
    minutes: float = Field(60.0, gt=0.0, le=10_000.0)
    quiet_minutes: float = Field(25.0, ge=0.0, le=1_000.0)
    deployments: Literal[1, 2] = 1
    shared_leases: bool = Field(default=True, description="whether two deployments use one journal and lease server")
    nodes: Literal[1, 2] = 2
    total_memory: Bytes | None = Field(None, ge=1 << 20)
    belief_error: float = Field(0.15, ge=0.0, le=2.0, description="by what share predicted differences may be wrong")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings by name, as in docs/OPERATIONS.md")
    services: tuple[Load, ...] = Field(min_length=1, max_length=50)
    mix: str = Field("none", description="name of a mix of faults that is drawn from the seed")
    faults: tuple[FaultSpec, ...] = ()
    expect: Expectation = Expectation()
    known_broken: dict[str, str] = Field(
        default_factory=dict, description="promise that is known not to hold here, to the reason; it is not checked"
    )

    @model_validator(mode="after")
    def _runnable(self) -> Scenario:
        self.fleet()
        self.make_settings()
        vague = [promise for promise, reason in self.known_broken.items() if len(reason) < 20]
        if vague:
            raise ValueError(f"`known_broken` of `{vague[0]}` needs a reason that somebody else understands")
        return self

    def check_fault(self, fault: FaultSpec) -> None:
        """Raise ValueError for a fault that names nothing of this scenario or comes after its end."""
        fault.check_names(tuple(s.name for s in self.services), self.deployments, self.nodes)
        if fault.at_ms > self.minutes * 60_000:
            raise ValueError(f"`{fault.fault}` comes after the `minutes` of the scenario are over")

    def fleet(self) -> Fleet:
        """Return the fleet file; raises ValueError where it would not load."""
        services = tuple(load.service() for load in self.services)
        return Fleet(name="fleet", total_memory_bytes=self.total_memory, services=services)

    def make_settings(self) -> CacheOptimizerSettings:
        """Return the settings of a deployment: shorter cycles cost time, longer ones show less."""
        known = {"cycle_interval_ms": 30_000, "observation_window_ms": 60_000, "redis_timeout": 3.0, **self.settings}
        unknown = sorted(set(known) - set(CacheOptimizerSettings.model_fields))
        if unknown:
            raise ValueError(f"`{unknown[0]}` is no setting, docs/OPERATIONS.md lists them")
        try:
            return SimulatedSettings(**known)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"setting `{first['loc'][0]}`: {first['msg'].lower()}, got `{first['input']}`") from None


def parse_scenario(text: str, source: str = "scenario.yaml") -> Scenario:
    """Return the scenario that a YAML text describes; raises ScenarioError with file and line."""
    scenario = validate_yaml(Scenario, text, source, ScenarioError)
    _, lines = load_yaml(text, source, ScenarioError)
    for number, fault in enumerate(scenario.faults):
        try:
            scenario.check_fault(fault)
        except ValueError as error:
            raise ScenarioError(str(error), path=source, line=lines.get(("faults", number))) from None
    return scenario


def scenario_files() -> dict[str, Path]:
    """Return the scenarios that come with the project, by name."""
    return {path.stem: path for path in sorted(_SCENARIOS.glob("*.yaml"))}


def load_scenario(name: str) -> Scenario:
    """Return a scenario by its name or by the path of its file; raises ScenarioError."""
    known = scenario_files()
    path = known.get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(
            f"there is no scenario `{name}` ({error.strerror if isinstance(error, OSError) else error}), "
            f"known are: {', '.join(known) or 'none'}; or give the path of a file"
        ) from None
    return parse_scenario(text, str(path))
