"""Do the answers from a two-minute capture hold? What-ifs for a live cache against a replay of what came next.

Run from the repository root: `python -m benchmarks.capture_accuracy [--quick] [--trace NAME]`. Each stream is spread
over an hour. A cache runs under one configuration; the last ten minutes before some moment give its hit ratio, the
last two the capture, its end a thousand idle times. The outcome is a replay of the ten minutes that follow under the
candidate. Prints, for each kind of change and for each stream, the error of the predicted hit ratio, and how many
outcomes fell into the 90 % intervals: as level (which the workload's own drift moves too) and as change against the
current configuration over the same ten minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.stream_traces import Stream, streams
from cachewarden.cachemodel.eviction import EvictionConfig, ReplayResult, index, replay_indexed
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, MissShares, TtlStats
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.whatif import Answer, Inquiry

ENTRY_BYTES = 100
SPAN_MS = 3_600_000
CAPTURE_MS = 120_000
WINDOW_MS = 600_000
NEXT_MS = 600_000
IDLE_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One answer and what came: hit ratios 0..1. `now_next` is what the current configuration gave afterwards."""

    stream: Stream
    kind: str
    answer: Answer
    observed: float
    outcome: float
    now_next: float

    @property
    def level_error(self) -> float:
        """Return predicted less replayed hit ratio."""
        return self.answer.hit_ratio.value - self.outcome

    @property
    def change_error(self) -> float:
        """Return predicted less replayed change."""
        return self.answer.change.value - (self.outcome - self.now_next)

    @property
    def level_holds(self) -> bool:
        """Say whether the level's interval held."""
        return self.answer.hit_ratio.holds(self.outcome)

    @property
    def change_holds(self) -> bool:
        """Say whether the change's interval held."""
        return self.answer.change.holds(self.outcome - self.now_next)


class Scenario:
    """A stream under a current configuration, observed up to a moment."""

    def __init__(self, stream: Stream, trace: AccessTrace, now: CacheConfiguration, moment_ms: int) -> None:
        self.stream = stream
        self._all = trace
        self._moment_ms = moment_ms
        self._indexed = index(trace.slice_time(0, moment_ms + NEXT_MS))
        self._past = index(trace.slice_time(0, moment_ms))
        self.now = now

    def _config(self, wanted: CacheConfiguration) -> EvictionConfig:
        return EvictionConfig(
            wanted.maxmemory_bytes or None,
            wanted.eviction_policy,
            lfu_log_factor=wanted.lfu_log_factor,
            lfu_decay_time_min=wanted.lfu_decay_time_min,
            unknown_entry_bytes=ENTRY_BYTES,
        )

    def outcome(self, wanted: CacheConfiguration) -> float:
        """Return the hit ratio of the period that follows, had the configuration always been that."""
        indexed = replace(self._indexed, trace=self._indexed.trace.with_ttl(wanted.ttl_ms or 0))
        return replay_indexed(indexed, self._config(wanted), self._moment_ms).hit_ratio

    def observed(self) -> ReplayResult:
        """Return what the current configuration did in the window."""
        indexed = replace(self._past, trace=self._past.trace.with_ttl(self.now.ttl_ms or 0))
        return replay_indexed(indexed, self._config(self.now), self._moment_ms - WINDOW_MS)

    def evidence(self) -> Evidence:
        """Return what a collector would have seen."""
        seen, end_ms = self.observed(), self._moment_ms
        capture = self._all.slice_time(end_ms - CAPTURE_MS, end_ms)
        window = self._all.slice_time(end_ms - WINDOW_MS, end_ms)
        ttl_ms = self.now.ttl_ms
        return Evidence(
            lookups_per_s=1000.0 * len(window) / WINDOW_MS,
            hit_ratio=seen.hit_ratio,
            maxmemory_bytes=self.now.maxmemory_bytes,
            used_memory_bytes=seen.resident_bytes,
            fixed_overhead_bytes=0,
            resident_keys=seen.resident_keys,
            mean_entry_bytes=ENTRY_BYTES,
            current=self.now,
            misses=_shares(seen),
            idle_ms=self._idle_ms(seen.resident_keys) if self.now.family == "lru" and ttl_ms is None else None,
            trace=capture.with_ttl(ttl_ms or 0),
            capture_end_ms=end_ms,
            ttl=TtlStats(0.0 if ttl_ms is None else 1.0),
        )

    def _idle_ms(self, resident_keys: int) -> npt.NDArray[np.int64]:
        """Return idle times of residents of an exact LRU cache, by a clock of whole seconds."""
        past = self._past.trace
        last = past.time_ms[len(past) - 1 - np.unique(past.key[::-1], return_index=True)[1]]
        last = np.sort(last)[-resident_keys:]
        sampled = np.random.default_rng(9).choice(last, min(IDLE_KEYS, len(last)), replace=False)
        phase_ms = 370
        idle: npt.NDArray[np.int64] = ((self._moment_ms + phase_ms) // 1000 - (sampled + phase_ms) // 1000) * 1000
        return idle


def _shares(seen: ReplayResult) -> MissShares | None:
    if seen.misses == 0:
        return None
    causes = (seen.cold, seen.expired_misses, seen.evicted_misses, seen.refused_misses)
    return MissShares(*(cause / seen.misses for cause in causes))


def candidates(now: CacheConfiguration) -> dict[str, CacheConfiguration]:
    """Return the changes that are asked for, by kind."""
    found = {
        f"memory x{factor:g}": replace(now, maxmemory_bytes=int(now.maxmemory_bytes * factor))
        for factor in (0.5, 0.75, 1.25, 1.5, 2.0)
    }
    found["as now"] = now
    policies: dict[str, CacheConfiguration] = {
        "to lru": replace(now, eviction_policy="allkeys-lru"),
        "to random": replace(now, eviction_policy="allkeys-random"),
        "to lfu": replace(now, eviction_policy="allkeys-lfu"),
        "to lfu 1:10": replace(now, eviction_policy="allkeys-lfu", lfu_log_factor=1, lfu_decay_time_min=10),
    }
    found |= {kind: wanted for kind, wanted in policies.items() if wanted != now}
    if now.ttl_ms is None:
        found["ttl 300 s"] = replace(now, ttl_ms=300_000)
        found["ttl 60 s"] = replace(now, ttl_ms=60_000)
    else:
        found["ttl x0.5"] = replace(now, ttl_ms=now.ttl_ms // 2)
        found["ttl x2"] = replace(now, ttl_ms=now.ttl_ms * 2)
        found["to volatile-ttl"] = replace(now, eviction_policy="volatile-ttl")
    return found


def scenarios(stream: Stream, *, quick: bool) -> Iterator[Scenario]:
    """Give the current configurations and moments of a stream."""
    trace = stream.trace(SPAN_MS)
    shares = (0.1,) if quick else (0.07, 0.25)
    moments = (0.6,)
    for share in shares:
        bytes_now = int(share * stream.keys) * ENTRY_BYTES
        for moment in moments:
            at_ms = int(SPAN_MS * moment)
            yield Scenario(stream, trace, CacheConfiguration(bytes_now), at_ms)
            if not quick:
                yield Scenario(stream, trace, CacheConfiguration(bytes_now, ttl_ms=240_000), at_ms)
                yield Scenario(stream, trace, CacheConfiguration(bytes_now, "allkeys-lfu"), at_ms)


def rows_of(scenario: Scenario) -> list[Row]:
    """Ask everything of one scenario; what is refused gives no row."""
    evidence = scenario.evidence()
    wanted = candidates(scenario.now)
    answers = Inquiry(evidence, seed=1).ask(list(wanted.values()))
    found = []
    now_next = scenario.outcome(scenario.now)
    for (kind, candidate), answer in zip(wanted.items(), answers, strict=True):
        if isinstance(answer, Answer):
            outcome = scenario.outcome(candidate)
            found.append(Row(scenario.stream, kind, answer, evidence.hit_ratio, outcome, now_next))
    return found


def table(rows: Sequence[Row], title: str, by: Callable[[Row], str]) -> None:
    """Print errors and coverage of groups of rows."""
    print(f"\n{title:24} answers | level: error  P95  held width | change: error  P95  held width")
    for name in [*dict.fromkeys(by(row) for row in rows), "all"]:
        ours = [row for row in rows if name in (by(row), "all")]
        level = 100 * np.abs([row.level_error for row in ours])
        change = 100 * np.abs([row.change_error for row in ours])
        width = np.mean([100 * (row.answer.hit_ratio.high - row.answer.hit_ratio.low) / 2 for row in ours])
        level_held = np.mean([row.level_holds for row in ours])
        change_held = np.mean([row.change_holds for row in ours])
        print(
            f"{name:24} {len(ours):7} | {level.mean():12.2f} {np.quantile(level, 0.95):5.2f} {level_held:5.0%} "
            f"{width:5.2f} | {change.mean():13.2f} {np.quantile(change, 0.95):5.2f} {change_held:5.0%} {width:5.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one memory size and moment, no TTL and no LFU before")
    parser.add_argument("--trace", action="append", help="only these streams")
    given = parser.parse_args()
    rows: list[Row] = []
    for stream in streams(given.trace):
        for scenario in scenarios(stream, quick=given.quick):
            rows += rows_of(scenario)
    table(rows, "stream", lambda row: f"{row.stream.name}{'' if row.stream.tuned_on else ' (held out)'}")
    table(rows, "change", lambda row: row.kind)
    table(rows, "held out or not", lambda row: "tuned on" if row.stream.tuned_on else "held out")


if __name__ == "__main__":
    main()
