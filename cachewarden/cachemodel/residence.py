"""How many bytes a cache holds, and how often it hits, when keys are requested as Poisson processes of known rates.

Closed forms per eviction family over a grid of residence times; nothing here knows where the rates come from. Sources:
Che et al. 2002 and AET (Hu et al., ATC'16) for LRU, Fricker et al. 2012 for random, Jung et al. 2003 for TTL; LRU under
a TTL is solved as the renewal equation of its hits per load. LRU as the server approximates it is derived at
`sampled_lru_curve`.

INVARIANT: along rising residence time, bytes and hit ratio never fall.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "Floats",
    "hits_per_load",
    "lru_curve",
    "random_curve",
    "residence_grid_s",
    "sampled_lru_curve",
    "survival_area",
    "ttl_curve",
    "ttl_limits_s",
]

Floats = npt.NDArray[np.float64]

_GRID = np.geomspace(1e-3, 1e9, 1537)
# The renewal equation costs a hundred times a closed form, so it is solved at every sixth time only.
_COARSE = _GRID[::6]
_STEPS_PER_TIME = 16
_TIMES = 8
# The reciprocal of the flow is nearly linear in the miss ratio, so few steps give all digits that matter.
_NEWTON_STEPS = 5


def residence_grid_s() -> Floats:
    """Return the residence times (characteristic times) of all curves here, in seconds."""
    return _GRID


def ttl_limits_s(ttl_s: float) -> Floats:
    """Return the idle limits of `ttl_curve` in seconds: rising, the last one the TTL itself, at which only TTLs act."""
    return np.append(_COARSE[ttl_s > _COARSE], ttl_s)


def lru_curve(rates: Floats, keys_bytes: Floats, requests: Floats) -> tuple[Floats, Floats]:
    """Return (bytes, hit ratio) of LRU at each residence time.

    `rates` per second with 0 = never again; `requests` the share of the lookups of each rate; `keys_bytes` = lookups
    per second times that share times entry bytes, so that keys_bytes / rate is the bytes of all keys of the class.
    """
    safe = np.where(rates > 0, rates, 1.0)
    missed = -np.expm1(-np.outer(_GRID, rates))
    held = np.where(rates > 0, missed / safe, _GRID[:, None])
    return held @ keys_bytes, missed @ requests


def survival_area(rates: Floats, age_s: float | Floats) -> Floats:
    """Return the integral of exp(-rate * a) over a from 0 to `age_s`; `age_s` itself at rate 0."""
    safe = np.where(rates > 0, rates, 1.0)
    area: Floats = np.where(rates > 0, -np.expm1(-safe * age_s) / safe, age_s)
    return area


def sampled_lru_curve(
    rates: Floats,
    keys_per_s: Floats,
    requests: Floats,
    entry_bytes: Floats,
    samples: int,
    ages_s: Floats,
) -> tuple[Floats, Floats]:
    """Return (bytes, hit ratio) of LRU as Redis approximates it, where eviction begins at each of these idle ages.

    `keys_per_s` lookups per second of each class, `requests` their share, `entry_bytes` of an entry, `samples` the
    server's maxmemory-samples, at least 1.

    A server that draws `samples` keys per eviction and keeps the best of what it drew in a pool evicts, while the cache
    is in balance, each drawn key that is among the oldest 1/samples of all (one eviction per `samples` draws leaves no
    other threshold; `evict.c`). So no key is evicted before the age where 1 - 1/samples of the residents are younger,
    and beyond it every resident is at the same risk per second: samples * evictions per second / residents. Exact LRU
    is the limit of many samples, random eviction is that of one.
    """
    share = 1.0 / samples
    left = np.exp(-np.outer(ages_s, rates))
    young = np.where(rates > 0, (1.0 - left) / np.where(rates > 0, rates, 1.0), ages_s[:, None])
    if samples > 1:
        keys = (young @ keys_per_s) / (1.0 - share)
    else:
        # Random eviction has no age where it begins; its mean age takes the place.
        left, young = np.ones_like(left), np.zeros_like(young)
        keys = (ages_s[:, None] / (1.0 + np.outer(ages_s, rates))) @ keys_per_s
    # The miss ratio m solves m = sum(left * requests * risk / (rate + risk)) with risk = pull * m.
    pull = (samples * float(keys_per_s.sum()) / keys)[:, None]
    weighted = left * requests
    miss = np.full(len(ages_s), 0.5)
    for _ in range(_NEWTON_STEPS):
        below = rates + pull * miss[:, None]
        flow = (weighted * pull / below).sum(axis=1)
        slope = (weighted * pull**2 / below**2).sum(axis=1)
        miss = np.clip(miss + flow * (flow - 1.0) / slope, 1e-12, 1.0)
    old = left / (rates + pull * miss[:, None])
    held = (young + old) @ (keys_per_s * entry_bytes)
    return np.maximum.accumulate(held), np.maximum.accumulate(1.0 - miss)


def random_curve(rates: Floats, keys_bytes: Floats, requests: Floats) -> tuple[Floats, Floats]:
    """Return (bytes, hit ratio) of random eviction at each mean residence time; arguments as in `lru_curve`."""
    turns = np.outer(_GRID, rates)
    held = _GRID[:, None] / (1.0 + turns)
    return held @ keys_bytes, (turns / (1.0 + turns)) @ requests


def ttl_curve(rates: Floats, keys_bytes: Floats, requests: Floats, ttl_s: float) -> tuple[Floats, Floats]:
    """Return (bytes, hit ratio) of LRU where each load also expires after `ttl_s`, at rising idle limits up to the
    TTL.
    """
    # PASTA: the share of time that a key is resident is its hit ratio, M / (1 + M) with M hits per load.
    limits_s = ttl_limits_s(ttl_s)
    hits = hits_per_load(limits_s, rates, ttl_s)
    ratio = hits / (1.0 + hits)
    safe = np.where(rates > 0, rates, 1.0)
    held = np.where(rates > 0, ratio / safe, limits_s[:, None])
    # The renewal equation is solved in steps, so the last digits may wobble.
    return np.maximum.accumulate(held @ keys_bytes), np.maximum.accumulate(ratio @ requests)


def hits_per_load(idle_limit_s: Floats, rates: Floats, ttl_s: float) -> Floats:
    """Return the expected hits between a load and the entry's end, [limits, rates]: end at a gap above the limit, or at
    the TTL.

    M(x) = r x up to the limit c, then M'(x) = r (q - p M(x - c)) with p = exp(-r c), q = 1 - p; solved in steps for
    eight times c and continued exponentially towards its limit q / p.
    """
    limit = np.minimum(idle_limit_s, ttl_s)[:, None]
    # Beyond 30 mean gaps an entry practically never idles out, and exp(30) still leaves all digits that matter.
    rc = np.minimum(rates[None, :] * limit, 30.0)
    p, q = np.exp(-rc), -np.expm1(-rc)
    times = ttl_s / limit
    step = 1.0 / _STEPS_PER_TIME
    history = [rc * (step * i) for i in range(_STEPS_PER_TIME + 1)]
    result = np.where(times <= 1.0, rc * times, 0.0)
    current = history[-1]
    for i in range(_STEPS_PER_TIME, _TIMES * _STEPS_PER_TIME):
        slope = rc * (q - p * 0.5 * (history[i - _STEPS_PER_TIME] + history[i - _STEPS_PER_TIME + 1]))
        following = current + step * np.maximum(slope, 0.0)
        position = i * step
        inside = (times > position) & (times <= position + step)
        result = np.where(inside, current + (following - current) * (times - position) / step, result)
        current = following
        history.append(current)
    final = q / p
    beyond = np.maximum(times - _TIMES, 0.0)
    # rate of approach to the limit: the reciprocal of the mean time to the first gap above c, in units of c
    speed = rc * p / np.where(q > 0, q, 1.0)
    tail = current + np.maximum(final - current, 0.0) * -np.expm1(-speed * beyond)
    hits: Floats = np.where(times > _TIMES, tail, result)
    # Clipping r c must not lose the hits of very hot keys, for which only the TTL ends an entry.
    hot = rates[None, :] * limit > 30.0
    return np.where(hot, rates[None, :] * ttl_s, hits)
