"""Since when idle times are true, and passes that wait for it."""

from __future__ import annotations

import pytest

from cachewarden.errors import TargetRefused
from cachewarden.messages import Lease, TtlRule
from coordination.idle_trust import GAP_MAX_MS, IdleTrust
from coordination.redis_probe import Pacer
from coordination.redis_ttl import ttl_pass
from coordination.redis_wire import RedisWire

LRU = {"run_id": "a", "maxmemory_policy": "allkeys-lru"}
LFU = {"run_id": "a", "maxmemory_policy": "allkeys-lfu"}
RULE = TtlRule(pattern="p", written_ttl_ms=0, extended_ttl_ms=60_000, max_staleness_ms=60_000, unread_ms=600_000)


def looks(*seen):
    """Return what is known after looks of (time, INFO), each answered at once."""
    trust = IdleTrust()
    return [trust.note(info, at_ms, at_ms) for at_ms, info in seen]


def test_idle_times_are_true_for_as_long_as_lru_was_seen():
    assert looks((1_000, LRU), (61_000, LRU), (121_000, LRU)) == [0, 60_000, 120_000]


def test_a_switch_from_lfu_begins_anew():
    assert looks((0, LRU), (60_000, LFU), (61_000, LRU), (62_000, LRU)) == [0, None, 0, 1_000]


@pytest.mark.parametrize("unclear", [{}, {"run_id": "a"}, {"maxmemory_policy": "allkeys-lru"}])
def test_what_the_server_does_not_tell_is_not_known(unclear):
    assert looks((0, LRU), (60_000, unclear), (61_000, LRU)) == [0, None, 0]


def test_another_process_and_a_long_time_without_a_look_begin_anew():
    assert looks((0, LRU), (1_000, {**LRU, "run_id": "b"})) == [0, 0]
    assert looks((0, LRU), (GAP_MAX_MS + 1, LRU)) == [0, 0]


def test_time_on_the_way_is_not_counted():
    trust = IdleTrust()
    trust.note(LRU, 0, 4_000)
    assert trust.note(LRU, 9_000, 12_000) == 5_000


def test_a_policy_that_we_set_ourselves_begins_anew():
    trust = IdleTrust()
    trust.note(LRU, 0, 0)
    trust.forget()
    assert trust.note(LRU, 60_000, 60_000) == 0


@pytest.mark.parametrize("known_ms", [None, 0, 599_999])
async def test_no_pass_for_keys_that_nobody_reads_begins_before_idle_times_are_known_for_long_enough(known_ms):
    # Nobody listens there: it is refused before anything is asked.
    wire = RedisWire("shop", "redis://127.0.0.1:1", username=None, password=None, timeout_s=1.0, max_connections=1)
    lease = Lease(service="shop", holder="me", epoch=1, expires_at_ms=1)
    with pytest.raises(TargetRefused, match="idle times are only believed"):
        await ttl_pass(
            wire, "cachewarden:fence", lease, RULE, 0, 100, restore=False, pacer=Pacer(share=1.0), own_prefix=b"c:",
            idle_known_ms=known_ms,
        )  # fmt: skip
    await wire.close()


# --- What others have seen, and counters --------------------------------------------------------------------------


def test_another_adapter_vouches_for_the_time_before_our_first_look():
    trust = IdleTrust()
    assert trust.vouch(600_000, 1_000) is None, "nothing was looked at yet"
    trust.note(LRU, 1_000, 1_000)
    assert trust.vouch(600_000, 1_000) == 600_000
    assert trust.note(LRU, 61_000, 61_000) == 660_000


def test_nobody_vouches_for_the_time_before_we_have_seen_lfu_or_set_a_policy():
    seen = IdleTrust()
    seen.note(LFU, 50_000, 50_000)
    seen.note(LRU, 60_000, 60_000)
    assert seen.vouch(600_000, 60_000) == 10_000
    ours = IdleTrust()
    ours.note(LRU, 0, 0)
    ours.forget(40_000)
    ours.note(LRU, 60_000, 60_000)
    assert ours.vouch(600_000, 60_000) == 20_000


def test_vouching_for_less_than_is_known_changes_nothing():
    trust = IdleTrust()
    trust.note(LRU, 0, 0)
    trust.note(LRU, 60_000, 60_000)
    assert trust.vouch(1_000, 60_000) == 60_000


def test_counters_are_as_old_as_the_server_or_as_the_policy():
    trust, lfu = IdleTrust(), {**LFU, "uptime_in_seconds": "99"}
    assert trust.counted_ms({**LRU, "uptime_in_seconds": "99"}, 0) is None
    assert trust.counted_ms(LFU, 0) is None
    assert trust.counted_ms(lfu, 0) == 100_000
    trust.note(LRU, 10_000, 10_100)
    assert trust.counted_ms(lfu, 14_000) == 4_000
    assert trust.counted_ms({**lfu, "run_id": "b"}, 14_000) == 100_000
