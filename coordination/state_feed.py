"""What a watcher of the fleet has not seen yet: the whole state, its changed parts, or only that nothing has changed.

Pure: values in, values out. Messages are immutable and shared between states, so what is still the same object has not
changed, and nothing is compared by content but what is made anew each time. INVARIANT: whoever applies a delta to the
very state that it names has exactly the new state; anything else is refused and answered with the whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from cachewarden.protocol import FleetBeat, FleetDelta, FleetState

__all__ = ["StateFeed", "apply", "beat_of", "delta_of", "with_beat"]

_MAPS: Final = ("snapshots", "missing", "first_hit_ratio", "standing", "handed_over", "history", "sizings")
_KEPT: Final = 16


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], *, by_content: bool) -> dict[str, Any]:
    absent = object()
    return {
        key: value
        for key, value in new.items()
        if (before := old.get(key, absent)) is not value and not (by_content and before == value)
    }


def delta_of(old: FleetState, new: FleetState) -> FleetDelta:
    """Return what leads from `old` to `new`; both are of one life of the coordinator."""
    by_content = {"missing", "first_hit_ratio", "history"}
    parts: dict[str, Any] = {
        name: _changed(getattr(old, name), getattr(new, name), by_content=name in by_content) for name in _MAPS
    }
    gone = {
        name: lost for name in _MAPS if (lost := tuple(k for k in getattr(old, name) if k not in getattr(new, name)))
    }
    known = {e.proposal.proposal_id: e for e in old.executions}
    news = tuple(e for e in new.executions if known.get(e.proposal.proposal_id) is not e)
    return FleetDelta(
        since=old.version,
        changes=replace(new, executions=news, **parts),
        gone=gone,
        order=tuple(e.proposal.proposal_id for e in new.executions),
    )


def apply(old: FleetState | None, delta: FleetDelta) -> FleetState | None:
    """Return the new state; None where the delta does not fit the old one, so that the whole has to be asked for."""
    new = delta.changes
    if old is None or (old.life_ms, old.version) != (new.life_ms, delta.since):
        return None
    maps: dict[str, Any] = {}
    for name in _MAPS:
        merged = {**getattr(old, name), **getattr(new, name)}
        for key in delta.gone.get(name, ()):
            merged.pop(key, None)
        maps[name] = merged
    executions = {e.proposal.proposal_id: e for e in (*old.executions, *new.executions)}
    if any(key not in executions for key in delta.order):
        return None
    return replace(new, executions=tuple(executions[key] for key in delta.order), **maps)


def beat_of(state: FleetState) -> FleetBeat:
    """Return what moves although the version stays."""
    return FleetBeat(
        life_ms=state.life_ms,
        version=state.version,
        at_ms=state.at_ms,
        cycle=state.cycle,
        phase=state.phase,
        agents=state.agents,
        journal_seq=state.journal_seq,
    )


def with_beat(state: FleetState | None, beat: FleetBeat) -> FleetState | None:
    """Return the state with a beat taken in; None where the beat is of another version."""
    if state is None or (state.life_ms, state.version) != (beat.life_ms, beat.version):
        return None
    return replace(
        state,
        at_ms=beat.at_ms,
        cycle=beat.cycle,
        phase=beat.phase,
        agents=beat.agents,
        journal_seq=beat.journal_seq,
    )


class StateFeed:
    """Remembers the last versions that were given out, so that the next answer can be the difference."""

    def __init__(self) -> None:
        self._given: OrderedDict[int, FleetState] = OrderedDict()

    def news(self, state: FleetState, seen: tuple[int, int]) -> FleetState | FleetDelta | FleetBeat:
        """Return what a watcher that has seen (life, version) lacks."""
        life_ms, version = seen
        if seen == (state.life_ms, state.version):
            return beat_of(state)
        before = self._given.get(version) if life_ms == state.life_ms else None
        self._given[state.version] = state
        self._given.move_to_end(state.version)
        while len(self._given) > _KEPT:
            self._given.popitem(last=False)
        return state if before is None else delta_of(before, state)
