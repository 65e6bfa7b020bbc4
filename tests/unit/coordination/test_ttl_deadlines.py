"""Deadlines under a TTL rule, against an application and a governor that do whatever they like."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachewarden.messages import TtlRule
from coordination.ttl_deadlines import (
    MARK_EXTENDED,
    MARK_RESTORED,
    extended_deadline_ms,
    restored_deadline_ms,
    shortened_deadline_ms,
    used_since_written,
)

RULE = TtlRule(pattern="user:", written_ttl_ms=300_000, extended_ttl_ms=600_000, max_staleness_ms=600_000)
NOW = 1_800_000_000_000

times = st.integers(NOW, NOW + 10_000_000)
rules = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(
    lambda pair: TtlRule(pattern="p", written_ttl_ms=pair[0], extended_ttl_ms=sum(pair), max_staleness_ms=sum(pair))
)
jittered = st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.floats(0.001, 0.999)).map(
    lambda t: TtlRule(
        pattern="p", written_ttl_ms=t[0], extended_ttl_ms=t[0] + t[1], max_staleness_ms=t[0] + t[1],
        jitter_ms=max(1, min(int((t[0] + t[1]) * t[2]), t[0] + t[1] - 1)),
    )
    if t[0] + t[1] > 1
    else RULE
)  # fmt: skip


def test_a_key_gets_the_extended_ttl_counted_from_its_write():
    written_ms = NOW - 200_000
    wanted = extended_deadline_ms(RULE, written_ms + 300_000, NOW)
    assert wanted is not None
    assert written_ms + 599_000 < wanted <= written_ms + 600_000
    assert wanted % 1000 == MARK_EXTENDED


def test_keys_without_ttl_without_existence_or_with_a_longer_ttl_are_left_alone():
    assert extended_deadline_ms(RULE, -1, NOW) is None
    assert extended_deadline_ms(RULE, -2, NOW) is None
    assert extended_deadline_ms(RULE, NOW + 300_001, NOW) is None
    assert restored_deadline_ms(RULE, -1, NOW) is None
    assert restored_deadline_ms(RULE, -2, NOW) is None


def test_a_marked_deadline_further_away_than_any_of_ours_is_a_chance_mark_and_not_put_back():
    assert restored_deadline_ms(RULE, NOW + 86_400_000 + MARK_EXTENDED, NOW) is None


@given(rules, times, st.integers(1, 10**6))
def test_an_extension_never_shortens_and_is_never_repeated(rule, now_ms, left_ms):
    wanted = extended_deadline_ms(rule, now_ms + left_ms, now_ms)
    if wanted is not None:
        assert wanted > now_ms + left_ms
        assert extended_deadline_ms(rule, wanted, now_ms) is None


@given(
    rules,
    st.lists(
        st.tuples(st.sampled_from(["write", "extend", "restore", "wait"]), st.floats(0, 1)), min_size=1, max_size=40
    ),
)
def test_no_history_makes_a_key_live_longer_than_the_extended_ttl_after_its_write(rule, history):
    now_ms, written_ms, deadline_ms = NOW, NOW, -2
    for what, share in history:
        if 0 <= deadline_ms <= now_ms:
            deadline_ms = -2
        if what == "write":
            written_ms, deadline_ms = now_ms, now_ms + max(1, int(rule.written_ttl_ms * share))
        elif what == "extend":
            wanted = extended_deadline_ms(rule, deadline_ms, now_ms)
            deadline_ms = wanted if wanted is not None and wanted > deadline_ms else deadline_ms
        elif what == "restore":
            wanted = restored_deadline_ms(rule, deadline_ms, now_ms)
            deadline_ms = wanted if wanted is not None and wanted < deadline_ms else deadline_ms
            # INVARIANT: whatever carries our mark ends within the written TTL from now.
            if deadline_ms >= 0 and deadline_ms % 1000 == MARK_RESTORED:
                assert deadline_ms <= now_ms + rule.written_ttl_ms
        else:
            now_ms += int(rule.extended_ttl_ms * share)
        assert deadline_ms <= written_ms + rule.extended_ttl_ms


@given(jittered, times, st.floats(0, 1), st.floats(0, 1))
def test_a_jitter_never_lets_a_key_outlive_its_rule_nor_ends_it_at_once_nor_acts_twice(rule, now_ms, share, draw):
    deadline_ms = now_ms + int(rule.written_ttl_ms * share)
    wanted = extended_deadline_ms(rule, deadline_ms, now_ms, draw)
    if wanted is None:
        return
    written_at_ms = deadline_ms - rule.written_ttl_ms
    assert wanted <= written_at_ms + rule.extended_ttl_ms
    assert wanted > min(now_ms, deadline_ms)
    assert wanted > deadline_ms or rule.shortens
    assert extended_deadline_ms(rule, wanted, now_ms, draw) is None


UNREAD = TtlRule(pattern="p", written_ttl_ms=0, extended_ttl_ms=60_000, max_staleness_ms=60_000, unread_ms=600_000)


@given(times, st.integers(-2, 10**6), st.one_of(st.none(), st.integers(0, 10**7)))
def test_only_keys_surely_idle_for_as_long_as_the_rule_says_end_sooner_and_none_later(now_ms, left_ms, idle_ms):
    deadline_ms = left_ms if left_ms < 0 else now_ms + left_ms
    wanted = shortened_deadline_ms(UNREAD, deadline_ms, now_ms, idle_ms)
    if wanted is None:
        return
    assert idle_ms is not None
    assert idle_ms >= UNREAD.unread_ms
    assert now_ms < wanted <= now_ms + UNREAD.extended_ttl_ms
    assert deadline_ms == -1 or wanted < deadline_ms
    assert shortened_deadline_ms(UNREAD, wanted, now_ms, idle_ms) is None


def test_the_write_itself_is_no_use_of_a_key_and_silence_of_the_server_neither():
    deadline_ms = NOW + 200_000
    assert used_since_written(RULE, deadline_ms, NOW, 50_000, None)
    assert not used_since_written(RULE, deadline_ms, NOW, 99_000, None)
    assert not used_since_written(RULE, deadline_ms, NOW, None, None)
    assert used_since_written(RULE, deadline_ms, NOW, None, 6)
    assert not used_since_written(RULE, deadline_ms, NOW, None, 5)
