"""Why lookups missed: streams whose truth is known, because a small cache was played over them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.captured_reads import read_capture
from agents.miss_split import CAPTURE_SOURCE, FLOW_SOURCE, Flows, flows_of, split_misses
from agents.windows import Window
from tests.unit.agents.looks import capture

READ, WRITE, DELETE = 0, 1, 2
WARM_MS, CAPTURE_MS, RATE_PER_S = 60_000, 20_000, 1_000


def _stream(seed, universe, one_hit_share=0.0):
    """A Zipf stream of (key, time), some of whose lookups are for keys that never come again."""
    rng = np.random.default_rng(seed)
    n = RATE_PER_S * (WARM_MS + CAPTURE_MS) // 1_000
    popularity = np.arange(1, universe + 1) ** -0.9
    keys = rng.choice(universe, size=n, p=popularity / popularity.sum())
    once = rng.random(n) < one_hit_share
    keys[once] = 10**9 + np.arange(once.sum())
    return keys.tolist(), np.sort(rng.integers(0, WARM_MS + CAPTURE_MS, n)).tolist()


class _Cache:
    """A cache-aside client and its cache: LRU of `capacity` keys, TTL at the load; `refuses`: full means no write, not eviction."""

    def __init__(self, capacity=10**9, ttl_ms=0, refuses=False):
        self.capacity, self.ttl_ms, self.refuses = capacity, ttl_ms, refuses
        self.entries, self.seen, self.left = OrderedDict(), set(), {}
        self.rows, self.loads, self.ages_ms = [], [], []
        self.used = {}
        self.counts = dict.fromkeys(
            ("lookups", "cold", "expired", "evicted", "refused", "flow_x", "flow_e", "flow_r"), 0
        )

    def play(self, keys, times):
        for key, now in zip(keys, times, strict=True):
            measured = now >= WARM_MS
            self._expire(now, measured)
            if measured:
                self.rows.append((now, key, READ, 0, 0))
                self.counts["lookups"] += 1
            if key in self.entries:
                self.entries.move_to_end(key)
                self.used[key] = now
            else:
                if measured:
                    self.counts[self.left.get(key, "evicted") if key in self.seen else "cold"] += 1
                self.seen.add(key)
                self._load(key, now, measured)
        return self

    def _expire(self, now, measured):
        # Active expiry, as far as it matters here: all entries have the same TTL, so deadlines pass in the order of the loads.
        while self.ttl_ms and self.loads and self.loads[0][0] + self.ttl_ms <= now:
            at, key = self.loads.pop(0)
            if self.entries.get(key) == at:
                del self.entries[key]
                self.left[key] = "expired"
                self.counts["flow_x"] += measured

    def _load(self, key, now, measured):
        if len(self.entries) >= self.capacity:
            if self.refuses:
                # A refused command is not shown to MONITOR, so the capture has no row for it.
                self.left[key] = "refused"
                self.counts["flow_r"] += measured
                return
            victim, _ = self.entries.popitem(last=False)
            self.left[victim] = "evicted"
            self.ages_ms.append(now - self.used[victim])
            self.counts["flow_e"] += measured
        self.entries[key] = self.used[key] = now
        self.loads.append((now, key))
        if measured:
            self.rows.append((now + 3, key, WRITE, 300, self.ttl_ms))

    def truth(self):
        return {name: self.counts[name] / self.counts["lookups"] for name in ("cold", "expired", "evicted", "refused")}

    def flows(self):
        n, truth = self.counts["lookups"], self.truth()
        return Flows(
            missed=sum(truth.values()),
            evicted=self.counts["flow_e"] / n,
            expired=self.counts["flow_x"] / n,
            refused=self.counts["flow_r"] / n,
            uptime_ms=WARM_MS + CAPTURE_MS,
        )


@pytest.mark.parametrize(
    ("universe", "one_hit_share", "kwargs", "tolerance"),
    [
        pytest.param(5_000, 0.0, {"capacity": 1_000}, 0.02, id="lru"),
        pytest.param(5_000, 0.15, {"capacity": 1_000}, 0.06, id="lru_with_keys_that_never_come_again"),
        pytest.param(30_000, 0.15, {"capacity": 6_000}, 0.06, id="lru_that_keeps_keys_for_most_of_the_capture"),
        pytest.param(5_000, 0.0, {"ttl_ms": 8_000}, 0.02, id="ttl"),
        pytest.param(5_000, 0.0, {"ttl_ms": 40_000}, 0.02, id="ttl_longer_than_the_capture"),
        pytest.param(5_000, 0.15, {"ttl_ms": 8_000}, 0.06, id="ttl_with_keys_that_never_come_again"),
        pytest.param(5_000, 0.0, {"capacity": 1_500, "ttl_ms": 8_000}, 0.06, id="ttl_and_lru"),
        pytest.param(5_000, 0.0, {"capacity": 1_000, "refuses": True}, 0.02, id="noeviction"),
        pytest.param(
            5_000, 0.15, {"capacity": 1_000, "refuses": True}, 0.06, id="noeviction_with_keys_that_never_come_again"
        ),
        pytest.param(2_000, 0.0, {}, 0.02, id="nothing_ever_leaves"),
    ],
)
def test_the_split_of_a_capture_is_close_to_the_truth(universe, one_hit_share, kwargs, tolerance):
    cache = _Cache(**kwargs).play(*_stream(3, universe, one_hit_share))
    age_ms = int(np.mean(cache.ages_ms)) if cache.ages_ms else None
    got = split_misses(cache.flows(), read_capture(capture(cache.rows)), age_ms)
    truth = cache.truth()
    assert {name: getattr(got, name) for name in truth} == pytest.approx(truth, abs=tolerance)
    assert got.source == CAPTURE_SOURCE


def test_without_a_capture_the_counters_tell_a_ttl_from_too_little_memory():
    by_ttl = split_misses(_Cache(ttl_ms=8_000).play(*_stream(4, 5_000)).flows())
    by_size = split_misses(_Cache(capacity=1_000).play(*_stream(4, 5_000)).flows())
    by_refusal = split_misses(_Cache(capacity=1_000, refuses=True).play(*_stream(4, 5_000)).flows())
    assert (by_ttl.binding, by_size.binding, by_refusal.binding) == ("expired", "evicted", "refused")
    assert by_ttl.source == FLOW_SOURCE


def test_misses_that_no_counter_explains_are_cold():
    assert split_misses(Flows(missed=0.4, expired=0.1)).cold == pytest.approx(0.3)


def test_an_update_soon_after_a_read_is_no_miss_where_nothing_can_leave():
    rows = [(t, t % 40, READ, 0, 0) for t in range(0, 20_000, 10)] + [
        (t + 2, t % 40, WRITE, 100, 0) for t in range(0, 20_000, 50)
    ]
    got = split_misses(Flows(missed=0.02), read_capture(capture(rows)))
    assert (got.cold, got.evicted, got.expired, got.refused) == (pytest.approx(0.02), 0.0, 0.0, 0.0)


def test_deleted_keys_are_cold():
    rows = []
    for t in range(0, 20_000, 20):
        rows += [(t, t % 100, DELETE, 0, 0), (t + 5, t % 100, READ, 0, 0), (t + 8, t % 100, WRITE, 100, 0)]
    got = split_misses(Flows(missed=1.0, evicted=0.5), read_capture(capture(rows)))
    assert got.cold == pytest.approx(1.0)


def test_a_key_that_outlived_its_ttl_but_not_the_eviction_age_was_evicted():
    rows = []
    for t in range(0, 30_000, 10):
        rows += [(t, (t // 10) % 500, READ, 0, 0), (t + 3, (t // 10) % 500, WRITE, 100, 4_000)]
    reads, flows = read_capture(capture(rows)), Flows(missed=1.0, evicted=1.0, expired=0.01, uptime_ms=30_000)
    assert split_misses(flows, reads, eviction_age_ms=500).binding == "evicted"
    assert split_misses(flows, reads, eviction_age_ms=4_500).binding == "expired"


def test_a_window_without_lookups_has_no_split():
    assert flows_of(Window(problem="first look")) is None
    assert split_misses(None) is None


def test_a_window_without_misses_binds_nothing():
    assert split_misses(flows_of(Window(window_ms=1_000, hits=10, evicted=3))).binding == "none"


_SHARES = st.floats(0.0, 2.0)


@pytest.mark.slow
@given(
    flows=st.builds(
        Flows, missed=st.floats(0.0, 1.0), evicted=_SHARES, expired=_SHARES, refused=_SHARES,
        uptime_ms=st.none() | st.integers(0, 10**9),
    ),
    seed=st.none() | st.integers(0, 50),
    age=st.none() | st.integers(1, 100_000),
)  # fmt: skip
def test_parts_are_never_negative_and_add_up_to_the_miss_ratio(flows, seed, age):
    reads = None
    if seed is not None:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(0, 3_000))
        span = int(rng.integers(1, 30_000))
        columns = (
            rng.integers(0, span, n),
            rng.integers(0, 300, n),
            rng.choice(3, n, p=(0.6, 0.35, 0.05)),
            rng.integers(0, 2, n) * 90,
        )
        rows = list(zip(*(c.tolist() for c in columns), (rng.integers(0, 3, n) * 2_000).tolist(), strict=True))
        reads = read_capture(capture(rows))
    got = split_misses(flows, reads, age)
    parts = (got.cold, got.expired, got.evicted, got.refused)
    assert min(parts) >= 0.0
    assert sum(parts) == pytest.approx(flows.missed, abs=1e-9)
    assert flows.evicted > 0 or got.evicted == 0.0
    assert flows.refused > 0 or got.refused == 0.0


def test_a_read_is_a_miss_if_its_load_follows_at_once():
    rows = [
        (0, 1, READ, 0, 0), (4, 1, WRITE, 50, 9_000),  # a miss and its load
        (100, 1, READ, 0, 0),  # a hit
        (200, 2, READ, 0, 0), (1_900, 2, WRITE, 50, 0),  # an update, too late for a load
        (300, 3, READ, 0, 0), (301, 3, WRITE, 0, 60_000),  # only a deadline moved
        (5_000, 9, READ, 0, 0),  # too near the end to be judged
    ]  # fmt: skip
    reads = read_capture(capture(rows))
    assert reads.at_ms.tolist() == [0, 100, 200, 300]
    assert reads.missed.tolist() == [True, False, False, False]
    assert reads.load_ttl_ms.tolist() == [9_000, 0, 0, 0]
    assert reads.seen.tolist() == [False, True, False, False]
    assert (reads.idle_ms[1], reads.written_ago_ms[1], reads.ttl_ms[1]) == (96, 96, 9_000)


def test_an_empty_capture_can_be_read():
    reads = read_capture(capture([]))
    assert len(reads) == 0
    assert reads.miss_ratio is None
    assert reads.hot_keys == 0


def test_keys_with_more_than_a_hundredth_of_the_lookups_are_hot():
    rows = [(t, 1 if t % 4 == 0 else 1_000 + t, READ, 0, 0) for t in range(1_000)]
    assert read_capture(capture(rows)).hot_keys == 1
    assert read_capture(capture(rows, rate=0.01)).hot_keys == 0
