"""What was seen of a cache: the raw facts of one look, and the snapshot derived from two of them.

An `Observation` is what an adapter brings back; `agents/collector.py` turns two of them into a `Snapshot`. Keys are
64-bit keyed
hashes and the names of patterns that the fleet file declares; values never appear. INVARIANT: a ratio without
lookups is None, not 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.messages import Message
from cachewarden.value_sample import ValueSample

__all__ = [
    "AccessSample",
    "Capabilities",
    "ClusterLoad",
    "KeyspaceSample",
    "MissSplit",
    "NodeLook",
    "Observation",
    "PatternStats",
    "ProbeCost",
    "ServerHotKeys",
    "Snapshot",
    "SourceReport",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities(Message):
    """What this server lets us do, found out by asking it, never inferred from its version."""

    server: str = "redis"
    """`redis` or `valkey`."""
    version: str = "0"
    config_get: bool = False
    config_set: bool = False
    object_idletime: bool = False
    """Refused under LFU and where OBJECT is blocked; `object_frequency` is its counterpart."""
    object_frequency: bool = False
    memory_usage: bool = False
    latency_histogram: bool = False
    monitor: bool = False
    """Only tried where the fleet file permits captures."""
    script: bool = False
    denied: Mapping[str, str] = field(default_factory=dict)
    """Command to the server's own words of refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCost(Message):
    """What one look has cost the server, by its own counters where it has them."""

    commands: int = 0
    wall_ms: float = 0.0
    server_us: float = 0.0
    monitor_lines: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyspaceSample:
    """A uniform sample of resident keys; arrays of equal length n.

    key: uint64 keyed hash; idle_ms: int64, -1 unknown; frequency: int32 LFU counter, -1 unknown; size_bytes: int64
    MEMORY USAGE, -1
    unknown; ttl_ms: int64, -1 none; pattern: int32 index into `patterns`, -1 where no declared pattern matches;
    encoding: int32 index
    into `encodings`, -1 unknown.
    """

    key: npt.NDArray[np.uint64]
    idle_ms: npt.NDArray[np.int64]
    frequency: npt.NDArray[np.int32]
    size_bytes: npt.NDArray[np.int64]
    ttl_ms: npt.NDArray[np.int64]
    pattern: npt.NDArray[np.int32]
    encoding: npt.NDArray[np.int32]
    patterns: tuple[str, ...]
    encodings: tuple[str, ...]
    idle_known_ms: int | None = None
    """For how long idle times are known to be true, since LFU was not in force for so long; None unknown."""
    counted_ms: int | None = None
    """How long LFU counters can have been counting at most: since the server's start, or since another policy was
    seen; None unknown."""

    def __len__(self) -> int:
        return int(self.key.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AccessSample:
    """A bounded, spatially hashed sample of the commands of some time, captured by us or reported by applications.

    `trace` holds reads and writes of keys whose hash passes the spatial filter; `pattern` int32[n] indexes
    `patterns`, -1 for none.
    """

    trace: AccessTrace
    pattern: npt.NDArray[np.int32]
    patterns: tuple[str, ...]
    spatial_rate: float
    lines_seen: int
    bytes_seen: int = 0
    """What a capture has read from the server, names and values included; 0 of other sources."""
    aborted: str | None = None
    """Why the capture ended before its time, e.g. `server slowed`."""
    source: str = "monitor capture"
    """Which observation source it comes from; see `SourceReport`."""
    missed: npt.NDArray[np.int8] | None = None
    """Where the source sees answers: 1 for a read that missed, 0 for one that hit, -1 for all else; int8[n]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLook(Message):
    """The settings of another node of a service: a replica, or what may take over. `node` is its host and port;
    `problem` says why there are no `knobs`."""

    node: str
    knobs: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLoad(Message):
    """The load of one node of a Redis Cluster, in microseconds of its commands per second.

    `cluster` is the same for all nodes of one cluster, `primaries` how many of them hold slots. `slots` are the
    busiest of its slots, each with its load; `other_us_per_s` is all else that the node does.
    """

    cluster: str
    primaries: int
    window_ms: int
    slots: tuple[tuple[int, float], ...]
    other_us_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerHotKeys(Message):
    """What a HOTKEYS session of the server (Redis 8.6 and later) has told; no key by its name.

    `keys` are (keyed hash, declared pattern or None, CPU in microseconds, bytes of the network) as counted among one
    in `sample_ratio` commands; the totals are of all commands. `commands`: how many all commands were, about.
    """

    started_ms: int
    window_ms: int
    sample_ratio: int
    commands: int
    cpu_us: int
    net_bytes: int
    keys: tuple[tuple[int, str | None, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """Raw facts of one look at one cache. Counters are cumulative, as the server prints them."""

    service: str
    at_ms: int
    info: Mapping[str, str]
    """INFO, flattened; section `commandstats` as `cmdstat_get: calls=..,usec=..`."""
    latency_us: Mapping[str, tuple[tuple[int, int], ...]]
    """LATENCY HISTOGRAM: command to ((upper bound in microseconds, cumulative count), ...)."""
    knobs: Mapping[str, str]
    capabilities: Capabilities
    own_hits_total: int
    """Lookups of ours that the server counted as hits up to when INFO was read: of all adapters that share a ledger, of
    this one since it was made where there is none. Not exact where `own_lookups` is in `incomplete`."""
    own_misses_total: int
    round_trip_us: float | None
    cost: ProbeCost
    sample: KeyspaceSample | None = None
    access: AccessSample | None = None
    values: ValueSample | None = None
    incomplete: Mapping[str, str] = field(default_factory=dict)
    """Part that is missing (`info`, `knobs`, `sample`, `access`, `values`, `latency`, `own_lookups`) to the reason."""
    nodes: tuple[NodeLook, ...] = ()
    """The other nodes of the service; empty for a look at counters only."""
    hot_keys: ServerHotKeys | None = None
    """Of the newest HOTKEYS session of ours that has ended."""
    cluster: ClusterLoad | None = None
    """Of a node of a Redis Cluster whose server keeps statistics of slots."""
    own_lookups_basis: str = ""
    """Totals of our own lookups are only comparable between looks of the same basis."""

    def light(self) -> Observation:
        """Return the look without its samples: counters only."""
        if self.sample is None and self.access is None and self.values is None:
            return self
        return replace(self, sample=None, access=None, values=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MissSplit(Message):
    """Why lookups missed, each as a share of all lookups in 0..1; they add up to the miss ratio.

    cold: first access ever seen or never cached; expired: its TTL had run out; evicted: pushed out by others;
    refused: the server had
    no room and could evict nothing, so it was never stored.
    """

    cold: float
    expired: float
    evicted: float
    refused: float
    source: str

    @property
    def binding(self) -> str:
        """The largest part, i.e. the resource that binds; `none` where nothing misses."""
        parts = {"cold": self.cold, "expired": self.expired, "evicted": self.evicted, "refused": self.refused}
        name = max(sorted(parts), key=lambda k: parts[k])
        return name if parts[name] > 0 else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternStats(Message):
    """What one declared key pattern looks like, from the keyspace sample and the captures."""

    pattern: str
    resident_share: float
    bytes_share: float
    lookups_share: float | None
    hit_ratio: float | None
    written_ttl_ms: int | None
    """Largest TTL that the application was seen to write; None where it writes none or nothing was seen."""
    keys_with_ttl_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport(Message):
    """One way to learn how a cache is used: whether it answers now and why (not), what it costs, how wrong it may
    be."""

    name: str
    used: bool
    reason: str
    cost: str
    expected_error: float | None = None
    """Mean absolute error of a predicted hit ratio that comes from the sampling alone, 0..1; None where not known."""
    error_basis: str = ""
    coverage: float | None = None
    """Client feed only: reported lookups over counted ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot(Message):
    """What is true of one cache now: windowed, own probes subtracted, counter resets cut out."""

    service: str
    taken_at_ms: int
    window_ms: int
    run_id: str
    role: str
    capabilities: Capabilities
    knobs: Mapping[str, str]
    hits: int
    misses: int
    hit_ratio: float | None
    lookups_per_s: float
    evicted_per_s: float
    expired_per_s: float
    refused_per_s: float
    miss_split: MissSplit | None
    used_memory_bytes: int
    maxmemory_bytes: int
    memory_usage: float | None
    """used_memory / maxmemory, or of the host's memory where maxmemory is 0; None where neither is known."""
    memory_efficiency: float | None
    fixed_overhead_bytes: int
    """used_memory that holds no entries: start-up, clients, replication backlog."""
    host_memory_bytes: int | None
    resident_keys: int
    keys_with_ttl: int
    eviction_age_ms: int | None
    latency_us_p99: float | None
    round_trip_us: float | None
    hotspot_count: int
    """Keys of the access sample that take more than 1 % of the lookups each; 0 without a sample."""
    cost: ProbeCost
    patterns: tuple[PatternStats, ...] = ()
    sample: KeyspaceSample | None = None
    access: AccessSample | None = None
    values: ValueSample | None = None
    allocator: str = ""
    """`mem_allocator` of INFO."""
    memory_figures: Mapping[str, float] = field(default_factory=dict)
    """What INFO says of memory and its overheads, by the names of its fields; those it does not print are missing."""
    incomplete: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[NodeLook, ...] = ()
    """The other nodes of the service, as of this look."""
    hot_keys: ServerHotKeys | None = None
    """Of the newest HOTKEYS session of ours that has ended."""
    cluster: ClusterLoad | None = None
    """Of a node of a Redis Cluster whose server keeps statistics of slots."""
    sources: tuple[SourceReport, ...] = ()
    """The observation sources of this service, the best first."""
    expired_stale_share: float | None = None
    """Share of the keys with a TTL, 0..1, that the server's own expiry cycle found overdue; None where it does not
    say."""
    cpu_share: float | None = None
    """CPU of the server over the window, in cores; None where it does not tell."""
    window_parts: tuple[tuple[int, int], ...] = ()
    """(lookups, misses) of consecutive parts of the window; by them a steady workload is told from a bursty one."""
    server_time_ms: int | None = None
    """When the look was taken by the server's own clock, since the epoch; None where it does not tell."""
    hit_ratio_step: float | None = None
    """Root mean square of how far the hit ratios of windows that follow upon each other lie apart while nothing was
    changed, 0..1, over the last 30 windows at most; None with fewer than four."""

    def light(self) -> Snapshot:
        """Return the snapshot without its samples, small enough to be sent to many."""
        if self.sample is None and self.access is None and self.values is None:
            return self
        return replace(self, sample=None, access=None, values=None)

    @property
    def miss_ratio(self) -> float | None:
        return None if self.hit_ratio is None else 1.0 - self.hit_ratio
