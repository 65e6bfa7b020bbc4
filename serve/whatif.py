"""What another configuration would give a live cache: shapes of question and answer, and the evaluation.

It changes nothing, proposes nothing and is no plan: constitution, floors and budgets are not asked. INVARIANT: each
candidate gets one answer, in order, and one that the evidence cannot carry says why instead of a figure.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator, model_validator

from cachewarden.cachemodel.whatif import Answer, CacheConfiguration, Insufficient
from cachewarden.errors import SettingsError
from cachewarden.knobs import EvictionPolicy, parse_bytes
from cachewarden.messages import CONSTITUTIONAL_HASH, TtlRule
from cachewarden.observation import Snapshot
from serve.looks import Look
from serve.timestamps import iso

__all__ = [
    "MAX_CANDIDATES",
    "DeskFull",
    "Whatif",
    "WhatifCandidate",
    "WhatifDesk",
    "WhatifObserved",
    "WhatifRequest",
    "WhatifResponse",
    "WhatifResult",
    "observed_of",
    "shown_configuration",
    "unanswered",
]

MAX_CANDIDATES = 32
Answered = TypeVar("Answered")

_WAITING_MAX: Final = 4
_REMEMBERED: Final = 8


class WhatifCandidate(BaseModel):
    """A configuration to ask about; what is left out or null stays as it is now."""

    model_config = ConfigDict(extra="forbid")

    maxmemory_bytes: StrictInt | None = Field(None, ge=0, le=1 << 60, description="0 = no limit")
    maxmemory: str | None = Field(None, max_length=40, description="the same as Redis writes it, e.g. `64mb`")
    eviction_policy: EvictionPolicy | None = None
    maxmemory_samples: StrictInt | None = Field(None, ge=1, le=64)
    lfu_log_factor: StrictInt | None = Field(None, ge=0, le=1_000_000)
    lfu_decay_time: StrictInt | None = Field(None, ge=0, le=1_000_000, description="minutes")
    ttl_ms: StrictInt | None = Field(None, ge=0, le=1 << 52, description="TTL given at every load; 0 = none")

    @field_validator("maxmemory")
    @classmethod
    def _amount(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                amount = parse_bytes(value)
            except SettingsError as error:
                raise ValueError(str(error)) from None
            if amount > 1 << 60:
                raise ValueError(f"`{value}` is more memory than any server has")
        return value

    @model_validator(mode="after")
    def _once(self) -> WhatifCandidate:
        if self.maxmemory is not None and self.maxmemory_bytes is not None:
            raise ValueError("give either `maxmemory` or `maxmemory_bytes`, not both")
        return self

    def on(self, current: CacheConfiguration) -> CacheConfiguration:
        """Return the configuration that this makes of the current one."""

        def given(value: int | None, now: int) -> int:
            return now if value is None else value

        memory = self.maxmemory_bytes if self.maxmemory is None else parse_bytes(self.maxmemory)
        return CacheConfiguration(
            maxmemory_bytes=given(memory, current.maxmemory_bytes),
            eviction_policy=self.eviction_policy or current.eviction_policy,
            maxmemory_samples=given(self.maxmemory_samples, current.maxmemory_samples),
            lfu_log_factor=given(self.lfu_log_factor, current.lfu_log_factor),
            lfu_decay_time_min=given(self.lfu_decay_time, current.lfu_decay_time_min),
            ttl_ms=current.ttl_ms if self.ttl_ms is None else self.ttl_ms or None,
        )


class WhatifRequest(BaseModel):
    """Ask what other configurations would give one service."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "service_name": "constitutional_ai",
                    "candidates": [{"maxmemory": "24mb"}, {"eviction_policy": "allkeys-lfu", "lfu_decay_time": 10}],
                }
            ]
        },
    )

    service_name: str = Field(min_length=1, max_length=200)
    candidates: Annotated[list[WhatifCandidate], Field(min_length=1, max_length=MAX_CANDIDATES)]
    constitutional_hash: str = Field(CONSTITUTIONAL_HASH, max_length=200)


class WhatifResult(BaseModel):
    """One candidate: levels 0..1 with their 90 % interval, and the change against the observed hit ratio."""

    candidate: dict[str, Any] = Field(description="the whole configuration that was asked about")
    answered: bool
    reason: str = Field("", description="what is missing for an answer; empty where there is one")
    hit_ratio: float | None = None
    hit_ratio_low: float | None = None
    hit_ratio_high: float | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    method: str = ""
    notes: list[str] = Field(default_factory=list)


class WhatifObserved(BaseModel):
    """The look that the answers rest on."""

    taken_at: str
    window_s: float
    hit_ratio: float | None
    lookups_per_s: float
    captured_accesses: int
    sampled_keys: int


class WhatifResponse(BaseModel):
    """The answers, in the order of the candidates. Nothing was changed, and none of this is a plan."""

    service_name: str
    observed: WhatifObserved | None = Field(description="null where the cache has not been seen")
    current: dict[str, Any] | None = Field(description="the configuration now; null where the models cannot read it")
    results: list[WhatifResult]
    performance_metrics: dict[str, float] = Field(default_factory=dict)
    constitutional_hash: str = CONSTITUTIONAL_HASH


class DeskFull(Exception):
    """Too many what-ifs are waiting already."""


@dataclass(frozen=True, slots=True)
class Whatif:
    """The evaluated candidates; `current` None where there is no evidence."""

    current: dict[str, Any] | None
    results: tuple[WhatifResult, ...]


class WhatifDesk:
    """Answers one question at a time in a thread, so that neither requests nor decisions wait for the models.

    The models are fitted once per look and remembered for a few services. Raises DeskFull beyond a short queue.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._looks: OrderedDict[str, Look] = OrderedDict()

    async def ask(
        self, snapshot: Snapshot, rules: tuple[TtlRule, ...], question: Callable[[Look], Answered]
    ) -> Answered:
        """Return what a question makes of this look."""
        if self._waiting >= _WAITING_MAX:
            raise DeskFull
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(question, self._look(snapshot, rules))
        finally:
            self._waiting -= 1

    async def evaluate(
        self, snapshot: Snapshot, rules: tuple[TtlRule, ...], candidates: Sequence[WhatifCandidate]
    ) -> Whatif:
        """Answer for each candidate from this look."""
        return await self.ask(snapshot, rules, lambda look: _evaluated(look, tuple(candidates)))

    def _look(self, snapshot: Snapshot, rules: tuple[TtlRule, ...]) -> Look:
        known = self._looks.get(snapshot.service)
        if known is not None and known.is_of(snapshot, rules):
            return known
        look = Look(snapshot, rules)
        self._looks[snapshot.service] = look
        while len(self._looks) > _REMEMBERED:
            self._looks.popitem(last=False)
        return look


def _evaluated(look: Look, candidates: tuple[WhatifCandidate, ...]) -> Whatif:
    if isinstance(look.inquiry, str):
        return Whatif(None, unanswered(candidates, look.inquiry))
    current = look.inquiry.evidence.current
    answers = look.inquiry.ask([candidate.on(current) for candidate in candidates])
    return Whatif(shown_configuration(current), tuple(_result(answer) for answer in answers))


def unanswered(candidates: Sequence[WhatifCandidate], reason: str) -> tuple[WhatifResult, ...]:
    """Return the same reason for each candidate."""
    return tuple(
        WhatifResult(candidate=c.model_dump(exclude_none=True), answered=False, reason=reason) for c in candidates
    )


def observed_of(snapshot: Snapshot) -> WhatifObserved:
    """Return what is told of a look."""
    return WhatifObserved(
        taken_at=iso(snapshot.taken_at_ms),
        window_s=snapshot.window_ms / 1000,
        hit_ratio=snapshot.hit_ratio,
        lookups_per_s=snapshot.lookups_per_s,
        captured_accesses=0 if snapshot.access is None else len(snapshot.access.trace),
        sampled_keys=0 if snapshot.sample is None else len(snapshot.sample.idle_ms),
    )


def shown_configuration(configuration: CacheConfiguration) -> dict[str, Any]:
    """Return a configuration as the API shows it."""
    return {
        "maxmemory_bytes": configuration.maxmemory_bytes,
        "eviction_policy": configuration.eviction_policy,
        "maxmemory_samples": configuration.maxmemory_samples,
        "lfu_log_factor": configuration.lfu_log_factor,
        "lfu_decay_time": configuration.lfu_decay_time_min,
        "ttl_ms": configuration.ttl_ms,
    }


def _result(answer: Answer | Insufficient) -> WhatifResult:
    if isinstance(answer, Insufficient):
        return WhatifResult(candidate=shown_configuration(answer.candidate), answered=False, reason=answer.reason)
    level, change = answer.hit_ratio, answer.change
    return WhatifResult(
        candidate=shown_configuration(answer.candidate),
        answered=True,
        hit_ratio=level.value,
        hit_ratio_low=level.low,
        hit_ratio_high=level.high,
        change=change.value,
        change_low=change.low,
        change_high=change.high,
        method=answer.method,
        notes=list(answer.notes),
    )
