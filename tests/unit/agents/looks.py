"""Builders of looks and captures for the tests of the collector's parts."""

from __future__ import annotations

import numpy as np

from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.observation import AccessSample, Capabilities, KeyspaceSample, Observation, ProbeCost

INFO = {
    "run_id": "a" * 40,
    "role": "master",
    "loading": "0",
    "keyspace_hits": "0",
    "keyspace_misses": "0",
    "evicted_keys": "0",
    "expired_keys": "0",
    "total_commands_processed": "0",
    "total_error_replies": "0",
    "used_memory": "4000000",
    "used_memory_rss": "6000000",
    "used_memory_dataset": "2500000",
    "used_memory_startup": "1000000",
    "mem_replication_backlog": "20000",
    "mem_clients_slaves": "0",
    "mem_clients_normal": "10000",
    "mem_aof_buffer": "0",
    "maxmemory": "5000000",
    "maxmemory_policy": "allkeys-lru",
    "total_system_memory": "16000000000",
    "db0": "keys=1000,expires=250,avg_ttl=0",
}


def look(at_ms=0, *, service="cart", server_ms=None, knobs=None, latency=None, own=(0, 0), sample=None, access=None, monitor=False,
         cost=None, incomplete=None, without=(), **info):  # fmt: skip
    """A look at `at_ms`; keywords replace fields of INFO, the server's clock follows ours unless `server_ms` is given."""
    server_ms = at_ms if server_ms is None else server_ms
    fields = {
        **INFO,
        "uptime_in_seconds": str(86_400 + server_ms // 1000),
        "server_time_usec": str((10**12 + server_ms) * 1000),
    }
    fields |= {name: str(value) for name, value in info.items()}
    return Observation(
        service=service,
        at_ms=at_ms,
        info={name: value for name, value in fields.items() if name not in without},
        latency_us=latency or {},
        knobs={"maxmemory": "5000000", "maxmemory-policy": "allkeys-lru"} if knobs is None else knobs,
        capabilities=Capabilities(config_get=True, monitor=monitor),
        own_hits_total=own[0],
        own_misses_total=own[1],
        round_trip_us=200.0,
        cost=cost or ProbeCost(commands=10, wall_ms=1.0, server_us=500.0),
        sample=sample,
        access=access,
        incomplete=incomplete or {},
    )


def keyspace(idle_ms, *, ttl_ms=None, pattern=None, patterns=(), size_bytes=None):
    n = len(idle_ms)
    return KeyspaceSample(
        key=np.arange(n, dtype=np.uint64),
        idle_ms=np.asarray(idle_ms, dtype=np.int64),
        frequency=np.full(n, -1, dtype=np.int32),
        size_bytes=np.full(n, -1, dtype=np.int64) if size_bytes is None else np.asarray(size_bytes, dtype=np.int64),
        ttl_ms=np.full(n, -1, dtype=np.int64) if ttl_ms is None else np.asarray(ttl_ms, dtype=np.int64),
        pattern=np.full(n, -1, dtype=np.int32) if pattern is None else np.asarray(pattern, dtype=np.int32),
        encoding=np.full(n, -1, dtype=np.int32),
        patterns=tuple(patterns),
        encodings=(),
    )


def capture(rows, *, pattern=None, patterns=(), rate=1.0, aborted=None, lines=None):
    """An access sample of (time_ms, key, op, size_bytes, ttl_ms) rows in any order."""
    table = np.array(sorted(rows, key=lambda r: r[0]), dtype=np.int64).reshape(-1, 5)
    trace = AccessTrace.of(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4])
    of_row = np.full(len(trace), -1, dtype=np.int32) if pattern is None else pattern(trace).astype(np.int32)
    return AccessSample(
        trace=trace,
        pattern=of_row,
        patterns=tuple(patterns),
        spatial_rate=rate,
        lines_seen=len(trace) if lines is None else lines,
        aborted=aborted,
    )
