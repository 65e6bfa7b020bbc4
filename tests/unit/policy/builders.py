"""Builders of fleets, snapshots and proposals: everything lawful by default, so that a test names only what it is about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cachewarden.estimate import Estimate
from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.messages import ActionClass, Evidence, KnobChange, Prediction, Proposal, TtlRule
from cachewarden.observation import Capabilities, ProbeCost, Snapshot
from cachewarden.policy.constitution import load_constitution
from cachewarden.settings import CacheOptimizerSettings

NOW_MS = 1_700_000_000_000
MIB = 1024 * 1024
SHIPPED_PATH = Path(__file__).resolve().parents[3] / "config" / "constitution.yaml"
SHIPPED = load_constitution(SHIPPED_PATH)
SETTINGS = CacheOptimizerSettings(_env_file=None, blackboard_url="redis://blackboard:6379/1")
COST = {"server_cpu_ms": 0.2, "commands": 8.0, "keys_touched": 0.0, "bytes_moved": 0.0}


def service(name="cart", **fields):
    """A service in mode auto with 2 MiB minimum, a floor of 0.5 and a declared owner."""
    patterns = fields.pop("patterns", (KeyPattern(prefix="session:", max_staleness_s=600.0),))
    given = {"mode": "auto", "tenant": "shop", "region": "eu", "hit_ratio_floor": 0.5, **fields}
    return Service(name=name, url=given.pop("url", f"redis://{name}:6379"), patterns=patterns, **given)


def fleet(*services, total_memory_bytes=None):
    return Fleet(services=services or (service(),), total_memory_bytes=total_memory_bytes)


def snapshot(name="cart", *, maxmemory_bytes=16 * MIB, eviction_policy="allkeys-lru", **fields):
    """A complete look, 5 s old, at a full cache of 16 MiB with 1,000 lookups/s at a hit ratio of 0.8."""
    given = {
        "taken_at_ms": NOW_MS - 5_000, "window_ms": 30_000, "run_id": "a" * 40, "role": "master",
        "capabilities": Capabilities(server="valkey", version="9.1.2", config_get=True, config_set=True),
        "knobs": {
            "maxmemory": str(maxmemory_bytes), "maxmemory-policy": eviction_policy, "maxmemory-samples": "5",
            "lfu-log-factor": "10", "lazyfree-lazy-eviction": "no",
        },
        "hits": 24_000, "misses": 6_000, "hit_ratio": 0.8, "lookups_per_s": 1000.0, "evicted_per_s": 10.0,
        "expired_per_s": 0.0, "refused_per_s": 0.0, "miss_split": None, "used_memory_bytes": 15 * MIB,
        "maxmemory_bytes": maxmemory_bytes, "memory_usage": 0.9, "memory_efficiency": 0.8, "fixed_overhead_bytes": MIB,
        "host_memory_bytes": 1024 * MIB, "resident_keys": 10_000, "keys_with_ttl": 0, "eviction_age_ms": 60_000,
        "latency_us_p99": 200.0, "round_trip_us": 300.0, "hotspot_count": 0, "cost": ProbeCost(), **fields,
    }  # fmt: skip
    return Snapshot(service=name, **given)


def prediction(gain=0.05, *, before=0.8, margin=0.02, **fields):
    given = {
        "hit_ratio_before": Estimate(before, before, before),
        "hit_ratio_after": Estimate.around(before + gain, margin, 0.0, 1.0),
        "gain": Estimate.around(gain, margin), "lookups_per_s": 1000.0, "memory_bytes_after": 16 * MIB,
        "latency_us_p99_after": None, "method": "popularity mixture", "settle_ms": 60_000, **fields,
    }  # fmt: skip
    return Prediction(**given)


def knob(name, before, after):
    return KnobChange(knob=name, before=str(before), after=str(after))


def ttl_rule(pattern="session:", written_ms=15_000, extended_ms=600_000, staleness_ms=600_000):
    return TtlRule(
        pattern=pattern, written_ttl_ms=written_ms, extended_ttl_ms=extended_ms, max_staleness_ms=staleness_ms
    )


def proposal(name="cart", *changes, proposal_id=None, gain=0.05, **fields):
    """A lawful proposal; without `changes` it raises the sampling of eviction, a change of class 1."""
    changes = changes or (() if fields.get("ttl_rules") else (knob("maxmemory-samples", 5, 10),))
    given = {
        "author": "planner", "created_at_ms": NOW_MS, "expires_at_ms": NOW_MS + 300_000, "kinds": ("memory",),
        "ttl_rules": (), "action_class": ActionClass.REVERSIBLE, "reversible": True, "playbook": "direct",
        "rollback": "set the old value back", "rationale": "keys are evicted before they are asked for again",
        "evidence": (Evidence(name="hit_ratio", value=0.8, source="INFO", window_ms=30_000),), "cost": dict(COST),
        "prediction": prediction(gain), **fields,
    }  # fmt: skip
    return Proposal(proposal_id=proposal_id or f"p-{name}", service=name, knob_changes=changes, **given)


def resize(name="cart", before_mib=16, after_mib=20, *, gain=0.05, **fields):
    """A proposal that changes maxmemory, with the class and playbook that belong to the direction."""
    down = after_mib < before_mib
    given = {
        "action_class": ActionClass.LOSSY if down else ActionClass.GROWTH,
        "reversible": False,
        "playbook": "shrink" if down else "direct",
        **fields,
    }
    return proposal(name, knob("maxmemory", before_mib * MIB, after_mib * MIB), gain=gain, **given)


def with_prediction(given, **fields):
    return replace(given, prediction=replace(given.prediction, **fields))
