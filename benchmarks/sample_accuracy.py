"""How true are hit ratios from a spatial sample of an access stream, and do their intervals hold?

Run from the repository root: `python -m benchmarks.sample_accuracy [--full] [--trace NAME]`. Every stream is replayed
in full under each cache; that is the truth. Then samples of its keys are replayed, drawn by hashes with other seeds.
Prints for each sampling rate and stream the error of hit ratios and of differences between caches (another policy at
the same memory, another memory under LRU), in points, and how many truths the 90 % intervals held. The intervals also
cover what a real server does otherwise than a replay (`benchmarks.replay_accuracy` measures that); the columns `alone`
leave that part out. At rate 1 the same stream is replayed with other dice. The quick form takes a minute.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.stream_traces import Stream, streams
from cachewarden.cachemodel import replay_study
from cachewarden.cachemodel.key_popularity import KeyPopularity
from cachewarden.cachemodel.replay_study import ReplayCandidate, ReplayStudy
from cachewarden.cachemodel.shards import error_expected
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import TraceFile, TraceFormat
from cachewarden.estimate import Estimate

SPAN_MS = 3_600_000
WARM_UP = 0.2
TTL_MS = 300_000
KEYS_MIN = 200
QUICK_ROWS = 400_000


@dataclass(frozen=True, slots=True)
class Row:
    """One figure from a sample: its estimate, the truth, and half the interval's width from sampling alone."""

    stream: Stream
    rate: float
    what: str
    size: float
    keys: int
    found: Estimate
    truth: float
    is_difference: bool = False

    @property
    def error(self) -> float:
        """Return estimate less truth."""
        return self.found.value - self.truth

    @property
    def half(self) -> float:
        """Return half the interval's width."""
        return max(self.found.high - self.found.value, self.found.value - self.found.low)

    @property
    def holds_alone(self) -> bool:
        """Say whether the part of the interval that covers sampling would have held the truth."""
        servers = replay_study.SERVER_DIFFERENCE_MARGIN if self.is_difference else replay_study.SERVER_MARGIN
        alone = math.sqrt(max(self.half**2 - servers**2, 0.0))
        return abs(self.error) <= alone + 1e-12


def file_of(trace: AccessTrace, rate: float) -> TraceFile:
    """Return the trace as if it had been read at a sampling rate, everything in it being a read."""
    marks = np.linspace(0, len(trace) - 1, 100).astype(np.int64)
    popularity = KeyPopularity()
    popularity.add(trace.key)
    return TraceFile(
        trace=trace.thin(rate),
        trace_format=TraceFormat.IDS64,
        rows_read=len(trace),
        limited=False,
        sampling_rate=rate,
        notes=(),
        mark_ms=trace.time_ms[marks],
        mark_reads=marks,
        popularity=popularity,
    )


def candidates(study: ReplayStudy, sizes: Sequence[float]) -> Iterator[tuple[str, float, ReplayCandidate]]:
    """Give the caches: a name without the memory, the memory as a share of the footprint, and the candidate."""
    for size in sizes:
        memory = max(1, round(size * study.footprint_bytes))
        yield "lru", size, ReplayCandidate(memory)
        yield "lfu 10:1", size, ReplayCandidate(memory, "allkeys-lfu")
        yield "lfu 1:10", size, ReplayCandidate(memory, "allkeys-lfu", 5, 1, 10)
        yield "random", size, ReplayCandidate(memory, "allkeys-random")
        yield "lru ttl", size, ReplayCandidate(memory, ttl_ms=TTL_MS)
        yield "volatile-ttl", size, ReplayCandidate(memory, "volatile-ttl", ttl_ms=TTL_MS)


def rows_of(stream: Stream, rates: Sequence[float], sizes: Sequence[float], seeds: int) -> list[Row]:
    """Compare samples of one stream with the whole of it."""
    whole = ReplayStudy(file_of(stream.trace(SPAN_MS), 1.0), warm_up=WARM_UP)
    caches = list(candidates(whole, sizes))
    caches.sort(key=lambda cache: cache[2].ttl_ms or 0)
    truth = {cache: whole.outcome(cache[2]).hit_ratio.value for cache in caches}
    pairs = [(a, b) for a in caches for b in caches if b[0] == "lru" and a[1] == b[1] and a[0] != "lru"]
    lru = [cache for cache in caches if cache[0] == "lru"]
    pairs += [(b, a) for a, b in itertools.pairwise(lru)]
    found = []
    for rate, seed in itertools.product(rates, range(1, seeds + 1)):
        if stream.keys * rate < KEYS_MIN or (rate >= 1.0 and seed > 1):
            continue
        trace = stream.trace(SPAN_MS, seed if rate < 1.0 else 0)
        study = ReplayStudy(file_of(trace, rate), warm_up=WARM_UP, seed=100 + seed)
        for cache in caches:
            level = study.outcome(cache[2]).hit_ratio
            found.append(Row(stream, rate, cache[0], cache[1], study.sampled_keys, level, truth[cache]))
        for ours, theirs in pairs:
            difference = study.difference(ours[2], theirs[2])
            what = f"{ours[0]} - lru" if ours[0] != "lru" else "memory step"
            true = truth[ours] - truth[theirs]
            row = Row(stream, rate, what, ours[1], study.sampled_keys, difference, true, is_difference=True)
            found.append(row)
    return found


def table(rows: Sequence[Row], title: str, by: Callable[[Row], str]) -> None:
    """Print errors and coverage of groups of rows, levels and differences side by side."""
    print(f"\n{title:30}  keys | level: error  P95  worst  width held alone | difference: error  P95 width held alone")
    names = list(dict.fromkeys(by(row) for row in rows))
    for name in [*names, "all"] if len(names) > 1 else names:
        ours = [row for row in rows if name in (by(row), "all")]
        parts = [f"{name:30} {np.mean([row.keys for row in ours]):5.0f}"]
        for is_difference in (False, True):
            some = [row for row in ours if row.is_difference == is_difference]
            if not some:
                continue
            errors = 100 * np.abs([row.error for row in some])
            worst = "" if is_difference else f" {errors.max():6.2f}"
            parts.append(
                f"{errors.mean():{17 if is_difference else 12}.2f} {np.quantile(errors, 0.95):5.2f}{worst} "
                f"{100 * np.mean([row.half for row in some]):5.2f} "
                f"{np.mean([row.found.holds(row.truth) for row in some]):5.0%} "
                f"{np.mean([row.holds_alone for row in some]):5.0%}"
            )
        print(" | ".join(parts))


def law(rows: Sequence[Row]) -> None:
    """Print the mean absolute error of hit ratios by sampled keys, beside what `shards.error_expected` promises."""
    print("\nsampled keys      error  promised  error * sqrt(keys)")
    levels = [row for row in rows if not row.is_difference and row.rate < 1.0]
    for low, high in itertools.pairwise((200, 500, 1000, 2500, 5000, 10_000, 30_000)):
        some = [row for row in levels if low <= row.keys < high]
        if some:
            error = float(np.mean([abs(row.error) for row in some]))
            keys = round(float(np.mean([row.keys for row in some])))
            promised = error_expected(keys, counted=True)
            print(f"{low:6} … {high:6} {100 * error:6.2f} {100 * promised:9.2f} {error * math.sqrt(keys):19.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full", action="store_true", help="whole streams, more sizes, rates and seeds")
    parser.add_argument("--trace", action="append", help="only these streams")
    given = parser.parse_args()
    sizes = (0.05, 0.1, 0.2, 0.5) if given.full else (0.1, 0.3)
    rates = (1.0, 0.1, 0.01) if given.full else (1.0, 0.1)
    rows: list[Row] = []
    for stream in streams(given.trace, 5_000_000 if given.full else QUICK_ROWS):
        rows += rows_of(stream, rates, sizes, 6 if given.full else 2)
    for rate in rates:
        some = [row for row in rows if row.rate == rate]
        if not some:
            continue
        table(some, f"rate {rate:g}", lambda row: f"{row.stream.name}{'' if row.stream.tuned_on else ' (held out)'}")
        table(some, f"rate {rate:g}, by cache", lambda row: row.what.removesuffix(" - lru"))
        table(some, f"rate {rate:g}, by memory", lambda row: f"{row.size:.0%} of all")
        table(some, f"rate {rate:g}", lambda row: "tuned on" if row.stream.tuned_on else "held out")
    law(rows)


if __name__ == "__main__":
    main()
