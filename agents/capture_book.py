"""Captures of one service that follow one upon the other, put together into one history of its accesses.

A capture of seconds says little about a cache whose keys live for minutes. Captures that begin where the last one ended
are kept as one sample: the moments in between, in which MONITOR was set up again, are a thousandth of the time. How
long the next pause must be follows from what MONITOR costs the server, so a quiet cache is watched without a pause and
a busy one rarely.

It starts nothing and asks no server. INVARIANT: what is held never has more than `rows_max` rows, lies within the
history, and has the spatial rate of its coarsest part.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from agents.captured_reads import CapturedReads, read_capture
from cachewarden.cachemodel.shards import MODULUS, SpatialFilter
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.observation import AccessSample

__all__ = ["CaptureBook", "monitor_cost_ms", "pause_after_ms"]

_LINE_COST_US: Final = 13.0
"""Server time that a MONITOR client adds to a command: GET fell from 104,000 to 45,000 a second with one client
(Redis's own page on MONITOR), 9.6 to 22.2 us each."""
_BYTE_COST_US: Final = 0.12
"""The same for each byte of a line, since values are escaped and copied: a SET of 10 kB took 1.0 to 1.26 ms more, one
of 100 kB 11.7 ms more (Redis 7.0.15, CPU of the server with and without a MONITOR client)."""
_GAP_MAX_MS: Final = 2_000
"""Between two captures that still are one history; MONITOR needs some tens of milliseconds to be set up again."""
_KEYS_ENOUGH: Final = 8_000
"""So many sampled keys give an error of 0.6 points; below, the oldest moments go instead of keys."""
_THINNED_TO: Final = 0.75
"""Share of the bound that is left after thinning, so that not each capture thins anew."""


def monitor_cost_ms(lines: int, bytes_: int) -> float:
    """Return the milliseconds of the server that a capture of so many lines and bytes has taken."""
    return (lines * _LINE_COST_US + bytes_ * _BYTE_COST_US) / 1000.0


def pause_after_ms(captured_ms: int, cost_ms: float, server_share: float) -> int:
    """Return how long MONITOR must rest after `captured_ms` that took `cost_ms` of the server, so that it takes at most
    `server_share` (0..1] of one core in the long run; 0 where it takes less than that all the time.

    Raises ValueError for a share outside of that range.
    """
    if not 0.0 < server_share <= 1.0:
        raise ValueError(f"a share of `{server_share}` of the server is out of range, use one above 0 and up to 1")
    return max(0, round(cost_ms / server_share - captured_ms))


class CaptureBook:
    """See the module. `rows_max` > 0 bounds what is held; below `keys_enough` sampled keys it is time that goes."""

    def __init__(self, *, rows_max: int = 200_000, keys_enough: int = _KEYS_ENOUGH) -> None:
        self.access: AccessSample | None = None
        self.reads: CapturedReads | None = None
        """Of the newest capture alone: which reads miss depends on the configuration, which may have changed since."""
        self.arrived_ms = 0
        self._rows_max, self._keys_enough = rows_max, keys_enough
        self._whole: AccessSample | None = None
        """The newest history, which `access` is as well unless one from before a gap still tells more."""
        self._handed_out_ms = 0
        self._same = True
        """Whether `access` is an earlier state of the newest history and not one from before a gap."""

    def __len__(self) -> int:
        return 0 if self._whole is None else len(self._whole.trace)

    @property
    def duration_ms(self) -> int:
        """Return from the first to the last access that is held."""
        return 0 if self._whole is None else self._whole.trace.duration_ms

    def take(self, capture: AccessSample, *, from_ms: int, to_ms: int, history_ms: int) -> None:
        """Take in a capture that ran from `from_ms` to `to_ms` by the collector's clock.

        It is added to what is held if it follows upon it, else a new history begins with it. The old one is handed out
        until the new one is half as long, or it is half its length ago. Nothing older than `history_ms` before the
        newest access is kept.
        """
        held = self._whole
        follows = held is not None and from_ms - self.arrived_ms <= _GAP_MAX_MS
        if len(capture.trace) == 0:
            # Nobody asked for anything: that is known of the time as well.
            self.arrived_ms = to_ms if follows and capture.aborted is None else self.arrived_ms
            return
        joins = held is not None and follows and _in_order(held, capture)
        known_ms = 0 if self.access is None else self.access.trace.duration_ms
        if not joins and capture.aborted and 2 * capture.trace.duration_ms < known_ms:
            # It renews nothing either, so what is handed out is forgotten in time.
            return
        self.arrived_ms, self.reads = to_ms, read_capture(capture)
        self._whole = self._bounded(_joined(held, capture) if held is not None and joins else capture, history_ms)
        self._same = self._same and joins
        if self.access is None or self._same or self._tells_more(self.access, self._whole, to_ms):
            self.access, self._same, self._handed_out_ms = self._whole, True, to_ms

    def forget(self) -> None:
        """Drop everything."""
        self.access = self.reads = self._whole = None
        self._same = True

    def _tells_more(self, known: AccessSample, whole: AccessSample, now_ms: int) -> bool:
        """Say whether to hand out `whole`, which began after a gap, instead of what was known before it."""
        half_ms = known.trace.duration_ms / 2
        return whole.trace.duration_ms >= half_ms or now_ms - self._handed_out_ms > half_ms

    def _bounded(self, access: AccessSample, history_ms: int) -> AccessSample:
        time = access.trace.time_ms
        first = int(np.searchsorted(time, time[-1] - history_ms)) if history_ms > 0 else 0
        if first:
            access = _chosen(access, np.arange(len(time)) >= first, access.spatial_rate)
        rows = len(access.trace)
        if rows <= self._rows_max:
            return access
        share = _THINNED_TO * self._rows_max / rows
        rate = max(access.spatial_rate * share, 1.0 / MODULUS)
        if access.trace.distinct_keys() * share >= self._keys_enough:
            thinned = _thinned(access, rate)
            if 0 < len(thinned.trace) <= self._rows_max:
                return thinned
        return _chosen(access, np.arange(rows) >= rows - int(_THINNED_TO * self._rows_max), access.spatial_rate)


def _in_order(held: AccessSample, capture: AccessSample) -> bool:
    """Say whether a capture is of the same patterns and lies after what is held by the server's own clock."""
    same = held.patterns == capture.patterns and held.source == capture.source
    return same and int(capture.trace.time_ms[0]) >= int(held.trace.time_ms[-1])


def _joined(held: AccessSample, capture: AccessSample) -> AccessSample:
    rate = min(held.spatial_rate, capture.spatial_rate)
    one, other = _thinned(held, rate), _thinned(capture, rate)
    return AccessSample(
        trace=AccessTrace.concat([one.trace, other.trace]),
        pattern=np.concatenate([one.pattern, other.pattern]),
        patterns=capture.patterns,
        spatial_rate=rate,
        lines_seen=capture.lines_seen,
        aborted=capture.aborted,
        source=capture.source,
    )


def _thinned(access: AccessSample, rate: float) -> AccessSample:
    if rate >= access.spatial_rate:
        return access
    return _chosen(access, SpatialFilter(rate).keeps_each(access.trace.key), rate)


def _chosen(access: AccessSample, rows: npt.NDArray[np.bool_], rate: float) -> AccessSample:
    return AccessSample(
        trace=access.trace.rows(rows),
        pattern=access.pattern[rows],
        patterns=access.patterns,
        spatial_rate=rate,
        lines_seen=access.lines_seen,
        aborted=access.aborted,
        source=access.source,
    )
