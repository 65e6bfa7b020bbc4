"""Synthetic workloads and tiny traces that several cache model tests share."""

from __future__ import annotations

import numpy as np

from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace

LOOKUPS_PER_S = 1000


def zipf_requests(
    keys: int, exponent: float, seconds: int, seed: int, lookups_per_s: int = LOOKUPS_PER_S
) -> AccessTrace:
    """Poisson arrivals over a fixed Zipf popularity: the textbook case, where every model must be right."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, keys + 1) ** -exponent
    number = rng.poisson(lookups_per_s * seconds)
    time_ms = np.sort(rng.integers(0, seconds * 1000, number))
    return AccessTrace.of(time_ms, mix(rng.choice(keys, number, p=popularity / popularity.sum()).astype(np.uint64)))


def letters(text: str, step_ms: int = 1000, ttl_ms: int = 0) -> AccessTrace:
    """One read per letter, `step_ms` apart; an upper-case letter writes and a letter after `-` is deleted."""
    keys, ops = [], []
    deleting = False
    for letter in text.replace(" ", ""):
        if letter == "-":
            deleting = True
            continue
        keys.append(ord(letter.lower()))
        ops.append(2 if deleting else 1 if letter.isupper() else 0)
        deleting = False
    return AccessTrace.of(np.arange(len(keys)) * step_ms, keys, ops, 1, ttl_ms)
