"""What is kept of a key name: its keyed hash, and which declared pattern it belongs to.

Needs the standard library alone, since applications import it too (`recorder`). It keeps no name, and without the
secret nobody can tell which name a hash stands for. INVARIANT: the same name and secret give the same hash in every
process, whoever saw the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

__all__ = ["HASH_BYTES", "REMAINDERS", "PatternIndex", "hash_key"]

HASH_BYTES = 8
REMAINDERS = 1 << 24
"""A spatial filter keeps the keys whose hash modulo this lies below rate * this, as in SHARDS (FAST'15)."""


def hash_key(secret: bytes, key: bytes) -> int:
    """Return the keyed 64-bit hash of a key name; `secret` has at most 64 bytes (ValueError from hashlib otherwise)."""
    return int.from_bytes(blake2b(key, digest_size=HASH_BYTES, key=secret).digest(), "big")


class PatternIndex:
    """Which declared pattern (a literal prefix) a key belongs to; the longest one wins."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.patterns: tuple[str, ...] = tuple(prefixes)
        self._index = {prefix.encode(): number for number, prefix in enumerate(self.patterns)}
        self._lengths = sorted({len(prefix) for prefix in self._index}, reverse=True)

    def of(self, key: bytes) -> int:
        """Return the index into `patterns`, -1 where none matches."""
        for length in self._lengths:
            number = self._index.get(key[:length])
            if number is not None:
                return number
        return -1
