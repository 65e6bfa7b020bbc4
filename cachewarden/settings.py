"""Operator's settings: one name, one default, one unit each; from the environment or `.env`, case-insensitive.

Names without a prefix are those of the specification; every other one is ours and bounded here. Settings are read
once, at the start
of a process, and are frozen from then on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cachewarden.balloting import parse_voters
from cachewarden.errors import SettingsError
from cachewarden.freeze import parse_freezes
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.peer_powers import parse_powers

__all__ = ["CacheOptimizerSettings", "ConsensusAlgorithm", "load_settings"]

ConsensusAlgorithm = Literal[
    "majority_vote",
    "weighted_vote",
    "ranked_choice",
    "consensus_threshold",
    "hierarchical_override",
    "constitutional_priority",
    "expert_mediation",
    "marginal_benefit",
]
"""As in `consensus_rules.Algorithm`; a test compares both."""


class CacheOptimizerSettings(BaseSettings):
    """Everything that an operator can set without touching the fleet file or the constitution."""

    model_config = SettingsConfigDict(env_file=".env", case_sensitive=False, frozen=True, extra="ignore")

    constitutional_hash: str = CONSTITUTIONAL_HASH

    target_cache_hit_rate: float = Field(0.95, ge=0.0, le=1.0, description="goal of each service, 0..1")
    target_memory_efficiency: float = Field(0.85, ge=0.0, le=1.0, description="goal of each service, 0..1")
    target_p99_latency_ms: float = Field(2.0, gt=0.0, description="goal of each service")

    redis_url: str = Field(
        "redis://localhost:6389", description="the one cache that is managed when there is no fleet file"
    )
    redis_max_connections: int = Field(50, ge=1, le=10_000, description="per server")
    redis_timeout: float = Field(5.0, gt=0.0, le=60.0, description="seconds per command")

    blackboard_url: str = Field(
        "redis://localhost:6389/1", description="ACGS's blackboard; the db number is part of it"
    )
    blackboard_poll_ms: int = Field(
        5_000, ge=0, le=3_600_000, description="between two looks at what other agents wrote there; 0: never look"
    )
    conflict_wait_ms: int = Field(
        30_000, ge=0, le=3_600_000, description="how long a change waits for an answer to a conflict with a peer's plan"
    )
    blackboard_key_prefix: str = Field(
        "bb", pattern=r"^[A-Za-z0-9_-]{1,32}$", description="of ACGS's records; all its agents must use the same"
    )
    blackboard_kept_ms: int = Field(
        86_400_000,
        ge=60_000,
        le=2_592_000_000,
        description="how long a finished task or a settled conflict stays there",
    )
    blackboard_core_indexes: bool = Field(
        default=False, description="also write and read the index sets of ACGS's core, for peers that are built on it"
    )
    blackboard_peer_powers: str = Field(
        "answer,ask,hold,object",
        description="what an agent may do by writing on the blackboard, which authenticates nobody: `answer` conflicts"
        ", `ask` for tasks, `force` them (skips cool-down and minimum gain), `hold` caches by plans, `object`",
    )
    agent_heartbeat_interval: int = Field(30, ge=1, le=3600, description="seconds")

    constitutional_ai_url: str = Field(
        "http://localhost:8001", description="Constitutional AI, asked where `CONSTITUTIONAL_AI_MODE` says so"
    )
    constitutional_ai_mode: Literal["off", "advisory", "required"] = Field(
        "off", description="off, advisory or required: without its agreement nothing is changed"
    )
    constitutional_ai_timeout_ms: int = Field(2_000, ge=100, le=8_000, description="for one opinion")
    integrity_service_url: str = Field(
        "http://localhost:8002", description="Integrity Service, to which the journal is delivered"
    )
    integrity_delivery: Literal["auto", "on", "off"] = Field(
        "auto", description="on, off or auto: on if `INTEGRITY_SERVICE_URL` is set"
    )
    acgs_coordinator_url: str | None = Field(None, description="Coordinator (8008) to register with; none if not given")
    acgs_blackboard_http_url: str | None = Field(
        None, description="Blackboard over HTTP (8010) to register with; none if not given"
    )
    acgs_token: SecretStr | None = Field(None, description="bearer token for the HTTP peers")
    acgs_tenant_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9-]{1,64}$", description="tenant for the HTTP peers, a UUID in ACGS"
    )
    peer_timeout_ms: int = Field(5_000, ge=100, le=60_000, description="for one call of another HTTP peer")

    journal_url: str | None = Field(None, description="server of the journal and leases; the blackboard's if not given")
    key_prefix: str = Field(
        "cachewarden", pattern=r"^[a-z0-9_-]{1,32}$", description="of journal, leases and fence keys"
    )
    constitution_path: Path = Path("config/constitution.yaml")
    fleet_path: Path | None = Field(None, description="fleet file; the embedded demo fleet if not given")
    state_dir: Path = Field(Path("var"), description="tokens, checkpoints, spools")
    hash_secret: str | None = Field(None, description="secret of the key hash; made and kept in state_dir if not given")

    cycle_interval_ms: int = Field(10_000, ge=1_000, le=3_600_000, description="pause between two cycles")
    idle_factor: int = Field(
        4,
        ge=1,
        le=60,
        description="how many times longer pauses between cycles and looks may become while nothing happens; 1: never",
    )
    observation_window_ms: int = Field(60_000, ge=5_000, le=3_600_000, description="over which a change is judged")
    observation_windows_max: int = Field(
        4, ge=1, le=100, description="windows until a change must have kept its promise"
    )
    cool_down_ms: int = Field(120_000, ge=0, le=86_400_000, description="between two changes of one service")
    minimum_gain: float = Field(0.005, ge=0.0, le=1.0, description="hit ratio below which nothing is changed")
    minimum_memory_gain: float = Field(
        0.03, gt=0.0, le=1.0, description="share of a cache's memory below which nothing is changed to save memory"
    )
    changes_per_hour: int = Field(12, ge=0, le=10_000, description="change budget of one service")
    rollback_margin: float = Field(
        0.02, ge=0.0, le=1.0, description="hit ratio below the prediction that takes a change back"
    )
    guardrail_hit_ratio_drop: float = Field(
        0.05, gt=0.0, le=1.0, description="fall below the ratio before that takes it back at once"
    )
    guardrail_latency_factor: float = Field(
        4.0, gt=1.0, description="P99 over the P99 before that takes a change back at once"
    )
    guardrail_evictions_factor: float = Field(
        10.0, gt=1.0, description="evictions over those before (or misses, if more) that take a change back at once"
    )
    guardrail_cpu_share: float = Field(
        0.95, gt=0.0, le=64.0, description="cores of a server beyond which a change is taken back, if CPU rose by half"
    )
    freeze: str = Field(
        "",
        max_length=2_000,
        description="times in UTC in which nothing is changed, by `;`: `fri 16:00 - mon 08:00; daily 00:00 - 06:00`",
    )
    manual_change_rest_ms: int = Field(
        86_400_000, ge=0, le=2_592_000_000, description="how long a knob that a person has set by hand is left alone"
    )
    memory_step_share: float = Field(0.15, gt=0.0, le=1.0, description="largest single step of maxmemory downwards")
    proposal_ttl_ms: int = Field(300_000, ge=10_000, description="after which a proposal is stale")
    approval_ttl_ms: int = Field(
        1_800_000, ge=10_000, le=604_800_000, description="how long a plan awaits approval, and an approval holds"
    )
    rejection_rest_ms: int = Field(
        3_600_000, ge=0, le=2_592_000_000, description="how long a change that a person turned down is not proposed"
    )
    lossy_needs_approval: bool = Field(
        default=False, description="whether lossy changes (class 3) need approval in mode `auto` too"
    )
    ballot_voters: str = Field(
        "",
        max_length=4_000,
        description="peers that may vote on changes: `agent_id:type:weight`, by commas; nobody if empty",
    )
    ballot_action_class: int = Field(2, ge=0, le=3, description="least class of changes that is put to the vote")
    ballot_wait_ms: int = Field(20_000, ge=1_000, le=600_000, description="how long a vote is open")
    ballot_quorum: float = Field(0.5, ge=0.0, le=1.0, description="share of the peers in BALLOT_VOTERS that must vote")
    consensus_change: ConsensusAlgorithm = Field(
        "weighted_vote", description="rule by which a vote on a change is decided; not `marginal_benefit`"
    )
    consensus_service: ConsensusAlgorithm = Field(
        "marginal_benefit", description="rule by which one of several changes of a service goes first"
    )
    lease_ttl_ms: int = Field(15_000, ge=1_000, le=600_000, description="of the right to write to one cache")

    lead_ms: int = Field(
        60_000,
        ge=0,
        le=3_600_000,
        description="how long a deployment keeps the lease of a cache that it changed, renewed while it lives; 0: not",
    )

    probe_sample_keys: int = Field(1_000, ge=0, le=100_000, description="random keys per look")
    probe_server_share: float = Field(
        0.01, gt=0.0, le=0.2, description="of one core of the server that probes may take"
    )
    capture_ms: int = Field(20_000, ge=0, le=600_000, description="bound of one MONITOR capture")
    capture_lines: int = Field(200_000, ge=0, le=10_000_000, description="bound of one MONITOR capture")
    capture_pause_ms: int = Field(
        120_000, ge=1_000, le=3_600_000, description="between two MONITOR captures that cannot follow upon each other"
    )
    capture_server_share: float = Field(
        0.02, gt=0.0, le=0.5, description="of one core of the server that MONITOR may take in the long run"
    )
    capture_history_ms: int = Field(
        7_200_000, ge=0, le=86_400_000, description="how much of captured accesses is remembered"
    )
    feed_history_ms: int = Field(240_000, ge=0, le=3_600_000, description="how much of reported accesses is remembered")

    value_sample_keys: int = Field(
        400, ge=0, le=10_000, description="random keys per look into values, where the fleet file permits it"
    )
    value_pause_ms: int = Field(
        600_000, ge=60_000, le=86_400_000, description="between two looks into the values of one service"
    )

    ttl_keys_per_s: int = Field(2_000, ge=1, le=100_000, description="budget of the TTL governor on one cache")
    state_age_max_ms: int = Field(
        3_000, ge=1_500, le=60_000, description="without word from the coordinator, after which nothing is decided"
    )
    requests_per_s_per_token: float = Field(2_000.0, gt=0.0, description="of one token at one replica; 429 beyond it")
    decisions_in_flight_max: int = Field(
        128, ge=1, le=10_000, description="decisions of one replica at once; 503 beyond it"
    )
    requests_waiting_max: int = Field(
        1_000,
        ge=0,
        le=100_000,
        description="requests of one replica that wait for a cache or a cycle; beyond it they are answered at once",
    )
    body_timeout_s: float = Field(10.0, gt=0.0, le=300.0, description="seconds within which a body must have come")
    api_replicas: int = Field(1, ge=1, le=1_000, description="processes that answer the API on Ray Serve")
    api_replicas_max: int | None = Field(
        None, ge=1, le=1_000, description="up to which Ray Serve adds processes under load; api_replicas if not given"
    )
    http_host: str = "127.0.0.1"
    http_port: int = Field(8000, ge=1, le=65_535)

    @field_validator("ballot_voters")
    @classmethod
    def _each_voter_once(cls, value: str) -> str:
        parse_voters(value)
        return value

    @field_validator("blackboard_peer_powers")
    @classmethod
    def _known_powers(cls, value: str) -> str:
        parse_powers(value)
        return value

    @field_validator("freeze")
    @classmethod
    def _times(cls, value: str) -> str:
        parse_freezes(value)
        return value

    @field_validator("consensus_change")
    @classmethod
    def _votes_count(cls, value: str) -> str:
        if value == "marginal_benefit":
            raise ValueError(f"`{value}` ignores the votes of peers, choose a rule that counts them: `weighted_vote`")
        return value

    @property
    def delivers_to_integrity(self) -> bool:
        """Whether the journal is delivered to the Integrity Service."""
        if self.integrity_delivery == "auto":
            return "integrity_service_url" in self.model_fields_set
        return self.integrity_delivery == "on"


def load_settings(**overrides: object) -> CacheOptimizerSettings:
    """Read environment and `.env`; raises SettingsError that names each bad value and its range."""
    try:
        settings = CacheOptimizerSettings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(
            f"`{'.'.join(str(p) for p in e['loc']) or 'settings'}` {e['msg'].lower()}, got `{str(e.get('input'))[:80]}`"
            for e in error.errors()
        )
        raise SettingsError(f"settings cannot be used: {problems}") from None
    if settings.constitutional_hash != CONSTITUTIONAL_HASH:
        raise SettingsError(
            f"`constitutional_hash` must be `{CONSTITUTIONAL_HASH}`, got `{settings.constitutional_hash}`"
        )
    return settings
