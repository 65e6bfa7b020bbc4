"""Which deadline a key gets under a TTL rule; pure, and without any memory of its own.

Which keys were extended already is written into the deadlines themselves: a deadline of ours ends in `MARK_EXTENDED`
milliseconds of its second, one that was put back in `MARK_RESTORED`; both are left alone by a later extension until
the application writes the key anew. So a pass may be interrupted, repeated or run by somebody else. One key in five
hundred carries a mark by chance and merely keeps its TTL.

INVARIANT: no key lives longer than `extended_ttl_ms` after the application wrote it, provided that the application
writes TTLs of at most `written_ttl_ms`. The age of a key is `written_ttl_ms` minus what is left of its TTL, which for
a shorter TTL errs towards too old.
"""

from __future__ import annotations

from typing import Final

from cachewarden.messages import TtlRule

__all__ = ["MARK_EXTENDED", "MARK_RESTORED", "extended_deadline_ms", "restored_deadline_ms"]

MARK_EXTENDED: Final = 777
MARK_RESTORED: Final = 776


def _marked(latest_ms: int, mark: int) -> int:
    """Return the latest time that is not after `latest_ms` and ends in `mark`."""
    return latest_ms - (latest_ms - mark) % 1000


def extended_deadline_ms(rule: TtlRule, deadline_ms: int, now_ms: int) -> int | None:
    """Return the new absolute deadline of a key that now ends at `deadline_ms`, None where it must be left alone.

    `deadline_ms` is PEXPIRETIME (-1 no TTL, -2 no key), all times are the server's.
    """
    if deadline_ms < 0 or deadline_ms % 1000 in (MARK_EXTENDED, MARK_RESTORED):
        return None
    if deadline_ms - now_ms > rule.written_ttl_ms:
        # Written by somebody to whom the rule does not apply.
        return None
    written_at_ms = deadline_ms - rule.written_ttl_ms
    wanted = _marked(written_at_ms + rule.extended_ttl_ms, MARK_EXTENDED)
    return wanted if wanted > deadline_ms else None


def restored_deadline_ms(rule: TtlRule, deadline_ms: int, now_ms: int) -> int | None:
    """Return the deadline that puts an extended key back, None for keys that were not extended or end soon enough."""
    if deadline_ms < 0 or deadline_ms % 1000 != MARK_EXTENDED:
        return None
    if deadline_ms - now_ms > rule.extended_ttl_ms:
        # No deadline of ours is that far away: the mark stands there by chance.
        return None
    wanted = _marked(now_ms + rule.written_ttl_ms, MARK_RESTORED)
    return wanted if wanted < deadline_ms else None
