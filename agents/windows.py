"""What happened to a cache between two looks: deltas of cumulative counters, and quantiles of its latency histogram.

It decides whether two looks may be compared at all: after a restart, a failover, a reset of the counters or of our
own bookkeeping, or where our own lookups are not known exactly, they may not, and the window says so instead of giving
a number. It never keeps anything; the rings
of looks are the collector's.

INVARIANT: our own lookups are in no ratio, and a window without lookups has the hit ratio None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agents.info_facts import InfoFacts, facts_of
from cachewarden.observation import Observation

__all__ = [
    "OWN_LOOKUPS",
    "READ_COMMANDS",
    "Elapsed",
    "LatencyQuantile",
    "Window",
    "elapsed_between",
    "guardrail_window",
    "latency_quantile",
    "own_lookups_unknown",
    "window_between",
]

READ_COMMANDS: frozenset[str] = frozenset({
    "bitcount", "get", "getbit", "getex", "getrange", "hget", "hgetall", "hmget", "hvals", "lindex", "lrange", "mget",
    "sismember", "smembers", "smismember", "xrange", "zrange", "zrangebyscore", "zrank", "zrevrange", "zscore",
})  # fmt: skip
"""Commands by which applications read a cache. Those that our own probes use (TTL, OBJECT, EXISTS and the like) are
not among them.
"""

OWN_LOOKUPS = "own_lookups"
"""Name of the part in `Observation.incomplete` without which hits and misses cannot be told from our own."""

# Two clocks that are read over a network agree within this much; beyond it one of them has jumped.
_CLOCK_TOLERANCE_MS = 2_000
_CLOCK_TOLERANCE_SHARE = 0.1
_UPTIME_RESOLUTION_MS = 1_000


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Time between two looks in milliseconds, > 0; `note` says so where our own clock was not believed."""

    ms: int
    note: str | None = None


@dataclass(frozen=True, slots=True)
class LatencyQuantile:
    """A quantile in microseconds, with the edges of the bucket that holds it: low_us <= value_us <= high_us."""

    value_us: float
    low_us: float
    high_us: float
    commands: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Deltas between two looks. Where `problem` is given the two cannot be compared, and every count is 0 or None.

    hits, misses: lookups of others than us. evicted, expired, refused: None where the server does not print them.
    """

    window_ms: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int | None = None
    expired: int | None = None
    refused: int | None = None
    latency: LatencyQuantile | None = None
    cpu_us: int | None = None
    """CPU time of the server in it."""
    problem: str | None = None
    clock_note: str | None = None
    parts: tuple[tuple[int, int], ...] = ()
    """(lookups, misses) of its parts from look to look, where there were looks in between."""
    hit_ratio_step: float | None = None
    """As in `Snapshot`."""

    @property
    def lookups(self) -> int:
        return self.hits + self.misses

    @property
    def hit_ratio(self) -> float | None:
        """Return hits / lookups, None without lookups."""
        return self.hits / self.lookups if self.lookups else None

    @property
    def cpu_share(self) -> float | None:
        """Return the CPU that the server took, in cores; None where it does not tell."""
        return None if self.cpu_us is None or not self.window_ms else self.cpu_us / (1000.0 * self.window_ms)

    def per_s(self, count: int | None) -> float:
        """Return a count of this window as a rate; 0 where the window or the count is missing."""
        return 1000.0 * count / self.window_ms if count and self.window_ms else 0.0


def elapsed_between(earlier: Observation, later: Observation) -> Elapsed | None:
    """Return the time between two looks, or None where no clock gives a positive one.

    Our clock may jump, and so may the server's. They are compared: where they agree (2 s and a tenth) ours is taken,
    which is the finer; where they do not, the server's, unless that one did not move forward.
    """
    ours = later.at_ms - earlier.at_ms
    before, after = facts_of(earlier), facts_of(later)
    server: int | None = None
    tolerance = _CLOCK_TOLERANCE_MS
    if before.server_time_ms is not None and after.server_time_ms is not None:
        server = after.server_time_ms - before.server_time_ms
    elif before.uptime_ms is not None and after.uptime_ms is not None:
        server = after.uptime_ms - before.uptime_ms
        tolerance += _UPTIME_RESOLUTION_MS
    if server is None:
        return Elapsed(ours) if ours > 0 else None
    if ours > 0 and abs(ours - server) <= max(tolerance, _CLOCK_TOLERANCE_SHARE * max(server, 0)):
        return Elapsed(ours)
    if server > 0:
        return Elapsed(server, f"our clock moved by {ours} ms and the server's by {server} ms, the server's is taken")
    return Elapsed(ours, f"the server's clock moved by {server} ms, ours is taken") if ours > 0 else None


def window_between(earlier: Observation, later: Observation, commands: Iterable[str] = READ_COMMANDS) -> Window:
    """Compare two looks at the same cache; `commands` are those whose latency is taken together."""
    window, unknown = _compare(earlier, later, commands), _own_lookups_unknown_between(earlier, later)
    return window if unknown is None or window.problem is not None else Window(problem=unknown)


def guardrail_window(earlier: Observation, later: Observation) -> Window:
    """Return what guardrails may go by: the window, without hits and misses where these cannot be told from our own.

    Latency and refused writes are the application's whatever we have looked up.
    """
    window = _compare(earlier, later, READ_COMMANDS)
    return window if _own_lookups_unknown_between(earlier, later) is None else replace(window, hits=0, misses=0)


def _compare(earlier: Observation, later: Observation, commands: Iterable[str]) -> Window:
    """Compare two looks, taking the totals of our own lookups as they are."""
    before, after = facts_of(earlier), facts_of(later)
    problem = _incomparable(before, after)
    if problem is not None:
        return Window(problem=problem)
    elapsed = elapsed_between(earlier, later)
    if elapsed is None:
        return Window(problem="no clock moved forward between the two looks")
    own_hits = later.own_hits_total - earlier.own_hits_total
    own_misses = later.own_misses_total - earlier.own_misses_total
    return Window(
        window_ms=elapsed.ms,
        hits=max(0, (_delta(before.hits, after.hits) or 0) - own_hits),
        misses=max(0, (_delta(before.misses, after.misses) or 0) - own_misses),
        evicted=_delta(before.evicted, after.evicted),
        expired=_delta(before.expired, after.expired),
        refused=_delta(before.refused, after.refused),
        latency=latency_quantile(earlier, later, commands),
        cpu_us=_delta(before.cpu_us, after.cpu_us),
        clock_note=elapsed.note,
    )


def own_lookups_unknown(observation: Observation) -> str | None:
    """Return why this look's hits and misses cannot be told from our own lookups, None where they can."""
    reason = observation.incomplete.get(OWN_LOOKUPS)
    return None if reason is None else f"our own lookups are not known exactly: {reason}"


def _own_lookups_unknown_between(earlier: Observation, later: Observation) -> str | None:
    """Return why our own lookups between two looks are not known, None if they are."""
    unknown = own_lookups_unknown(later) or own_lookups_unknown(earlier)
    if unknown is not None:
        return unknown
    if later.own_lookups_basis != earlier.own_lookups_basis:
        return "the account of our own lookups began anew, and a new window with it"
    if later.own_hits_total < earlier.own_hits_total or later.own_misses_total < earlier.own_misses_total:
        return "our own lookups were counted anew, a new window begins"
    return None


def _delta(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _incomparable(before: InfoFacts, after: InfoFacts) -> str | None:
    """Return why two looks cannot be compared, None if they can."""
    if before.hits is None or before.misses is None or after.hits is None or after.misses is None:
        return "the server prints no `keyspace_hits` and `keyspace_misses`"
    if before.run_id != after.run_id:
        return "another server process answers: restart or failover, a new window begins"
    if before.role != after.role:
        return f"the server's role changed from `{before.role}` to `{after.role}`, a new window begins"
    # Without a run id a lower uptime is the only sign of a restart; with one it is a clock that was set back.
    uptime = () if after.run_id is not None else (("uptime_in_seconds", before.uptime_ms, after.uptime_ms),)
    counters = (
        *uptime,
        ("keyspace_hits", before.hits, after.hits),
        ("keyspace_misses", before.misses, after.misses),
        ("evicted_keys", before.evicted, after.evicted),
        ("expired_keys", before.expired, after.expired),
        ("refused writes", before.refused, after.refused),
        ("total_commands_processed", before.commands, after.commands),
    )
    for name, old, new in counters:
        if old is not None and new is not None and new < old:
            return f"`{name}` went back from {old} to {new}: the counters were reset, a new window begins"
    return None


def latency_quantile(
    earlier: Observation, later: Observation, commands: Iterable[str] = READ_COMMANDS, quantile: float = 0.99
) -> LatencyQuantile | None:
    """Return a quantile (0..1) of the server-side latency of `commands` between two looks; None where it cannot be
    known.

    The server's buckets end at powers of two (1.024 us * 2^k) and hold cumulative counts; one without new entries is
    not printed. Inside the bucket that holds the quantile, latencies are taken as uniform between its edges, so the
    true value may be anywhere from `low_us` to `high_us`, a factor of two. The network and the client's queue are not
    in it.
    """
    if "latency" in earlier.incomplete or "latency" in later.incomplete:
        return None
    counts: dict[int, int] = {}
    old, new = _by_name(earlier.latency_us), _by_name(later.latency_us)
    for command in sorted(set(commands) & set(new)):
        buckets = _bucket_deltas(old.get(command, ()), new[command])
        if buckets is None:
            return None
        for bound, count in buckets.items():
            counts[bound] = counts.get(bound, 0) + count
    return _quantile_of_buckets(counts, quantile)


def _by_name(histograms: Mapping[str, tuple[tuple[int, int], ...]]) -> dict[str, tuple[tuple[int, int], ...]]:
    return {name.lower(): histogram for name, histogram in histograms.items()}


def _bucket_deltas(old: tuple[tuple[int, int], ...], new: tuple[tuple[int, int], ...]) -> dict[int, int] | None:
    """Return new entries per bucket, by upper bound; None where the histogram was reset in between."""
    old_at, new_at = dict(old), dict(new)
    seen_old = seen_new = already = 0
    deltas: dict[int, int] = {}
    for bound in sorted(old_at.keys() | new_at.keys()):
        # A bound that is not printed has the cumulative count of the one below it.
        seen_old = max(seen_old, old_at.get(bound, 0))
        seen_new = max(seen_new, new_at.get(bound, 0))
        count = seen_new - seen_old - already
        if count < 0:
            return None
        deltas[bound] = count
        already += count
    return deltas


def _quantile_of_buckets(counts: Mapping[int, int], quantile: float) -> LatencyQuantile | None:
    total = sum(counts.values())
    if total == 0:
        return None
    # The quantile is the entry of this rank: with fewer than a hundred entries P99 is the slowest of them.
    rank = max(1, math.ceil(quantile * total))
    below = 0
    previous_bound = 0
    for bound in sorted(counts):
        count = counts[bound]
        if below + count >= rank:
            low = max(bound / 2.0, float(previous_bound))
            value = low + (bound - low) * (rank - below) / count
            return LatencyQuantile(value, low, float(bound), total)
        below += count
        previous_bound = bound
    return None
