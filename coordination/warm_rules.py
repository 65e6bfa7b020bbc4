"""Which keys may be warmed, for how long they may live, and how the outcome is told: the pure half of warming.

A key is warmed only for the service that owns it, never with a TTL beyond what its owner permits, and never into our
own or the blackboard's key space. INVARIANT: a key that no rule permits is forbidden, and every key asked for gets
exactly one outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cachewarden.fleet import Fleet, Service
from cachewarden.messages import Mode

__all__ = ["KeyOutcome", "Permit", "WarmCourse", "WarmOutcome", "WarmReport", "permit"]

RESERVED_PREFIXES: tuple[str, ...] = ("bb:",)
MAX_KEY_BYTES = 1024


class WarmOutcome(StrEnum):
    ALREADY_CACHED = "already_cached"
    WARMED = "warmed"
    NOT_FOUND = "not_found"
    NO_ORIGIN = "no_origin"
    FORBIDDEN = "forbidden"
    FAILED = "failed"
    WOULD_WARM = "would_warm"
    """Dry runs only: it is missing, permitted, and there is an origin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOutcome:
    """What became of one key; `ttl_ms` is set for warmed keys."""

    key: str
    outcome: WarmOutcome
    reason: str
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmReport:
    """Outcome of one request, in the order of its keys. `own_hits` and `own_misses` are lookups of ours that the cache
    counted."""

    service: str
    keys: tuple[KeyOutcome, ...]
    own_hits: int = 0
    own_misses: int = 0

    def counts(self) -> dict[str, int]:
        """Return how many keys had each outcome, every outcome of a real run named."""
        counts = {o.value: sum(k.outcome is o for k in self.keys) for o in WarmOutcome}
        if not counts[WarmOutcome.WOULD_WARM]:
            del counts[WarmOutcome.WOULD_WARM]
        return counts


def _never() -> bool:
    return False


def _nobody(_outcome: KeyOutcome) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmCourse:
    """How keys are warmed. `patient`: no deadline, and an origin in trouble is waited for; `rate_share`: of the
    origin's rate, 0..1; `stop` is asked before each key, `noted` is told of each outcome once; `dry_run`: only look."""

    patient: bool = False
    dry_run: bool = False
    rate_share: float = 1.0
    stop: Callable[[], bool] = _never
    noted: Callable[[KeyOutcome], None] = _nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Whether a key may be warmed; `ttl_ms` is the longest time that it may live, None exactly if it may not be
    warmed."""

    ttl_ms: int | None
    reason: str

    @property
    def allowed(self) -> bool:
        return self.ttl_ms is not None


def _longest_prefix(service: Service, key: str) -> tuple[str, float | None] | None:
    found = [(p.prefix, p.max_staleness_s) for p in service.patterns if key.startswith(p.prefix)]
    return max(found, key=lambda pair: len(pair[0])) if found else None


def _owner_elsewhere(fleet: Fleet, service: Service, key: str) -> Service | None:
    """Return another tenant's service that declares the key more exactly than ours does."""
    ours = _longest_prefix(service, key)
    best, owner = len(ours[0]) if ours is not None else 0, None
    for other in fleet.services:
        match = _longest_prefix(other, key) if other.tenant != service.tenant else None
        if match is not None and len(match[0]) > best:
            best, owner = len(match[0]), other
    return owner


def permit(fleet: Fleet, service: Service, key: str, reserved: Sequence[str] = ()) -> Permit:
    """Return whether `key` may be warmed for `service`, and for how long; `reserved` are further prefixes that are
    nobody's."""
    if service.mode in (Mode.OFF, Mode.ADVISE):
        return Permit(ttl_ms=None, reason=f"`{service.name}` is in mode `{service.mode.value}`, so nothing is written")
    if len(key.encode("utf-8", "replace")) > MAX_KEY_BYTES:
        return Permit(ttl_ms=None, reason=f"a key may have at most {MAX_KEY_BYTES} bytes")
    if any(key.startswith(prefix) for prefix in (*RESERVED_PREFIXES, *reserved)):
        return Permit(ttl_ms=None, reason="the prefix belongs to the blackboard or to cachewarden itself")
    match = _longest_prefix(service, key)
    if service.patterns and match is None:
        return Permit(ttl_ms=None, reason=f"the key is outside the patterns that `{service.name}` declares")
    owner = _owner_elsewhere(fleet, service, key)
    if owner is not None:
        return Permit(ttl_ms=None, reason=f"the key belongs to `{owner.name}` of another tenant")
    limits = [s for s in (service.default_ttl_s, match[1] if match is not None else None) if s is not None]
    if not limits:
        return Permit(
            ttl_ms=None,
            reason="no TTL is declared, set `default_ttl_s` of the service or `max_staleness_s` of the pattern",
        )
    return Permit(ttl_ms=max(1, int(min(limits) * 1000)), reason="permitted")
