"""Which settings differ between the nodes of one service: told, and left as they are.

CONFIG SET is of one node, so a replica that has other settings than its primary brings them along when it takes over.
Whether that is meant is for people to say. A difference is told once two looks in a row have found it, since a change
reaches the nodes one after the other, and again when it is gone.

INVARIANT: nothing here asks for a write, and a node that could not be looked at is told of neither way.
"""

from __future__ import annotations

from collections.abc import Mapping

from cachewarden.machine import Effect, Record
from cachewarden.messages import AuditRecord, RecordKind
from cachewarden.observation import Snapshot

__all__ = ["NodeDrift"]

_Place = tuple[str, str]
"""Knob and node."""


class NodeDrift:
    """Mutable memory of one coordinator, rebuilt from the journal and the next looks."""

    def __init__(self) -> None:
        self._told: dict[str, dict[_Place, str]] = {}
        """Service to what is known to differ, and the node's value."""
        self._seen: dict[str, dict[_Place, str]] = {}
        """What the last look has found and was not told yet."""

    def replay(self, record: AuditRecord) -> None:
        """Take over what the journal says."""
        known = self._told.setdefault(str(record.service), {})
        place = str(record.payload["knob"]), str(record.payload["node"])
        if record.payload.get("differs"):
            known[place] = str(record.payload["value"])
        else:
            known.pop(place, None)

    def look(self, snapshot: Snapshot, ours: Mapping[str, str]) -> list[Effect]:
        """Compare the nodes of one look with the service; `ours` is knob to proposal where its value is of our making.

        Returns the records of what differs since, or does no more.
        """
        told, seen = self._told.setdefault(snapshot.service, {}), self._seen.get(snapshot.service, {})
        now = {
            (knob, node.node): value
            for node in snapshot.nodes
            if not node.problem
            for knob, value in node.knobs.items()
            if snapshot.knobs.get(knob, value) != value
        }
        unseen = {node.node for node in snapshot.nodes if node.problem}
        effects = []
        for place, value in sorted(now.items()):
            if told.get(place) != value and seen.get(place) == value:
                told[place] = value
                effects.append(self._record(snapshot, place, value, ours, differs=True))
        gone = [place for place in sorted(set(told) - set(now)) if place[1] not in unseen]
        effects += [self._record(snapshot, place, told.pop(place), ours, differs=False) for place in gone]
        self._seen[snapshot.service] = now
        return effects

    def of(self, service: str) -> dict[str, dict[str, str]]:
        """Return knob to node to the node's value, of what was told to differ."""
        found: dict[str, dict[str, str]] = {}
        for (knob, node), value in sorted(self._told.get(service, {}).items()):
            found.setdefault(knob, {})[node] = value
        return found

    def _record(
        self, snapshot: Snapshot, place: _Place, value: str, ours: Mapping[str, str], *, differs: bool
    ) -> Effect:
        knob, node = place
        payload = {
            "knob": knob,
            "node": node,
            "value": value,
            "service_value": snapshot.knobs.get(knob),
            "differs": differs,
            "proposal_id": ours.get(knob),
        }
        kind = RecordKind.SETTING_DRIFT.value
        return Record(kind=kind, service=snapshot.service, subject_id=snapshot.service, payload=payload)
