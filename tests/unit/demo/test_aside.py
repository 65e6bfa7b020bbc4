"""The cache-aside client counts what a real application would see. The link here is an ordered queue answered by a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import hiredis
import numpy as np

from cachewarden.cachemodel.trace import Op
from cluster.demo.aside import CacheAside, Requests
from cluster.demo.link import encode
from simulation.workload import Arrivals


class QueueLink:
    """Keeps pipelines until `answer` answers them from a small cache that refuses stores when full."""

    def __init__(self, capacity: int = 100) -> None:
        self.stored: dict[bytes, tuple[bytes, ...]] = {}
        self.capacity = capacity
        self.connected = True
        self.pending = 0
        self.oldest_wait_s = 0.0
        self.waiting: list[tuple[list[list[bytes]], Callable]] = []
        self.sent: list[list[bytes]] = []

    def send(self, commands: Sequence[bytes], done: Callable) -> bool:
        if not self.connected:
            return False
        parsed = []
        for command in commands:
            reader = hiredis.Reader()
            reader.feed(command)
            parsed.append(reader.gets())
        self.sent += parsed
        self.waiting.append((parsed, done))
        self.pending += len(parsed)
        return True

    def answer(self) -> None:
        while self.waiting:
            commands, done = self.waiting.pop(0)
            self.pending -= len(commands)
            done([self._one(words) for words in commands], 0.001)

    def lose(self) -> None:
        waiting, self.waiting, self.connected = self.waiting, [], False
        for _, done in waiting:
            done(None, 0.0)

    def _one(self, words: list[bytes]) -> object:
        if words[0] == b"GET":
            return self.stored.get(words[1], (b"", None))[1]
        if words[0] == b"TOUCH":
            return int(words[1] in self.stored)
        if words[1] not in self.stored and len(self.stored) >= self.capacity:
            return hiredis.ReplyError("OOM command not allowed when used memory > 'maxmemory'.")
        self.stored[words[1]] = tuple(words)[1:]
        return b"OK"


def arrivals(keys: list[int], op: Op = Op.READ, ttl_ms: int = 0) -> Arrivals:
    n = len(keys)
    return Arrivals(
        np.arange(n),
        np.array(keys, dtype=np.uint64),
        np.full(n, op, dtype=np.uint8),
        np.full(n, 50, dtype=np.int32),
        np.full(n, ttl_ms, dtype=np.int64),
        np.zeros(n, dtype=np.uint8),
        ("k:",),
    )


def client(link: QueueLink) -> CacheAside:
    return CacheAside(link, pending_limit=10, behind_s=1.0)  # type: ignore[arg-type]


def test_commands_are_encoded_as_the_servers_read_them():
    assert encode(b"SET", b"k", b"") == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n"


def test_a_miss_is_loaded_and_the_next_lookup_hits():
    link = QueueLink()
    aside = client(link)
    for _ in range(2):
        aside.send(Requests(arrivals([1, 2])))
        link.answer()
    counters = aside.counters
    assert (counters.lookups, counters.hits, counters.loads, counters.refused, counters.errors) == (4, 2, 2, 0, 0)
    assert sum(counters.latency_counts) == 4


def test_a_key_that_misses_twice_in_one_pipeline_is_two_misses_and_one_load():
    link = QueueLink()
    aside = client(link)
    aside.send(Requests(arrivals([7, 7])))
    link.answer()
    assert (aside.counters.lookups, aside.counters.hits, aside.counters.loads) == (2, 0, 1)


def test_loads_carry_the_applications_ttl_and_size():
    link = QueueLink()
    client(link).send(Requests(arrivals([1], ttl_ms=15_000)))
    link.answer()
    client(link).send(Requests(arrivals([2], ttl_ms=1_234)))
    link.answer()
    stores = [words for words in link.sent if words[0] == b"SET"]
    assert [words[3:] for words in stores] == [[b"EX", b"15"], [b"PX", b"1234"]]
    assert {len(words[2]) for words in stores} == {50}


def test_a_full_server_that_refuses_is_counted_as_refusing_and_never_as_an_error():
    link = QueueLink(capacity=1)
    aside = client(link)
    aside.send(Requests(arrivals([1, 2, 3])))
    link.answer()
    assert (aside.counters.loads, aside.counters.refused, aside.counters.errors) == (3, 2, 0)


def test_writes_go_straight_to_the_cache_and_are_no_lookups():
    link = QueueLink()
    aside = client(link)
    aside.send(Requests(arrivals([1, 2], op=Op.WRITE)))
    link.answer()
    assert (aside.counters.writes, aside.counters.lookups, len(link.stored)) == (2, 0, 2)


def test_a_server_that_is_too_far_behind_is_dropped_from_and_not_waited_for():
    link = QueueLink()
    aside = client(link)
    for _ in range(4):
        aside.send(Requests(arrivals([1, 2, 3])))
    assert (len(link.sent), aside.counters.dropped) == (9, 3)
    link.answer()
    link.oldest_wait_s = 1.5
    aside.send(Requests(arrivals([4])))
    assert aside.counters.dropped == 4


def test_requests_lost_with_a_connection_are_errors_and_no_lookups():
    link = QueueLink()
    aside = client(link)
    ended: list[bool] = []
    aside.send(Requests(arrivals([1, 2])), lambda: ended.append(True))
    link.lose()
    aside.send(Requests(arrivals([3])), lambda: ended.append(True))
    assert (aside.counters.lookups, aside.counters.errors, ended) == (0, 3, [True, True])


def test_an_error_answer_is_no_lookup():
    link = QueueLink()
    aside = client(link)
    aside.send(Requests(arrivals([1])))
    _, done = link.waiting.pop()
    done([hiredis.ReplyError("LOADING Valkey is loading the dataset in memory")], 0.001)
    assert (aside.counters.lookups, aside.counters.errors, aside.counters.loads) == (0, 1, 0)


def test_a_prefill_asks_with_touch_and_stores_what_is_missing():
    link = QueueLink()
    aside = client(link)
    ended: list[bool] = []
    aside.send(Requests(arrivals([1, 1, 2]), verb=b"TOUCH"), lambda: ended.append(True))
    link.answer()
    assert ended == [True]
    assert len(link.stored) == 2
    aside.send(Requests(arrivals([1, 2]), verb=b"TOUCH"))
    link.answer()
    assert aside.counters.hits == 2
