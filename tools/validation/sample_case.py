"""One lawful change of one imaginary cache, as plain data: what the validator tries the decision path on."""

from __future__ import annotations

from cachewarden.estimate import Estimate
from cachewarden.fleet import Fleet, Service
from cachewarden.messages import ActionClass, Evidence, KnobChange, Mode, Prediction, Proposal
from cachewarden.observation import Capabilities, ProbeCost, Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["FLEET", "MIB", "NOW_MS", "SERVICE", "SETTINGS", "lawful_proposal", "snapshot"]

NOW_MS = 1_800_000_000_000
MIB = 1 << 20
SERVICE = "sample"
FLEET = Fleet(
    total_memory_bytes=64 * MIB,
    services=(
        Service(name=SERVICE, url="redis://sample.invalid:6379", mode=Mode.AUTO, tenant="sample", region="local"),
    ),
)
SETTINGS = CacheOptimizerSettings(_env_file=None, blackboard_url="redis://blackboard.invalid:6379/1")


def snapshot() -> Snapshot:
    """A complete look, 2 s old, at a full cache of 32 MiB with 1,000 lookups/s at a hit ratio of 0.8."""
    return Snapshot(
        service=SERVICE,
        taken_at_ms=NOW_MS - 2_000,
        window_ms=30_000,
        run_id="a" * 40,
        role="master",
        capabilities=Capabilities(server="valkey", version="9.1.2", config_get=True, config_set=True),
        knobs={"maxmemory": str(32 * MIB), "maxmemory-policy": "allkeys-lru", "maxmemory-samples": "5"},
        hits=24_000,
        misses=6_000,
        hit_ratio=0.8,
        lookups_per_s=1_000.0,
        evicted_per_s=10.0,
        expired_per_s=0.0,
        refused_per_s=0.0,
        miss_split=None,
        used_memory_bytes=31 * MIB,
        maxmemory_bytes=32 * MIB,
        memory_usage=0.97,
        memory_efficiency=0.9,
        fixed_overhead_bytes=MIB,
        host_memory_bytes=1024 * MIB,
        resident_keys=30_000,
        keys_with_ttl=0,
        eviction_age_ms=60_000,
        latency_us_p99=200.0,
        round_trip_us=300.0,
        hotspot_count=0,
        cost=ProbeCost(),
    )


def lawful_proposal() -> Proposal:
    """Sample more keys at each eviction: class 1, reversible, with evidence, prediction, rationale and rollback."""
    return Proposal(
        proposal_id="p-sample",
        service=SERVICE,
        author="planner",
        created_at_ms=NOW_MS - 1_000,
        expires_at_ms=NOW_MS + 300_000,
        kinds=("memory",),
        knob_changes=(KnobChange(knob="maxmemory-samples", before="5", after="10"),),
        ttl_rules=(),
        action_class=ActionClass.REVERSIBLE,
        reversible=True,
        playbook="direct",
        rollback="set the old value back",
        rationale="keys are evicted before they are asked for again",
        evidence=(Evidence(name="hit_ratio", value=0.8, source="INFO", window_ms=30_000),),
        prediction=Prediction(
            hit_ratio_before=Estimate(0.8, 0.8, 0.8),
            hit_ratio_after=Estimate(0.82, 0.81, 0.83),
            gain=Estimate(0.02, 0.01, 0.03),
            lookups_per_s=1_000.0,
            memory_bytes_after=32 * MIB,
            latency_us_p99_after=None,
            method="replay",
            settle_ms=30_000,
        ),
        cost={"server_cpu_ms": 0.2, "commands": 8.0, "keys_touched": 0.0, "bytes_moved": 0.0},
    )
