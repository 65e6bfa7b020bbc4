"""No change is begun that is expected to bring a service below its owner's floor, or deeper below it than it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachewarden.messages import RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact

__all__ = ["Floors"]


class Floors(Checker):
    """Looks at the prediction of every change that is begun, and at its size."""

    name = "floors"
    sees: tuple[type[Fact], ...] = (Appended,)

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge each intention by the wishes of the service's owner."""
        found: list[str] = []
        for record in fact.records:
            if record.kind != RecordKind.CHANGE_INTENDED:
                continue
            service, proposal = world.fleet.service(record.service), record.payload["proposal"]
            before = float(proposal["prediction"]["hit_ratio_before"]["value"])
            after = float(proposal["prediction"]["hit_ratio_after"]["value"])
            if after < min(service.hit_ratio_floor, before):
                found.append(
                    f"`{record.subject_id}` is expected to bring `{service.name}` to {after:.3f}, below its floor"
                )
            for change in proposal["knob_changes"]:
                shrinks = change["knob"] == "maxmemory" and 0 < int(change["after"]) < int(change["before"])
                if shrinks and int(change["after"]) < service.minimum_memory_bytes:
                    found.append(
                        f"`{record.subject_id}` leaves `{service.name}` {change['after']} bytes, below its minimum"
                    )
        return found
