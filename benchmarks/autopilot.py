"""How much of what could be gained does the autopilot gain? A fleet of five services that share a fixed memory.

Three fleets serve the same requests: the default (equal split, allkeys-lru), the best static configuration (eviction
policy, LFU parameters and split found by exhaustive replay of the whole future), and the autopilot, which starts as the
default and knows only what its collector sees. Printed are hit ratios over the time after the warm-up, and the share of
the gap between the first two that the third one closes; beside it what a planner would close that knows all requests of
the past (but none to come) and acts on them at once.

Run: `python -m benchmarks.autopilot held-a --traces DIR`; a mix is a name of `autopilot_streams.MIXES` or a list of
trace files separated by commas.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.autopilot_simulated import OVERHEAD_BYTES, Change, SimulatedCache, run_autopilot
from benchmarks.autopilot_static import best_of_past, best_static, hits_of
from benchmarks.autopilot_streams import ENTRY_BYTES, MIXES, Stream, streams_of
from cachewarden.cachemodel.eviction import EvictionConfig, index
from cachewarden.fleet import Fleet, Service
from cachewarden.messages import Mode
from cachewarden.settings import load_settings

LEAST_BYTES = 2 << 20


def measure(name: str, given: argparse.Namespace) -> None:
    """Run the three fleets on one mix and print."""
    duration_ms = int(given.minutes * 60_000)
    from_ms = int(given.warm_up * duration_ms)
    streams = streams_of(name, given.traces, duration_ms, given.seed, given.scale)
    footprint = sum(s.distinct_keys * ENTRY_BYTES for s in streams)
    entries = int(given.memory * footprint)
    each = max(entries // len(streams), LEAST_BYTES) + OVERHEAD_BYTES
    entries = (each - OVERHEAD_BYTES) * len(streams)
    print(
        f"\n{name}: {given.minutes:g} minutes, counted from minute {from_ms / 60_000:g} on, the autopilot begins at "
        f"minute {given.begin * given.minutes:g}; {given.scale:.0%} of the keys, {entries / 2**20:.1f} MiB for entries "
        f"({given.memory:.0%} of all of them), floors {100 * given.floor_below:g} points below the default"
    )
    default = {s.name: hits_of(index(s.trace), EvictionConfig(each - OVERHEAD_BYTES), from_ms) for s in streams}
    reads = {s.name: int(np.sum(s.trace.time_ms >= from_ms)) for s in streams}
    # A floor somewhat below what the service has by default.
    floors = {s.name: max(0.0, default[s.name] / reads[s.name] - given.floor_below) for s in streams}
    started = perf_counter()
    best = best_static(streams, entries, LEAST_BYTES - OVERHEAD_BYTES, from_ms, [floors[s.name] for s in streams])
    print(f"  best static configuration found in {perf_counter() - started:.0f} s")
    fleet = Fleet(
        total_memory_bytes=each * len(streams),
        services=tuple(
            Service(
                name=s.name,
                url="redis://127.0.0.1:1",
                mode=Mode.AUTO,
                capture=True,
                minimum_memory_bytes=LEAST_BYTES,
                hit_ratio_floor=floors[s.name],
            )
            for s in streams
        ),
    )
    settings = load_settings(**{k: int(v) for k, _, v in (text.partition("=") for text in given.set)})
    started = perf_counter()
    marks = [from_ms + (duration_ms - from_ms) * n // given.periods for n in range(given.periods)]
    counted, changes, caches, idle = run_autopilot(
        streams,
        fleet,
        settings,
        each,
        duration_ms,
        marks,
        given.seed,
        log=given.log,
        feed_ms=int(given.feed * 60_000),
        begin_ms=int(given.begin * duration_ms),
    )
    found = {n: (h - counted[0][n][0], k - counted[0][n][1]) for n, (h, k) in counted[-1].items()}
    print(f"  autopilot played in {perf_counter() - started:.0f} s")
    print(f"  {'service':18} reads/s default  best static (MiB, policy)            autopilot (MiB, policy at the end)")
    for stream, choice in zip(streams, best, strict=True):
        n = reads[stream.name]
        cache, (hits, lookups) = caches[stream.name], found[stream.name]
        print(
            f"  {stream.name:18} {1000 * n / (duration_ms - from_ms):7.0f} {default[stream.name] / n:7.2%} "
            f"{choice.hits / n:7.2%} {_words(choice.config):28} {hits / lookups:7.2%} {_words(cache.config):28} "
            f"floor {floors[stream.name]:.1%}{' BROKEN' if hits / lookups < floors[stream.name] - 0.001 else ''}"
        )
    most, ours = {c.name: c.hits for c in best}, {n: h for n, (h, _) in found.items()}
    _summary(default, most, ours, reads)
    if given.past:
        least = LEAST_BYTES - OVERHEAD_BYTES
        past = best_of_past(streams, entries, least, from_ms, given.floor_below, int(given.past * 60_000))
        _ceiling(given.past, default, most, ours, past)
    _periods(streams, {c.name: c.config for c in best}, each - OVERHEAD_BYTES, [*marks, duration_ms], counted)
    _losses(streams, {c.name: c.config for c in best}, caches, [*marks, duration_ms])
    lru_split = sum(c.lru_hits for c in best)
    print(f"  of which by the split alone, under LRU: {lru_split / sum(reads.values()):.2%}")
    _changes(changes)
    for service, reason in sorted(idle.items()):
        print(f"  last word on {service}: {reason[:200]}")


def _words(config: EvictionConfig) -> str:
    lfu = f" {config.lfu_log_factor}:{config.lfu_decay_time_min}" if config.eviction_policy.endswith("lfu") else ""
    return f"({(config.capacity_bytes or 0) / 2**20:.1f}, {config.eviction_policy}{lfu})"


def _summary(default: dict[str, int], best: dict[str, int], found: dict[str, int], reads: dict[str, int]) -> None:
    total = sum(reads.values())
    low, high, ours = sum(default.values()), sum(best.values()), sum(found.values())
    gap = high - low
    closed = "nothing to gain" if gap <= 0 else f"{(ours - low) / gap:.1%} of the gap closed"
    print(
        f"  all: default {low / total:.2%}, best static {high / total:.2%}, autopilot {ours / total:.2%}: "
        f"gap {100 * gap / total:.2f} points, {closed}"
    )


def _ceiling(
    minutes: float, default: dict[str, int], best: dict[str, int], found: dict[str, int], past: dict[str, int]
) -> None:
    """Print what the past alone can tell, and how much of that the autopilot has got."""
    low, known = sum(default.values()), sum(past.values())
    gap, told = sum(best.values()) - low, known - low
    if gap <= 0 or told <= 0:
        print("  the past alone tells nothing to gain")
        return
    print(
        f"  what was best in all of the past, taken over at once each {minutes:g} min: {told / gap:.1%} of the gap "
        f"closed; the autopilot got {(sum(found.values()) - low) / told:.1%} of that"
    )


def _periods(
    streams: Sequence[Stream],
    best: Mapping[str, EvictionConfig],
    each_bytes: int,
    marks: Sequence[int],
    counted: Sequence[Mapping[str, tuple[int, int]]],
) -> None:
    """Print, period by period, default -> best static: autopilot, per service and for all."""
    for number, (since, until) in enumerate(pairwise(marks)):
        texts, low, high, ours = [], 0, 0, 0
        for stream in streams:
            indexed = index(stream.trace)
            old, new = (
                hits_of(indexed, config, since) - hits_of(indexed, config, until)
                for config in (EvictionConfig(each_bytes), best[stream.name])
            )
            hits, lookups = (
                b - a for a, b in zip(counted[number][stream.name], counted[number + 1][stream.name], strict=True)
            )
            asked = max(lookups, 1)
            texts.append(f"{stream.name} {old / asked:.1%} -> {new / asked:.1%}: {hits / asked:.1%}")
            low, high, ours = low + old, high + new, ours + hits
        closed = f"{(ours - low) / (high - low):.0%} of the gap" if high > low else "no gap"
        print(f"  {since / 60_000:.0f}-{until / 60_000:.0f} min: {closed}; {', '.join(texts)}")


def _losses(
    streams: Sequence[Stream],
    best: Mapping[str, EvictionConfig],
    caches: Mapping[str, SimulatedCache],
    marks: Sequence[int],
) -> None:
    """Print, period by period, what the autopilot's sizes alone cost against the best static configuration, and what
    its eviction policies alone cost."""
    lost: dict[str, list[float]] = {"sizes": [], "policies": []}
    for since, until in pairwise(marks):
        asked, missed = 0, dict.fromkeys(lost, 0)
        for stream in streams:
            indexed, wanted = index(stream.trace), best[stream.name]
            had = caches[stream.name].configured
            mixed = {
                "sizes": [(at_ms, replace(wanted, capacity_bytes=c.capacity_bytes)) for at_ms, c in had],
                "policies": [(at_ms, replace(c, capacity_bytes=wanted.capacity_bytes)) for at_ms, c in had],
            }
            asked += int(np.sum((stream.trace.time_ms >= since) & (stream.trace.time_ms < until)))
            most = hits_of(indexed, wanted, since) - hits_of(indexed, wanted, until)
            for name, timeline in mixed.items():
                (_, first), *later = timeline
                missed[name] += most - (hits_of(indexed, first, since, later) - hits_of(indexed, first, until, later))
        for name, misses in missed.items():
            lost[name].append(100.0 * misses / max(asked, 1))
    for name, points in lost.items():
        print(f"  points lost by {name} alone, period by period: {', '.join(f'{p:.2f}' for p in points)}")


def _changes(changes: list[Change]) -> None:
    done = [c for c in changes if c.realised is not None]
    held = sum(c.inside for c in done)
    back = sum(c.taken_back for c in changes)
    print(f"  {len(changes)} changes, {back} taken back; {held} of {len(done)} outcomes within their "
          "intervals, the steps of the traffic allowed for")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("mixes", nargs="*", default=["held-a"], help=f"of {', '.join(MIXES)}, or trace files")
    parser.add_argument("--traces", type=Path, default=Path("traces"), help="directory of the published traces")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--memory", type=float, default=0.15, help="of what all keys take")
    parser.add_argument("--scale", type=float, default=1.0, help="share of every stream's keys, for a quick look")
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the time that is not counted")
    parser.add_argument("--begin", type=float, default=0.0, help="share of the time after which the autopilot begins")
    parser.add_argument("--periods", type=int, default=4, help="print the share of the gap of so many parts, too")
    parser.add_argument(
        "--past", type=float, default=3.0, help="minutes between plans of who knows the past; 0: without"
    )
    parser.add_argument("--floor-below", type=float, default=0.05, help="floor of a service, below its default ratio")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="a setting, as `capture_ms=60000`")
    parser.add_argument("--feed", type=float, default=0.0, help="minutes of a client feed, instead of captures")
    parser.add_argument("--log", action="store_true", help="print every change")
    given = parser.parse_args()
    for name in given.mixes:
        measure(name, given)


if __name__ == "__main__":
    main()
