"""The words that a principle may use: every fact's name, an example of its value, and what it means.

The table is the contract between `facts_of`, the constitution that people write, and `docs/CONSTITUTION.md`. It
measures and decides nothing; the examples only serve to try expressions when a constitution is loaded.

INVARIANT: `facts_of` plus the three facts of time give exactly these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

__all__ = ["EXAMPLE", "FACTS", "KINDS", "PLAYBOOKS", "TIME_FACTS", "Fact"]

KINDS: Final = ("hotspot", "memory", "ttl")
PLAYBOOKS: Final = ("direct", "encoding", "grow", "keep_hot_set", "reencode", "shrink", "ttl_rule", "tune")


@dataclass(frozen=True, slots=True)
class Fact:
    """One word of the vocabulary; a `nullable` fact is null where nothing is known, and comparing null denies."""

    name: str
    example: Any
    meaning: str
    nullable: bool


_TABLE: Final[Mapping[str, tuple[Any, str]]] = {
    # Whose cache it is.
    "service": ("api_gateway", "name of the service that the proposal changes"),
    "tenant": ("platform", "tenant of the service, from the fleet file"),
    "region": ("eu-central", "region of the service, from the fleet file"),
    "namespaces": (["session:", "route:"], "key prefixes that the fleet file declares for the service"),
    "mode": ("auto", "`off`, `advise`, `approve` or `auto`"),
    "weight": (1.0, "worth of one hit of this service against one hit of another"),
    "shares_blackboard_server": (False, "whether the cache is on the server of the blackboard or of the journal"),
    # What is proposed.
    "playbook": ("direct", "step plan that would carry it out"),
    "kinds": (["memory"], "which of `memory`, `ttl`, `hotspot` it answers"),
    "action_class": (2, "class that the author declares, 0 to 4"),
    "action_class_required": (2, "class that the knob table gives to exactly these changes, 0 to 4"),
    "reversible": (False, "whether the author says that it can be taken back without loss"),
    "irreversible_knobs": (["maxmemory"], "changed knobs whose old value does not bring the old behaviour back"),
    "changes": (1, "number of knob changes and TTL rules"),
    "changed_knobs": (["maxmemory"], "names of the changed knobs"),
    "knobs_valid": (True, "whether every knob is in the table, once, and every value in its range"),
    "knob_problems": ([""], "what is wrong with knobs or values, in words"),
    "knobs_unsupported": ([""], "changed knobs that this server does not have"),
    "knobs_stale": ([""], "changed knobs whose value before is not the one that was last read"),
    "takes_back": (False, "whether a person wants the old values of a kept change back"),
    # Transparency.
    "hashes_agree": (True, "whether proposal, all its parts and the snapshot carry the constitutional hash"),
    "rationale_given": (True, "whether the rationale says anything"),
    "rollback_given": (True, "whether the author says how it is taken back"),
    "evidence_count": (3, "number of pieces of evidence"),
    "evidence_measured": (3, "how many of them have a value"),
    "evidence_names": (["hit_ratio", "eviction_age_ms"], "their names"),
    "prediction_method": ("popularity mixture", "how the prediction was come by"),
    # Predicted effect on the service itself.
    "hit_ratio_before": (0.86, "predicted hit ratio without the change, 0..1"),
    "hit_ratio_after": (0.94, "predicted hit ratio with it, 0..1"),
    "hit_ratio_after_low": (0.92, "low end of its 90 % interval"),
    "hit_ratio_after_high": (0.96, "high end of its 90 % interval"),
    "hit_ratio_measured": (0.86, "hit ratio of the last window"),
    "hit_ratio_floor": (0.8, "floor that the fleet file promises to the service"),
    "gain": (0.08, "predicted hit ratio after minus before; negative for a donor"),
    "gain_low": (0.06, "low end of its interval"),
    "gain_high": (0.1, "high end of its interval"),
    "prediction_interval_width": (0.04, "high end minus low end of the hit ratio after"),
    "settle_ms": (60_000, "time until the effect should show"),
    "freed_bytes_low": (0.0, "low end of the memory that the same keys will need less; 0 where none is promised"),
    "spreads_expiries": (False, "whether it promises that fewer keys end in the same second"),
    # Memory.
    "memory_bytes_before": (16_777_216, "maxmemory in force, 0 where there is no limit"),
    "memory_bytes_after": (20_971_520, "maxmemory with the change"),
    "memory_delta_bytes": (4_194_304, "after minus before"),
    "memory_factor": (1.25, "after divided by before; 1 where there is no limit before"),
    "minimum_memory_bytes": (2_097_152, "smallest size that the fleet file permits"),
    "used_memory_bytes": (16_000_000, "used_memory of the server"),
    "host_memory_share_after": (0.1, "maxmemory with the change over the host's memory"),
    "shrinks_memory": (False, "whether the limit falls, or a limit below what is used is set where there was none"),
    "fleet_memory_known": (True, "whether the maxmemory of every service that shares the budget is known"),
    "fleet_memory_bytes_before": (83_886_080, "sum of the known maxmemory of all services"),
    "fleet_memory_bytes_after": (83_886_080, "the same once the whole group is carried out"),
    "fleet_budget_bytes": (83_886_080, "sum that may never be exceeded"),
    # Eviction.
    "eviction_policy_before": ("allkeys-lru", "eviction policy in force"),
    "eviction_policy_after": ("allkeys-lru", "eviction policy with the change"),
    "evictable_share_after": (1.0, "share of the keys that may be evicted, 0..1; at 0 a full cache refuses writes"),
    "switches_to_lfu": (False, "whether an eviction policy without frequencies becomes one with them"),
    # Lifetimes.
    "ttl_rules": (0, "number of TTL rules"),
    "ttl_patterns_undeclared": ([""], "patterns of TTL rules that the fleet file does not declare for this service"),
    "ttl_patterns_shortened_unasked": ([""], "patterns whose keys may end sooner than written, without `shorten_ttl`"),
    "ttl_patterns_too_stale": ([""], "patterns whose rule goes beyond the declared staleness, or that have none"),
    # Those who need each other: whoever gives memory and whoever gets it.
    "group_size": (2, "number of proposals that are tied together by what they need, this one included"),
    "group_gives": (["blackboard_service"], "services that give memory"),
    "group_gains": (["api_gateway"], "services that get memory"),
    "group_tenants": (["platform"], "their tenants"),
    "group_regions": (["eu-central"], "their regions"),
    "group_owners_declared": (True, "whether the fleet file names tenant and region of every one of them"),
    "group_memory_delta_bytes": (0, "sum of their changes of maxmemory"),
    "group_gain_hits_per_s": (24.0, "sum of gain x lookups/s x weight"),
    "group_gain_hits_per_s_low": (18.0, "low end of its interval, errors taken as independent"),
    "needs_missing": ([""], "proposals that it needs and that are not at hand"),
    # What carrying it out costs.
    "cost_known": (True, "whether all four costs are given, finite and not negative"),
    "cost_commands": (4.0, "commands that the cache will get"),
    "cost_keys_touched": (0.0, "keys that will be touched"),
    "cost_server_cpu_ms": (0.2, "CPU time that the cache will spend"),
    "cost_bytes_moved": (0.0, "bytes that will go over the wire"),
    "blast_radius": (0.2, "share of the fleet's lookups that this service answers, 0..1; 1 where nothing is known"),
    "fleet_services": (5, "number of services of the fleet"),
    "latency_measured": (True, "whether the cache's P99 is measured"),
    "latency_predicted": (True, "whether the P99 after the change is predicted"),
    "latency_us_p99_before": (180.0, "P99 of the last window in microseconds"),
    "latency_us_p99_after": (190.0, "predicted P99 in microseconds"),
    "latency_us_p99_target": (2000.0, "the goal in microseconds"),
    # What it all rests on.
    "can_config_set": (True, "whether the server lets us set knobs"),
    "snapshot_role": ("master", "replication role of the server"),
    "snapshot_missing": ([""], "parts of the snapshot that could not be had"),
    "snapshot_lookups": (12_000, "lookups in its window"),
    "snapshot_window_ms": (30_000, "length of its window"),
    "snapshot_taken_at_ms": (1_700_000_000_000, "when it was taken"),
    "expires_at_ms": (1_700_000_300_000, "when the proposal becomes stale"),
    "now_ms": (1_700_000_005_000, "when it is judged"),
    "snapshot_age_ms": (5_000, "age of the snapshot when it is judged; negative if clocks disagree"),
    "expires_in_ms": (295_000, "time until the proposal becomes stale"),
}

_NULLABLE: Final = frozenset(
    {"hit_ratio_measured", "host_memory_share_after", "latency_us_p99_after", "latency_us_p99_before"}
)

TIME_FACTS: Final = ("now_ms", "snapshot_age_ms", "expires_in_ms")
"""Facts that only the engine can add, since `facts_of` knows no time."""

FACTS: Mapping[str, Fact] = MappingProxyType(
    {name: Fact(name, example, meaning, name in _NULLABLE) for name, (example, meaning) in _TABLE.items()}
)
EXAMPLE: Mapping[str, Any] = MappingProxyType({name: example for name, (example, _) in _TABLE.items()})
