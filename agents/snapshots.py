"""From raw looks to a snapshot: which two looks form the window, and what is true of the cache over it.

A `LookRing` remembers the counters of recent looks at one cache and starts anew whenever they stop being comparable.
`make_snapshot` puts one snapshot together; what it cannot know is None, or 0 where the type wants a number, and named
in `incomplete`. It decides nothing about the cache.

INVARIANT: a window never spans a restart, a reset of counters or a change of a knob that bears on hits, and never
begins or ends with a look whose share of our own lookups is unknown.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from agents.captured_reads import CapturedReads
from agents.eviction_age import eviction_age
from agents.info_facts import InfoFacts, facts_of, memory_figures
from agents.miss_split import flows_of, split_misses
from agents.pattern_stats import pattern_stats
from agents.windows import Window, elapsed_between, own_lookups_unknown, window_between
from cachewarden.knobs import KNOBS
from cachewarden.observation import AccessSample, KeyspaceSample, Observation, Snapshot, SourceReport
from cachewarden.value_sample import ValueSample

__all__ = ["FIRST_LOOK", "WINDOW_STRETCH_MAX", "LookRing", "hit_knobs", "make_snapshot"]

FIRST_LOOK = "first look at this cache, the next one gives a window"
_TOO_SOON = "the look before was too recent to form a window"


def hit_knobs(observation: Observation) -> dict[str, str]:
    """Return the knobs in force that bear on hits; memory and eviction policy from INFO where CONFIG is denied."""
    knobs = _knobs(observation)
    return {
        name: knobs[name] for name in sorted(knobs) if name in KNOBS and KNOBS[name].predicted_by == "cachemodel.whatif"
    }


def _knobs(observation: Observation) -> dict[str, str]:
    knobs = dict(observation.knobs)
    for knob, field in (("maxmemory", "maxmemory"), ("maxmemory-policy", "maxmemory_policy")):
        if knob not in knobs and observation.info.get(field):
            knobs[knob] = observation.info[field]
    return knobs


@dataclass(slots=True)
class _Look:
    observation: Observation
    age_ms: int
    """Age at the time of the newest look, by the clocks that `elapsed_between` believes."""
    part: tuple[int, int] = (0, 0)
    """Lookups and misses since the look before."""


_STEPS_KEPT = 30
_STEPS_MIN = 4
_LOOKUPS_MIN = 100
_LOOKUPS_WANTED = 1_000
"""In a window: with as many the hit ratio is known to 1.5 points. A window that has fewer reaches further back."""
WINDOW_STRETCH_MAX = 4
"""Longest window over the usual one."""
_SETTLING = 3
"""Windows after a change or a restart whose steps are those of a cache that fills or settles, not of the traffic."""
_STEPS_TRUSTED = 0.9
"""Share of the steps that count, the smallest: one fall and its recovery are no measure of every minute."""


class _Steps:
    """How far the hit ratios of windows that follow upon each other lie apart while nothing was changed."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._steps: deque[float] = deque(maxlen=_STEPS_KEPT)
        self._last: float | None = None
        self._since_ms = 0
        self._settling = _SETTLING

    def begin(self, *, anew: bool) -> None:
        """Let the next window be the first of its kind; `anew`: of another process, whose past is not this one's."""
        self._last, self._since_ms, self._settling = None, 0, _SETTLING
        if anew:
            self._steps.clear()

    def take(self, window: Window, elapsed_ms: int) -> None:
        """Take in the window up to now, `elapsed_ms` after the one that was taken in before."""
        self._since_ms += elapsed_ms
        whole = window.problem is None and 2 * window.window_ms > self._window_ms
        if self._since_ms < max(self._window_ms, window.window_ms) or not whole or window.lookups < _LOOKUPS_MIN:
            return
        ratio = 1.0 - window.misses / window.lookups
        self._settling -= 1
        if self._last is not None and self._settling < 0:
            self._steps.append(ratio - self._last)
        self._last, self._since_ms = ratio, 0

    def root_mean_square(self) -> float | None:
        """Return it, as a difference of hit ratios; None with fewer than four."""
        if len(self._steps) < _STEPS_MIN:
            return None
        squares = sorted(step * step for step in self._steps)[: math.ceil(_STEPS_TRUSTED * len(self._steps))]
        return math.sqrt(sum(squares) / len(squares))


class LookRing:
    """Recent looks at one cache, oldest first, all comparable with the newest."""

    def __init__(self, *, window_ms: int, base_age_ms: int) -> None:
        """`window_ms`: the longest window where lookups suffice; `base_age_ms`: the least age of the look that starts
        it."""
        self._window_ms = window_ms
        self._base_age_ms = base_age_ms
        self._looks: list[_Look] = []
        self._steps = _Steps(window_ms)

    @property
    def newest(self) -> Observation | None:
        return self._looks[-1].observation if self._looks else None

    def add(self, observation: Observation) -> Window:
        """Take in the newest look and return the longest window up to it that the ring allows."""
        # Arrays of samples are megabytes; the ring needs counters only.
        look = _Look(observation.light(), 0)
        unknown = own_lookups_unknown(observation)
        if unknown is not None:
            # The ring waits for the next look, which finds a restart or another knob just as this one would have.
            return Window(problem=unknown)
        if not self._looks:
            self._looks = [look]
            return Window(problem=FIRST_LOOK)
        before = self._looks[-1].observation
        # Of a part of a window only its lookups are asked for; latencies are those of the whole.
        since = window_between(before, look.observation, commands=())
        problem = since.problem or _changed_knobs(before, look.observation)
        look.part = since.lookups, since.misses
        elapsed = elapsed_between(before, look.observation)
        if problem is not None or elapsed is None:
            self._looks = [look]
            self._steps.begin(anew=since.problem is not None or elapsed is None)
            return Window(problem=problem or "no clock moved forward between the two looks")
        for older in self._looks:
            older.age_ms += elapsed.ms
        base = self._base(look.part[0])
        window = Window(problem=_TOO_SOON)
        if base is not None:
            window = window_between(base.observation, look.observation)
            if window.problem is None:
                # The sum over steps survives a clock that jumped in the middle; the difference of the ends does not.
                parts = tuple(older.part for older in [*self._looks, look] if older.age_ms < base.age_ms)
                window = replace(window, window_ms=base.age_ms, clock_note=elapsed.note, parts=parts)
        self._looks.append(look)
        self._forget()
        self._steps.take(window, elapsed.ms)
        step = self._steps.root_mean_square()
        return window if step is None else replace(window, hit_ratio_step=step)

    def _base(self, newest_lookups: int) -> _Look | None:
        """Return the oldest look within the window, else the youngest one beyond it, else None. Where too few lookups
        have come since, an older one; `newest_lookups` came since the last of the ring."""
        base, since_base, lookups = None, 0, newest_lookups
        for look in reversed(self._looks):
            if look.age_ms >= self._base_age_ms:
                if base is not None and look.age_ms > self._window_ms and self._suffices(base, since_base):
                    break
                base, since_base = look, lookups
            lookups += look.part[0]
        return base

    def _suffices(self, base: _Look, lookups: int) -> bool:
        return lookups >= _LOOKUPS_WANTED or base.age_ms >= WINDOW_STRETCH_MAX * self._window_ms

    def _forget(self) -> None:
        """Drop looks that no later window can start with: all beyond the window but the youngest of them that has
        lookups enough behind it."""
        lookups = 0
        for number, look in reversed(list(enumerate(self._looks))):
            if look.age_ms > self._window_ms and self._suffices(look, lookups):
                self._looks = self._looks[number:]
                return
            lookups += look.part[0]


def _changed_knobs(before: Observation, after: Observation) -> str | None:
    old, new = hit_knobs(before), hit_knobs(after)
    # A knob that only one of the looks could read is no change.
    changed = [
        f"{name} {old[name]} -> {new[name]}" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]
    ]
    return f"configuration changed ({', '.join(changed)}), a new window begins" if changed else None


def make_snapshot(
    observation: Observation,
    window: Window,
    *,
    sample: KeyspaceSample | None,
    access: AccessSample | None,
    reads: CapturedReads | None,
    remarks: Mapping[str, str],
    values: ValueSample | None = None,
    sources: tuple[SourceReport, ...] = (),
) -> Snapshot:
    """Put together what is true of one cache now; `sample` and `access` may be older than the look.

    `remarks` are the collector's own reasons why a part is missing.
    """
    facts = facts_of(observation)
    knobs = _knobs(observation)
    evicted_per_s = window.per_s(window.evicted)
    policy = knobs.get("maxmemory-policy", facts.eviction_policy)
    age = eviction_age(sample, policy, evicted_per_s, facts.resident_keys, facts.keys_with_ttl)
    return Snapshot(
        service=observation.service,
        taken_at_ms=observation.at_ms,
        window_ms=window.window_ms,
        run_id=facts.run_id or "",
        role=facts.role or "unknown",
        capabilities=observation.capabilities,
        knobs=knobs,
        hits=window.hits,
        misses=window.misses,
        hit_ratio=window.hit_ratio,
        lookups_per_s=window.per_s(window.lookups),
        window_parts=window.parts,
        server_time_ms=facts.server_time_ms,
        hit_ratio_step=window.hit_ratio_step,
        cpu_share=window.cpu_share,
        evicted_per_s=evicted_per_s,
        expired_per_s=window.per_s(window.expired),
        refused_per_s=window.per_s(window.refused),
        miss_split=split_misses(flows_of(window, facts.uptime_ms), reads, age.age_ms),
        used_memory_bytes=facts.used_memory_bytes or 0,
        maxmemory_bytes=facts.maxmemory_bytes or 0,
        memory_usage=facts.memory_usage,
        memory_efficiency=facts.memory_efficiency,
        fixed_overhead_bytes=facts.fixed_overhead_bytes or 0,
        host_memory_bytes=facts.host_memory_bytes,
        resident_keys=facts.resident_keys or 0,
        keys_with_ttl=facts.keys_with_ttl or 0,
        eviction_age_ms=age.age_ms,
        latency_us_p99=None if window.latency is None else window.latency.value_us,
        round_trip_us=observation.round_trip_us,
        hotspot_count=0 if reads is None else reads.hot_keys,
        cost=observation.cost,
        patterns=pattern_stats(sample, reads, None if window.hit_ratio is None else 1.0 - window.hit_ratio),
        sample=sample,
        access=access,
        values=values,
        allocator=observation.info.get("mem_allocator", ""),
        memory_figures=memory_figures(observation.info),
        incomplete=_incomplete(observation, facts, window, age.reason, remarks, has_sample=sample is not None),
        sources=sources,
        nodes=observation.nodes,
        hot_keys=observation.hot_keys,
        cluster=observation.cluster,
        expired_stale_share=facts.expired_stale_share,
    )


def _incomplete(
    observation: Observation,
    facts: InfoFacts,
    window: Window,
    age_reason: str,
    remarks: Mapping[str, str],
    *,
    has_sample: bool,
) -> dict[str, str]:
    """Name every part that is missing, with the reason."""
    missing = dict(observation.incomplete)
    # Looks carry no capture, and a sample may be one look old: what the collector knows of both is newer than the
    # look's remark.
    missing.pop("access", None)
    missing.pop("values", None)
    if has_sample:
        missing.pop("sample", None)
    if window.problem is not None:
        missing["window"] = window.problem
    elif window.clock_note is not None:
        missing["clock"] = window.clock_note
    if facts.used_memory_bytes is None or facts.maxmemory_bytes is None:
        missing["memory"] = "the server prints no `used_memory` or no `maxmemory`"
    elif facts.fixed_overhead_bytes is None:
        missing["memory"] = "the server prints no `used_memory_startup`"
    if facts.resident_keys is None:
        missing["keyspace"] = "the server prints no number of keys"
    if facts.loading:
        missing["loading"] = "the server is loading its data"
    if window.problem is None:
        unprinted = [name for name in ("evicted", "expired", "refused") if getattr(window, name) is None]
        if unprinted:
            missing["counters"] = f"the server does not print what it has {', '.join(unprinted)}"
        if window.evicted and age_reason:
            missing["eviction_age"] = age_reason
    unseen = [f"`{node.node}`: {node.problem}" for node in observation.nodes if node.problem]
    if unseen:
        missing["nodes"] = "; ".join(unseen)
    missing.update(remarks)
    return missing
