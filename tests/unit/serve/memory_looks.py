"""A look at a cache whose values were measured."""

from __future__ import annotations

from cachewarden.observation import Capabilities, Snapshot
from tests.unit.agents.looks import keyspace
from tests.unit.cachemodel.value_samples import big_hash, large_string, small_string, value_sample
from tests.unit.serve.serve_world import snapshot

VALUES = value_sample(*[large_string()] * 60, *[big_hash(200)] * 80, *[small_string()] * 60, touched=140)


def measured(**changes: object) -> Snapshot:
    sample = keyspace([0] * 100, size_bytes=[500] * 100, pattern=[0] * 60 + [-1] * 40, patterns=("page:",))
    values: dict[str, object] = {
        "sample": sample,
        "values": VALUES,
        "resident_keys": 10_000,
        "allocator": "jemalloc-5.3.0",
        "capabilities": Capabilities(server="redis", version="7.0.15"),
        "knobs": {"hash-max-listpack-entries": "128", "hash-max-listpack-value": "64"},
        "memory_figures": {"used_memory": 9e6, "allocator_frag_ratio": 1.25},
        "incomplete": {},
    }
    return snapshot(**{**values, **changes})
