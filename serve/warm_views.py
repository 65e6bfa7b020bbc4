"""Warming on the wire: requests, answers, and how a job is told.

Nothing is decided here. INVARIANT: a job is told by places in its list, never by names of keys.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from cachewarden.messages import CONSTITUTIONAL_HASH
from serve.timestamps import iso
from serve.warm_jobs import LOST_MS

__all__ = [
    "KEYS_MAX",
    "KeyOutcomeView",
    "OutcomesResponse",
    "WarmJobView",
    "WarmRequest",
    "WarmResponse",
    "WarmedKey",
    "job_view",
]

KEYS_MAX = 100_000

Key = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class _Answer(BaseModel):
    constitutional_hash: str = CONSTITUTIONAL_HASH


class WarmRequest(BaseModel):
    """Ask for keys to be loaded from the service's origin."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"service_name": "constitutional_ai", "cache_keys": ["policy:governance:core_principles"]}]
        },
    )

    service_name: str = Field(min_length=1, max_length=200)
    cache_keys: list[Key] = Field(min_length=1, max_length=KEYS_MAX)
    constitutional_hash: str = Field(CONSTITUTIONAL_HASH, max_length=200)


class WarmedKey(BaseModel):
    key: str
    outcome: str = Field(
        description="already_cached, warmed, not_found, no_origin, forbidden or failed; would_warm in a dry run"
    )
    reason: str
    ttl_s: float | None = Field(None, description="TTL of a warmed key")


class WarmResponse(_Answer):
    service_name: str
    operation_id: str = Field(description="subject of the two audit records of this operation; empty for a dry run")
    dry_run: bool = False
    keys: list[WarmedKey]
    counts: dict[str, int] = Field(description="keys per outcome")
    performance_metrics: dict[str, float]


class WarmJobView(_Answer):
    """How one warming job stands."""

    job_id: str = Field(description="subject of its audit records, two per 1000 keys")
    service_name: str
    caller: str
    state: str = Field(description="running, finished, cancelled, stopped, or lost (its replica is gone)")
    reason: str = Field(description="why it ended before its end; empty otherwise")
    keys_total: int
    keys_done: int
    outcomes_known: int = Field(description="keys from the beginning of the list whose outcome can be asked for")
    counts: dict[str, int] = Field(description="keys per outcome so far")
    began_at: str
    updated_at: str
    cancel_asked_by: str = ""


class KeyOutcomeView(BaseModel):
    index: int = Field(description="place of the key in the list, from 0")
    outcome: str
    reason: str


class OutcomesResponse(_Answer):
    """Outcomes of one job in the order asked."""

    job_id: str
    outcomes: list[KeyOutcomeView]
    next_after: int | None = Field(description="ask on with `after` of this; null: no more are known now")


def job_view(status: str, cancelled_by: str, now_ms: int) -> WarmJobView:
    """Return how a job stands, from what is kept of it."""
    kept: dict[str, Any] = json.loads(status)
    lost = kept["state"] == "running" and now_ms - kept["updated_ms"] > LOST_MS
    return WarmJobView(
        job_id=kept["job_id"],
        service_name=kept["service"],
        caller=kept["caller"],
        state="lost" if lost else kept["state"],
        reason="the replica that ran it has shown no sign of life" if lost else kept["reason"],
        keys_total=kept["total"],
        keys_done=kept["done"],
        outcomes_known=kept["reached"],
        counts=kept["counts"],
        began_at=iso(kept["began_ms"]),
        updated_at=iso(kept["updated_ms"]),
        cancel_asked_by=cancelled_by,
    )
