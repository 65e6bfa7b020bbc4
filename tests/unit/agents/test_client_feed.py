"""The client feed inside the collector: one clock, no batch twice, bounded, and believed only where it agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.captured_reads import read_capture
from agents.collector import Collector
from agents.feed_book import FEED_SOURCE, FeedBook
from agents.feed_watch import FeedWatch
from cachewarden.cachemodel.shards import MODULUS
from cachewarden.feed import LAG_MS, ROWS_MAX
from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.machine import Observe, Observed, Received, Send
from cachewarden.protocol import ObserveFleet
from cachewarden.settings import CacheOptimizerSettings
from tests.unit.agents.fed import batch, read, write
from tests.unit.agents.looks import look

HISTORY_MS = 240_000


def book(**changes):
    return FeedBook(("page:", "cart:"), **{"history_ms": HISTORY_MS, **changes})


# --- The book


def test_recorders_with_clocks_of_their_own_are_put_into_one_order():
    fed = book()
    # Given one whose clock began long ago and one that has just started, both reporting the same two seconds
    fed.take(
        batch([read(5_000_500, 1), read(5_001_500, 3)], recorder="old", from_ms=5_000_000, to_ms=5_002_000), 100_000
    )
    fed.take(batch([read(1_000, 2), read(1_900, 4)], recorder="new", from_ms=0, to_ms=2_000), 100_000)
    sample = fed.sample(90_000, 110_000)
    assert sample.trace.key.tolist() == [1, 2, 3, 4]
    assert sample.trace.time_ms.tolist() == [98_500, 99_000, 99_500, 99_900]
    assert (sample.source, sample.spatial_rate) == (FEED_SOURCE, 1.0)
    assert fed.recorders(100_000) == 2


def test_the_shortest_way_of_late_sets_a_recorders_clock_so_that_one_slow_post_moves_nothing():
    fed = book()
    fed.take(batch([read(1_000, 1)], seq=1, from_ms=0, to_ms=2_000), 52_000)
    # When the next post takes three seconds on its way
    fed.take(batch([read(3_000, 2)], seq=2, from_ms=2_000, to_ms=4_000), 57_000)
    assert fed.sample(0, 100_000).trace.time_ms.tolist() == [51_000, 53_000]


def test_a_clock_that_stood_still_is_set_anew():
    fed = book()
    fed.take(batch([read(1_000, 1)], seq=1), 52_000)
    fed.take(batch([read(3_000, 2)], seq=2, from_ms=2_000, to_ms=4_000), 104_000)
    assert fed.sample(0, 200_000).trace.time_ms.tolist() == [51_000, 103_000]


def test_a_batch_that_comes_twice_counts_once_and_one_that_was_overtaken_counts():
    fed = book()
    assert fed.take(batch([read(1, 1)], seq=1), 10_000) is None
    assert fed.take(batch([read(1, 1)], seq=1), 10_500) == "came twice"
    assert fed.take(batch([read(1, 1)], seq=3), 11_000) is None
    assert fed.take(batch([read(1, 1)], seq=2), 11_000) is None
    assert fed.take(batch([read(1, 1)], seq=1, recorder="b"), 11_000) is None
    assert (fed.batches, dict(fed.dropped)) == (4, {"came twice": 1})


def test_batches_beyond_the_history_are_dropped_and_forgotten():
    fed = book(history_ms=60_000)
    assert fed.take(batch([read(1, 1)], sent_ms=100_000), 500_000) == "too old"
    fed.take(batch([read(1, 1)], seq=2, recorder="b"), 500_000)
    fed.forget(570_000)
    assert (fed.rows_held, fed.recorders(570_000), fed.sample(0, 600_000)) == (0, 0, None)


def test_a_flood_lowers_the_rate_so_that_keys_go_and_no_moment_does():
    fed = book(rows_max=5_000)
    rng = np.random.default_rng(1)
    for seq in range(20):
        at = 2_000 * seq
        keys = rng.integers(0, 2**63, 1_000)
        fed.take(
            batch([read(at + n, int(k)) for n, k in enumerate(keys)], seq=seq, from_ms=at, to_ms=at + 2_000), at + 2_000
        )
        assert fed.rows_held <= 5_000
    sample = fed.sample(0, 40_000)
    assert sample.spatial_rate in (0.25, 0.125)
    assert len(sample.trace) == pytest.approx(20_000 * sample.spatial_rate, rel=0.1)
    assert sample.trace.duration_ms > 38_000
    assert (sample.trace.key % MODULUS < sample.spatial_rate * MODULUS).all()


def test_more_recorders_than_can_be_told_apart_are_not_taken():
    fed = book()
    results = [fed.take(batch([], recorder=f"r{n}"), 10_000) for n in range(300)]
    assert results.count(None) == 256
    assert dict(fed.dropped) == {"more than 256 recorders": 44}


def test_a_pattern_that_the_fleet_file_does_not_have_is_not_taken():
    fed = FeedBook(("page:",), history_ms=HISTORY_MS)
    assert "pattern" in fed.take(batch([read(1, 1, pattern=1)]), 10_000)


def test_a_sample_has_the_lowest_rate_of_its_time_and_leaves_out_a_short_low_start():
    fed = book()
    keys = [0, MODULUS // 2 + 1]
    fed.take(batch([read(1, keys[0])], seq=1, rate=0.25), 2_000)
    for seq in range(2, 12):
        at = 2_000 * (seq - 1)
        fed.take(batch([read(at, k) for k in keys], seq=seq, from_ms=at, to_ms=at + 2_000), at + 2_000)
    assert fed.sample(0, 22_000).spatial_rate == 0.25
    assert set(fed.sample(0, 22_000).trace.key.tolist()) == {0}
    since = fed.steady_from(0, 22_000, 10_000)
    assert since == 2_000
    whole = fed.sample(since + 1, 22_000)
    assert (whole.spatial_rate, set(whole.trace.key.tolist())) == (1.0, set(keys))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.sampled_from([1.0, 0.5, 0.25])), max_size=30))
def test_whatever_comes_in_whatever_order_the_sample_is_in_time_order_and_of_one_rate(posts):
    fed = book(rows_max=200)
    now_ms = 100_000
    for recorder, seq, rate in posts:
        now_ms += 700
        rows = [read(10_000 * seq + n, n * 37 % int(rate * MODULUS)) for n in range(40)]
        fed.take(
            batch(rows, seq=seq, recorder=recorder, rate=rate, from_ms=10_000 * seq, to_ms=10_000 * seq + 2_000), now_ms
        )
    assert fed.rows_held <= 200
    sample = fed.sample(0, now_ms + 1)
    if sample is not None:
        assert (np.diff(sample.trace.time_ms) >= 0).all()
        assert (sample.trace.key % MODULUS < sample.spatial_rate * MODULUS).all()


# --- Against the server's counters


def watched(lookups, hits=None, *, hits_fed=None, count=1_000):
    """A watch over one window of 10 s in which recorders report `lookups` of `count`."""
    fed = book()
    told = round(0.8 * lookups) if hits_fed is None else hits_fed
    fed.take(batch([], lookups=lookups, hits=told, misses=lookups - told, from_ms=0, to_ms=10_000), 20_000)
    watch = FeedWatch(fed)
    known = round(0.8 * count) if hits is None else hits
    watch.note(from_ms=10_000, to_ms=20_000, hits=known, misses=count - known)
    return watch


def test_a_window_is_judged_only_when_everything_that_was_reported_of_it_can_have_arrived():
    watch = watched(980)
    assert watch.judge(20_000 + LAG_MS - 1).from_ms is None
    verdict = watch.judge(20_000 + LAG_MS)
    assert (verdict.from_ms, verdict.to_ms, verdict.coverage) == (10_000, 20_000, pytest.approx(0.98))


@pytest.mark.parametrize(
    ("watch", "why"),
    [
        (watched(600), "60% of the lookups"),
        (watched(1_500), "another server"),
        (watched(1_000, hits=700), "hit ratio of 0.800"),
        (watched(0), "0% of the lookups"),
    ],
    ids=["some processes only", "more than all", "other outcomes", "silence"],
)
def test_a_feed_that_does_not_agree_with_the_servers_counters_may_not_stand_for_the_cache(watch, why):
    verdict = watch.judge(30_000)
    assert (verdict.from_ms, verdict.usable_ms) == (None, 0)
    assert why in verdict.reason


def test_the_usable_time_grows_while_windows_agree_and_begins_anew_after_one_that_does_not():
    fed = book()
    watch = FeedWatch(fed)
    spans = []
    for n in range(6):
        start = 10_000 * n
        lookups = 300 if n == 3 else 1_000
        fed.take(batch([], seq=n, lookups=lookups, hits=lookups, from_ms=start, to_ms=start + 10_000), start + 10_000)
        watch.note(from_ms=start, to_ms=start + 10_000, hits=1_000, misses=0)
        spans.append(watch.judge(start + 10_000 + LAG_MS).usable_ms)
    assert spans == [10_000, 20_000, 30_000, 0, 10_000, 20_000]


def test_a_window_with_hardly_any_lookup_changes_nothing():
    watch = watched(1_000)
    watch.judge(30_000)
    watch.note(from_ms=20_000, to_ms=30_000, hits=3, misses=0)
    verdict = watch.judge(40_000)
    assert (verdict.from_ms, verdict.to_ms) == (10_000, 20_000)
    assert "too few" in verdict.reason


# --- What the application saw


def test_a_miss_that_the_application_saw_is_a_miss_even_if_nothing_is_loaded():
    fed = book()
    rows = [read(0, 1), read(100, 2, missed=1), read(200, 3, missed=1), write(250, 3), read(5_000, 1)]
    fed.take(batch(rows, to_ms=8_000), 8_000)
    reads = read_capture(fed.sample(0, 8_000))
    assert reads.missed.tolist() == [False, True, True]


# --- The collector

SETTINGS = CacheOptimizerSettings(
    _env_file=None, cycle_interval_ms=10_000, observation_window_ms=10_000, capture_ms=20_000
)


class Loop:
    """A collector of one service that is looked at every ten seconds while recorders report."""

    def __init__(self, *, feed=True, capture=True):
        service = Service(
            name="cart", url="redis://cart", feed=feed, capture=capture,
            patterns=(KeyPattern(prefix="page:"), KeyPattern(prefix="cart:")),
        )  # fmt: skip
        self.agent = Collector(Fleet(services=(service,)), SETTINGS)
        self.hits = 0
        self.cycle = 0

    def round(self, reported=1_000):
        """Ten seconds with 1,000 lookups, `reported` of them by a recorder; returns (snapshot, effects)."""
        self.cycle += 1
        self.hits += 1_000
        now_ms = 10_000 * self.cycle
        rows = [read(now_ms - 10_000 + 20 * n, n % 50) for n in range(min(reported, 500))]
        if reported:
            fed = batch(rows, seq=self.cycle, lookups=reported, hits=reported, from_ms=now_ms - 10_000, to_ms=now_ms)
            assert self.agent.step(Received(sender="api", message=fed), now_ms) == ()
        asked = self.agent.step(
            Received(sender="coordinator", message=ObserveFleet(cycle=self.cycle, services=("cart",))), now_ms
        )
        (ref,) = [e.ref for e in asked if isinstance(e, Observe) and e.ref.startswith("look:")]
        seen = look(now_ms, keyspace_hits=self.hits, monitor=True)
        effects = self.agent.step(Observed(ref=ref, service="cart", observation=seen), now_ms)
        (sent,) = [e for e in effects if isinstance(e, Send)]
        (snapshot,) = sent.message.snapshots
        return snapshot, (*asked, *effects)


def sources(snapshot):
    return {s.name: s for s in snapshot.sources}


def captures(effects):
    return [e for e in effects if isinstance(e, Observe) and e.ref.startswith("capture:")]


def test_a_feed_that_covers_the_traffic_answers_and_says_at_which_cost_and_error():
    loop = Loop(capture=False)
    snapshots = [loop.round()[0] for _ in range(8)]
    assert snapshots[2].access is None
    assert "20 s are needed" in snapshots[2].incomplete["access"]
    last = snapshots[-1]
    assert (last.access.source, len(np.unique(last.access.trace.key))) == (FEED_SOURCE, 50)
    assert "access" not in last.incomplete
    report = sources(last)["client_feed"]
    assert report.used
    assert report.coverage == pytest.approx(1.0)
    assert "no command on the cache" in report.cost
    assert report.expected_error == pytest.approx(0.57 / 50**0.5)
    assert "100% of the lookups" in report.reason
    assert loop.agent.feed_report("cart", 80_000).used
    assert [s.name for s in last.sources] == ["client_feed", "monitor_capture", "passive_probe", "counters"]
    assert last.light().sources == last.sources


def test_while_the_feed_answers_no_monitor_is_started_and_when_it_fails_one_is():
    loop = Loop()
    effects = [loop.round()[1] for _ in range(6)]
    assert captures(effects[1]) or captures(effects[0])
    loop.agent.step(Observed(ref="capture:cart", service="cart", observation=look(60_000)), 60_000)
    later = [e for _ in range(20) for e in captures(loop.round()[1])]
    assert later == []
    # When the recorders fall silent
    fallen = [loop.round(reported=0) for _ in range(4)]
    assert captures([e for _, effects in fallen for e in effects])
    report = sources(fallen[-1][0])["client_feed"]
    assert not report.used
    assert "0% of the lookups" in report.reason


def test_a_feed_of_some_processes_only_is_not_used_and_the_view_says_so():
    loop = Loop(capture=False)
    snapshot = [loop.round(reported=500)[0] for _ in range(8)][-1]
    assert snapshot.access is None
    assert "the fleet file permits no captures; client feed: only 50%" in snapshot.incomplete["access"]
    assert sources(snapshot)["client_feed"].coverage == pytest.approx(0.5)


def test_a_service_without_feed_takes_no_batch_and_an_unknown_one_none_either():
    loop = Loop(feed=False, capture=False)
    snapshot = [loop.round()[0] for _ in range(4)][-1]
    assert snapshot.access is None
    assert snapshot.incomplete["access"] == "the fleet file permits no captures"
    assert "`feed: true`" in sources(snapshot)["client_feed"].reason
    assert loop.agent.feed_report("cart", 0) is None
    assert loop.agent.step(Received(sender="api", message=batch([], service="unknown")), 0) == ()
    assert loop.agent.feed_report("unknown", 0) is None


# --- What a batch may be


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rows": [read(5_000, 1)]}, "within from_ms to to_ms"),
        ({"rows": [read(10, 1), read(5, 1)]}, "time order"),
        ({"rows": [read(1, MODULUS // 2)], "rate": 0.5}, "drops"),
        ({"rows": [read(1, 1)] * (ROWS_MAX + 1)}, "at most"),
        ({"rows": [(1, 1, 3, 0, 0, -1, 0)]}, "`op`"),
        ({"rows": [(1, 1, 1, 2**31, 0, -1, -1)]}, "`size_bytes`"),
        ({"rows": [(1, 2**64, 0, 0, 0, -1, 0)]}, "`key`"),
        ({"rows": [(1, 1, 1, 0, -1, -1, -1)]}, "`ttl_ms`"),
        ({"rows": [read(1, 1, pattern=2)]}, "`pattern`"),
        ({"rows": [read(1, 1)], "lookups": 0, "hits": 0}, "more rows of reads"),
        ({"rows": [], "hits": 5, "lookups": 3}, "more than 3 lookups"),
        ({"rows": [], "sent_ms": 1_000}, "before it happened"),
        ({"rows": [], "to_ms": 10**6}, "covers at most"),
        ({"rows": [], "lookups": -1}, "negative"),
        ({"rows": [], "lookups": 10**12}, "beyond all traffic"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_cannot_be_is_refused_with_the_reason(changes, why):
    rows = changes.pop("rows")
    with pytest.raises(ValueError, match=why):
        batch(rows, **changes)
