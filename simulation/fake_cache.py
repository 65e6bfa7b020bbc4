"""A cache in memory behind the `TargetCache` port, with the faults that agents have to survive.

Entries have a size, a deadline and a last access; eviction takes the exact victim of the policy where Redis samples (a
random policy takes the smallest hash), so its ratios are not Redis's: `cachewarden.cachemodel` is for those. It looks
without lookups, so it has none of its own to subtract, and its captures look back instead of ahead.

INVARIANT: the same calls at the same times give the same answers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel.memory_accounting import encoding_of, entry_bytes
from cachewarden.cachemodel.shards import SpatialFilter, hash_key
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.cachemodel.ttl_stampede import busiest_share
from cachewarden.errors import TargetRefused
from cachewarden.fleet import Service
from cachewarden.messages import Lease, TtlRule
from cachewarden.observation import AccessSample, Capabilities, KeyspaceSample, Observation, ProbeCost
from cachewarden.ports import Clock, ReencodePass, Spread, TtlPass
from coordination.monitor_lines import PatternIndex
from coordination.ttl_deadlines import (
    draw_of,
    extended_deadline_ms,
    restored_deadline_ms,
    shortened_deadline_ms,
    used_since_written,
)
from simulation.fake_server import FakeServer
from simulation.fake_values import fake_value_sample

__all__ = ["FakeCache"]

_START_UP_BYTES = 1 << 20


@dataclass(slots=True)
class _Entry:
    value_bytes: int
    deadline_ms: int
    """-1 for none."""
    accessed_ms: int
    frequency: int = 5


class FakeCache(FakeServer):
    """One cache. `get` and `set` are the application's side; its faults are those of `FakeServer`."""

    def __init__(
        self, service: Service, *, clock: Clock, hash_secret: bytes = b"fake", version: str = "7.0.15"
    ) -> None:
        super().__init__(service.name, version)
        self.config_rewrite = service.config_rewrite
        self._service = service
        self._clock = clock
        self._secret = hash_secret
        self._entries: dict[bytes, _Entry] = {}
        self._accesses: deque[tuple[int, bytes, Op, int, int]] = deque(maxlen=200_000)
        self._counts = dict.fromkeys(("keyspace_hits", "keyspace_misses", "evicted_keys", "expired_keys", "refused"), 0)
        self._hot: list[bytes] = []
        self._lives = self._looks = 0

    # --- The application's side

    def get(self, key: bytes) -> bool:
        """Look a key up; says whether it was there."""
        now_ms = self._expire()
        entry = self._entries.get(key)
        self._accesses.append((now_ms, key, Op.READ, 0, 0))
        self._counts["keyspace_hits" if entry else "keyspace_misses"] += 1
        if entry is not None:
            entry.accessed_ms, entry.frequency = now_ms, min(255, entry.frequency + 1)
        return entry is not None

    def set(self, key: bytes, value_bytes: int, ttl_ms: int = 0) -> bool:
        """Store a value of that length; False where the cache is full and may evict nothing."""
        now_ms = self._expire()
        if not self._make_room():
            self._counts["refused"] += 1
            return False
        self._entries[key] = _Entry(value_bytes, now_ms + ttl_ms if ttl_ms else -1, now_ms)
        size = entry_bytes(len(key), value_bytes, ttl_ms > 0)
        self._accesses.append((now_ms, key, Op.WRITE, size, ttl_ms))
        return True

    def deadline_ms(self, key: bytes) -> int:
        """PEXPIRETIME: -1 no TTL, -2 no key."""
        self._expire()
        entry = self._entries.get(key)
        return -2 if entry is None else entry.deadline_ms

    def restart(self) -> None:
        """Lose data, counters, fence and every setting made at run time, as a server without persistence does."""
        self._lives += 1
        self._entries.clear()
        self._accesses.clear()
        self._counts = dict.fromkeys(self._counts, 0)
        self._forget_settings()

    def used_bytes(self) -> int:
        """used_memory: start-up plus every entry by the memory model."""
        return _START_UP_BYTES + sum(self._size(key, entry) for key, entry in self._entries.items())

    @staticmethod
    def _size(key: bytes, entry: _Entry) -> int:
        return entry_bytes(len(key), entry.value_bytes, entry.deadline_ms >= 0)

    def _expire(self) -> int:
        now_ms = self._clock.now_ms()
        gone = [key for key, entry in self._entries.items() if 0 <= entry.deadline_ms <= now_ms]
        for key in gone:
            del self._entries[key]
        self._counts["expired_keys"] += len(gone)
        return now_ms

    def _make_room(self) -> bool:
        limit, policy = int(self._knobs["maxmemory"]), self._knobs["maxmemory-policy"]
        used = self.used_bytes() if limit else 0
        while limit and used > limit:
            allowed = [
                (k, e) for k, e in self._entries.items() if not policy.startswith("volatile") or e.deadline_ms >= 0
            ]
            if policy == "noeviction" or not allowed:
                return False
            key, entry = min(allowed, key=lambda item: (self._worth(policy, item[0], item[1]), item[0]))
            used -= self._size(key, entry)
            del self._entries[key]
            self._counts["evicted_keys"] += 1
        return True

    def _worth(self, policy: str, key: bytes, entry: _Entry) -> int:
        by = policy.rsplit("-", 1)[1]
        known = {"lru": entry.accessed_ms, "lfu": entry.frequency, "ttl": entry.deadline_ms}
        return known[by] if by in known else hash_key(b"random", key)

    # --- The port

    async def observe(
        self, *, sample_keys: int, capture_ms: int, capture_lines: int, capture_rate: float, value_keys: int = 0
    ) -> Observation:
        """Look once; see the port."""
        seen = await self.counters()
        missing = dict(seen.incomplete)
        access = None
        if capture_ms > 0 and not seen.capabilities.monitor:
            missing["access"] = self.denied.get("MONITOR", "the fleet file does not permit captures")
        elif capture_ms > 0:
            access = self._capture(capture_ms, capture_lines, capture_rate)
        values = None
        if value_keys > 0 and not self._service.value_samples:
            missing["values"] = "the fleet file does not permit reading values"
        elif value_keys > 0:
            stored = {key: (entry.value_bytes, self._size(key, entry)) for key, entry in self._entries.items()}
            values = fake_value_sample(stored, value_keys, self._index())
        return Observation(
            service=seen.service, at_ms=seen.at_ms, info=seen.info, latency_us={}, knobs=seen.knobs,
            capabilities=seen.capabilities, own_hits_total=0, own_misses_total=0, round_trip_us=seen.round_trip_us,
            cost=seen.cost, sample=self._sample(sample_keys) if sample_keys else None, access=access,
            values=values, incomplete=missing,
        )  # fmt: skip

    async def counters(self) -> Observation:
        """INFO and knobs; there are no latencies, and `incomplete` says so."""
        self._answer()
        now_ms = self._expire()
        policy = self._knobs["maxmemory-policy"]
        config_get = "CONFIG GET" not in self.denied
        missing = {"latency": "a cache in memory has none"}
        if not config_get:
            missing["knobs"] = self.denied["CONFIG GET"]
        volatile = sum(entry.deadline_ms >= 0 for entry in self._entries.values())
        info = {
            "run_id": f"{self._lives:040d}", "redis_version": self._version, "role": "master",
            "maxmemory": self._knobs["maxmemory"], "maxmemory_policy": policy, "used_memory": str(self.used_bytes()),
            "used_memory_startup": str(_START_UP_BYTES),
            "used_memory_dataset": str(self.used_bytes() - _START_UP_BYTES),
            "db0": f"keys={len(self._entries)},expires={volatile},avg_ttl=0",
            **{name: str(count) for name, count in self._counts.items() if name != "refused"},
            "cmdstat_set": f"calls=0,usec=0,usec_per_call=0.00,rejected_calls={self._counts['refused']},failed_calls=0",
        }  # fmt: skip
        capabilities = Capabilities(
            server="redis", version=self._version, config_get=config_get, config_set="CONFIG SET" not in self.denied,
            object_idletime=not policy.endswith("lfu"), object_frequency=policy.endswith("lfu"), memory_usage=True,
            latency_histogram=False, monitor=self._service.capture and "MONITOR" not in self.denied, script=True,
            denied=dict(self.denied),
        )  # fmt: skip
        return Observation(
            service=self.service, at_ms=now_ms, info=info, latency_us={}, knobs=dict(self._knobs) if config_get else {},
            capabilities=capabilities, own_hits_total=0, own_misses_total=0, round_trip_us=None, cost=ProbeCost(),
            incomplete=missing,
        )  # fmt: skip

    def _settings_changed(self) -> None:
        self._expire()
        self._make_room()

    async def collect_hot_keys(self, limit: int) -> int:
        """Remember the hottest keys."""
        self._answer()
        lfu = self._knobs["maxmemory-policy"].endswith("lfu")
        heat = {key: entry.frequency if lfu else entry.accessed_ms for key, entry in self._entries.items()}
        self._hot = sorted(heat, key=lambda key: (-heat[key], key))[:limit]
        return len(self._hot)

    async def touch_hot_keys(self, lease: Lease, times: int, keys_per_s: int) -> int:
        """Touch them under the fence; takes no time here."""
        if keys_per_s < 1:
            raise ValueError(f"`keys_per_s` must be at least 1, got `{keys_per_s}`")
        self._answer()
        self._check_fence(lease)
        now_ms = self._expire()
        there = [self._entries[key] for key in self._hot if key in self._entries]
        for entry in there if times > 0 else ():
            entry.accessed_ms, entry.frequency = now_ms, min(255, entry.frequency + times)
        return len(there) if times > 0 else 0

    async def measure_spread(self, limit: int) -> Spread:
        """Compare frequencies with 5, that of a new key."""
        self._answer()
        if not self._knobs["maxmemory-policy"].endswith("lfu"):
            raise TargetRefused(self.service, "OBJECT FREQ", "An LFU maxmemory policy is not selected")
        there = [self._entries[key] for key in self._hot[:limit] if key in self._entries]
        return Spread(examined=len(there), above=sum(entry.frequency > 5 for entry in there))

    async def reencode_keys(self, lease: Lease, cursor: int, max_keys: int, keys_per_s: int) -> ReencodePass:
        """One pass; entries here are strings, so there is nothing to store again."""
        if keys_per_s < 1:
            raise ValueError(f"`keys_per_s` must be at least 1, got `{keys_per_s}`")
        if not self._service.reencode or not self._service.patterns:
            raise TargetRefused(self.service, "RESTORE", "the fleet file does not permit it")
        self._answer()
        self._check_fence(lease)
        self._expire()
        examined = min(max_keys, max(0, len(self._entries) - cursor))
        after = 0 if cursor + examined >= len(self._entries) else cursor + examined
        return ReencodePass(cursor=after, examined=examined, reencoded=0, bytes_moved=0)

    async def extend_ttls(
        self,
        lease: Lease,
        rule: TtlRule,
        cursor: int,
        max_keys: int,
        restore: bool = False,
        idle_known_ms: int = 0,  # noqa: ARG002  (here idle times are always true)
    ) -> TtlPass:
        """One pass over keys in the order of a hash; the cursor is the hash to go on from, so no key is passed over."""
        self._answer()
        now_ms = self._expire()
        matching = (key for key in self._entries if key.startswith(rule.pattern.encode()))
        left = sorted((place, key) for key in matching if (place := hash_key(b"scan", key)) >= cursor)
        part = left[:max_keys]
        found = [self._entries[key].deadline_ms for _, key in part]
        extended = 0
        for _, key in part:
            wanted = self._wanted_deadline_ms(rule, key, now_ms, restore=restore)
            if wanted is not None:
                self._check_fence(lease)
                self._entries[key].deadline_ms = wanted
                extended += 1
        after = part[-1][0] + 1 if len(part) < len(left) else 0
        kept = [self._entries[key].deadline_ms for _, key in part]
        return TtlPass(
            cursor=after, examined=len(part), extended=extended, commands=0,
            peak_found=busiest_share([at_ms for at_ms in found if at_ms >= 0]),
            peak_left=busiest_share([at_ms for at_ms in kept if at_ms >= 0]),
        )  # fmt: skip

    def _wanted_deadline_ms(self, rule: TtlRule, key: bytes, now_ms: int, *, restore: bool) -> int | None:
        entry, lfu = self._entries[key], self._knobs["maxmemory-policy"].endswith("lfu")
        idle_ms = None if lfu else (now_ms - entry.accessed_ms) // 1000 * 1000
        if rule.unread_ms:
            if lfu:
                raise TargetRefused(self.service, "OBJECT IDLETIME", "no idle times under LFU")
            return shortened_deadline_ms(rule, entry.deadline_ms, now_ms, idle_ms)
        decide = restored_deadline_ms if restore else extended_deadline_ms
        wanted = decide(rule, entry.deadline_ms, now_ms, draw_of(key, entry.deadline_ms))
        if wanted is None or restore or not rule.only_read:
            return wanted
        frequency = entry.frequency if lfu else None
        used = used_since_written(rule, entry.deadline_ms, now_ms, idle_ms, frequency)
        return wanted if used else None

    def _index(self) -> PatternIndex:
        return PatternIndex([pattern.prefix for pattern in self._service.patterns])

    def _sample(self, keys: int) -> KeyspaceSample:
        # A fresh secret for each look gives a fresh uniform order, and the same one in a second run.
        self._looks += 1
        order = self._looks.to_bytes(8, "big")
        chosen = sorted(self._entries, key=lambda key: hash_key(order, key))[:keys]
        entries, index, now_ms = [self._entries[key] for key in chosen], self._index(), self._clock.now_ms()
        lfu = self._knobs["maxmemory-policy"].endswith("lfu")
        names = [encoding_of(b"x" * min(entry.value_bytes, 64)).value for entry in entries]
        encodings = tuple(sorted(set(names)))
        return KeyspaceSample(
            key=np.array([hash_key(self._secret, key) for key in chosen], dtype=np.uint64),
            idle_ms=np.array([-1 if lfu else (now_ms - e.accessed_ms) // 1000 * 1000 for e in entries], dtype=np.int64),
            frequency=np.array([e.frequency if lfu else -1 for e in entries], dtype=np.int32),
            size_bytes=np.array([self._size(k, e) for k, e in zip(chosen, entries, strict=True)], dtype=np.int64),
            ttl_ms=np.array([e.deadline_ms - now_ms if e.deadline_ms >= 0 else -1 for e in entries], dtype=np.int64),
            pattern=np.array([index.of(key) for key in chosen], dtype=np.int32),
            encoding=np.array([encodings.index(name) for name in names], dtype=np.int32),
            patterns=index.patterns,
            encodings=encodings,
        )

    def _capture(self, capture_ms: int, capture_lines: int, capture_rate: float) -> AccessSample:
        since_ms, kept = self._clock.now_ms() - capture_ms, SpatialFilter(capture_rate)
        seen = [access for access in self._accesses if access[0] >= since_ms][-capture_lines:]
        rows = [(at, hash_key(self._secret, key), key, op, size, ttl) for at, key, op, size, ttl in seen]
        rows = [row for row in rows if kept.keeps(row[1])]
        index = self._index()
        trace = AccessTrace.of(
            [row[0] for row in rows], np.array([row[1] for row in rows], dtype=np.uint64),
            [int(row[3]) for row in rows], [row[4] for row in rows], [row[5] for row in rows],
        )  # fmt: skip
        pattern = np.array([index.of(row[2]) for row in rows], dtype=np.int32)
        return AccessSample(
            trace=trace, pattern=pattern, patterns=index.patterns, spatial_rate=capture_rate, lines_seen=len(seen)
        )
