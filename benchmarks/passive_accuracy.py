"""How well do a thousand sampled residents and INFO tell what other memory sizes would give, without MONITOR?

Run from the repository root: `python -m benchmarks.passive_accuracy [--workload NAME ...] [--ttl] [--sizes KIND]`, or
`--servers` for real servers (`benchmarks.passive_servers`). Workloads are published traces in the folder that
CACHEWARDEN_TRACES names, spread over time so that keys live for 45 or 600 s unused, and synthetic ones. Each is
replayed at several sizes; the cache is probed four times, and the answers are compared with what the other sizes hit in
the window before the probe. The constants of the passive models were chosen mainly on the workloads marked as
calibrating, with the others in view. Prints errors in points, and how many outcomes fell inside the 90 % intervals.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.eviction import EvictionConfig, IndexedTrace, ReplayLook, index, replay_looks
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, ResidentSample, TtlStats
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.cachemodel.trace_files import load
from cachewarden.cachemodel.whatif import Answer, Insufficient, evaluate

FILES = {
    "web07": "cache2k_web07.trace.xz",
    "scarab": "scarab_scarab-recs.trace.xz",
    "orm-busy": "cache2k_orm-busy.trace.xz",
    "oltp": "arc_OLTP.lis.zst",
    "cloudphysics": "cloudPhysicsIO.csv.xz",
}
SYNTHETIC = ("zipf-1.0", "zipf-0.8", "shifting")
CALIBRATING = ("web07", "scarab", "zipf-1.0", "shifting")
SHRINK = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GROW = (1.25, 1.5)
FACTORS = (*SHRINK, *GROW)
SHARES = (0.05, 0.12, 0.3)
AGES_S = (45.0, 600.0)
PROBES = (0.45, 0.6, 0.75, 0.9)
WINDOW_SHARE = 0.2
PARTS = 6
KEYS = 1000
ROWS_MAX = 1_500_000
RATE_MAX = 5000.0
POINTS_PER_HALVING = 6.4


@dataclass(frozen=True, slots=True)
class Row:
    """One answer beside what happened, in hit ratios 0..1; `value` None where there was no answer."""

    workload: str
    factor: float
    observed: float
    truth: float
    value: float | None
    low: float = 0.0
    high: float = 0.0
    reason: str = ""


def keys_of(name: str, folder: Path) -> npt.NDArray[np.uint64]:
    """Return the keys of a workload in order of request."""
    if name in FILES:
        trace = load(folder / FILES[name], 1000.0)
        return trace.key[trace.op != Op.DELETE][:ROWS_MAX]
    rng = np.random.default_rng(len(name))
    if name == "zipf-0.8":
        return drawn(rng, 60_000, 0.8, 800_000).astype(np.uint64)
    keys = drawn(rng, 100_000, 1.0, 1_000_000)
    if name == "shifting":
        # The hot set moves on twenty times by a fortieth of all keys.
        keys = (keys + (np.arange(len(keys)) * 20 // len(keys)) * 2500) % 100_000
    return keys.astype(np.uint64)


def drawn(rng: np.random.Generator, keys: int, exponent: float, requests: int) -> npt.NDArray[np.int64]:
    """Return requests for keys of Zipf popularity."""
    popularity = np.arange(1, keys + 1) ** -exponent
    return rng.choice(keys, requests, p=popularity / popularity.sum())


def sizes_of(keys: npt.NDArray[np.uint64], kind: str) -> npt.NDArray[np.int32] | int:
    """Return entry bytes per row: all alike, lognormal by chance, or smaller the more popular a key is."""
    if kind == "alike":
        return 100
    unit = ((mix(keys) >> np.uint64(20)) % np.uint64(1 << 20)).astype(np.float64) / (1 << 20)
    unit = np.clip(unit, 0.005, 0.995)
    size = 300.0 * np.exp(0.5 * np.log(unit / (1 - unit)))
    if kind == "popular":
        _, where, counts = np.unique(keys, return_inverse=True, return_counts=True)
        size *= (counts[where] / counts.mean()) ** -0.4
    return np.clip(size, 60, 20_000).astype(np.int32)


def timed(keys: npt.NDArray[np.uint64], rate: float, kind: str) -> AccessTrace:
    """Return the requests as Poisson arrivals."""
    gaps = np.random.default_rng(7).exponential(1000.0 / rate, len(keys))
    return AccessTrace.of(np.cumsum(gaps).astype(np.int64), mix(keys), 0, sizes_of(keys, kind))


def pace(keys: npt.NDArray[np.uint64], residents: int, age_s: float) -> float:
    """Return the requests per second at which so many keys are asked for within `age_s`."""
    tail = keys[len(keys) // 2 :]
    firsts = np.sort(np.unique(tail, return_index=True)[1])
    return float(firsts[min(residents, len(firsts) - 1)]) / age_s


class Scene:
    """One paced trace replayed at the present size and at others, with the times of the probes."""

    def __init__(self, trace: AccessTrace, capacity: int, ttl_ms: int = 0) -> None:
        self.trace, self.capacity, self.ttl_ms = trace, capacity, ttl_ms
        length = int(trace.time_ms[-1])
        self.window_ms = int(WINDOW_SHARE * length)
        self.probes = [int(length * at) for at in PROBES]
        ends = [probe - self.window_ms * part // PARTS for probe in self.probes for part in range(PARTS + 1)]
        indexed: IndexedTrace = index(trace.with_ttl(ttl_ms) if ttl_ms else trace)
        self.looks: dict[float, dict[int, ReplayLook]] = {}
        for factor in (1.0, *FACTORS):
            config = EvictionConfig(int(capacity * factor))
            self.looks[factor] = {look.time_ms: look for look in replay_looks(indexed, config, sorted(set(ends)))}

    def hit_ratio(self, factor: float, probe: int) -> float:
        """Return what a size hit in the window before a probe."""
        until, since = self.looks[factor][probe].counts, self.looks[factor][probe - self.window_ms].counts
        return (until.hits - since.hits) / (until.reads - since.reads)

    def evidence(self, probe: int, rng: np.random.Generator, keys: int) -> Evidence:
        """Return what a probe of the present cache shows."""
        looks = self.looks[1.0]
        ends = [looks[probe - self.window_ms * part // PARTS].counts for part in range(PARTS, -1, -1)]
        parts = tuple((late.reads - early.reads, late.misses - early.misses) for early, late in pairwise(ends))
        residents, used = looks[probe].residents, ends[-1].resident_bytes
        chosen = rng.choice(len(residents.key), min(keys, len(residents.key)), replace=False)
        idle_ms = probe - self._last_use(probe, residents.key[chosen])
        # A probe takes longer than a tick of the server's clock, so each key is read at another phase of it.
        idle_ms = (idle_ms / 1000.0 + rng.random(len(chosen))).astype(np.int64) * 1000
        remaining = residents.remaining_ttl_ms[chosen]
        reads, misses = ends[-1].reads - ends[0].reads, ends[-1].misses - ends[0].misses
        seconds = self.window_ms / 1000.0
        return Evidence(
            lookups_per_s=reads / seconds,
            hit_ratio=1.0 - misses / reads,
            maxmemory_bytes=self.capacity,
            used_memory_bytes=used,
            fixed_overhead_bytes=0,
            resident_keys=len(residents.key),
            mean_entry_bytes=used / len(residents.key),
            current=CacheConfiguration(self.capacity, ttl_ms=self.ttl_ms or None),
            sampled=ResidentSample(
                idle_ms=idle_ms,
                size_bytes=residents.size_bytes[chosen],
                ttl_ms=np.where(remaining > 0, remaining, -1),
                frequency=np.full(len(chosen), -1, np.int32),
            ),
            ttl=TtlStats(float((residents.remaining_ttl_ms > 0).mean())),
            window_parts=parts,
            evicted_per_s=(ends[-1].evicted - ends[0].evicted) / seconds,
            expired_per_s=(ends[-1].expired - ends[0].expired) / seconds,
        )

    def _last_use(self, until_ms: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        rows = int(np.searchsorted(self.trace.time_ms, until_ms))
        seen, place = np.unique(self.trace.key[:rows][::-1], return_index=True)
        return self.trace.time_ms[rows - 1 - place[np.searchsorted(seen, keys)]]


def scenes(name: str, folder: Path, kind: str, ttls_s: Sequence[int]) -> Iterator[Scene]:
    """Yield the scenes of a workload: sizes and paces, and TTLs where asked for."""
    keys = keys_of(name, folder)
    distinct = len(np.unique(keys))
    for share in SHARES:
        residents = int(share * distinct)
        for age_s in AGES_S:
            rate = pace(keys, residents, age_s)
            if residents < 700 or rate > RATE_MAX:
                continue
            trace = timed(keys, rate, kind)
            bytes_ = int(residents * (float(trace.size_bytes.mean()) if kind != "alike" else 100.0))
            for ttl_s in ttls_s:
                yield Scene(trace, bytes_, ttl_s * 1000)


def rows_of(name: str, scene: Scene, seeds: Sequence[int], keys: int) -> Iterator[Row]:
    """Yield a row for each probe, draw of residents and size."""
    for probe in scene.probes:
        for seed in seeds:
            evidence = scene.evidence(probe, np.random.default_rng([seed, probe]), keys)
            wanted = [
                CacheConfiguration(int(scene.capacity * factor), ttl_ms=scene.ttl_ms or None) for factor in FACTORS
            ]
            for factor, found in zip(FACTORS, evaluate(evidence, wanted, seed), strict=True):
                yield row(name, factor, evidence.hit_ratio, scene.hit_ratio(factor, probe), found)


def row(name: str, factor: float, observed: float, truth: float, found: Answer | Insufficient) -> Row:
    """Put an answer beside the truth."""
    if isinstance(found, Insufficient):
        return Row(name, factor, observed, truth, None, reason=found.reason)
    hit = found.hit_ratio
    return Row(name, factor, observed, truth, hit.value, hit.low, hit.high)


def table(rows: Sequence[Row]) -> None:
    """Print a line for each workload, the means of both groups, and the reasons of refusals."""
    print("* = calibrating; points: MAE p90 bias | interval holds, mean width || no change, 6.4 points per halving")
    names = list(dict.fromkeys(one.workload for one in rows))
    for title, factors in (("0.3-0.9 of the memory", (*SHRINK, 0.75)), ("x1.25", GROW[:1]), ("x1.5", GROW[1:])):
        print(f"-- {title}")
        means: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for name in names:
            chosen = [one for one in rows if one.workload == name and one.factor in factors]
            if not chosen:
                continue
            answered = [one for one in chosen if one.value is not None]
            calibrating = name.split()[0] in CALIBRATING
            label = f"{name + (' *' if calibrating else ''):24} {len(answered):5}/{len(chosen):5}"
            if not answered:
                print(f"{label} all refused")
                continue
            errors = 100 * np.array([one.value - one.truth for one in answered if one.value is not None])
            held = float(np.mean([one.low <= one.truth <= one.high for one in answered]))
            width = 100 * float(np.mean([one.high - one.low for one in answered]))
            still = 100 * float(np.mean([abs(one.observed - one.truth) for one in answered]))
            rule = [one.observed + POINTS_PER_HALVING / 100 * np.log2(one.factor) - one.truth for one in answered]
            mean = float(np.abs(errors).mean())
            means[calibrating].append((mean, held))
            print(
                f"{label} {mean:5.2f} {np.quantile(np.abs(errors), 0.9):5.2f} {errors.mean():+5.2f} | "
                f"{held:4.0%} {width:5.1f} || {still:5.2f} {100 * float(np.abs(rule).mean()):5.2f}"
            )
        for kind, found in means.items():
            if found:
                group = "calibrating" if kind else "the others"
                print(f"   mean of {group}: {np.mean(found, 0)[0]:.2f} points, {np.mean(found, 0)[1]:.0%} held")
    reasons: dict[tuple[str, str], int] = {}
    for one in rows:
        if one.value is None:
            reasons[one.workload, one.reason[:70]] = reasons.get((one.workload, one.reason[:70]), 0) + 1
    for (name, reason), count in sorted(reasons.items()):
        print(f"refused {name}: {count} x {reason} ...")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--servers", action="store_true", help="real servers instead of replays")
    parser.add_argument("--workload", choices=[*FILES, *SYNTHETIC], action="append")
    parser.add_argument("--sizes", choices=["alike", "chance", "popular"], default="alike")
    parser.add_argument("--ttl", type=int, action="append", help="seconds given at each load; repeat for several")
    parser.add_argument("--keys", type=int, default=KEYS, help="residents sampled per probe")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240.0, help="length of a run on real servers")
    parser.add_argument("--rate", type=float, default=600.0, help="requests per second to each real server")
    engines = ("redis", "valkey", "redis8")
    parser.add_argument("--engine", choices=engines, action="append", help="of the real servers; all without it")
    given = parser.parse_args()
    folder = Path(os.environ.get("CACHEWARDEN_TRACES", "../shared/traces"))
    names = given.workload or [name for name in (*FILES, *SYNTHETIC) if name in SYNTHETIC or folder.is_dir()]
    if given.servers:
        from benchmarks.passive_servers import measure

        served = given.engine or engines
        rows = [one for n in names for one in measure(n, keys_of(n, folder), given.seconds, given.rate, served)]
        table(rows)
        return
    rows = []
    for name in names:
        for scene in scenes(name, folder, given.sizes, given.ttl or [0]):
            rows.extend(rows_of(name, scene, range(given.seeds), given.keys))
    table(rows)


if __name__ == "__main__":
    main()
