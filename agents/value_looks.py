"""When the collector looks into values, and what it remembers of that.

Reading values is the dearest and most intrusive look, so it runs apart from the others, rarely, one at a time per
service, and only where the fleet file permits it. It decides nothing about the cache.

INVARIANT: two looks into the values of one service lie at least `pause_ms` apart, whatever became of the first.
"""

from __future__ import annotations

from typing import Any

from cachewarden.machine import Effect, Observe, SetTimer
from cachewarden.observation import Observation
from cachewarden.value_sample import ValueSample

__all__ = ["ValueLook"]

_ANSWER_MS = 120_000
"""At one per cent of a core of the server, four megabytes of values take some seconds."""


class ValueLook:
    """The looks into the values of one service. `keys` 0: never; `permitted`: by the fleet file."""

    def __init__(self, service: str, *, permitted: bool, keys: int, pause_ms: int) -> None:
        self._service = service
        self._permitted = permitted
        self._keys = keys
        self._pause_ms = pause_ms
        self._next_ms = 0
        self._running = False
        self._problem: str | None = None
        self._arrived_ms = 0
        self.sample: ValueSample | None = None

    def start(self, now_ms: int) -> tuple[Effect, ...]:
        """Return the look if one is due."""
        if not self._permitted or self._keys <= 0 or self._running or now_ms < self._next_ms:
            return ()
        self._running, self._next_ms = True, now_ms + self._pause_ms
        return (
            Observe(ref=f"values:{self._service}", service=self._service, value_keys=self._keys),
            SetTimer(ref=f"values-deadline:{self._service}", due_ms=now_ms + _ANSWER_MS),
        )

    def arrived(self, observation: Any, now_ms: int) -> None:
        """Take the answer in; one that holds no sample is a failure with the adapter's reason."""
        values = observation.values if isinstance(observation, Observation) else None
        if values is None:
            reasons = observation.incomplete if isinstance(observation, Observation) else {}
            self.failed(reasons.get("values", "the look into values brought nothing"))
            return
        self._running, self._problem, self.sample, self._arrived_ms = False, None, values, now_ms

    def failed(self, reason: str) -> None:
        """Note why a look brought nothing; the next one waits its time all the same."""
        if self._running:
            self._running, self._problem = False, reason

    def forget_old(self, now_ms: int) -> None:
        """Drop a sample that the next two looks should have replaced."""
        if self.sample is not None and now_ms - self._arrived_ms > 3 * self._pause_ms + _ANSWER_MS:
            self.sample = None

    def remark(self) -> str | None:
        """Return why there is no sample, or no newer one; None where all is well."""
        if not self._permitted:
            return "the fleet file does not permit reading values, set `value_samples: true` for the service"
        if self._keys <= 0:
            return "`value_sample_keys` is 0"
        return self._problem or ("no look into values has ended yet" if self.sample is None else None)
