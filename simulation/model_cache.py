"""A cache in virtual time whose entries are a model: counters, memory and hit ratio follow from its load and settings.

The control plane (settings, fence, refusals) is that of `fake_server.py` and passes the same contract suite as real
servers; the hit ratio comes from `load_model.py` and approaches its settled value only as fast as misses bring keys in,
as a real cache's does. There are no keys, so looks bring no samples.

INVARIANT: the same calls at the same times give the same answers; counters never fall within one life of the server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cachewarden.errors import InvariantViolation, StaleFencingToken, TargetTimeout
from cachewarden.fleet import Service
from cachewarden.messages import KnobChange, Lease, TtlRule
from cachewarden.observation import Capabilities, Observation, ProbeCost
from cachewarden.ports import Clock, ReencodePass, Spread, TtlPass
from simulation.facts import Fact, FencedWrite, FenceLost, FenceRaised, HandWrite, Restarted
from simulation.fake_server import FakeServer
from simulation.load_model import LoadModel, hit_ratio, universe_bytes

__all__ = ["ModelCache"]

_START_UP_BYTES = 1 << 20
_HOST_BYTES = 4 << 30
_SHRINK_TAU_S = 1.5
"""Time constant with which a cache loses hits and memory that it may no longer hold."""
_COLD_TAU_MIN_S = 5.0
_FAST_US, _SLOW_US = 64, 8_192


def _nothing(_fact: Fact) -> None:
    """Note nothing."""


class ModelCache(FakeServer):
    """One cache. `role` and `denied` may be changed by whoever drives it, its load by `set_load`."""

    def __init__(
        self,
        service: Service,
        load: LoadModel,
        lookups_per_s: float,
        *,
        clock: Clock,
        note: Callable[[Fact], None] = _nothing,
        version: str = "7.0.15",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(service.name, version)
        self.config_rewrite = service.config_rewrite
        self.load = load
        self.lookups_per_s = lookups_per_s
        self.role = "master"
        self._slow_share = 0.0
        self.loses = ""
        """Command whose next answer is lost: it is carried out, and nobody is told."""
        self.misses = ""
        """Command whose next request is lost: it is not carried out, and nobody is told."""
        self.extended: set[str] = set()
        """Patterns whose keys have longer TTLs now."""
        self._clock = clock
        self._note = note
        self._configured = dict(settings or {})
        self._knobs |= self._configured
        self._lives = 1
        self._born_ms = self._seen_ms = clock.now_ms()
        self._hits = self._misses = self._evicted = self._refused = self._slow = 0.0
        self._hit_ratio = self._settled()
        self._used_bytes = float(self._wanted_bytes())
        self._hot = 0
        self._written = False

    # --- The world's side ---

    def knobs(self) -> dict[str, str]:
        """Return the settings in force."""
        return dict(self._knobs)

    @property
    def hit_ratio_now(self) -> float:
        """Return what of its lookups hit right now, 0..1."""
        self._advance()
        return self._hit_ratio

    def set_by_hand(self, knob: str, value: str) -> None:
        """Set a knob as an operator with redis-cli does: no lease, no fence."""
        self._advance()
        before, self._knobs[knob] = self._knobs[knob], value
        self._note(HandWrite(at_ms=self._clock.now_ms(), service=self.service, knob=knob, before=before, after=value))

    def set_load(
        self, *, lookups_per_s: float | None = None, load: LoadModel | None = None, slow_share: float | None = None
    ) -> None:
        """Let it be asked for something else from now on."""
        self._advance()
        self.lookups_per_s = self.lookups_per_s if lookups_per_s is None else lookups_per_s
        self.load = self.load if load is None else load
        self._slow_share = self._slow_share if slow_share is None else slow_share

    def evict_fence(self) -> None:
        """Let eviction take the fence."""
        self.fence = None
        self.fence_writes += 1
        self._note(FenceLost(at_ms=self._clock.now_ms(), service=self.service))

    def restart(self, *, keeps_settings: bool = False) -> None:
        """Be another process: empty, fence gone, counters from 0; settings as in its file, or rewritten ones."""
        now_ms, knobs = self._clock.now_ms(), dict(self._knobs)
        self._forget_settings()
        self._knobs |= knobs if keeps_settings else {**self._configured, **(self._rewritten or {})}
        self._lives += 1
        self._born_ms = self._seen_ms = now_ms
        self._hits = self._misses = self._evicted = self._refused = self._slow = 0.0
        self._hit_ratio, self._used_bytes, self._hot = 0.0, float(_START_UP_BYTES), 0
        self.extended = set()
        self._note(Restarted(at_ms=now_ms, service=self.service, knobs=dict(self._knobs)))

    # --- The model ---

    def _limit(self) -> int:
        return int(self._knobs["maxmemory"])

    def _may_evict(self) -> bool:
        policy = self._knobs["maxmemory-policy"]
        return policy != "noeviction" and (not policy.startswith("volatile") or self.load.ttl_share > 0.0)

    def _wanted_bytes(self) -> int:
        everything = _START_UP_BYTES + universe_bytes(self.load)
        return min(everything, self._limit()) if self._limit() else everything

    def _settled(self) -> float:
        room = max(self._limit() - _START_UP_BYTES, 1) if self._limit() else 0
        return hit_ratio(self.load, self._knobs["maxmemory-policy"], room, extended=bool(self.extended))

    def _advance(self) -> None:
        now_ms = self._clock.now_ms()
        seconds = (now_ms - self._seen_ms) / 1000.0
        if seconds <= 0.0:
            return
        self._seen_ms = now_ms
        target, wanted = self._settled(), float(self._wanted_bytes())
        lookups = self.lookups_per_s * seconds
        refill_s = universe_bytes(self.load) / self.load.entry_bytes / max(self.lookups_per_s, 0.1)
        tau = max(_COLD_TAU_MIN_S, 0.2 * refill_s) if target > self._hit_ratio else _SHRINK_TAU_S
        left = math.exp(-seconds / tau)
        ratio = target + (self._hit_ratio - target) * (tau / seconds) * (1.0 - left)
        full = self._limit() > 0 and self._used_bytes >= 0.995 * self._limit()
        self._hit_ratio = target + (self._hit_ratio - target) * left
        self._hits += lookups * ratio
        self._misses += lookups * (1.0 - ratio)
        self._slow += lookups * self._slow_share
        if full and self._may_evict():
            self._evicted += lookups * (1.0 - ratio)
        elif full:
            self._refused += lookups * (1.0 - ratio)
        if wanted > self._used_bytes:
            self._used_bytes += (wanted - self._used_bytes) * (1.0 - math.exp(-seconds / max(5.0, 0.2 * refill_s)))
        elif self._may_evict():
            self._used_bytes = wanted + (self._used_bytes - wanted) * math.exp(-seconds / _SHRINK_TAU_S)

    # --- The port ---

    async def observe(
        self, *, sample_keys: int, capture_ms: int, capture_lines: int, capture_rate: float, value_keys: int = 0
    ) -> Observation:
        """Look once; there are no keys to be sampled, captured or read."""
        del capture_lines, capture_rate
        asked = {"sample": sample_keys > 0, "access": capture_ms > 0, "values": value_keys > 0}
        return self._look({part: "a model has no keys" for part, wanted in asked.items() if wanted})

    async def counters(self) -> Observation:
        """INFO, latency and knobs; see the port."""
        return self._look({})

    def _look(self, incomplete: Mapping[str, str]) -> Observation:
        self._answer()
        self._advance()
        now_ms = self._clock.now_ms()
        config_get = "CONFIG GET" not in self.denied
        missing = incomplete if config_get else {"knobs": self.denied["CONFIG GET"], **incomplete}
        policy, keys = self._knobs["maxmemory-policy"], self._resident_keys()
        lookups, slow = int(self._hits) + int(self._misses), int(self._slow)
        info = {
            "run_id": f"{self._lives:040d}",
            "redis_version": self._version,
            "role": self.role,
            "loading": "0",
            "uptime_in_seconds": str((now_ms - self._born_ms) // 1000),
            "server_time_usec": str(now_ms * 1000),
            "maxmemory": self._knobs["maxmemory"],
            "maxmemory_policy": policy,
            "used_memory": str(int(self._used_bytes)),
            "used_memory_startup": str(_START_UP_BYTES),
            "used_memory_dataset": str(max(int(self._used_bytes) - _START_UP_BYTES, 0)),
            "total_system_memory": str(_HOST_BYTES),
            "db0": f"keys={keys},expires={int(keys * self.load.ttl_share)},avg_ttl=0",
            "keyspace_hits": str(int(self._hits)),
            "keyspace_misses": str(int(self._misses)),
            "evicted_keys": str(int(self._evicted)),
            "expired_keys": "0",
            "total_commands_processed": str(lookups),
            "total_error_replies": str(int(self._refused)),
        }
        if self._refused >= 1.0:
            info["errorstat_OOM"] = f"count={int(self._refused)}"
        return Observation(
            service=self.service,
            at_ms=now_ms,
            info=info,
            latency_us={"get": ((_FAST_US, lookups - slow), (_SLOW_US, lookups))},
            knobs=dict(self._knobs) if config_get else {},
            capabilities=self._capabilities(policy, config_get=config_get),
            own_hits_total=0,
            own_misses_total=0,
            round_trip_us=None,
            cost=ProbeCost(),
            incomplete=missing,
        )

    def _capabilities(self, policy: str, *, config_get: bool) -> Capabilities:
        return Capabilities(
            server="redis",
            version=self._version,
            config_get=config_get,
            config_set="CONFIG SET" not in self.denied,
            object_idletime=not policy.endswith("lfu"),
            object_frequency=policy.endswith("lfu"),
            memory_usage=True,
            latency_histogram=True,
            monitor=False,
            script=True,
            denied=dict(self.denied),
        )

    def _resident_keys(self) -> int:
        return int(max(self._used_bytes - _START_UP_BYTES, 0.0) / self.load.entry_bytes)

    async def raise_fence(self, lease: Lease) -> None:
        """Raise the fence unless a higher one stands there."""
        self._miss("EVAL")
        before = self.fence
        try:
            await super().raise_fence(lease)
        finally:
            if self.fence != before and self.fence is not None:
                self._note(
                    FenceRaised(at_ms=self._clock.now_ms(), service=self.service, holder=lease.holder, epoch=self.fence)
                )

    async def write_knobs(self, lease: Lease, changes: Sequence[KnobChange]) -> dict[str, str]:
        """One fenced CONFIG SET, then what CONFIG GET says."""
        self._miss("CONFIG SET")
        self._advance()
        before, self._written = dict(self._knobs), False
        try:
            return await super().write_knobs(lease, changes)
        finally:
            if self._written:
                done = tuple((c.knob, before[c.knob], self._knobs[c.knob]) for c in changes)
                self._note(
                    FencedWrite(
                        at_ms=self._clock.now_ms(),
                        service=self.service,
                        holder=lease.holder,
                        epoch=lease.epoch,
                        changes=done,
                    )
                )

    def _miss(self, command: str) -> None:
        if self.misses == command:
            self.misses = ""
            raise TargetTimeout(self.service, command)

    def _lose(self, command: str) -> None:
        super()._lose(command)
        if self.loses == command:
            self.loses = ""
            raise TargetTimeout(self.service, command)

    def _settings_changed(self) -> None:
        self._written = True

    async def watch_fence(self) -> int:
        """Return what a later write is held to; see `require_watched`."""
        self._answer()
        return self.fence_writes

    def require_watched(self, lease: Lease, fence_writes: int) -> None:
        """Raise StaleFencingToken where the fence was written since: EXEC carries out nothing after WATCH saw that."""
        if self.fence_writes != fence_writes:
            raise StaleFencingToken(self.service, lease.epoch, self.fence)

    async def collect_hot_keys(self, limit: int) -> int:
        """Remember how many keys would be remembered."""
        self._answer()
        self._advance()
        self._hot = min(limit, self._resident_keys())
        return self._hot

    async def touch_hot_keys(self, lease: Lease, times: int, keys_per_s: int) -> int:
        """Touch them under the fence; takes no time here. Raises ValueError for `keys_per_s` < 1."""
        if keys_per_s < 1:
            raise ValueError(f"`keys_per_s` must be at least 1, got `{keys_per_s}`")
        self._answer()
        self._check_fence(lease)
        return self._hot if times > 0 else 0

    async def measure_spread(self, limit: int) -> Spread:
        """Touched keys count more than new ones."""
        self._answer()
        found = min(limit, self._hot)
        return Spread(examined=found, above=found)

    async def reencode_keys(self, lease: Lease, cursor: int, max_keys: int, keys_per_s: int) -> ReencodePass:
        """One pass that finds nothing to store again: the load has no collections. Takes no time here. Raises
        ValueError for `keys_per_s` < 1."""
        if keys_per_s < 1:
            raise ValueError(f"`keys_per_s` must be at least 1, got `{keys_per_s}`")
        self._answer()
        self._check_fence(lease)
        self._advance()
        keys = self._resident_keys()
        examined = min(max_keys, max(0, keys - cursor))
        after = 0 if cursor + examined >= keys else cursor + examined
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
        """One pass; the rule acts once a pass has come round. Raises InvariantViolation for a rule beyond staleness."""
        if rule.extended_ttl_ms > rule.max_staleness_ms:
            raise InvariantViolation(f"a TTL of `{rule.extended_ttl_ms}` ms is beyond its owner's staleness")
        self._answer()
        self._check_fence(lease)
        self._advance()
        keys = max(1, self._resident_keys())
        examined = min(max_keys, keys - min(cursor, keys - 1))
        after = 0 if cursor + examined >= keys else cursor + examined
        if after == 0 and restore == (rule.pattern in self.extended):
            (self.extended.discard if restore else self.extended.add)(rule.pattern)
            self._note(
                FencedWrite(
                    at_ms=self._clock.now_ms(),
                    service=self.service,
                    holder=lease.holder,
                    epoch=lease.epoch,
                    changes=(),
                    pattern=rule.pattern,
                    restores=restore,
                )
            )
        return TtlPass(cursor=after, examined=examined, extended=0 if restore else examined // 10, commands=examined)
