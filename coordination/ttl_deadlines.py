"""Which deadline a key gets under a TTL rule; pure, and without any memory of its own.

Which keys were extended already is written into the deadlines themselves: a deadline of ours ends in `MARK_EXTENDED`
milliseconds of its second, one that was put back in `MARK_RESTORED`; both are left alone by a later extension until
the application writes the key anew. So a pass may be interrupted, repeated or run by somebody else. One key in five
hundred carries a mark by chance and merely keeps its TTL.

Keys that would end sooner by a rule are marked as well, so that nothing is shortened twice.

INVARIANT: no key lives longer than `extended_ttl_ms` after the application wrote it, provided that the application
writes TTLs of at most `written_ttl_ms`. The age of a key is `written_ttl_ms` minus what is left of its TTL, which for
a shorter TTL errs towards too old.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from cachewarden.messages import TtlRule

__all__ = [
    "LFU_OF_NEW",
    "MARK_EXTENDED",
    "MARK_RESTORED",
    "MARK_SHORTENED",
    "draw_of",
    "extended_deadline_ms",
    "restored_deadline_ms",
    "shortened_deadline_ms",
    "used_since_written",
]

MARK_EXTENDED: Final = 777
MARK_RESTORED: Final = 776
MARK_SHORTENED: Final = 775
LFU_OF_NEW: Final = 5
"""LFU_INIT_VAL of the servers' evict.c: what a new key counts."""
_MARKS: Final = (MARK_EXTENDED, MARK_RESTORED, MARK_SHORTENED)
_IDLE_RESOLUTION_MS: Final = 1_000
"""OBJECT IDLETIME counts whole seconds of the server's LRU clock, which itself moves once a second."""
_RESTORED_OVER: Final = 0.5
"""Share of the written TTL over which keys that are put back are spread: all at once they would end together."""


def _marked(latest_ms: int, mark: int) -> int:
    """Return the latest time that is not after `latest_ms` and ends in `mark`."""
    return latest_ms - (latest_ms - mark) % 1000


def draw_of(name: bytes, deadline_ms: int) -> float:
    """Return a draw from 0..1 that is the same for a key with the same deadline, whoever asks (CRC-32 of both)."""
    return crc32(name, deadline_ms & 0xFFFFFFFF) / 0xFFFFFFFF


def extended_deadline_ms(rule: TtlRule, deadline_ms: int, now_ms: int, draw: float = 0.0) -> int | None:
    """Return the new absolute deadline of a key that now ends at `deadline_ms`, None where it must be left alone.

    `deadline_ms` is PEXPIRETIME (-1 no TTL, -2 no key), all times are the server's; `draw` (0..1) of the rule's jitter
    is taken off. The new deadline is earlier than the old one only under a rule that shortens.
    """
    if rule.unread_ms or deadline_ms < 0 or deadline_ms % 1000 in _MARKS:
        return None
    if deadline_ms - now_ms > rule.written_ttl_ms:
        # Written by somebody to whom the rule does not apply.
        return None
    latest_ms = deadline_ms - rule.written_ttl_ms + rule.extended_ttl_ms - round(draw * rule.jitter_ms)
    wanted = _marked(latest_ms, MARK_EXTENDED)
    if wanted > deadline_ms:
        return wanted
    wanted = _marked(latest_ms, MARK_SHORTENED)
    # A deadline that has passed would delete the key at once, and all such keys together.
    return wanted if rule.shortens and now_ms < wanted < deadline_ms else None


def used_since_written(
    rule: TtlRule, deadline_ms: int, now_ms: int, idle_ms: int | None, frequency: int | None
) -> bool:
    """Say whether a key was surely used after it was written, by its idle time or, under LFU, its counter.

    The write itself counts as a use, so a key is only told to be idle for less time than it is old by more than the
    clock's two whole seconds. What the server does not tell is no use.
    """
    if frequency is not None:
        return frequency > LFU_OF_NEW
    if idle_ms is None:
        return False
    age_ms = rule.written_ttl_ms - (deadline_ms - now_ms)
    return idle_ms + 2 * _IDLE_RESOLUTION_MS <= age_ms


def shortened_deadline_ms(rule: TtlRule, deadline_ms: int, now_ms: int, idle_ms: int | None) -> int | None:
    """Return the deadline of a key that nobody has touched for as long as the rule says, None for all others.

    `deadline_ms` as above, -1 for a key without a TTL; `idle_ms` None where the server does not tell.
    """
    if not rule.unread_ms or deadline_ms == -2 or deadline_ms % 1000 in _MARKS:
        return None
    if idle_ms is None or idle_ms < rule.unread_ms:
        return None
    wanted = _marked(now_ms + rule.extended_ttl_ms, MARK_SHORTENED)
    return wanted if wanted > now_ms and (deadline_ms == -1 or wanted < deadline_ms) else None


def restored_deadline_ms(rule: TtlRule, deadline_ms: int, now_ms: int, draw: float = 0.0) -> int | None:
    """Return the deadline that puts an extended key back, None for keys that were not extended or end soon enough.

    `draw` (0..1) spreads what is put back over half of the written TTL.
    """
    if deadline_ms < 0 or deadline_ms % 1000 != MARK_EXTENDED:
        return None
    if deadline_ms - now_ms > rule.extended_ttl_ms:
        # No deadline of ours is that far away: the mark stands there by chance.
        return None
    wanted = _marked(now_ms + round(rule.written_ttl_ms * (1.0 - draw * _RESTORED_OVER)), MARK_RESTORED)
    return wanted if wanted < deadline_ms else None
