"""What one cache, and its control, were like before a change: what its effect is measured against.

It is taken from the snapshots on which the change was decided and goes into the journal with the intention. It decides
nothing. INVARIANT: what was not measured is None, or an empty series, and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachewarden.messages import Message
from cachewarden.observation import Snapshot

__all__ = ["Baseline", "baseline_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline(Message):
    """Rates per second over the last window; `cpu_share` in cores; parts are (lookups, misses) of consecutive pieces
    of the window, the oldest first. `control` names the unchanged twin."""

    evicted_per_s: float | None = None
    misses_per_s: float | None = None
    cpu_share: float | None = None
    parts: tuple[tuple[int, int], ...] = ()
    control: str | None = None
    control_hit_ratio: float | None = None
    control_parts: tuple[tuple[int, int], ...] = ()
    control_knobs: Mapping[str, str] = field(default_factory=dict)
    """What the twin's knobs were; with any other value it is no control."""
    from_ms: int | None = None
    until_ms: int | None = None
    """From when until when the window lasted on the server's own clock; None where it does not tell the time."""
    hit_ratio_step: float | None = None
    """How far the traffic alone moves the hit ratio from one window to the next (`Snapshot.hit_ratio_step`)."""


def baseline_of(snapshot: Snapshot | None, control: Snapshot | None = None) -> Baseline:
    """Return the baseline that snapshots give; without a window there is none."""
    if snapshot is None or snapshot.hit_ratio is None:
        return Baseline()
    seen = control is not None and control.hit_ratio is not None and control.role == "master"
    until_ms = snapshot.server_time_ms
    return Baseline(
        evicted_per_s=None if "counters" in snapshot.incomplete else snapshot.evicted_per_s,
        misses_per_s=snapshot.lookups_per_s * (1.0 - snapshot.hit_ratio),
        cpu_share=snapshot.cpu_share,
        parts=snapshot.window_parts,
        from_ms=None if until_ms is None else until_ms - snapshot.window_ms,
        until_ms=until_ms,
        hit_ratio_step=snapshot.hit_ratio_step,
        control=control.service if control is not None and seen else None,
        control_hit_ratio=control.hit_ratio if control is not None and seen else None,
        control_parts=control.window_parts if control is not None and seen else (),
        control_knobs=dict(control.knobs) if control is not None and seen else {},
    )
