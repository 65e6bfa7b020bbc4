"""The contract between an application's recorder and the feed endpoint: bounds, instructions, fingerprints.

Needs the standard library alone, since applications import it. The secret of the key hash never travels: both sides
know it, and a fingerprint tells whether it is the same one. Nothing here waits or decides. INVARIANT: an instruction
that was read is within its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any, Final

from cachewarden.keys import REMAINDERS

__all__ = [
    "BODY_BYTES_MAX",
    "DELETE",
    "FLUSH_MS",
    "FLUSH_MS_MAX",
    "HIT",
    "KEEP_ALIVE_MS",
    "LAG_MS",
    "LOOKUPS_MAX",
    "MISS",
    "READ",
    "ROWS_MAX",
    "SIZE_BYTES_MAX",
    "SPAN_MS_MAX",
    "TTL_MS_MAX",
    "UNKNOWN",
    "WRITE",
    "Instruction",
    "patterns_id",
    "rate_for",
    "read_instruction",
    "secret_fingerprint",
]

READ, WRITE, DELETE = 0, 1, 2
"""Numbers of `cachemodel.trace.Op`, which needs numpy."""
HIT, MISS, UNKNOWN = 0, 1, -1
"""Column `missed`: what the application saw of a read; UNKNOWN for everything that is no read."""

ROWS_MAX: Final = 2_000
"""Rows of one batch: few enough that reading one holds a replica up for a few milliseconds at most."""
BODY_BYTES_MAX: Final = 256 * 1024
FLUSH_MS: Final = 2_000
FLUSH_MS_MAX: Final = 60_000
KEEP_ALIVE_MS: Final = 10_000
"""A recorder with nothing to say still says that after so long, and learns new instructions."""
SPAN_MS_MAX: Final = 120_000
"""Time that one batch may cover, and age of its newest row."""
LAG_MS: Final = 5_000
"""After so long what a recorder saw has arrived, if it arrives at all."""
SIZE_BYTES_MAX: Final = 1 << 30
"""Redis strings end at 512 MiB."""
TTL_MS_MAX: Final = 1 << 45
"""About a thousand years; some applications write such TTLs."""
LOOKUPS_MAX: Final = 1 << 32

_ROWS_WANTED: Final = 150_000
"""Rows of the whole history of a service: 20,000 keys of a usual skew, an error of 0.004 (`shards.KEYS_BASIS`)."""
_PATTERNS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What a recorder is to keep. `spatial_rate` 2**-24..1: keys whose hash modulo 2**24 lies below rate * 2**24.

    `patterns` are literal prefixes; a row names one by its index. `flush_ms` between two batches.
    """

    service: str
    spatial_rate: float
    patterns: tuple[str, ...]
    secret_fingerprint: str
    patterns_id: str
    flush_ms: int = FLUSH_MS
    rows_max: int = ROWS_MAX


def secret_fingerprint(secret: bytes) -> str:
    """Return 16 hexadecimal digits that tell two secrets apart; a random secret cannot be computed back from them."""
    return blake2b(b"cachewarden feed fingerprint", digest_size=8, key=secret).hexdigest()


def patterns_id(patterns: Sequence[str]) -> str:
    """Return what tells one list of patterns from another, so that no index is read against the wrong list."""
    return sha256("\0".join(patterns).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def rate_for(accesses_per_s: float, history_ms: int) -> float:
    """Return the spatial rate, a power of two, at which `history_ms` of accesses make at most some 150,000 rows.

    Powers of two, since the sample of a time has the lowest rate that was used within it: one that followed every
    change of the load would lower it for nothing.
    """
    rows = accesses_per_s * history_ms / 1000.0
    if rows <= _ROWS_WANTED:
        return 1.0
    return max(1.0 / REMAINDERS, float(2.0 ** math.floor(math.log2(_ROWS_WANTED / rows))))


def read_instruction(document: Any) -> Instruction:
    """Return the instruction in a JSON answer; raises ValueError that names what cannot be used."""
    if not isinstance(document, Mapping):
        raise ValueError("an instruction is a JSON object")  # noqa: TRY004 - input from the wire, no wrong call

    def text(name: str) -> str:
        value = document.get(name)
        if not isinstance(value, str) or len(value) > 200:
            raise ValueError(f"`{name}` of the instruction is no short text")
        return value

    def number(name: str, low: float, high: float) -> float:
        value = document.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"`{name}` of the instruction is not within {low:g} to {high:g}")
        return value

    patterns = document.get("patterns")
    if not isinstance(patterns, list) or len(patterns) > _PATTERNS_MAX or not all(isinstance(p, str) for p in patterns):
        raise ValueError(f"`patterns` of the instruction is no list of at most {_PATTERNS_MAX} texts")
    return Instruction(
        service=text("service_name"),
        spatial_rate=float(number("spatial_rate", 1.0 / REMAINDERS, 1.0)),
        patterns=tuple(patterns),
        secret_fingerprint=text("secret_fingerprint"),
        patterns_id=text("patterns_id"),
        flush_ms=int(number("flush_ms", 100, FLUSH_MS_MAX)),
        rows_max=int(number("rows_max", 1, ROWS_MAX)),
    )
