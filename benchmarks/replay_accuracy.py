"""How close is the replay to real servers? The same requests to both, hit ratios side by side.

Run from the repository root: `python -m benchmarks.replay_accuracy [--seconds N] [--rate N] [--memory MB] [--trace
FILE]`. Starts one server per cell, drives all of them at a pace that keeps the eviction age above 30 s, records the
times, replays them, and prints the table. A faster pace would measure the access clock of one second instead of the
eviction policy.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import hiredis
import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.eviction import (
    EvictionConfig,
    ReplayResult,
    ReplaySchedule,
    ScheduledChange,
    replay,
)
from cachewarden.cachemodel.server_model import REDIS_7_0, REDIS_8_2, VALKEY_9_1, ServerModel
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all

MODELS = {"redis": REDIS_7_0, "redis8": REDIS_8_2, "valkey": VALKEY_9_1}
KEY_LEN = 18
BATCH = 10
WARM_SHARE = 0.4
KNOB_OF = {"lfu_log_factor": "lfu-log-factor", "lfu_decay_time_min": "lfu-decay-time"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One server and how it is configured; `memory` and the later stages are bytes above what the empty server needs.

    `stages`: (share of the run, changes), applied by CONFIG SET. `ttl_ms` goes to the `ttl_share` of the keys.
    """

    engine: str
    eviction_policy: str
    memory: int
    ttl_ms: int = 0
    ttl_share: float = 1.0
    knobs: dict[str, int] = field(default_factory=dict)
    stages: tuple[tuple[float, dict[str, str | int]], ...] = ()

    @property
    def name(self) -> str:
        ttl = f" ttl {self.ttl_ms / 1000:g} s of {self.ttl_share:.0%}" if self.ttl_ms else ""
        knobs = "".join(f" {value}" for value in self.knobs.values())
        stages = "".join(f" then {' '.join(str(value) for value in change.values())}" for _, change in self.stages)
        return f"{self.engine} {self.eviction_policy}{knobs} {self.memory / 1e6:.1f} MB{ttl}{stages}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the server did and what the replay says; hit ratios 0..1 over the measured part."""

    cell: Cell
    server_hit_ratio: float
    replayed: ReplayResult
    resident_keys: int
    evicted: int
    expired: int
    eviction_age_s: float

    @property
    def error(self) -> float:
        return self.replayed.hit_ratio - self.server_hit_ratio


class Driven:
    """A server with its connection, and the times and hits of what was asked of it."""

    def __init__(self, cell: Cell, server: EmbeddedServer) -> None:
        self.cell = cell
        self._server = server
        self.time_ms: list[int] = []
        self.hits: list[bool] = []
        self.changes: list[tuple[int, dict[str, str | int]]] = []

    def connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._server.port), timeout=30.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self.ask([b"AUTH", self._server.password.encode()])
        # Every kind of command is asked once before: its latency histogram stays and counts against maxmemory.
        for _ in range(20):
            self.ask(*[[b"GET", b"k"]] * BATCH)
            self.ask(*[[b"SET", b"k", b"x" * 1000, b"PX", b"100000"]] * BATCH)
        self.ask([b"FLUSHALL"])
        self.set(maxmemory=0)
        self.info("memory")
        memory = self.info("memory")
        self.base_bytes = int(memory["used_memory"]) - int(memory["mem_not_counted_for_evict"])
        self.allocator = memory["mem_allocator"]
        self.set(maxmemory=self.base_bytes + self.cell.memory)

    def ask(self, *commands: Sequence[bytes]) -> list[object]:
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in command]
        self._socket.sendall(b"".join(parts))
        answers: list[object] = []
        while len(answers) < len(commands):
            answer = self._reader.gets()
            if answer is False:
                self._reader.feed(self._socket.recv(1 << 16))
            else:
                answers.append(answer)
        return answers

    def set(self, **knobs: str | int) -> None:
        words = [word.encode() for name, value in knobs.items() for word in (name.replace("_", "-"), str(value))]
        answer = self.ask([b"CONFIG", b"SET", *words])[0]
        if answer != b"OK":
            raise RuntimeError(f"the server refused {knobs}: {answer!r}")

    def info(self, section: str) -> dict[str, str]:
        text = self.ask([b"INFO", section.encode()])[0]
        assert isinstance(text, bytes)
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)

    def stage(self, change: dict[str, str | int]) -> None:
        wanted = dict(change)
        if "maxmemory" in wanted:
            wanted["maxmemory"] = self.base_bytes + int(wanted["maxmemory"])
        self.set(**{name.replace("-", "_"): value for name, value in wanted.items()})
        self.changes.append((time.time_ns() // 1_000_000, change))

    def batch(self, keys: Sequence[int], lengths: Sequence[int], ttls_ms: Sequence[int]) -> None:
        """Ask for the keys, and store those that were not there, as a cache-aside client does."""
        names = [b"%018d" % key for key in keys]
        before = time.time_ns()
        answers = self.ask(*[[b"GET", name] for name in names])
        self.time_ms += [(before + time.time_ns()) // 2_000_000] * len(keys)
        missing = [i for i, answer in enumerate(answers) if answer is None]
        self.hits += [answer is not None for answer in answers]
        if missing:
            expiry = [[b"PX", b"%d" % ttls_ms[i]] if ttls_ms[i] else [] for i in missing]
            self.ask(*[[b"SET", names[i], b"x" * lengths[i], *more] for i, more in zip(missing, expiry, strict=True)])

    def note_end(self) -> None:
        """Remember what the server holds and has evicted and expired now."""
        stats = self.info("stats")
        self.evicted, self.expired = int(stats["evicted_keys"]), int(stats["expired_keys"])
        self.resident_keys = int(str(self.ask([b"DBSIZE"])[0]))

    def close(self) -> None:
        self._socket.close()


def drive(
    cells: Sequence[Cell],
    keys: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    seconds: float,
) -> list[Outcome]:
    """Put the requests to all servers, spread evenly over the time, and replay what each of them saw."""
    with ServerHome() as home:
        servers = [
            EmbeddedServer(
                ServerOptions(
                    name=f"cell{i}",
                    eviction_policy=cell.eviction_policy,
                    engine=cell.engine,
                    knobs={KNOB_OF[name]: str(value) for name, value in cell.knobs.items()},
                ),
                home,
            )
            for i, cell in enumerate(cells)
        ]
        start_all(servers)
        driven = [Driven(cell, server) for cell, server in zip(cells, servers, strict=True)]
        try:
            for one in driven:
                one.connect()
            _requests(driven, keys, lengths, seconds)
            # Before any replay takes its time: expiry goes on in the servers.
            for one in driven:
                one.note_end()
            return [_outcome(one, keys, lengths) for one in driven]
        finally:
            for one in driven:
                one.close()
            for server in servers:
                server.stop()


def _requests(
    driven: Sequence[Driven], keys: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], seconds: float
) -> None:
    all_keys, all_lengths = keys.tolist(), lengths.tolist()
    ttls = [ttl_of(one.cell, keys).tolist() for one in driven]
    started = time.monotonic()
    pending = [list(one.cell.stages) for one in driven]
    for first in range(0, len(all_keys), BATCH):
        until = started + seconds * first / len(all_keys)
        if until > (now := time.monotonic()):
            time.sleep(until - now)
        for one, ttl, stages in zip(driven, ttls, pending, strict=True):
            while stages and first >= stages[0][0] * len(all_keys):
                one.stage(stages.pop(0)[1])
            for piece in pieces(all_keys, first, min(first + BATCH, len(all_keys))):
                one.batch(all_keys[piece], all_lengths[piece], ttl[piece])


def pieces(keys: Sequence[int], first: int, until: int) -> list[slice]:
    """Return the rows of a batch, cut where a key comes again: its second read must find what the first one loaded."""
    found, seen, start = [], set(), first
    for row in range(first, until):
        if keys[row] in seen:
            found.append(slice(start, row))
            seen, start = set(), row
        seen.add(keys[row])
    return [*found, slice(start, until)]


def ttl_of(cell: Cell, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the TTL of each row, given to a share of the keys by their hash."""
    chosen = (mix(keys.astype(np.uint64)) >> np.uint64(40)) % np.uint64(100) < np.uint64(round(100 * cell.ttl_share))
    return np.where(chosen, cell.ttl_ms, 0).astype(np.int64)


def replay_of(one: Driven, keys: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> ReplayResult:
    """Replay what the server saw: recorded times, entry sizes by the server's layout, maxmemory less its base."""
    cell, model = one.cell, MODELS[one.cell.engine].reporting(one.allocator)
    ttls = ttl_of(cell, keys)
    trace = AccessTrace.of(
        np.maximum.accumulate(one.time_ms), mix(keys.astype(np.uint64)), 0, sizes(model, lengths, ttls), ttls
    )
    config = EvictionConfig(cell.memory, cell.eviction_policy, server=model, counts_tables=True, **cell.knobs)
    changes = []
    for at_ms, change in one.changes:
        config = replace(
            config,
            capacity_bytes=int(change.get("maxmemory", config.capacity_bytes)),
            eviction_policy=str(change.get("maxmemory-policy", config.eviction_policy)),
        )
        changes.append(ScheduledChange(at_ms, config))
    first = EvictionConfig(cell.memory, cell.eviction_policy, server=model, counts_tables=True, **cell.knobs)
    measured_from = one.time_ms[int(WARM_SHARE * len(keys))]
    return replay(trace, first, measure_from_ms=measured_from, schedule=ReplaySchedule(tuple(changes), 0))


def sizes(model: ServerModel, lengths: npt.NDArray[np.int64], ttls: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return entry bytes of each row."""
    table = {
        (length, has): model.entry_bytes(KEY_LEN, length, has)
        for length in np.unique(lengths).tolist()
        for has in (False, True)
    }
    pairs = zip(lengths.tolist(), (ttls > 0).tolist(), strict=True)
    return np.array([table[pair] for pair in pairs], dtype=np.int64)


def _outcome(one: Driven, keys: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Outcome:
    measured_from = one.time_ms[int(WARM_SHARE * len(keys))]
    hits = np.array(one.hits)[np.array(one.time_ms) >= measured_from]
    seconds = (one.time_ms[-1] - one.time_ms[0]) / 1000
    age_s = one.resident_keys * seconds / one.evicted if one.evicted else float("inf")
    return Outcome(
        one.cell,
        float(hits.mean()),
        replay_of(one, keys, lengths),
        one.resident_keys,
        one.evicted,
        one.expired,
        age_s,
    )


def value_lengths(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return a value length for each row, lognormal around 300 bytes and fixed by the key."""
    unit = ((mix(keys.astype(np.uint64)) >> np.uint64(11)) % np.uint64(1 << 20)).astype(np.float64) / (1 << 20)
    # A logistic curve stands in for the normal one; it needs no special function.
    spread = np.log(np.clip(unit, 0.01, 0.99) / (1 - np.clip(unit, 0.01, 0.99))) * 0.4
    return np.clip(300 * np.exp(spread), 20, 3000).astype(np.int64)


def table(outcomes: Sequence[Outcome]) -> None:
    """Print a line for each cell, and the errors of all."""
    print(f"{'cell':66} server replay  error |   keys replay | evicted | expired | age s")
    for one in outcomes:
        found = one.replayed
        print(
            f"{one.cell.name:66} {one.server_hit_ratio:6.2%} {found.hit_ratio:6.2%} {100 * one.error:+6.2f} | "
            f"{one.resident_keys:6} {found.resident_keys:6} | {one.evicted:7} | {one.expired:7} | "
            f"{one.eviction_age_s:5.0f}"
        )
    errors = 100 * np.abs([one.error for one in outcomes])
    print(f"mean absolute error {errors.mean():.2f} points, worst {errors.max():.2f}, {len(outcomes)} cells")


def cells_for(memory: int, ttl_ms: int, engines: Sequence[str]) -> list[Cell]:
    """Return the cells of one stream: eviction policies, TTLs, a resize and a switch on each engine."""
    found = []
    for engine in engines:
        found += [
            Cell(engine, "allkeys-lru", memory),
            Cell(engine, "allkeys-lfu", memory),
            Cell(engine, "allkeys-lfu", memory, knobs={"lfu_log_factor": 1, "lfu_decay_time_min": 10}),
            Cell(engine, "allkeys-random", memory),
            Cell(engine, "volatile-ttl", memory, ttl_ms, 0.6),
            Cell(engine, "volatile-lru", memory, ttl_ms, 0.6),
            Cell(engine, "allkeys-lru", 4 * memory, ttl_ms // 4),
            Cell(engine, "allkeys-lru", 2 * memory, stages=((0.4, {"maxmemory": memory}),)),
            Cell(engine, "allkeys-lru", memory, stages=((0.5, {"maxmemory-policy": "allkeys-lfu"}),)),
        ]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=150.0, help="length of each run")
    parser.add_argument("--rate", type=float, default=500.0, help="requests per second to each server")
    parser.add_argument("--memory", type=float, default=2.0, help="megabytes above the empty server")
    parser.add_argument("--trace", type=Path, help="a trace file; without it Zipf 0.9 over 20,000 keys")
    parser.add_argument("--engine", choices=sorted(MODELS), action="append")
    given = parser.parse_args()
    requests = int(given.seconds * given.rate)
    if given.trace is None:
        keys = zipf(requests, 20_000, 0.9, seed=1)
    else:
        ids = load(given.trace, given.rate).key[:requests]
        keys = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    cells = cells_for(int(given.memory * 1e6), int(given.seconds * 400), given.engine or sorted(MODELS))
    outcomes = drive(cells, keys, value_lengths(keys), given.seconds)
    print(f"{given.trace.name if given.trace else 'zipf 0.9'}, {given.rate:g} requests/s, {given.seconds:g} s")
    table(outcomes)


def zipf(requests: int, keys: int, exponent: float, seed: int) -> npt.NDArray[np.int64]:
    """Return Zipf requests of a fixed popularity."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, keys + 1) ** -exponent
    return rng.choice(keys, requests, p=popularity / popularity.sum()).astype(np.int64)


if __name__ == "__main__":
    main()
