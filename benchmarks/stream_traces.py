"""Published traces and drawn workloads, brought to one form for the accuracy studies.

The published ones lie outside the project (CACHEWARDEN_TRACES); those that are missing are left out. Only few formats
have times, so each stream is spread evenly over a span that the caller names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load

TRACES = Path(os.environ.get("CACHEWARDEN_TRACES", Path(__file__).resolve().parents[2] / "shared" / "traces"))
FILES = {
    "orm-busy": "cache2k_orm-busy.trace.xz",
    "web07": "cache2k_web07.trace.xz",
    "scarab": "scarab_scarab-recs.trace.xz",
    "arc-oltp": "arc_OLTP.lis.zst",
    "cloudphysics": "cloudPhysicsIO.csv.xz",
}
# Margins were tuned on these and checked on the others.
TUNED_ON = frozenset({"web07", "arc-oltp", "zipf 1.0", "shifting"})


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A stream of accesses, its keys numbered from zero; one access per row."""

    name: str
    key: npt.NDArray[np.uint64]
    keys: int

    @property
    def tuned_on(self) -> bool:
        """Say whether constants were chosen by looking at this stream."""
        return self.name in TUNED_ON

    def trace(self, span_ms: int, seed: int = 0, *, write_share: float = 0.0) -> AccessTrace:
        """Return it spread evenly over a span, its keys hashed with a seed."""
        rows = len(self.key)
        time_ms = np.floor(np.arange(rows) * (span_ms / rows)).astype(np.int64)
        op = (np.random.default_rng(seed).random(rows) < write_share).astype(np.uint8) if write_share else None
        return AccessTrace.of(time_ms, mix(self.key ^ mix(np.array([seed], np.uint64))[0]), op)


def streams(names: list[str] | None = None, rows_max: int = 5_000_000) -> Iterator[Stream]:
    """Give the named streams one after the other (None = all there are), cut to `rows_max` rows."""
    drawn = {
        "zipf 0.8": lambda: _zipf(60_000, 0.8, 1_000_000, 1),
        "zipf 1.0": lambda: _zipf(60_000, 1.0, 1_000_000, 2),
        "shifting": lambda: _shifting(40_000, 0.9, 1_000_000, 3),
        "uniform": lambda: _zipf(30_000, 0.0, 500_000, 4),
    }
    for name in names or [*FILES, *drawn]:
        if name in drawn:
            ids = drawn[name]()
        elif name in FILES and (TRACES / FILES[name]).is_file():
            ids = load(TRACES / FILES[name], 1000.0).key
        else:
            print(f"without {name}: it is not in CACHEWARDEN_TRACES")
            continue
        distinct, numbers = np.unique(ids[:rows_max], return_inverse=True)
        yield Stream(name, numbers.astype(np.uint64), len(distinct))


def _zipf(keys: int, exponent: float, rows: int, seed: int) -> npt.NDArray[np.int64]:
    popularity = np.arange(1, keys + 1) ** -exponent
    return np.random.default_rng(seed).choice(keys, rows, p=popularity / popularity.sum()).astype(np.int64)


def _shifting(keys: int, exponent: float, rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Return Zipf requests whose ranks move on by a twentieth of the keys ten times."""
    moved: npt.NDArray[np.int64] = np.arange(rows) // (rows // 10) * (keys // 20)
    return (_zipf(keys, exponent, rows, seed) + moved) % keys
