"""Plays recorded traces through the demo's driver: published trace files, and a user's CSV `time_ms,key,size,ttl`.

It turns rows into arrivals and invents nothing but what the file lacks, which it says: a rate where there are no
times, a value size and a TTL where there are none. INVARIANT: rows keep their order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.cachemodel.trace_files import load
from cluster.demo.plan import TracePlan
from simulation.workload import Arrivals

__all__ = ["TraceSource", "load_trace_source"]

_PREFIX = "trace:"
_VALUE_MAX_BYTES = 100_000


class TraceSource:
    """A trace as a source of arrivals.

    Times count from the trace's first row; with `repeat` it begins again after its last.
    """

    def __init__(self, trace: AccessTrace, *, ttl_ms: int = 0, value_bytes: int = 512, repeat: bool = False) -> None:
        if len(trace) == 0:
            raise ValueError("the trace is empty, nothing can be played")
        kept = trace.op != np.uint8(Op.DELETE)
        sizes = np.where(trace.size_bytes > 0, trace.size_bytes, value_bytes)
        ttls = np.where(trace.ttl_ms > 0, trace.ttl_ms, ttl_ms)
        times = trace.time_ms - trace.time_ms[0]
        self._rows = Arrivals(
            times,
            trace.key,
            trace.op,
            np.minimum(sizes, _VALUE_MAX_BYTES).astype(np.int32),
            ttls.astype(np.int64),
            np.zeros(len(trace), dtype=np.uint8),
            (_PREFIX,),
        ).rows(kept)
        self._length_ms = int(times[-1]) + 1
        self._repeat = repeat

    @property
    def ended_ms(self) -> int | None:
        """The time after which nothing comes; None if it goes on for ever."""
        return None if self._repeat else self._length_ms

    def between(self, from_ms: int, to_ms: int) -> Arrivals:
        """Return the rows due with from_ms <= time < to_ms."""
        if not self._repeat:
            return self._rows.slice_time(from_ms, to_ms)
        parts = []
        for turn in range(from_ms // self._length_ms, (to_ms - 1) // self._length_ms + 1):
            start_ms = turn * self._length_ms
            part = self._rows.slice_time(from_ms - start_ms, to_ms - start_ms)
            parts.append(replace(part, time_ms=part.time_ms + start_ms))
        return Arrivals.concat(parts)


def load_trace_source(plan: TracePlan) -> TraceSource:
    """Read the trace of a plan; raises ValueError or OSError as `trace_files.load` does."""
    trace = load(Path(plan.path), plan.rate_per_s)
    return TraceSource(trace, ttl_ms=plan.ttl_ms, value_bytes=plan.value_bytes, repeat=plan.repeat)
