"""Between announcing a change and beginning it: the intent is written down, then the blackboard is read once more.

    announced ── published ──► looking ── a whole round, begun after that, is over ──► may begin, or is held
        └── could not be published, a look failed, or neither within `_WAIT_MS` ─────► is held

Two agents that only look at each other's plans before they act can both find nothing and both begin: each has looked
before the other wrote. Here each writes first and looks after its writing was confirmed. Then at least one sees the
other, as in Dekker's algorithm and Lamport's bakery (CACM 17(8), 1974): one server puts all reads and writes into one
order; if we have not seen the peer's plan, our look came before its writing, so its look, which it makes after it has
written, came after our writing, and finds our plan. Whoever sees the other gives way until the conflict is decided, by
a rule that both can work out (`conflicts.py`), so the two do not give way to each other for ever.

A peer that does not look again after it has written is met by the look of the next interval, while ours is under way.
It decides nothing about what was found. INVARIANT: an order leaves the gate once: free only if a whole look that began
after its intent was confirmed is over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from cachewarden.codec import to_jsonable
from cachewarden.machine import Effect, EffectFailed, Record, SetTimer, TimerFired
from cachewarden.messages import RecordKind, ResolutionOutcome
from cachewarden.peer_input import IntentPublished, PublishIntent
from cachewarden.protocol import Execute
from coordination import projection
from coordination.peer_watch import PeerWatch

__all__ = ["RELEASE_REF", "Passed", "ReleaseGate", "held_back"]

RELEASE_REF: Final = "release:"
"""How the refs of its effects and timers begin."""
_PUBLISH: Final = f"{RELEASE_REF}publish:"
_LATE: Final = f"{RELEASE_REF}late:"
_WAIT_MS: Final = 10_000
"""Well below the time for which a cache counts as busy after its change was handed over (`fleet_memory.py`)."""


@dataclass(slots=True)
class _Waiting:
    order: Execute
    since_ms: int
    fresh: int | None = None
    """The look that has to be over; None while the intent is not confirmed."""


@dataclass(frozen=True, slots=True)
class Passed:
    """An order that has left the gate; `trouble` is why it must not begin, empty where nothing was in its way here."""

    order: Execute
    since_ms: int
    trouble: str = ""


def held_back(order: Execute, since_ms: int, why: str, now_ms: int) -> tuple[Effect, ...]:
    """Return what journal and blackboard are told of a change that was to go ahead and does not begin."""
    proposal = order.proposal
    resolution = replace(
        order.resolution, outcome=ResolutionOutcome.WAIT, reason=f"held back: {why}", resolved_at_ms=now_ms
    )
    record = Record(
        kind=RecordKind.RESOLVED,
        service=proposal.service,
        subject_id=proposal.proposal_id,
        payload=to_jsonable(resolution),
    )
    return (record, *projection.intent_dropped(proposal, since_ms, resolution.reason, now_ms))


class ReleaseGate:
    """Orders that wait; `watch` is who looks."""

    def __init__(self, watch: PeerWatch) -> None:
        self._watch = watch
        self._waiting: dict[str, _Waiting] = {}
        self._passed: list[Passed] = []

    @property
    def holds_anything(self) -> bool:
        return bool(self._waiting)

    def enter(self, order: Execute, since_ms: int, now_ms: int) -> tuple[Effect, ...]:
        """Announce a change; `since_ms` is when its matter was announced first."""
        key = order.proposal.proposal_id
        if key in self._waiting:
            return ()
        self._waiting[key] = _Waiting(order, since_ms)
        items = projection.intent(order.proposal, since_ms, now_ms)
        return (
            PublishIntent(ref=f"{_PUBLISH}{key}", items=items),
            SetTimer(ref=f"{_LATE}{key}", due_ms=now_ms + _WAIT_MS),
        )

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take an answer or a timer of the gate."""
        if isinstance(event, TimerFired):
            self._leave(event.ref.removeprefix(_LATE), "the blackboard was not read again in time")
            return ()
        key = event.ref.removeprefix(_PUBLISH)
        if isinstance(event, EffectFailed):
            self._leave(key, "it could not be announced on the blackboard")
            return ()
        waiting = self._waiting.get(key)
        if waiting is None or not isinstance(event, IntentPublished):
            return ()
        waiting.fresh, effects = self._watch.ask_fresh(now_ms)
        return effects

    def note_look(self, *, failed: bool) -> None:
        """Take note that a look is over."""
        for key, waiting in list(self._waiting.items()):
            if failed:
                self._leave(key, "the blackboard could not be read again")
            elif waiting.fresh is not None and self._watch.seen_since(waiting.fresh):
                self._leave(key, "")

    def take(self) -> tuple[Passed, ...]:
        """Return what has left the gate since it was asked last."""
        passed, self._passed = tuple(self._passed), []
        return passed

    def _leave(self, key: str, trouble: str) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._passed.append(Passed(waiting.order, waiting.since_ms, trouble))
