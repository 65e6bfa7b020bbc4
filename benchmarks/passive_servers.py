"""The passive probe against real servers: one at the present memory is probed, others show what their sizes hit.

Part of `benchmarks.passive_accuracy` (`--servers`). All servers get the same requests at the same pace; the probe is
the real one. The pace has to keep keys for 30 s and more after their last use, else the table says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from benchmarks.passive_accuracy import Row, row
from benchmarks.replay_accuracy import BATCH, Cell, Driven, pieces
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, ResidentSample, TtlStats
from cachewarden.cachemodel.whatif import evaluate
from cachewarden.observation import KeyspaceSample
from cluster.demo.servers import EmbeddedServer, Engine, ServerHome, ServerOptions, start_all
from coordination.redis_probe import Pacer, probe_capabilities, read_info, sample_keyspace
from coordination.redis_wire import RedisWire

__all__ = ["measure"]

FACTORS = (1.0, 0.5, 0.75, 1.5)
WARM_SHARE = 0.4
PARTS = 6
VALUE_BYTES = 200
SEED = 1


def measure(
    name: str, keys: npt.NDArray[np.uint64], seconds: float, rate: float, engines: Sequence[Engine]
) -> list[Row]:
    """Run one workload against four servers of each engine, and return a row for each size but the present one."""
    requests = keys[: int(seconds * rate)]
    _, numbers = np.unique(requests, return_inverse=True)
    return [found for engine in engines for found in _engine(name, engine, numbers.tolist(), seconds)]


def _engine(name: str, engine: Engine, keys: list[int], seconds: float) -> list[Row]:
    # A tenth of what the keys of the whole run would take keeps them for a good part of the run.
    memory = int(0.12 * len(set(keys)) * (VALUE_BYTES + 120))
    cells = [Cell(engine, "allkeys-lru", int(memory * factor)) for factor in FACTORS]
    with ServerHome() as home:
        servers = [
            EmbeddedServer(ServerOptions(name=f"size{i}", eviction_policy="allkeys-lru", engine=engine), home)
            for i in range(len(cells))
        ]
        start_all(servers)
        driven = [Driven(cell, server) for cell, server in zip(cells, servers, strict=True)]
        try:
            for one in driven:
                one.connect()
            marks = _drive(driven, keys, seconds)
            sample = asyncio.run(_probe(servers[0]))
            return _rows(name, driven, marks, sample, seconds)
        finally:
            for one in driven:
                one.close()
            for server in servers:
                server.stop()


def _drive(driven: Sequence[Driven], keys: list[int], seconds: float) -> list[int]:
    """Put the requests to all servers and return the rows at which the parts of the measured window begin and end."""
    started = time.monotonic()
    lengths, ttls = [VALUE_BYTES] * len(keys), [0] * len(keys)
    for first in range(0, len(keys), BATCH):
        until = started + seconds * first / len(keys)
        if until > (now := time.monotonic()):
            time.sleep(until - now)
        for one in driven:
            for piece in pieces(keys, first, min(first + BATCH, len(keys))):
                one.batch(keys[piece], lengths[piece], ttls[piece])
    begin = int(WARM_SHARE * len(keys))
    return [begin + (len(keys) - begin) * part // PARTS for part in range(PARTS + 1)]


async def _probe(server: EmbeddedServer) -> KeyspaceSample:
    """Return a thousand residents as the collector would get them."""
    wire = RedisWire("probed", server.url, username=None, password=None, timeout_s=5.0)
    try:
        (info,) = await wire.ask([("INFO",)])
        capabilities = await probe_capabilities(wire, read_info(info), key=b"none", capture=False)
        return await sample_keyspace(
            wire,
            keys=1000,
            capabilities=capabilities,
            patterns=(),
            hash_secret=b"0" * 32,
            own_prefix=b"cachewarden:",
            pacer=Pacer(0.01),
        )
    finally:
        await wire.close()


def _rows(name: str, driven: Sequence[Driven], marks: list[int], sample: KeyspaceSample, seconds: float) -> list[Row]:
    present = driven[0]
    hits = [np.array(one.hits) for one in driven]
    truths = [float(one[marks[0] :].mean()) for one in hits]
    parts = tuple((until - since, int((~hits[0][since:until]).sum())) for since, until in pairwise(marks))
    window_s = (present.time_ms[-1] - present.time_ms[marks[0]]) / 1000.0
    planned_s = (1.0 - WARM_SHARE) * seconds
    if window_s > 1.05 * planned_s:
        print(f"the pace was not kept: {window_s:.0f} s instead of {planned_s:.0f} s, take a lower rate")
    memory, stats = present.info("memory"), present.info("stats")
    resident = int(str(present.ask([b"DBSIZE"])[0]))
    used = int(memory["used_memory"]) - int(memory["mem_not_counted_for_evict"])
    current = CacheConfiguration(present.base_bytes + present.cell.memory)
    print(
        f"{name} on {present.cell.engine}: {resident} residents, hit ratio {truths[0]:.2%}, "
        f"98 % idle below {np.quantile(sample.idle_ms, 0.98) / 1000:.0f} s, {int(stats['evicted_keys'])} evicted"
    )
    evidence = Evidence(
        # By the recorded times: a busy machine does not keep the pace.
        lookups_per_s=(marks[-1] - marks[0]) / window_s,
        hit_ratio=truths[0],
        maxmemory_bytes=current.maxmemory_bytes,
        used_memory_bytes=used,
        fixed_overhead_bytes=present.base_bytes,
        resident_keys=resident,
        mean_entry_bytes=(used - present.base_bytes) / resident,
        current=current,
        sampled=ResidentSample(
            sample.idle_ms.astype(np.int64),
            sample.size_bytes.astype(np.int64),
            sample.ttl_ms.astype(np.int64),
            sample.frequency.astype(np.int32),
        ),
        ttl=TtlStats(0.0),
        window_parts=parts,
    )
    wanted = [replace(current, maxmemory_bytes=present.base_bytes + one.cell.memory) for one in driven[1:]]
    answers = evaluate(evidence, wanted, SEED)
    label = f"{name} {present.cell.engine}"
    return [
        row(label, factor, truths[0], truth, found)
        for factor, truth, found in zip(FACTORS[1:], truths[1:], answers, strict=True)
    ]
