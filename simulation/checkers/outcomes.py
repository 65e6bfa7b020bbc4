"""What the journal says of an ending is true of the cache: kept means the new values, rolled back means the old ones.

What was abandoned is as it was before, unless the cache belongs to somebody else now. A rollback that could not put
something back has to say what; one of a change that loses something has to say so too. A value that a person, a restart
or another writer has set since is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachewarden.messages import AuditRecord, RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact, FencedWrite, HandWrite, Restarted

__all__ = ["Outcomes"]


class Outcomes(Checker):
    """Knows of every knob of every cache who set it last, and of every open change what it set and what was before."""

    name = "outcomes"
    sees: tuple[type[Fact], ...] = (Appended, FencedWrite, HandWrite, Restarted)

    def __init__(self) -> None:
        self._foreign: dict[str, set[str]] = {}
        """Knobs of each cache that somebody else has set since the newest change of ours began to write."""
        self._changes: dict[str, Mapping[str, Any]] = {}
        self._holder: dict[str, str] = {}

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Compare each ending with the cache at the moment at which the journal takes it."""
        if isinstance(fact, Appended):
            return [words for record in fact.records for words in self._judge(record, world)]
        if isinstance(fact, HandWrite):
            self._foreign.setdefault(fact.service, set()).add(fact.knob)
        elif isinstance(fact, Restarted):
            self._foreign.setdefault(fact.service, set()).update(fact.knobs)
        else:
            self._written(fact)
        return ()

    def _written(self, fact: FencedWrite) -> None:
        foreign = self._foreign.setdefault(fact.service, set())
        ours = fact.holder.partition(":")[0]
        knobs = {knob for knob, _, _ in fact.changes}
        if self._holder.setdefault(fact.service, ours) == ours:
            foreign -= knobs
        else:
            # Another deployment writes now: what the one before wanted may be gone.
            self._holder[fact.service] = ours
            foreign |= knobs

    def _judge(self, record: AuditRecord, world: WorldView) -> list[str]:
        key = str(record.payload.get("execution_id", record.subject_id))
        if record.kind == RecordKind.CHANGE_INTENDED:
            self._changes[key] = record.payload
            return []
        change = self._changes.get(key)
        if change is None or record.service is None:
            return []
        if record.kind == RecordKind.ROLLBACK_FAILED:
            failures = record.payload.get("failures", ())
            complete = failures and all(f.get("knob") and f.get("wanted") is not None for f in failures)
            return [] if complete else [f"`{key}` failed to roll back and does not say what (record {record.seq})"]
        if record.kind == RecordKind.CHANGE_KEPT:
            after = {c["knob"]: c["after"] for c in change["proposal"]["knob_changes"]}
            return self._compare(record, key, after, "kept", world)
        if record.kind == RecordKind.CHANGE_ROLLED_BACK:
            found = self._compare(record, key, change["backup"], "rolled back", world)
            if not change["proposal"]["reversible"] and not record.payload.get("cannot_be_undone"):
                found.append(f"`{key}` does not say what cannot be undone (record {record.seq})")
            return found
        if record.kind == RecordKind.CHANGE_ABANDONED and self._ours(record, change["backup"], world):
            return self._compare(record, key, change["backup"], "abandoned", world)
        return []

    def _ours(self, record: AuditRecord, touched: Mapping[str, str], world: WorldView) -> bool:
        """Whether the cache was still ours when a change was abandoned: a primary, no newer writer, and nobody else has
        set any of the knobs that it touched; else all of them are left as they are."""
        if self._foreign.get(str(record.service), set()) & set(touched):
            return False
        cache, epoch = world.caches[str(record.service)], record.payload.get("epoch")
        return cache.role == "master" and (cache.fence is None or epoch is None or cache.fence <= epoch)

    def _compare(
        self, record: AuditRecord, key: str, wanted: Mapping[str, str], state: str, world: WorldView
    ) -> list[str]:
        service = str(record.service)
        knobs, foreign = world.caches[service].knobs(), self._foreign.get(service, set())
        wrong = [k for k in sorted(wanted) if knobs.get(k) != wanted[k] and k not in foreign]
        if state == "rolled back" and self._rules_only(record):
            return []
        told = ", ".join(f"`{k}` is `{knobs.get(k)}` instead of `{wanted[k]}`" for k in wrong)
        return [f"`{key}` is told as {state} (record {record.seq}), but on `{service}` {told}"] if wrong else []

    def _rules_only(self, record: AuditRecord) -> bool:
        return not record.payload.get("knobs")
