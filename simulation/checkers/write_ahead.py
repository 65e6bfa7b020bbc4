"""No write to a cache before the journal held it: a step or a rollback that announces exactly this write.

What the server of the journal confirmed counts as held, also where a crash took it later: `appendfsync everysec`
permits that, and the writer could not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cachewarden.messages import RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact, FencedWrite

__all__ = ["WriteAhead"]

_ENDINGS = frozenset(
    {
        RecordKind.CHANGE_KEPT.value,
        RecordKind.CHANGE_ROLLED_BACK.value,
        RecordKind.CHANGE_ABANDONED.value,
        RecordKind.ROLLBACK_FAILED.value,
    }
)
Announced = frozenset[tuple[str, str]]
"""(knob, value) of one write; for a TTL rule ("ttl", pattern)."""


class WriteAhead(Checker):
    """Keeps, per cache and open change, the writes that were announced."""

    name = "write-ahead"
    sees: tuple[type[Fact], ...] = (Appended, FencedWrite)

    def __init__(self) -> None:
        self._open: dict[str, dict[str, set[Announced]]] = {}
        self._standing: dict[str, set[Announced]] = {}

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Look each write up among what was announced for its cache."""
        del world
        if isinstance(fact, Appended):
            for record in fact.records:
                if record.service is not None:
                    self._take(record.kind, record.service, str(record.payload.get("execution_id", "")), record.payload)
            return ()
        wanted = _of_fact(fact)
        announced = self._open.get(fact.service, {}).values()
        if any(wanted in writes for writes in announced) or wanted in self._standing.get(fact.service, ()):
            return ()
        return [f"a write to `{fact.service}` was not in the journal: {fact.words()}"]

    def _take(self, kind: str, service: str, execution: str, payload: Mapping[str, Any]) -> None:
        changes = self._open.setdefault(service, {})
        if kind == RecordKind.STEP_INTENDED:
            changes.setdefault(execution, set()).add(_of_step(payload["what"]))
        elif kind == RecordKind.ROLLBACK_INTENDED:
            # From now on only the way back is announced.
            changes[execution] = {_of_step(step) for step in payload["steps"]}
        elif kind in _ENDINGS:
            announced = changes.pop(execution, set())
            if kind == RecordKind.CHANGE_KEPT:
                # A kept TTL rule goes on extending keys as long as it stands.
                self._standing.setdefault(service, set()).update(a for a in announced if any(k == "ttl" for k, _ in a))


def _of_step(step: Mapping[str, Any]) -> Announced:
    rule = step.get("rule")
    if rule:
        return frozenset({("ttl", str(rule["pattern"]))})
    return _pairs((c["knob"], c["after"]) for c in step.get("changes", ()))


def _of_fact(fact: FencedWrite) -> Announced:
    if fact.pattern:
        return frozenset({("ttl", fact.pattern)})
    return _pairs((knob, after) for knob, _, after in fact.changes)


def _pairs(pairs: Iterable[tuple[Any, Any]]) -> Announced:
    return frozenset((str(knob), str(value)) for knob, value in pairs)
