"""Examples of answers about memory and TTLs, as OpenAPI shows them: cut down from those to a simulated cache.

INVARIANT: each validates as what it is an example of (a test checks it).
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["CURVE_EXAMPLE", "TTL_EXAMPLE"]

CURVE_EXAMPLE: Final[dict[str, Any]] = {
    "service_name": "constitutional_ai",
    "answered": True,
    "reason": "",
    "observed": {
        "taken_at": "2027-01-15T07:59:58.000Z",
        "window_s": 10.0,
        "hit_ratio": 0.4591,
        "lookups_per_s": 407.9,
        "captured_accesses": 75419,
        "sampled_keys": 1000,
    },
    "configuration": {
        "maxmemory_bytes": 9437184,
        "eviction_policy": "allkeys-lru",
        "maxmemory_samples": 5,
        "lfu_log_factor": 10,
        "lfu_decay_time": 1,
        "ttl_ms": None,
    },
    "points": [
        {
            "maxmemory_bytes": 3774874,
            "hit_ratio": {"value": 0.4097, "low": 0.38, "high": 0.4395},
            "change": {"value": -0.04938, "low": -0.07913, "high": -0.01963},
            "eviction_age_s": {"value": 12.45, "low": 10.21, "high": 15.18},
            "extrapolated": False,
        },
        {
            "maxmemory_bytes": 9437184,
            "hit_ratio": {"value": 0.4591, "low": 0.4591, "high": 0.4591},
            "change": {"value": 0.0, "low": 0.0, "high": 0.0},
            "eviction_age_s": {"value": 79.03, "low": 79.03, "high": 79.03},
            "extrapolated": False,
        },
        {
            "maxmemory_bytes": 37748736,
            "hit_ratio": {"value": 0.4595, "low": 0.4591, "high": 0.4745},
            "change": {"value": 0.0003758, "low": 0.0, "high": 0.01538},
            "eviction_age_s": {"value": 487.2, "low": 361.0, "high": 657.7},
            "extrapolated": True,
        },
    ],
    "now": 1,
    "ceiling": {"value": 0.4688, "low": 0.4591, "high": 0.4846},
    "binding": {
        "resource": "expired",
        "reason": "0.66 of the misses, as measured",
        "cold": 0.1745,
        "expired": 0.6634,
        "evicted": 0.1621,
        "refused": 5.551e-17,
    },
    "marginal_mib": {
        "hits_per_s": {"value": 0.005784, "low": 0.002892, "high": 0.008677},
        "hit_ratio": {"value": 1.418e-05, "low": 7.091e-06, "high": 2.127e-05},
        "method": "slope of the modelled curve at the present size, interval from replicates of both ends together",
    },
    "target": {
        "hit_ratio": 0.47,
        "maxmemory_bytes": None,
        "low_bytes": 10344948,
        "high_bytes": None,
        "reason": "even unlimited memory is predicted to give 0.469 only, 0.219 of the lookups are not "
        "asked again within the 120 s of evidence, prefixes with a TTL miss what comes back "
        "after it",
    },
    "working_set": [
        {
            "window_s": 1.0,
            "keys": {"value": 361.3, "low": 329.7, "high": 393.0},
            "bytes": {"value": 312800.0, "low": 285400.0, "high": 340100.0},
        },
        {
            "window_s": 120.0,
            "keys": {"value": 16210.0, "low": 14730.0, "high": 17680.0},
            "bytes": {"value": 15110000.0, "low": 13730000.0, "high": 16490000.0},
        },
    ],
    "per_prefix": [
        {
            "prefix": "policy:short:",
            "lookups_share": 0.2441,
            "hit_ratio": {"value": 0.4239, "low": 0.391, "high": 0.4599},
            "bytes_share": {"value": 0.03675, "low": 0.02861, "high": 0.04472},
            "held_bytes": 308260,
            "hits_per_s_per_mib": 143.6,
            "marginal_hits_per_s": {"value": 0.0, "low": 0.0, "high": 0.0},
            "residence_s": 5.0,
            "points": [
                {
                    "maxmemory_bytes": 2359296,
                    "held_bytes": 298229,
                    "hit_ratio": {"value": 0.4164, "low": 0.3783, "high": 0.4544},
                }
            ],
            "reason": "",
            "note": "",
        },
        {
            "prefix": "",
            "lookups_share": 0.1447,
            "hit_ratio": {"value": 0.0, "low": 0.0, "high": 0.0001894},
            "bytes_share": {"value": 0.6544, "low": 0.6304, "high": 0.6773},
            "held_bytes": 5489652,
            "hits_per_s_per_mib": 0.0,
            "marginal_hits_per_s": {"value": 0.005788, "low": 0.002894, "high": 0.008682},
            "residence_s": 79.83,
            "points": [
                {
                    "maxmemory_bytes": 2359296,
                    "held_bytes": 319432,
                    "hit_ratio": {"value": 0.0, "low": 0.0, "high": 0.01452},
                }
            ],
            "reason": "",
            "note": "holds 65% of the memory and gives 0.00 of the mean hits per MiB",
        },
    ],
    "method": "observed hit ratio plus the modelled differences of the prefixes, which live by different TTLs",
    "notes": [],
    "performance_metrics": {"whatif_duration_ms": 912.0},
    "constitutional_hash": "cdd01ef066bc6cf2",
}

TTL_EXAMPLE: Final[dict[str, Any]] = {
    "service_name": "constitutional_ai",
    "answered": True,
    "reason": "",
    "observed": {
        "taken_at": "2027-01-15T07:59:58.000Z",
        "window_s": 10.0,
        "hit_ratio": 0.4591,
        "lookups_per_s": 407.9,
        "captured_accesses": 75419,
        "sampled_keys": 1000,
    },
    "service": {
        "prefix": None,
        "ttl_s": None,
        "max_staleness_s": 5.0,
        "misses": {
            "cold": 0.09441,
            "expired": 0.3588,
            "evicted": 0.08767,
            "refused": 0.0,
            "source": "access capture, anchored on the counted miss ratio",
        },
        "gains": [],
        "gains_reason": "most keys have no TTL, so no TTL can be lengthened",
        "enough_ttl_s": None,
        "stampede": {
            "begins_s": 1.2,
            "busiest_share": {"value": 0.07692, "low": 0.05855, "high": 0.1004},
            "mean_share": 0.03342,
            "chance_share": 0.07466,
            "loads_per_s_peak": {"value": 259.3, "low": 197.4, "high": 338.6},
            "loads_per_s_mean": 112.7,
            "aligned": True,
            "sampled_deadlines": 442,
            "reason": "34 of 442 sampled keys expire within one second, more than the 33 that chance allows",
        },
        "stampede_reason": "",
        "jitter": {"jitter_s": 1.0, "peak_share": 0.06547},
        "jitter_reason": "",
        "unread_memory": {
            "held_bytes": {"value": 6808000.0, "low": 6652000.0, "high": 6957000.0},
            "share": {"value": 0.8116, "low": 0.793, "high": 0.8294},
            "horizon_s": 120.0,
            "method": "sampled residents that a capture of 120 s at rate 1 saw nobody read",
        },
        "unread_reason": "",
        "expired_memory": {
            "held_bytes": {"value": 57980.0, "low": 53800.0, "high": 61910.0},
            "share": {"value": 0.006912, "low": 0.006413, "high": 0.007381},
            "horizon_s": 0.0,
            "method": "the server's share of expired keys, weighed like the sampled keys that have a TTL",
        },
        "expired_reason": "",
    },
    "per_prefix": [
        {
            "prefix": "policy:",
            "ttl_s": 30.0,
            "max_staleness_s": 600.0,
            "misses": {
                "cold": 0.01317,
                "expired": 0.3295,
                "evicted": 0.07596,
                "refused": 0.0,
                "source": "access capture, anchored on the counted miss ratio",
            },
            "gains": [
                {
                    "ttl_s": 60.0,
                    "gain": {"value": 0.1024, "low": 0.04874, "high": 0.1562},
                    "hit_ratio": {"value": 0.6838, "low": 0.6301, "high": 0.7375},
                    "misses_then": None,
                },
                {
                    "ttl_s": 120.0,
                    "gain": {"value": 0.1499, "low": 0.07327, "high": 0.2265},
                    "hit_ratio": {"value": 0.7312, "low": 0.6546, "high": 0.8079},
                    "misses_then": None,
                },
                {
                    "ttl_s": 240.0,
                    "gain": {"value": 0.1686, "low": 0.08281, "high": 0.2544},
                    "hit_ratio": {"value": 0.7499, "low": 0.6641, "high": 0.8357},
                    "misses_then": None,
                },
                {
                    "ttl_s": 480.0,
                    "gain": {"value": 0.1749, "low": 0.08601, "high": 0.2638},
                    "hit_ratio": {"value": 0.7562, "low": 0.6673, "high": 0.8451},
                    "misses_then": None,
                },
                {
                    "ttl_s": 600.0,
                    "gain": {"value": 0.1758, "low": 0.08648, "high": 0.2652},
                    "hit_ratio": {"value": 0.7572, "low": 0.6678, "high": 0.8465},
                    "misses_then": None,
                },
            ],
            "gains_reason": "",
            "enough_ttl_s": 240.0,
            "stampede": {
                "begins_s": 1.21,
                "busiest_share": {"value": 0.0557, "low": 0.03956, "high": 0.07788},
                "mean_share": 0.03342,
                "chance_share": 0.07342,
                "loads_per_s_peak": {"value": 167.8, "low": 119.2, "high": 234.6},
                "loads_per_s_mean": 100.7,
                "aligned": False,
                "sampled_deadlines": 395,
                "reason": "22 of 395 sampled keys expire within one second, no more than the 29 that chance allows",
            },
            "stampede_reason": "",
            "jitter": {"jitter_s": 0.0, "peak_share": 0.0557},
            "jitter_reason": "",
            "unread_memory": {
                "held_bytes": {"value": 1279000.0, "low": 1183000.0, "high": 1380000.0},
                "share": {"value": 0.4937, "low": 0.4568, "high": 0.5326},
                "horizon_s": 120.0,
                "method": "sampled residents that a capture of 120 s at rate 1 saw nobody read",
            },
            "unread_reason": "",
            "expired_memory": {
                "held_bytes": {"value": 51810.0, "low": 51420.0, "high": 51810.0},
                "share": {"value": 0.02, "low": 0.01985, "high": 0.02},
                "horizon_s": 0.0,
                "method": "the server's share of expired keys, weighed like the sampled keys that have a TTL",
            },
            "expired_reason": "",
        }
    ],
    "performance_metrics": {"whatif_duration_ms": 640.0},
    "constitutional_hash": "cdd01ef066bc6cf2",
}
