"""What every TargetCache promises, whether it is a server or a fake."""

from __future__ import annotations

import numpy as np
import pytest

from cachewarden.cachemodel.shards import hash_key
from cachewarden.errors import SettingsError, StaleFencingToken, TargetRefused, TargetUnavailable
from cachewarden.messages import KnobChange, Lease, TtlRule
from tests.contract.conftest import SECRET

SAMPLES = KnobChange(knob="maxmemory-samples", before="5", after="7")
RULE = TtlRule(pattern="user:", written_ttl_ms=300_000, extended_ttl_ms=600_000, max_staleness_ms=600_000)


def lease(epoch: int, holder: str = "us") -> Lease:
    return Lease(service="shop", holder=holder, epoch=epoch, expires_at_ms=2**42)


async def whole_pass(
    cache, held: Lease, rule: TtlRule = RULE, *, restore: bool = False, max_keys: int = 1_000
) -> tuple[int, int]:
    cursor, examined, extended = 0, 0, 0
    while True:
        step = await cache.target.extend_ttls(held, rule, cursor, max_keys, restore=restore)
        cursor, examined, extended = step.cursor, examined + step.examined, extended + step.extended
        if cursor == 0:
            return examined, extended


# --- Looking


async def test_a_look_brings_counters_knobs_and_capabilities(cache):
    cache.put("user:1")
    cache.look_up("user:1")
    cache.look_up("user:2")
    seen = await cache.target.observe(sample_keys=0, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert seen.service == "shop"
    assert int(seen.info["keyspace_hits"]) - seen.own_hits_total == 1
    assert int(seen.info["keyspace_misses"]) - seen.own_misses_total == 1
    assert seen.knobs["maxmemory-samples"] == "5"
    assert seen.capabilities.config_get
    assert seen.capabilities.config_set
    assert seen.capabilities.object_idletime
    assert not seen.capabilities.object_frequency
    assert seen.sample is None
    assert seen.access is None


async def test_looking_does_not_change_what_the_application_is_said_to_have_hit(cache):
    for number in range(50):
        cache.put(f"user:{number}")
    for number in range(30):
        cache.look_up(f"user:{number * 2}")
    for _ in range(3):
        await cache.target.observe(sample_keys=40, capture_ms=0, capture_lines=0, capture_rate=1.0)
    seen = await cache.target.counters()
    assert int(seen.info["keyspace_hits"]) - seen.own_hits_total == 25
    assert int(seen.info["keyspace_misses"]) - seen.own_misses_total == 5


async def test_a_sample_has_hashes_sizes_ttls_and_the_longest_pattern(cache):
    cache.put("user:1", ttl_ms=300_000, value_bytes=1_000)
    cache.put("user:vip:1")
    cache.put("session:1")
    seen = await cache.target.observe(sample_keys=100, capture_ms=0, capture_lines=0, capture_rate=1.0)
    rows = {int(key): number for number, key in enumerate(seen.sample.key)}
    assert set(rows) == {hash_key(SECRET, name) for name in (b"user:1", b"user:vip:1", b"session:1")}
    named = {name: rows[hash_key(SECRET, name.encode())] for name in ("user:1", "user:vip:1", "session:1")}
    pattern = {name: seen.sample.pattern[row] for name, row in named.items()}
    assert seen.sample.patterns[pattern["user:1"]] == "user:"
    assert seen.sample.patterns[pattern["user:vip:1"]] == "user:vip:"
    assert pattern["session:1"] == -1
    assert 290_000 < seen.sample.ttl_ms[named["user:1"]] <= 300_000
    assert seen.sample.ttl_ms[named["user:vip:1"]] == -1
    assert seen.sample.size_bytes[named["user:1"]] > 1_000
    assert seen.sample.idle_ms.min() >= 0
    assert seen.sample.frequency.max() == -1


async def test_a_sample_never_holds_more_keys_than_asked_for_and_none_twice(cache):
    for number in range(200):
        cache.put(f"page:{number}")
    seen = await cache.target.observe(sample_keys=50, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert len(seen.sample) == 50
    assert len(set(seen.sample.key.tolist())) == 50


async def test_an_empty_cache_gives_an_empty_sample(cache):
    seen = await cache.target.observe(sample_keys=50, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert len(seen.sample) == 0
    assert "sample" not in seen.incomplete


async def test_our_own_keys_are_not_in_a_sample(cache):
    await cache.target.raise_fence(lease(3))
    cache.put("user:1")
    seen = await cache.target.observe(sample_keys=50, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert seen.sample.key.tolist() == [hash_key(SECRET, b"user:1")]


async def test_values_are_not_read_unless_the_fleet_file_permits_it(cache):
    cache.put("user:1", value_bytes=5_000)
    seen = await cache.target.observe(sample_keys=0, capture_ms=0, capture_lines=0, capture_rate=1.0, value_keys=10)
    assert seen.values is None
    assert "fleet file" in seen.incomplete["values"]


async def test_permitted_values_are_told_as_lengths_and_do_not_count_as_lookups(measured_cache):
    cache = measured_cache
    for number in range(60):
        cache.put(f"user:{number}", value_bytes=2_000 + number // 2)
    for number in range(40):
        cache.put(f"page:{number}", value_bytes=100)
    before = await cache.target.counters()
    seen = await cache.target.observe(sample_keys=0, capture_ms=0, capture_lines=0, capture_rate=1.0, value_keys=40)
    after = await cache.target.counters()
    values = seen.values
    # Keys are drawn with replacement, so not all of a small keyspace come up; 40 of 100 always do.
    assert len(values) == 40
    assert len(values.value_row) == np.count_nonzero(values.size_bytes > 2_000)
    assert 0 < len(values.value_row) < 40
    assert (values.size_bytes[values.value_row] > 2_000).all()
    assert set(values.plain_bytes.tolist()) <= set(range(2_000, 2_030))
    assert (values.compressed_bytes < 100).all()
    assert {values.patterns[number] for number in values.pattern[values.value_row]} == {"user:"}
    for length in set(values.plain_bytes.tolist()):
        assert len(set(values.twin[values.plain_bytes == length].tolist())) == 1
    assert len(set(values.twin.tolist())) == len(set(values.plain_bytes.tolist()))
    for name, own in (("keyspace_hits", "own_hits_total"), ("keyspace_misses", "own_misses_total")):
        counted = int(after.info[name]) - int(before.info[name])
        assert counted == getattr(after, own) - getattr(before, own)


async def test_under_lfu_keys_have_a_frequency_instead_of_an_idle_time(cache):
    await cache.target.raise_fence(lease(3))
    await cache.target.write_knobs(
        lease(3), [KnobChange(knob="maxmemory-policy", before="noeviction", after="allkeys-lfu")]
    )
    cache.put("user:1")
    seen = await cache.target.observe(sample_keys=5, capture_ms=0, capture_lines=0, capture_rate=1.0)
    assert seen.capabilities.object_frequency
    assert not seen.capabilities.object_idletime
    assert seen.sample.frequency.tolist() == [5]
    assert seen.sample.idle_ms.tolist() == [-1]


async def test_a_cache_that_is_gone_is_unavailable_and_not_in_doubt(cache):
    held = lease(3)
    await cache.target.raise_fence(held)
    cache.cut_off()
    for ask in (
        cache.target.counters(),
        cache.target.observe(sample_keys=10, capture_ms=0, capture_lines=0, capture_rate=1.0),
        cache.target.read_knobs(["maxmemory"]),
        cache.target.raise_fence(held),
        cache.target.write_knobs(held, [SAMPLES]),
        cache.target.collect_hot_keys(5),
        cache.target.extend_ttls(held, RULE, 0, 100),
    ):
        with pytest.raises(TargetUnavailable):
            await ask


# --- Knobs and fences


async def test_unknown_knobs_are_missing_from_the_answer(cache):
    assert await cache.target.read_knobs(["maxmemory-samples", "no-such-knob"]) == {"maxmemory-samples": "5"}


async def test_a_write_under_the_right_fence_is_confirmed_by_reading_it_back(cache):
    await cache.target.raise_fence(lease(3))
    changes = [SAMPLES, KnobChange(knob="maxmemory", before="0", after="64mb")]
    assert await cache.target.write_knobs(lease(3), changes) == {"maxmemory-samples": "7", "maxmemory": str(64 << 20)}
    assert cache.knob("maxmemory") == str(64 << 20)


async def test_a_second_optimizer_takes_the_cache_and_the_first_can_write_no_more(cache):
    first, second = lease(3, "first"), lease(4, "second")
    await cache.target.raise_fence(first)
    await cache.target.raise_fence(second)
    with pytest.raises(StaleFencingToken) as caught:
        await cache.target.write_knobs(first, [SAMPLES])
    assert (caught.value.ours, caught.value.found) == (3, 4)
    assert cache.knob("maxmemory-samples") == "5"
    assert await cache.target.write_knobs(second, [SAMPLES]) == {"maxmemory-samples": "7"}


async def test_a_paused_writer_that_comes_back_cannot_raise_the_fence_again(cache):
    await cache.target.raise_fence(lease(4))
    with pytest.raises(StaleFencingToken) as caught:
        await cache.target.raise_fence(lease(3))
    assert caught.value.found == 4
    assert cache.fence() == 4


async def test_raising_the_same_fence_again_does_no_harm(cache):
    await cache.target.raise_fence(lease(3))
    await cache.target.raise_fence(lease(3))
    assert cache.fence() == 3


async def test_an_evicted_fence_stops_the_write_until_it_is_raised_again(cache):
    await cache.target.raise_fence(lease(3))
    cache.evict_fence()
    with pytest.raises(StaleFencingToken) as caught:
        await cache.target.write_knobs(lease(3), [SAMPLES])
    assert caught.value.found is None
    assert cache.knob("maxmemory-samples") == "5"
    await cache.target.raise_fence(lease(3))
    await cache.target.write_knobs(lease(3), [SAMPLES])
    assert cache.knob("maxmemory-samples") == "7"


@pytest.mark.parametrize(
    "changes",
    [
        [KnobChange(knob="appendonly", before="no", after="yes")],
        [KnobChange(knob="maxmemory-samples", before="5", after="10000")],
        [KnobChange(knob="maxmemory-policy", before="noeviction", after="mru")],
        [SAMPLES, SAMPLES],
        [],
    ],
    ids=["knob out of bounds", "value out of range", "unknown policy", "knob twice", "nothing"],
)
async def test_a_write_outside_the_knob_table_is_refused_before_anything_is_sent(cache, changes):
    await cache.target.raise_fence(lease(3))
    with pytest.raises(SettingsError):
        await cache.target.write_knobs(lease(3), changes)
    assert cache.knob("maxmemory-samples") == "5"


async def test_a_full_cache_that_refuses_writes_can_be_fenced_and_cured(cache):
    await cache.target.raise_fence(lease(3))
    await cache.target.write_knobs(lease(3), [KnobChange(knob="maxmemory", before="0", after=str(3 << 20))])
    assert any(not cache.put(f"user:{number}", value_bytes=2_000) for number in range(5_000))
    await cache.target.raise_fence(lease(4))
    await cache.target.write_knobs(
        lease(4), [KnobChange(knob="maxmemory-policy", before="noeviction", after="allkeys-lru")]
    )
    assert cache.put("user:after", value_bytes=2_000)


# --- Hot keys


async def test_the_hottest_keys_are_remembered_and_touched(cache):
    await cache.target.raise_fence(lease(3))
    for number in range(40):
        cache.put(f"user:{number}")
    assert await cache.target.collect_hot_keys(10) == 10
    assert await cache.target.touch_hot_keys(lease(3), 2, 10_000) == 10


async def test_no_hot_key_is_touched_once_the_fence_has_moved(cache):
    await cache.target.raise_fence(lease(3))
    cache.put("user:1")
    await cache.target.collect_hot_keys(10)
    await cache.target.raise_fence(lease(4))
    with pytest.raises(StaleFencingToken):
        await cache.target.touch_hot_keys(lease(3), 1, 10_000)


async def test_there_is_nothing_to_touch_before_anything_was_collected(cache):
    await cache.target.raise_fence(lease(3))
    assert await cache.target.touch_hot_keys(lease(3), 1, 10_000) == 0


async def test_after_a_switch_to_lfu_only_touched_keys_outrank_new_ones(cache):
    await cache.target.raise_fence(lease(3))
    for number in range(40):
        cache.put(f"user:{number}")
    await cache.target.collect_hot_keys(20)
    to_lfu = KnobChange(knob="maxmemory-policy", before="noeviction", after="allkeys-lfu")
    await cache.target.write_knobs(lease(3), [to_lfu])
    before = await cache.target.measure_spread(10)
    assert before.examined == 10
    await cache.target.touch_hot_keys(lease(3), 14, 10_000)
    after = await cache.target.measure_spread(10)
    assert (after.examined, after.above) == (10, 10)
    assert (await cache.target.measure_spread(1_000)).examined == 20


async def test_under_another_policy_there_are_no_frequencies_to_look_at(cache):
    await cache.target.raise_fence(lease(3))
    cache.put("user:1")
    await cache.target.collect_hot_keys(1)
    with pytest.raises(TargetRefused):
        await cache.target.measure_spread(10)


# --- What needs its owner's permission


async def test_keys_are_not_stored_again_unless_the_fleet_file_permits_it(cache):
    await cache.target.raise_fence(lease(3))
    with pytest.raises(TargetRefused, match="fleet file"):
        await cache.target.reencode_keys(lease(3), 0, 100, 1_000)


async def test_the_servers_file_is_not_rewritten_unless_the_fleet_file_permits_it(cache):
    await cache.target.raise_fence(lease(3))
    assert "config_rewrite: true" in await cache.target.rewrite_config(lease(3))


# --- TTL rules


async def test_a_key_is_extended_from_the_time_it_was_written_and_never_twice(cache):
    await cache.target.raise_fence(lease(3))
    # Written 200 s ago with 300 s to live: 100 s are left, and 600 s from the write are 400 s from now.
    cache.put("user:1", ttl_ms=100_000)
    written_by_ms = cache.now_ms() - 200_000
    assert await whole_pass(cache, lease(3)) == (1, 1)
    extended = cache.deadline_ms("user:1")
    assert written_by_ms + 598_000 < extended <= written_by_ms + 600_000
    assert await whole_pass(cache, lease(3)) == (1, 0)
    assert cache.deadline_ms("user:1") == extended


async def test_keys_that_the_rule_is_not_about_are_left_alone(cache):
    await cache.target.raise_fence(lease(3))
    cache.put("user:for ever")
    cache.put("user:longer", ttl_ms=301_000)
    cache.put("page:other", ttl_ms=100_000)
    before = {name: cache.deadline_ms(name) for name in ("user:for ever", "user:longer", "page:other")}
    assert (await whole_pass(cache, lease(3)))[1] == 0
    assert {name: cache.deadline_ms(name) for name in before} == before


async def test_a_restored_key_ends_within_the_written_ttl_and_is_not_extended_again(cache):
    await cache.target.raise_fence(lease(3))
    cache.put("user:1", ttl_ms=299_000)
    assert (await whole_pass(cache, lease(3)))[1] == 1
    assert (await whole_pass(cache, lease(3), restore=True))[1] == 1
    restored = cache.deadline_ms("user:1")
    assert restored <= cache.now_ms() + 300_000
    assert (await whole_pass(cache, lease(3)))[1] == 0
    assert cache.deadline_ms("user:1") == restored


async def test_a_key_that_the_application_writes_anew_is_extended_anew(cache):
    await cache.target.raise_fence(lease(3))
    cache.put("user:1", ttl_ms=100_000)
    await whole_pass(cache, lease(3))
    cache.put("user:1", ttl_ms=299_999)
    # A deadline that happens to carry a mark is left alone; write until it does not.
    while cache.deadline_ms("user:1") % 1000 in (775, 776, 777):
        cache.put("user:1", ttl_ms=299_990)
    assert (await whole_pass(cache, lease(3)))[1] == 1


async def test_a_pass_in_small_steps_comes_round_and_reaches_every_key(cache):
    await cache.target.raise_fence(lease(3))
    for number in range(300):
        cache.put(f"user:{number}", ttl_ms=200_000 + number * 7)
    examined, extended = await whole_pass(cache, lease(3), max_keys=40)
    assert examined >= 300
    # Deadlines that carry a mark by chance are left alone.
    left_alone = sum(cache.deadline_ms(f"user:{number}") <= cache.now_ms() + 210_000 for number in range(300))
    assert extended == 300 - left_alone
    assert left_alone <= 10


async def test_no_deadline_is_set_once_the_fence_has_moved(cache):
    await cache.target.raise_fence(lease(4))
    cache.put("user:1", ttl_ms=100_001)
    while cache.deadline_ms("user:1") % 1000 in (775, 776, 777):
        cache.put("user:1", ttl_ms=100_010)
    before = cache.deadline_ms("user:1")
    with pytest.raises(StaleFencingToken):
        await whole_pass(cache, lease(3))
    assert cache.deadline_ms("user:1") == before


async def test_keys_that_were_written_together_do_not_end_together_under_a_jitter(cache):
    rule = TtlRule(
        pattern="user:", written_ttl_ms=300_000, extended_ttl_ms=360_000, max_staleness_ms=600_000, jitter_ms=60_000
    )
    await cache.target.raise_fence(lease(3))
    for number in range(200):
        cache.put(f"user:{number}", ttl_ms=300_000)
    before = {f"user:{number}": cache.deadline_ms(f"user:{number}") for number in range(200)}
    step = await cache.target.extend_ttls(lease(3), rule, 0, 1_000)
    after = {name: cache.deadline_ms(name) for name in before}
    assert step.peak_found > 0.9
    assert step.peak_left < 0.1
    assert all(before[name] <= after[name] <= before[name] + 60_000 for name in before)
    assert (await cache.target.extend_ttls(lease(3), rule, 0, 1_000)).extended <= 2, "nothing is spread twice"


async def test_a_jitter_that_shortens_never_ends_a_key_at_once_and_never_prolongs(cache):
    rule = TtlRule(
        pattern="user:", written_ttl_ms=300_000, extended_ttl_ms=300_000, max_staleness_ms=300_000, jitter_ms=150_000
    )
    assert rule.shortens
    await cache.target.raise_fence(lease(3))
    for number in range(200):
        cache.put(f"user:{number}", ttl_ms=100_000)
    before = {f"user:{number}": cache.deadline_ms(f"user:{number}") for number in range(200)}
    await whole_pass(cache, lease(3), rule)
    after = {name: cache.deadline_ms(name) for name in before}
    assert all(cache.now_ms() < after[name] <= before[name] for name in before)
    assert sum(after[name] < before[name] - 1_000 for name in before) > 50


async def test_only_keys_that_were_used_since_they_were_written_are_extended(cache):
    rule = TtlRule(
        pattern="user:", written_ttl_ms=300_000, extended_ttl_ms=600_000, max_staleness_ms=600_000, only_read=True
    )
    await cache.target.raise_fence(lease(3))
    # 100 s old by its deadline and touched just now; the other one was written just now and not used since.
    cache.put("user:used", ttl_ms=200_001)
    cache.put("user:new", ttl_ms=299_901)
    before = cache.deadline_ms("user:new")
    assert await whole_pass(cache, lease(3), rule) == (2, 1)
    assert cache.deadline_ms("user:new") == before


async def test_only_keys_that_nobody_touched_for_so_long_end_sooner_whether_they_had_a_ttl_or_not(cache):
    rule = TtlRule(pattern="user:", written_ttl_ms=0, extended_ttl_ms=60_000, max_staleness_ms=600_000, unread_ms=2_000)
    await cache.target.raise_fence(lease(3))
    await cache.target.counters()
    cache.put("user:for ever")
    cache.put("user:long", ttl_ms=500_001)
    cache.put("user:short", ttl_ms=30_001)
    cache.put("page:other")
    for name in ("user:read", "user:read with a ttl"):
        cache.put(name, ttl_ms=0 if name == "user:read" else 400_000)
    kept = {name: cache.deadline_ms(name) for name in ("user:short", "page:other", "user:read", "user:read with a ttl")}
    cache.pass_time(3_500)
    for name in ("user:read", "user:read with a ttl"):
        cache.look_up(name)
    assert (await whole_pass(cache, lease(3), rule))[1] == 2
    for name in ("user:for ever", "user:long"):
        assert cache.now_ms() + 50_000 < cache.deadline_ms(name) <= cache.now_ms() + 60_000
    assert {name: cache.deadline_ms(name) for name in kept} == kept
    assert (await whole_pass(cache, lease(3), rule))[1] == 0, "nothing is shortened twice"


async def test_our_own_keys_keep_living_for_ever_under_a_pattern_that_matches_everything(cache):
    rule = TtlRule(pattern="c", written_ttl_ms=0, extended_ttl_ms=60_000, max_staleness_ms=600_000, unread_ms=1_000)
    await cache.target.raise_fence(lease(3))
    await cache.target.counters()
    cache.put("customer:1")
    cache.pass_time(2_500)
    assert await whole_pass(cache, lease(3), rule) == (1, 1)
    assert cache.fence() == 3
    if cache.server is not None:
        assert cache.server.admin.ttl("cachewarden:fence") == -1


async def test_what_is_put_back_is_spread_so_that_it_does_not_end_together(cache):
    await cache.target.raise_fence(lease(3))
    for number in range(200):
        cache.put(f"user:{number}", ttl_ms=299_000 - number)
    await whole_pass(cache, lease(3))
    step = await cache.target.extend_ttls(lease(3), RULE, 0, 1_000, restore=True)
    assert step.extended >= 190
    assert step.peak_left < 0.1
