"""The request streams of the autopilot benchmark: pieces of published traces and synthetic ones, five to a mix.

All streams of a mix last equally long and keep their own share of the traffic. None of the traces has TTLs and only one
has times, so arrivals are spread evenly; every entry takes the same memory. `tune` mixes were looked at while the
planner was worked on, `held` mixes were not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load

__all__ = ["MIXES", "Stream", "streams_of"]

ENTRY_BYTES = 4_000
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a stream: rows from `start` to `end` (0..1) of a source, of the share `keys` of its keys."""

    source: str
    start: float = 0.0
    end: float = 1.0
    keys: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One service's requests."""

    name: str
    trace: AccessTrace

    @property
    def distinct_keys(self) -> int:
        return self.trace.distinct_keys()


MIXES: dict[str, tuple[Piece, ...]] = {
    "tune-a": (
        Piece("web07"),
        Piece("scarab", 0.0, 0.5, 0.25),
        Piece("orm", 0.0, 0.1, 0.3),
        Piece("oltp", 0.0, 0.5, 0.4),
        Piece("zipf"),
    ),
    "tune-b": (
        Piece("web07", 0.0, 0.5),
        Piece("scarab", 0.0, 0.5, 0.15),
        Piece("cloudphysics", 0.0, 1.0, 0.7),
        Piece("shift"),
        Piece("scans"),
    ),
    "held-a": (
        Piece("web07", 0.0, 1.0, 0.6),
        Piece("scarab", 0.5, 1.0, 0.25),
        Piece("orm", 0.6, 0.7, 0.3),
        Piece("oltp", 0.5, 1.0, 0.4),
        Piece("cloudphysics"),
    ),
    "held-b": (
        Piece("web07", 0.4, 1.0),
        Piece("scarab", 0.4, 0.9, 0.4),
        Piece("orm", 0.8, 0.9, 0.5),
        Piece("oltp", 0.4, 0.9, 0.5),
        Piece("zipf"),
    ),
    "held-c": (
        Piece("orm", 0.4, 0.5, 0.4),
        Piece("scarab", 0.3, 0.8, 0.2),
        Piece("oltp", 0.2, 0.7, 0.3),
        Piece("shift"),
        Piece("flat"),
    ),
}
_FILES = {
    "web07": "cache2k_web07.trace.xz",
    "orm": "cache2k_orm-busy.trace.xz",
    "scarab": "scarab_scarab-recs.trace.xz",
    "oltp": "arc_OLTP.lis.zst",
    "cloudphysics": "cloudPhysicsIO.csv.xz",
}


def _zipf(rng: np.random.Generator, requests: int, keys: int, skew: float) -> Keys:
    weights = np.arange(1, keys + 1) ** -skew
    return rng.choice(keys, requests, p=weights / weights.sum()).astype(np.uint64)


def _still(rng: np.random.Generator) -> Keys:
    return _zipf(rng, 200_000, 30_000, 0.9)


def _shift(rng: np.random.Generator) -> Keys:
    """A hot set that moves on by a tenth of its ranks, ten times."""
    return np.concatenate([_zipf(rng, 20_000, 20_000, 1.0) + np.uint64(2_000 * i) for i in range(10)])


def _scans(rng: np.random.Generator) -> Keys:
    """Zipf, and a tenth of the requests walk round 40,000 keys that are asked for nowhere else."""
    drawn = _zipf(rng, 150_000, 20_000, 1.0)
    walks = rng.random(len(drawn)) < 0.1
    drawn[walks] = np.uint64(1 << 40) + np.arange(int(walks.sum()), dtype=np.uint64) % np.uint64(40_000)
    return drawn


def _flat(rng: np.random.Generator) -> Keys:
    """All keys alike: no eviction policy is better than another."""
    return rng.integers(0, 20_000, 150_000).astype(np.uint64)


_DRAWN: dict[str, Callable[[np.random.Generator], Keys]] = {
    "zipf": _still,
    "shift": _shift,
    "scans": _scans,
    "flat": _flat,
}


def _keys(piece: Piece, traces: Path, seed: int) -> Keys:
    if piece.source in _DRAWN:
        return mix(_DRAWN[piece.source](np.random.default_rng(seed)))
    return load(traces / _FILES[piece.source], 1_000.0).key


def streams_of(name: str, traces: Path, duration_ms: int, seed: int, scale: float = 1.0) -> list[Stream]:
    """Return the streams of a mix, or of a comma-separated list of trace files, all of one duration.

    `scale` (0..1] keeps that share of every stream's keys, for a quick look.
    """
    if name in MIXES:
        pieces = MIXES[name]
        keys = [_piece(_keys(piece, traces, seed), piece) for piece in pieces]
        names = [f"{piece.source}" for piece in pieces]
    else:
        paths = [Path(part) for part in name.split(",")]
        keys = [load(path, 1_000.0).key for path in paths]
        names = ["".join(c if c.isalnum() else "-" for c in path.name.split(".")[0].lower()) for path in paths]
    if scale < 1.0:
        keys = [_piece(k, Piece("", keys=scale)) for k in keys]
    return [
        Stream(
            f"s{i}-{label}",
            AccessTrace.of(np.floor(np.arange(len(k)) * (duration_ms / len(k))), k, None, ENTRY_BYTES),
        )
        for i, (label, k) in enumerate(zip(names, keys, strict=True), 1)
    ]


def _piece(keys: Keys, piece: Piece) -> Keys:
    part = keys[int(piece.start * len(keys)) : int(piece.end * len(keys))]
    # Other bits than those that spatial sampling looks at.
    chosen = ((part ^ (part >> np.uint64(20))) >> np.uint64(30 if not piece.source else 40)) % np.uint64(
        1_000
    ) < np.uint64(round(1_000 * piece.keys))
    return part[chosen]
