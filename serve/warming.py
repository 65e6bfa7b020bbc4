"""One part of a warming: written down as intended, done, written down as it ended.

Names of keys are in the answer only; the journal holds their keyed hashes. INVARIANT: nothing is written to a cache
before the intent is durable in the journal, and what was begun has an ending there if the journal takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cachewarden.messages import CONSTITUTIONAL_HASH, RecordKind
from cachewarden.ports import RecordDraft
from coordination.warm_rules import WarmCourse, WarmReport
from serve.backend import Backend

__all__ = ["PART_KEYS", "Operation", "warm_part"]

PART_KEYS: Final = 1000
"""Keys that are intended, loaded and recorded together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Who warms what: `operation_id` is the subject of its records."""

    operation_id: str
    service: str
    caller: str


async def warm_part(
    backend: Backend, operation: Operation, keys: Sequence[str], course: WarmCourse, part: int | None = None
) -> WarmReport:
    """Warm at most PART_KEYS keys with one pair of records; `part` counts from 0 in a job of several.

    Raises JournalUnavailable before anything was written to the cache, or after it, where its ending was not taken.
    """
    hashes = [backend.key_hash(key) for key in keys]
    number = {} if part is None else {"part": part}

    def draft(payload: dict[str, Any]) -> RecordDraft:
        return RecordDraft(
            at_ms=backend.now_ms(),
            kind=RecordKind.KEYS_WARMED.value,
            agent="api",
            service=operation.service,
            subject_id=operation.operation_id,
            payload={"constitutional_hash": CONSTITUTIONAL_HASH, "caller": operation.caller, **number, **payload},
        )

    await backend.record([draft({"phase": "intended", "keys": hashes})])
    try:
        report = await backend.warm(operation.service, keys, course)
    except BaseException as error:
        # Also where the caller goes away: what was begun has an ending in the journal, if the journal takes it.
        reason = f"{type(error).__name__}: some keys may have been stored"
        await asyncio.shield(backend.record([draft({"phase": "failed", "keys": hashes, "reason": reason})]))
        raise
    outcomes = {h: {"outcome": k.outcome.value, "ttl_ms": k.ttl_ms} for h, k in zip(hashes, report.keys, strict=True)}
    await backend.record([draft({"phase": "finished", "keys": outcomes, "counts": report.counts()})])
    return report
