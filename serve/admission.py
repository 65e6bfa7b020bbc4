"""Whether there is room for a request: a rate for each token, a bound on decisions that are being made at once, and one
on requests that wait for what becomes of theirs.

Whatever is refused is refused at once, with the time after which to ask again, so that overload does not make a queue
in which everybody waits. Who finds no place to wait is told what is known by then: his decision is made already. Times
are seconds of a monotonic clock, given by the caller. INVARIANT: no bucket ever holds more than its burst, and what was
entered is left again, however it ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

from cachewarden.settings import CacheOptimizerSettings
from serve.errors import ApiError

__all__ = ["Admission", "TokenBucket"]

_BUCKETS_MAX: Final = 10_000


class TokenBucket:
    """`rate_per_s` goes in, at most `burst` is held, one is taken out by each request."""

    __slots__ = ("_at_s", "_burst", "_held", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self._rate_per_s, self._burst = rate_per_s, max(1.0, burst)
        self._held, self._at_s = self._burst, now_s

    def take(self, now_s: float) -> float:
        """Take one out and return 0, or return the seconds after which there will be one."""
        # A clock that stood still or went back fills nothing.
        self._held = min(self._burst, self._held + max(0.0, now_s - self._at_s) * self._rate_per_s)
        self._at_s = max(self._at_s, now_s)
        # Sums of fractions may miss a whole by a hair.
        if self._held >= 1.0 - 1e-9:
            self._held = max(0.0, self._held - 1.0)
            return 0.0
        return (1.0 - self._held) / self._rate_per_s


class Admission:
    """`rate_per_s` for each caller, with a burst of one second's worth; `decisions_max` at once, and `waiting_max` that
    wait afterwards. Use `with` around a decision, and `with ... .place_to_wait()` around what comes then."""

    def __init__(self, rate_per_s: float, decisions_max: int, waiting_max: int) -> None:
        self._rate_per_s = rate_per_s
        self._decisions_max = decisions_max
        self._waiting_max = waiting_max
        self._buckets: dict[str, TokenBucket] = {}
        self.deciding = 0
        self.limited = 0
        """Requests refused for their token's rate."""
        self.shed = 0
        """Decisions refused because too many were being made."""
        self.waiting = 0
        """Requests that wait for a cache or a cycle."""

    @classmethod
    def of(cls, settings: CacheOptimizerSettings) -> Admission:
        """Return what the settings of a deployment allow."""
        return cls(settings.requests_per_s_per_token, settings.decisions_in_flight_max, settings.requests_waiting_max)

    def charge(self, caller: str, now_s: float) -> None:
        """Charge one request to a caller; raises ApiError 429 where his rate is used up."""
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= _BUCKETS_MAX:
                self._buckets.pop(next(iter(self._buckets)))
            bucket = self._buckets[caller] = TokenBucket(self._rate_per_s, self._rate_per_s, now_s)
        wait_s = bucket.take(now_s)
        if wait_s:
            self.limited += 1
            raise ApiError(
                429,
                f"the token `{caller}` may ask {self._rate_per_s:g} times per second, ask again later",
                code="RATE_LIMIT_EXCEEDED",
                details={"requests_per_s": self._rate_per_s},
                headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
            )

    def __enter__(self) -> None:
        if self.deciding >= self._decisions_max:
            self.shed += 1
            raise ApiError(
                503,
                "too many decisions are being made at once, ask again later",
                details={"decisions_max": self._decisions_max},
                headers={"Retry-After": "1"},
            )
        self.deciding += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deciding -= 1

    @contextmanager
    def place_to_wait(self) -> Iterator[bool]:
        """Say whether the request may wait. Its client may have gone long ago: it is the wait that takes the place."""
        room = self.waiting < self._waiting_max
        self.waiting += room
        try:
            yield room
        finally:
            self.waiting -= room
