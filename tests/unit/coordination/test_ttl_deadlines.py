"""Deadlines under a TTL rule, against an application and a governor that do whatever they like."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachewarden.messages import TtlRule
from coordination.ttl_deadlines import MARK_EXTENDED, MARK_RESTORED, extended_deadline_ms, restored_deadline_ms

RULE = TtlRule(pattern="user:", written_ttl_ms=300_000, extended_ttl_ms=600_000, max_staleness_ms=600_000)
NOW = 1_800_000_000_000

times = st.integers(NOW, NOW + 10_000_000)
rules = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(
    lambda pair: TtlRule(pattern="p", written_ttl_ms=pair[0], extended_ttl_ms=sum(pair), max_staleness_ms=sum(pair))
)


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
