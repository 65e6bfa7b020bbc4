"""What a short capture cannot show: the accesses before it, drawn so that a replay of the capture begins with a
plausible cache.

A capture of a minute replayed from empty would count every first access as a miss. Here each captured key gets a rate
drawn from the mixture given how often the capture saw it, the keys that the capture missed are drawn too, and all of
them get Poisson accesses before the capture. It never changes the capture itself. The past is steady by construction,
which flatters LFU: `whatif` widens for that.

INVARIANT: the same mixture, capture and seed give the same past.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import Floats
from cachewarden.cachemodel.trace import AccessTrace, Op

__all__ = ["with_past"]


def with_past(
    capture: AccessTrace, mixture: PopularityMixture, sampling_rate: float, past_ms: int, seed: int
) -> AccessTrace:
    """Return the capture with `past_ms` of drawn reads in front of it, sizes from the mixture's classes.

    `sampling_rate` is the capture's spatial rate: the past holds that share of the keys.
    """
    rng = np.random.default_rng(seed)
    start_ms = int(capture.time_ms[0])
    capture_s = max(capture.duration_ms, 1) / 1000.0
    past_s = past_ms / 1000.0
    rates, lookups = mixture.rates_per_s, mixture.lookups_per_s * sampling_rate * mixture.weights
    keys, counts = np.unique(capture.key[capture.op != Op.DELETE], return_counts=True)
    classes = _classes_of(counts, rates, lookups, capture_s, rng)
    seen = rng.poisson(rates[classes] * past_s)

    # Keys that the capture missed: lookups / rate keys in a class, each unseen with probability exp(-rate * capture).
    positive = rates > 0
    per_class = np.where(positive, lookups / np.where(positive, rates, 1.0) * np.exp(-rates * capture_s), 0.0)
    # Of these only the ones with an access in the past matter.
    touched = per_class * -np.expm1(-rates * past_s)
    number = rng.poisson(touched)
    hidden = np.repeat(np.arange(len(rates)), number)
    hidden_counts = _at_least_one(rates[hidden] * past_s, rng)
    once = int(rng.poisson(lookups[0] * past_s))
    hidden = np.concatenate([hidden, np.zeros(once, np.int64)])
    hidden_counts = np.concatenate([hidden_counts, np.ones(once, np.int64)])
    hidden_keys = rng.integers(0, 2**63, len(hidden), dtype=np.uint64)

    repeated = np.concatenate([seen, hidden_counts])
    key = np.repeat(np.concatenate([keys, hidden_keys]), repeated)
    size = np.repeat(np.concatenate([mixture.entry_bytes[classes], mixture.entry_bytes[hidden]]), repeated)
    time_ms = rng.integers(start_ms - past_ms, max(start_ms, start_ms - past_ms + 1), len(key))
    order = np.argsort(time_ms, kind="stable")
    ttl_ms = int(np.median(capture.ttl_ms)) if len(capture) else 0
    past = AccessTrace.of(time_ms[order], key[order], None, np.rint(size[order]), ttl_ms)
    return AccessTrace.concat([past, capture])


def _classes_of(
    counts: npt.NDArray[np.int64], rates: Floats, lookups: Floats, capture_s: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw each captured key's class given that it was seen `counts` times."""
    classes = np.zeros(len(counts), np.int64)
    expected = rates * capture_s
    log_expected = np.log(np.where(rates > 0, expected, 1.0))
    density = np.where(rates > 0, lookups / np.where(rates > 0, rates, 1.0), 0.0)
    log_density = np.log(np.maximum(density, 1e-300))
    for count in np.unique(counts):
        log_weight = np.where(rates > 0, log_density + count * log_expected - expected, -np.inf)
        # A key that never comes again is seen once, if at all: lookups * capture of them.
        log_weight[0] = np.log(max(lookups[0] * capture_s, 1e-300)) if count == 1 else -np.inf
        weight = np.exp(log_weight - log_weight.max())
        same = counts == count
        classes[same] = rng.choice(len(rates), int(same.sum()), p=weight / weight.sum())
    return classes


def _at_least_one(mean: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw Poisson numbers given that they are not zero: the first arrival is placed, the rest is Poisson on what
    remains.
    """
    first = -np.log1p(-rng.random(len(mean)) * -np.expm1(-mean))
    drawn: npt.NDArray[np.int64] = 1 + rng.poisson(np.maximum(mean - first, 0.0))
    return drawn
