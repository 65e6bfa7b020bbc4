"""How long the idle times of a cache have been true, as far as we have seen it.

A key keeps its counter of LFU until it is touched again, and after a switch away from LFU the server reads that counter
as an idle time: anything from 0 to 194 days, for keys that were just written too. Such a key was not touched since the
switch, so an idle time of at most the time since the switch is true, and a longer one is at least that long.

INVARIANT: no longer than the server has told us, without a long gap, that keys carry idle times; None where unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["GAP_MAX_MS", "IdleTrust"]

GAP_MAX_MS: Final = 300_000
"""Looks that are further apart prove nothing about the time between them."""


class IdleTrust:
    """What the looks at one server have told about its eviction policy; times are of any clock that only goes on."""

    def __init__(self) -> None:
        self._run_id = ""
        self._since_ms: float | None = None
        self._idle_run: tuple[str, float] = ("", 0.0)
        """The newest look that found idle times: its process, and when."""
        self._last_ms = 0.0
        self._forgot_ms: float | None = None
        """When idle times were last known to be worthless."""

    def note(self, info: Mapping[str, str], asked_ms: float, answered_ms: float) -> int | None:
        """Take an INFO with its `server` and `memory`, and return for how long idle times were true when it was
        asked for."""
        policy, run_id = info.get("maxmemory_policy", ""), info.get("run_id", "")
        if not policy or not run_id or policy.endswith("-lfu"):
            self.forget()
            self._forgot_ms = answered_ms
            return None
        if self._since_ms is None or run_id != self._run_id or answered_ms - self._last_ms > GAP_MAX_MS:
            self._run_id, self._since_ms = run_id, answered_ms
        self._last_ms = answered_ms
        self._idle_run = run_id, asked_ms
        return max(0, int(asked_ms - self._since_ms))

    def vouch(self, known_ms: int, asked_ms: float) -> int | None:
        """Take what another adapter has seen of the same server until `asked_ms`, and return what is known now.

        Nothing is believed of the time before we have seen LFU or set a policy ourselves, nor before the first look.
        """
        if self._since_ms is None:
            return None
        earliest_ms = asked_ms - known_ms
        if self._forgot_ms is not None:
            earliest_ms = max(earliest_ms, self._forgot_ms)
        self._since_ms = min(self._since_ms, earliest_ms)
        return max(0, int(asked_ms - self._since_ms))

    def counted_ms(self, info: Mapping[str, str], now_ms: float) -> int | None:
        """Return for how long LFU counters can have been counting at most: since the server's start, or since we have
        last seen another policy; None under another policy, or where the server does not tell."""
        uptime = info.get("uptime_in_seconds", "")
        if not info.get("maxmemory_policy", "").endswith("-lfu") or not uptime.isdecimal():
            return None
        # A second more than it tells: it tells whole ones, and the first must not count as none.
        longest_ms = (int(uptime) + 1) * 1000
        run_id, seen_ms = self._idle_run
        return min(longest_ms, max(1, int(now_ms - seen_ms))) if run_id == info.get("run_id") else longest_ms

    def forget(self, now_ms: float | None = None) -> None:
        """Begin anew, since the policy may have changed; `now_ms` where it is we who change it."""
        self._since_ms = None
        self._forgot_ms = self._forgot_ms if now_ms is None else now_ms
