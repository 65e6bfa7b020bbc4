"""What INFO says, as typed numbers.

It reads the flattened INFO of one `Observation` and decides nothing. Servers, versions and managed services leave out
different parts, so every field may be missing. INVARIANT: a field that the server did not print, or printed
unreadably, is None and never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cachewarden.observation import Observation

__all__ = ["InfoFacts", "command_stats", "facts_of", "facts_of_info", "fields_of", "memory_figures", "whole"]

_MEMORY_FIELDS = (
    "used_memory", "used_memory_rss", "used_memory_dataset", "used_memory_overhead", "used_memory_startup",
    "used_memory_scripts", "mem_clients_normal", "mem_clients_slaves", "mem_replication_backlog", "mem_aof_buffer",
    "allocator_allocated", "allocator_active", "allocator_resident", "allocator_frag_ratio", "allocator_frag_bytes",
    "allocator_rss_ratio", "allocator_rss_bytes", "mem_fragmentation_ratio", "lazyfree_pending_objects",
)  # fmt: skip

_FORK_COPIES = ("rdb_last_cow_size", "aof_last_cow_size", "current_cow_size")

# Commands that may be refused for lack of memory; only looked at on servers without error statistics (before 6.2).
_WRITE_COMMANDS = frozenset({
    "append", "getset", "hincrby", "hmset", "hset", "hsetnx", "incr", "incrby", "linsert", "lpush", "mset", "psetex",
    "restore", "rpush", "sadd", "set", "setex", "setnx", "setrange", "xadd", "zadd", "zincrby",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoFacts:
    """The fields of INFO that the collector rests on; counters are cumulative since start or CONFIG RESETSTAT.

    `refused` counts writes that were refused for lack of memory. `fixed_overhead_bytes` is the part of
    `used_memory_bytes` that holds no entries: start-up, client and replica buffers, replication backlog, AOF buffer,
    scripts. The hash tables of the keyspace are not in it, since they grow with the entries.
    """

    run_id: str | None
    role: str | None
    uptime_ms: int | None
    server_time_ms: int | None
    loading: bool | None
    hits: int | None
    misses: int | None
    evicted: int | None
    expired: int | None
    refused: int | None
    commands: int | None
    used_memory_bytes: int | None
    rss_bytes: int | None
    dataset_bytes: int | None
    startup_bytes: int | None
    fixed_overhead_bytes: int | None
    maxmemory_bytes: int | None
    host_memory_bytes: int | None
    eviction_policy: str | None
    resident_keys: int | None
    keys_with_ttl: int | None
    expired_stale_share: float | None = None
    """`expired_stale_perc` / 100, 0..1."""
    cpu_us: int | None = None
    """CPU time of the process since its start, user and system."""
    forks: bool | None = None
    """Whether the server forks, or has forked: for a snapshot, an append-only file, or a full synchronisation."""
    fork_copy_bytes: int | None = None
    """Largest copy-on-write of the last forks; None where there was none or it is not told."""
    uncounted_bytes: int | None = None
    """Buffers that maxmemory does not count (`mem_not_counted_for_evict`)."""
    config_file: str | None = None
    """Path of the configuration file; empty where the server was started without one, None where it is not told."""

    @property
    def memory_usage(self) -> float | None:
        """Return used_memory / maxmemory, of the host's memory where maxmemory is 0; None where neither is known. May
        exceed 1.
        """
        limit = self.maxmemory_bytes or self.host_memory_bytes
        if self.used_memory_bytes is None or not limit:
            return None
        return self.used_memory_bytes / limit

    @property
    def memory_efficiency(self) -> float | None:
        """Return used_memory_dataset / (max(used_memory_rss, used_memory) - used_memory_startup), clipped to 0..1."""
        if self.dataset_bytes is None or self.used_memory_bytes is None or self.startup_bytes is None:
            return None
        held = max(self.rss_bytes or 0, self.used_memory_bytes) - self.startup_bytes
        return min(max(self.dataset_bytes / held, 0.0), 1.0) if held > 0 else None


def whole(text: str | None) -> int | None:
    """Return a whole number as INFO prints it, None for anything else."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return None


def memory_figures(info: Mapping[str, str]) -> dict[str, float]:
    """Return the fields of INFO that say where memory goes, by the server's names; unreadable ones are left out."""
    found = {}
    for name in _MEMORY_FIELDS:
        try:
            found[name] = float(info[name])
        except (KeyError, ValueError):
            continue
    return {name: value for name, value in found.items() if math.isfinite(value)}


def fields_of(line: str | None) -> dict[str, str]:
    """Return the parts of a `keys=51,expires=0` line; parts without `=` are left out."""
    if not line:
        return {}
    return {
        name.strip(): value.strip() for name, found, value in (part.partition("=") for part in line.split(",")) if found
    }


def command_stats(info: Mapping[str, str], field: str) -> dict[str, int]:
    """Return `field` (`calls`, `usec`, `rejected_calls`) of every command in section commandstats, by lower-case
    command name.
    """
    found: dict[str, int] = {}
    for name, line in info.items():
        if name.startswith("cmdstat_"):
            value = whole(fields_of(line).get(field))
            if value is not None:
                found[name.removeprefix("cmdstat_").lower()] = value
    return found


def _refused(info: Mapping[str, str]) -> int | None:
    """Return writes refused for lack of memory since the counters began.

    Error statistics (6.2 and later, told by `total_error_replies`) name them exactly, and leave the line out while
    there are none; a server whose error statistics overflowed, or an older one, has rejected calls of write commands
    instead, which also count other refusals.
    """
    exact = whole(fields_of(info.get("errorstat_OOM")).get("count"))
    if exact is not None:
        return exact
    overflowed = any(name in info for name in ("errorstat_ERRORSTATS_DISABLED", "errorstat_ERRORSTATS_OVERFLOW"))
    if "total_error_replies" in info and not overflowed:
        return 0
    rejected = command_stats(info, "rejected_calls")
    return sum(rejected[name] for name in sorted(rejected) if name in _WRITE_COMMANDS) if rejected else None


def _fixed_overhead_bytes(info: Mapping[str, str], used: int | None) -> int | None:
    startup = whole(info.get("used_memory_startup"))
    if startup is None:
        return None
    backlog = whole(info.get("mem_replication_backlog"))
    replicas = whole(info.get("mem_clients_slaves"))
    if backlog is None and replicas is None:
        backlog = whole(info.get("mem_total_replication_buffers"))
    parts = [startup, backlog, replicas]
    parts += [
        whole(info.get(n)) for n in ("mem_clients_normal", "mem_aof_buffer", "mem_cluster_links", "used_memory_scripts")
    ]
    held = sum(part for part in parts if part is not None)
    return held if used is None else min(held, used)


def _keyspace(info: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return (keys, keys with TTL) over all databases. An empty server prints no line, which is told by its having
    the counters.
    """
    keys = expires = 0
    seen = False
    for name in info:
        if name.startswith("db") and name[2:].isdigit():
            fields = fields_of(info[name])
            count = whole(fields.get("keys"))
            if count is not None:
                seen = True
                keys += count
                expires += whole(fields.get("expires")) or 0
    if seen or "keyspace_hits" in info:
        return keys, expires
    return None, None


def _percent(text: str | None) -> float | None:
    """Return a percentage as a share, None for anything that is none."""
    try:
        share = float(text or "") / 100.0
    except ValueError:
        return None
    return share if 0.0 <= share <= 1.0 else None


def _cpu_us(info: Mapping[str, str]) -> int | None:
    """Return the CPU time of the process, None where the server does not print both parts of it."""
    try:
        seconds = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
    except (KeyError, ValueError):
        return None
    return int(seconds * 1e6) if math.isfinite(seconds) else None


def _forks(info: Mapping[str, str]) -> bool | None:
    """Say whether a fork is to be reckoned with; None for a server that tells nothing of persistence."""
    told = [whole(info.get(n)) for n in ("aof_enabled", "rdb_saves", "latest_fork_usec", "connected_slaves")]
    busy = [whole(info.get(n)) for n in ("rdb_bgsave_in_progress", "aof_rewrite_in_progress")]
    known = [value for value in (*told, *busy) if value is not None]
    return any(value > 0 for value in known) if known else None


_READ_MAX: Final = 256
_read_before: dict[int, tuple[Mapping[str, str], InfoFacts]] = {}
"""INFO texts read lately, by identity; each is held, so no other one can have its identity."""


def facts_of(observation: Observation) -> InfoFacts:
    """Return what a look's INFO says; the same looks are compared again and again, so each is read once."""
    info = observation.info
    known = _read_before.get(id(info))
    if known is not None and known[0] is info:
        return known[1]
    facts = facts_of_info(info)
    if len(_read_before) >= _READ_MAX:
        _read_before.clear()
    _read_before[id(info)] = info, facts
    return facts


def facts_of_info(info: Mapping[str, str]) -> InfoFacts:
    """Read a flattened INFO; never raises, whatever is missing or unreadable."""
    uptime_s = whole(info.get("uptime_in_seconds"))
    server_us = whole(info.get("server_time_usec"))
    loading = whole(info.get("loading"))
    used = whole(info.get("used_memory"))
    keys, expires = _keyspace(info)
    return InfoFacts(
        run_id=info.get("run_id") or None,
        role=info.get("role") or None,
        uptime_ms=None if uptime_s is None else uptime_s * 1000,
        server_time_ms=None if server_us is None else server_us // 1000,
        loading=None if loading is None else loading != 0,
        hits=whole(info.get("keyspace_hits")),
        misses=whole(info.get("keyspace_misses")),
        evicted=whole(info.get("evicted_keys")),
        expired=whole(info.get("expired_keys")),
        refused=_refused(info),
        commands=whole(info.get("total_commands_processed")),
        used_memory_bytes=used,
        rss_bytes=whole(info.get("used_memory_rss")),
        dataset_bytes=whole(info.get("used_memory_dataset")),
        startup_bytes=whole(info.get("used_memory_startup")),
        fixed_overhead_bytes=_fixed_overhead_bytes(info, used),
        maxmemory_bytes=whole(info.get("maxmemory")),
        host_memory_bytes=whole(info.get("total_system_memory")),
        eviction_policy=info.get("maxmemory_policy") or None,
        resident_keys=keys,
        keys_with_ttl=expires,
        expired_stale_share=_percent(info.get("expired_stale_perc")),
        cpu_us=_cpu_us(info),
        forks=_forks(info),
        fork_copy_bytes=max((whole(info.get(n)) or 0 for n in _FORK_COPIES), default=0) or None,
        uncounted_bytes=whole(info.get("mem_not_counted_for_evict")),
        config_file=info.get("config_file"),
    )
