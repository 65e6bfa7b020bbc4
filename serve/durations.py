"""How long things took, counted into buckets: a Prometheus histogram that costs a request as little as it can.

prometheus_client's own histogram looks at bucket after bucket under a lock; with nine observations for each decision
that is a tenth of the decision. It counts and renders; it never reads a clock. INVARIANT: used by one thread, the
loop's; what is rendered is what was counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import inf

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["Durations"]


class Durations(Collector):
    """Seconds by the values of `labels`; `bounds_s` are the upper bounds of the buckets, ascending, without infinity.

    A histogram without labels is there from the start, one with labels once something was counted.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds_s: Sequence[float]) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._bounds_s = tuple(bounds_s)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums_s: dict[tuple[str, ...], float] = {}
        if not labels:
            self._begin(())

    def _begin(self, values: tuple[str, ...]) -> list[int]:
        self._sums_s[values] = 0.0
        counts = self._counts[values] = [0] * (len(self._bounds_s) + 1)
        return counts

    def observe(self, values: tuple[str, ...], took_s: float) -> None:
        """Count one duration under the values of the labels."""
        counts = self._counts.get(values)
        if counts is None:
            counts = self._begin(values)
        counts[bisect_left(self._bounds_s, took_s)] += 1
        self._sums_s[values] += took_s

    def collect(self) -> Iterable[Metric]:
        """Return the histogram as it is now."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, counts in self._counts.items():
            below = 0
            buckets: list[tuple[str, float]] = []
            for bound_s, count in zip((*self._bounds_s, inf), counts, strict=True):
                below += count
                buckets.append((floatToGoString(bound_s), float(below)))  # type: ignore[no-untyped-call]
            family.add_metric(values, buckets, self._sums_s[values])
        return [family]
