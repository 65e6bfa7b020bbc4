"""The planner at work on simulated caches: the project's own collector and planner, in simulated time.

A cache is the replay of its stream, which can be looked at and reconfigured while it runs. The collector gets what a
server would show (INFO, random residents, captures that hold fills too), the planner gets the collector's snapshots,
and what it proposes is applied as the agents would: givers first, within the budget, one change of a service at a time,
kept or taken back by the actuator's rules, then a cool-down. Constitution and consensus are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agents.collector import Collector
from agents.effect import replayed_drift, total_of
from agents.guardrails import Ruling, judge, promise_of, traffic_step
from agents.planner import plan_fleet
from agents.recent_appraisals import RecentAppraisals
from agents.replay_watch import lag_max_ms
from agents.windows import Window
from benchmarks.autopilot_streams import ENTRY_BYTES, Stream
from cachewarden.baseline import Baseline, baseline_of
from cachewarden.cachemodel import eviction_state as state
from cachewarden.cachemodel.eviction import EvictionConfig, RunningReplay, ScheduledChange, index
from cachewarden.cachemodel.shards import SpatialFilter
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.counterfactual import Counterfactual
from cachewarden.fleet import Fleet
from cachewarden.machine import Observe, Observed, Received, Send
from cachewarden.messages import Proposal
from cachewarden.observation import AccessSample, Capabilities, KeyspaceSample, Observation, ProbeCost, Snapshot
from cachewarden.protocol import FleetObserved, FleetPlanned, History, ObserveFleet, PlanFleet
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["OVERHEAD_BYTES", "Change", "SimulatedCache", "run_autopilot"]

OVERHEAD_BYTES = 1 << 20
_CAPABILITIES = Capabilities(
    version="7.0.15", config_get=True, config_set=True, object_idletime=True, object_frequency=True, monitor=True
)
_REST_MS = 600_000
_FED_ROWS = 150_000
_HOT_KEYS = 2_000
_HOT_COUNTER = 7
"""Where a counter stands after the playbook's touches, at the default log factor."""


class SimulatedCache:
    """One cache and its stream; `advance` serves the requests up to a time."""

    def __init__(self, stream: Stream, maxmemory_bytes: int, seed: int) -> None:
        self.name = stream.name
        self.trace = stream.trace
        self.maxmemory_bytes = maxmemory_bytes
        self._indexed = index(stream.trace)
        self._hash = np.zeros(self._indexed.distinct_keys, np.uint64)
        self._hash[self._indexed.key] = stream.trace.key
        self._running = RunningReplay(
            self._indexed, EvictionConfig(maxmemory_bytes - OVERHEAD_BYTES), 0, -1, seed, None
        )
        self._rng = np.random.default_rng(seed)
        self._row = 0
        self.now_ms = 0
        self.configured: list[tuple[int, EvictionConfig]] = [(0, self.config)]
        """When which configuration began to hold."""
        self._missed: list[int] = []
        """Rows of captured reads that missed."""
        self._capture_from: int | None = None

    @property
    def config(self) -> EvictionConfig:
        return self._running.config

    @property
    def hits(self) -> int:
        return int(self._running.register[state.REG.hits])

    @property
    def lookups(self) -> int:
        return int(self._running.register[state.REG.reads])

    def advance(self, to_ms: int) -> None:
        """Serve the requests before `to_ms`; one by one while a capture runs, to see which of them miss."""
        until = int(np.searchsorted(self.trace.time_ms, to_ms, side="left"))
        if self._capture_from is None:
            self._running.run(self._row, until)
        else:
            self._missed.extend(self._running.run_noting_misses(self._row, until))
        self._row, self.now_ms = until, to_ms

    def begin_capture(self) -> None:
        self._capture_from, self._missed = self._row, []

    def end_capture(self, rate: float) -> AccessSample:
        """Return the captured reads and the fills after those that missed."""
        assert self._capture_from is not None
        first, self._capture_from = self._capture_from, None
        rows = np.arange(first, self._row)
        at = np.concatenate([rows, np.array(self._missed, np.int64)])
        fills = np.arange(len(at)) >= len(rows)
        order = np.lexsort((fills, at))
        at, fills = at[order], fills[order]
        kept = SpatialFilter(rate).keeps_each(self.trace.key[at])
        at, fills = at[kept], fills[kept]
        sizes = np.where(fills, ENTRY_BYTES, 0)
        trace = AccessTrace.of(
            self.trace.time_ms[at], self.trace.key[at], np.where(fills, int(Op.WRITE), int(Op.READ)), sizes
        )
        none = np.full(len(trace), -1, np.int32)
        return AccessSample(trace=trace, pattern=none, patterns=(), spatial_rate=rate, lines_seen=len(fills))

    def fed(self, history_ms: int) -> AccessSample:
        """Return what a client feed has told lately: all accesses to a spatial sample of the keys, without gaps."""
        first = int(np.searchsorted(self.trace.time_ms, self.now_ms - history_ms))
        trace = self.trace.rows(slice(first, self._row))
        rate = min(1.0, _FED_ROWS / max(len(trace), 1))
        trace = trace.thin(rate) if rate < 1.0 else trace
        none = np.full(len(trace), -1, np.int32)
        return AccessSample(trace=trace, pattern=none, patterns=(), spatial_rate=rate, lines_seen=len(trace))

    def configure(self, maxmemory_bytes: int, knobs: Mapping[str, str], *, keep_hot: bool) -> None:
        """CONFIG SET; `keep_hot` touches the hottest keys after a switch to LFU, as the playbook does."""
        old = self.config
        self.maxmemory_bytes = maxmemory_bytes
        config = replace(
            old,
            capacity_bytes=maxmemory_bytes - OVERHEAD_BYTES,
            eviction_policy=knobs.get("maxmemory-policy", old.eviction_policy),  # type: ignore[arg-type]
            lfu_log_factor=int(knobs.get("lfu-log-factor", old.lfu_log_factor)),
            lfu_decay_time_min=int(knobs.get("lfu-decay-time", old.lfu_decay_time_min)),
            maxmemory_samples=int(knobs.get("maxmemory-samples", old.maxmemory_samples)),
        )
        residents = self._residents()
        hot = residents[np.argsort(-self._running.table[state.COL.access, residents], kind="stable")[:_HOT_KEYS]]
        self._running.change(ScheduledChange(self.now_ms, config))
        self.configured.append((self.now_ms, config))
        if keep_hot:
            hot = hot[self._running.table[state.COL.slot, hot] >= 0]
            access = self._running.table[state.COL.access]
            access[hot] = access[hot] // state.LFU_COUNTERS * state.LFU_COUNTERS + _HOT_COUNTER

    def _residents(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        return self._running.lists[state.RESIDENT, : int(self._running.register[state.REG.resident])]

    def observe(self, sample_keys: int) -> Observation:
        """Look once, as the adapter of a server does."""
        config = self.config
        knobs = {
            "maxmemory": str(self.maxmemory_bytes),
            "maxmemory-policy": config.eviction_policy,
            "maxmemory-samples": str(config.maxmemory_samples),
            "lfu-log-factor": str(config.lfu_log_factor),
            "lfu-decay-time": str(config.lfu_decay_time_min),
        }
        return Observation(
            service=self.name,
            at_ms=self.now_ms,
            info=self._info(),
            latency_us={},
            knobs=knobs,
            capabilities=_CAPABILITIES,
            own_hits_total=0,
            own_misses_total=0,
            round_trip_us=None,
            cost=ProbeCost(),
            sample=self._sample(sample_keys) if sample_keys else None,
            incomplete={} if sample_keys else {"sample": "not asked for"},
        )

    def _info(self) -> dict[str, str]:
        count = self._running.result()
        values: dict[str, object] = {
            "run_id": "simulated",
            "role": "master",
            "uptime_in_seconds": self.now_ms // 1000 + 1,
            "server_time_usec": self.now_ms * 1000,
            "keyspace_hits": count.hits,
            "keyspace_misses": count.misses,
            "evicted_keys": count.evicted,
            "expired_keys": count.expired,
            "total_error_replies": 0,
            "used_memory": OVERHEAD_BYTES + count.resident_bytes,
            "used_memory_startup": OVERHEAD_BYTES,
            "maxmemory": self.maxmemory_bytes,
            "maxmemory_policy": self.config.eviction_policy,
            "db0": f"keys={count.resident_keys},expires=0",
        }
        return {name: str(value) for name, value in values.items()}

    def _sample(self, keys: int) -> KeyspaceSample:
        residents = self._residents()
        chosen = residents[self._rng.integers(0, len(residents), keys)] if len(residents) else residents
        lfu = self.config.eviction_policy.endswith("-lfu")
        access = self._running.table[state.COL.access, chosen].astype(np.int64)
        tick = (self.now_ms - self._running.origin_ms) // self.config.tick_ms
        unknown = np.full(len(chosen), -1, np.int64)
        return KeyspaceSample(
            key=self._hash[chosen],
            idle_ms=unknown if lfu else (tick - access) * self.config.tick_ms,
            frequency=(access % state.LFU_COUNTERS if lfu else unknown).astype(np.int32),
            size_bytes=np.full(len(chosen), ENTRY_BYTES, np.int64),
            ttl_ms=unknown,
            pattern=unknown.astype(np.int32),
            encoding=np.zeros(len(chosen), np.int32),
            patterns=(),
            encodings=("raw",),
        )


@dataclass(slots=True)
class Change:
    """One change that was applied: what it promised, and what came of it."""

    at_ms: int
    proposal: Proposal
    before: tuple[int, dict[str, str]]
    window_from: tuple[int, int, int]
    """Time, hits and lookups at which the present window began."""
    baseline: Baseline
    windows: list[Window] = field(default_factory=list)
    told: Counterfactual | None = None
    """What the newest replay tells of the cache without it."""
    unjudged: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Windows that wait for a replay: begin, end, hits and lookups."""
    realised: float | None = None
    """Hit ratio of the last window less that before the change."""
    taken_back: bool = False

    @property
    def inside(self) -> bool:
        """Whether the predicted interval held the outcome, as `cachemodel.scoring` counts it."""
        gain, noise = self.proposal.prediction.gain, 1.6449 * (traffic_step(self.baseline) or 0.0)
        error = (self.realised or 0.0) - gain.value
        return abs(error) <= math.hypot((gain.low if error < 0.0 else gain.high) - gain.value, noise)

    @property
    def signature(self) -> str:
        return ";".join(f"{c.knob}={c.after}" for c in self.proposal.knob_changes)


@dataclass(slots=True)
class _Service:
    cache: SimulatedCache
    change: Change | None = None
    last_change_ms: int | None = None
    captures: list[tuple[int, float, str]] = field(default_factory=list)
    resting: dict[str, int] = field(default_factory=dict)
    """Changes that were taken back, and until when they are not tried again."""


def run_autopilot(
    streams: Sequence[Stream],
    fleet: Fleet,
    settings: CacheOptimizerSettings,
    maxmemory_bytes: int,
    duration_ms: int,
    marks_ms: Sequence[int],
    seed: int,
    log: bool = False,
    feed_ms: int = 0,
    begin_ms: int = 0,
) -> tuple[list[dict[str, tuple[int, int]]], list[Change], dict[str, SimulatedCache], dict[str, str]]:
    """Run the whole time; with `feed_ms` captures are replaced by the accesses of that long.

    Until `begin_ms` the caches run alone: nobody looks at them.

    Returns hits and lookups per service up to each of `marks_ms` and up to the end, the changes, the caches as they
    ended, and the last reason for doing nothing.
    """
    services = {s.name: _Service(SimulatedCache(s, maxmemory_bytes, seed)) for s in streams}
    loop = _Loop(services, fleet, settings, log=log, feed_ms=feed_ms)
    counted: list[dict[str, tuple[int, int]]] = []
    for now_ms in range(settings.cycle_interval_ms, duration_ms + 1, settings.cycle_interval_ms):
        for one in services.values():
            one.cache.advance(now_ms)
        if len(counted) < len(marks_ms) and now_ms >= marks_ms[len(counted)]:
            counted.append({n: (s.cache.hits, s.cache.lookups) for n, s in services.items()})
        if now_ms >= begin_ms:
            loop.cycle(now_ms)
    counted.append({n: (s.cache.hits, s.cache.lookups) for n, s in services.items()})
    print(f"  of the memory {np.mean(loop.held_shares):.1%} was given to services on average")
    return counted, loop.changes, {n: s.cache for n, s in services.items()}, loop.idle


class _Loop:
    """The cycle of the agents, as far as it is played here."""

    def __init__(
        self, services: dict[str, _Service], fleet: Fleet, settings: CacheOptimizerSettings, *, log: bool, feed_ms: int
    ) -> None:
        self._services = services
        self._fleet = fleet
        self._settings = settings
        self._collector = Collector(fleet, settings)
        self._appraisals = RecentAppraisals()
        self._log = log
        self._feed_ms = feed_ms
        self._number = 0
        self.changes: list[Change] = []
        self.held_shares: list[float] = []
        """Of the fleet's memory, what the services may use, cycle by cycle."""
        self.idle: dict[str, str] = {}

    def cycle(self, now_ms: int) -> None:
        self._number += 1
        self._end_captures(now_ms)
        question = ObserveFleet(cycle=self._number, services=tuple(self._services))
        observed = self._collect(Received(sender="coordinator", message=question), now_ms)
        if observed is None:
            return
        held = {name: self._reserved(one) for name, one in self._services.items()}
        planned = plan_fleet(
            PlanFleet(
                cycle=self._number,
                snapshots=self._fed(observed),
                history={name: self._history(one) for name, one in self._services.items()},
                memory_bytes=held,
                budget_bytes=self._fleet.total_memory_bytes,
            ),
            self._fleet,
            self._settings,
            now_ms,
            self._appraisals,
        )
        self.idle.update(planned.idle_reasons)
        self._hear(planned)
        for name in self._services:
            self._judge(name, now_ms)
        seen = {s.service: s for s in observed.snapshots}
        for proposal in planned.proposals:
            self._apply(proposal, seen[proposal.service], now_ms)
        self._hear(planned)
        used = sum(one.cache.maxmemory_bytes for one in self._services.values())
        self.held_shares.append(used / (self._fleet.total_memory_bytes or used))

    def _hear(self, planned: FleetPlanned) -> None:
        for told in planned.counterfactuals:
            change = self._services[told.service].change
            if change is not None and change.proposal.proposal_id == told.proposal_id:
                change.told = told

    def _fed(self, observed: FleetObserved) -> tuple[Snapshot, ...]:
        if not self._feed_ms:
            return observed.snapshots
        return tuple(replace(s, access=self._services[s.service].cache.fed(self._feed_ms)) for s in observed.snapshots)

    def _collect(self, event: Any, now_ms: int) -> FleetObserved | None:
        """Let the collector take an event and perform what it asks for."""
        answer: FleetObserved | None = None
        events = [event]
        while events:
            for effect in self._collector.step(events.pop(0), now_ms):
                if isinstance(effect, Send) and isinstance(effect.message, FleetObserved):
                    answer = effect.message
                elif isinstance(effect, Observe) and effect.capture_ms:
                    one = self._services[effect.service]
                    one.captures.append((now_ms + effect.capture_ms, effect.capture_rate, effect.ref))
                    one.cache.begin_capture()
                elif isinstance(effect, Observe):
                    seen = self._services[effect.service].cache.observe(effect.sample_keys)
                    events.append(Observed(ref=effect.ref, service=effect.service, observation=seen))
        return answer

    def _end_captures(self, now_ms: int) -> None:
        for name, one in self._services.items():
            for due in [c for c in one.captures if c[0] <= now_ms]:
                one.captures.remove(due)
                seen = replace(one.cache.observe(0), access=one.cache.end_capture(due[1]))
                self._collect(Observed(ref=due[2], service=name, observation=seen), now_ms)

    def _history(self, one: _Service) -> History:
        in_flight = None if one.change is None else one.change.proposal.proposal_id
        before = {} if one.change is None else {"maxmemory": str(one.change.before[0]), **one.change.before[1]}
        return History(last_change_ms=one.last_change_ms, in_flight=in_flight, in_flight_before=before)

    def _reserved(self, one: _Service) -> int:
        """What a service holds, or may get back while its change is observed."""
        return max(one.cache.maxmemory_bytes, 0 if one.change is None else one.change.before[0])

    def _apply(self, proposal: Proposal, seen: Snapshot, now_ms: int) -> None:
        one = self._services[proposal.service]
        if one.change is not None:
            return
        if one.last_change_ms is not None and now_ms - one.last_change_ms < self._settings.cool_down_ms:
            return
        wanted = {c.knob: c.after for c in proposal.knob_changes}
        size = int(wanted.pop("maxmemory", one.cache.maxmemory_bytes))
        others = sum(self._reserved(s) for n, s in self._services.items() if n != proposal.service)
        if size > one.cache.maxmemory_bytes and others + size > (self._fleet.total_memory_bytes or 0):
            return
        before = {c.knob: c.before for c in proposal.knob_changes}
        since = (now_ms, one.cache.hits, one.cache.lookups)
        change = Change(now_ms, proposal, (one.cache.maxmemory_bytes, before), since, baseline_of(seen))
        if one.resting.get(change.signature, 0) > now_ms:
            return
        one.change = change
        one.last_change_ms = now_ms
        one.cache.configure(size, wanted, keep_hot=proposal.playbook == "keep_hot_set")
        self.changes.append(change)
        if self._log:
            gain = proposal.prediction.gain
            what = ", ".join(f"{c.knob} {c.before}→{c.after}" for c in proposal.knob_changes)
            print(f"  {now_ms / 60_000:5.1f} min {proposal.service}: {what}, promised {100 * gain.value:+.2f} "
                  f"({100 * gain.low:+.2f} to {100 * gain.high:+.2f})")  # fmt: skip

    def _judge(self, name: str, now_ms: int) -> None:
        """Let the actuator's own rules say whether a change is kept, taken back or watched longer."""
        one = self._services[name]
        change = one.change
        if change is None:
            return
        begun_ms, hits, lookups = change.window_from
        if now_ms - begun_ms >= self._settings.observation_window_ms:
            change.window_from = (now_ms, one.cache.hits, one.cache.lookups)
            hits, lookups = one.cache.hits - hits, one.cache.lookups - lookups
            change.unjudged.append((begun_ms, now_ms, hits, lookups))
        if not change.unjudged:
            return
        begun_ms, until_ms, hits, lookups = change.unjudged[0]
        told, since_ms, before = change.told, change.baseline.from_ms, total_of(change.baseline.parts)[0]
        tells = told is not None and since_ms is not None and told.from_ms <= since_ms
        drift = None
        if told is not None and tells:
            drift = replayed_drift(change.baseline, told, (begun_ms, until_ms), (before, lookups))
            if drift is None and told.until_ms < until_ms and now_ms - until_ms <= lag_max_ms(self._settings):
                return
        change.unjudged.pop(0)
        change.windows.append(Window(window_ms=until_ms - begun_ms, hits=hits, misses=lookups - hits))
        before = change.proposal.prediction.hit_ratio_before.value
        promise = promise_of(change.proposal, before, None, self._settings, change.baseline)
        judgement = judge(change.windows, promise, self._settings, until_ms - change.at_ms, drift)
        if judgement.ruling is Ruling.CONTINUE:
            return
        change.realised = None if change.windows[-1].hit_ratio is None else change.windows[-1].hit_ratio - before
        if drift is not None and change.realised is not None:
            change.realised -= drift.value
        one.change, one.last_change_ms = None, now_ms
        if judgement.ruling is Ruling.ROLL_BACK:
            change.taken_back = True
            size, knobs = change.before
            one.cache.configure(size, {k: v for k, v in knobs.items() if k != "maxmemory"}, keep_hot=False)
            one.resting[change.signature] = now_ms + _REST_MS
        if self._log:
            print("         ", judgement.reason[:170])
            realised = "nothing seen" if change.realised is None else f"realised {100 * change.realised:+.2f}"
            print(f"  {now_ms / 60_000:5.1f} min {name}: {judgement.ruling.value}, {realised}", flush=True)
