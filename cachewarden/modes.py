"""Modes that a person has changed at run time: over those of the fleet file, for as long as that says what it said.

Pure: records and fleets in, modes out. It decides nothing about who may change a mode. INVARIANT: an override counts
only while the fleet file gives the service the mode that it gave when the override was made: whoever edits the file has
the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cachewarden.fleet import Fleet
from cachewarden.messages import AuditRecord, Mode, RecordKind

__all__ = ["ACTING", "RANK", "acts", "modes_of", "with_modes"]

ACTING: Final = frozenset({Mode.APPROVE, Mode.AUTO})
"""Modes in which a cache may be written to."""

RANK: Final[Mapping[Mode, int]] = {Mode.OFF: 0, Mode.ADVISE: 1, Mode.APPROVE: 2, Mode.AUTO: 3}
"""The higher, the more is permitted."""


def acts(fleet: Fleet, service: str) -> bool:
    """Return whether the cache of `service` may be written to at all; False for a service that is not in the fleet."""
    return service in fleet.names and fleet.service(service).mode in ACTING


def modes_of(records: Iterable[AuditRecord], fleet: Fleet, before: Mapping[str, Mode] | None = None) -> dict[str, Mode]:
    """Return the overrides in force after `records`, oldest first, where `before` were in force before them; `fleet` is
    that of the file. A record that cannot be read is passed over."""
    filed = {s.name: s.mode for s in fleet.services}
    found = dict(before or {})
    for record in records:
        if record.kind != RecordKind.MODE_CHANGED or record.service not in filed:
            continue
        try:
            mode, in_file = Mode(record.payload["mode"]), Mode(record.payload["file_mode"])
        except (KeyError, ValueError):
            continue
        found.pop(record.service, None)
        if in_file is filed[record.service] and mode is not in_file:
            found[record.service] = mode
    return found


def with_modes(fleet: Fleet, modes: Mapping[str, Mode]) -> Fleet:
    """Return the fleet with other modes; the same object where none differs."""
    if all(modes.get(s.name, s.mode) is s.mode for s in fleet.services):
        return fleet
    services = tuple(
        s.model_copy(update={"mode": modes[s.name]}) if modes.get(s.name, s.mode) is not s.mode else s
        for s in fleet.services
    )
    return fleet.model_copy(update={"services": services})
