"""The fleet file: which caches are managed, what their owners promise and permit.

It states facts and wishes of people; nothing here is measured or decided. INVARIANT: the minimum sizes of all
services fit into the
total memory budget, and no service is the blackboard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from cachewarden.errors import FleetFileError, SettingsError, UnknownService
from cachewarden.freeze import Freeze, parse_freeze
from cachewarden.knobs import parse_bytes
from cachewarden.messages import Mode
from cachewarden.yaml_lines import validate_yaml

__all__ = ["Fleet", "Guardrails", "KeyPattern", "Origin", "Service", "load_fleet", "parse_fleet"]


def _bytes(value: Any) -> Any:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return parse_bytes(value)
        except SettingsError as error:
            raise ValueError(str(error)) from None
    return value


Bytes = Annotated[int, BeforeValidator(_bytes)]


def _freeze(value: Any) -> Any:
    return parse_freeze(value) if isinstance(value, str) else value


FreezeWindow = Annotated[Freeze, BeforeValidator(_freeze)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyPattern(_Strict):
    """Keys that begin with `prefix`, and how old their values may be."""

    prefix: str = Field(min_length=1, max_length=200, description="literal beginning of the key, without wildcards")
    max_staleness_s: float | None = Field(
        None, gt=0, description="how old a value may be; without it no TTL is touched"
    )
    shorten_ttl: bool = Field(
        default=False,
        description="whether keys may end sooner than they were written: those that nobody reads, and what expires "
        "together; such a change waits for a person",
    )

    @model_validator(mode="after")
    def _owned(self) -> KeyPattern:
        if self.shorten_ttl and self.max_staleness_s is None:
            raise ValueError("`shorten_ttl` needs `max_staleness_s`: without it no TTL is touched")
        return self

    @field_validator("prefix")
    @classmethod
    def _literal(cls, value: str) -> str:
        if any(c in value for c in "*?[]"):
            raise ValueError("write the literal beginning of the keys, without `*`, `?` or `[]`")
        return value


class Origin(_Strict):
    """Where values for warming come from."""

    kind: Literal["http", "redis", "file"]
    url: str = Field(min_length=1, description="template with `{key}` for http; server for redis; path for file")
    timeout_s: float = Field(2.0, gt=0, le=60)
    concurrency: int = Field(8, ge=1, le=256)
    rate_per_s: float = Field(200.0, gt=0, le=100_000)
    keep_warm: bool = Field(
        default=False,
        description="in mode `auto`: remember names of hot keys in memory, and load them again after a restart, a "
        "failover or a burst of evictions",
    )
    refresh_ahead: bool = Field(
        default=False, description="in mode `auto`: load hot keys anew shortly before they expire"
    )
    hot_keys: int = Field(2_000, ge=1, le=100_000, description="remembered for both")
    background_share: float = Field(
        0.25, gt=0.0, le=1.0, description="of rate_per_s, for loads that nobody has asked for"
    )


class Guardrails(_Strict):
    """Limits of one service; what is not given is the operator's setting of that name."""

    hit_ratio_drop: float | None = Field(None, gt=0.0, le=1.0, description="fall of the hit ratio, 0..1")
    latency_factor: float | None = Field(None, gt=1.0, description="P99 over the P99 before")
    evictions_factor: float | None = Field(None, gt=1.0, description="evictions per second over those before")
    cpu_share: float | None = Field(None, gt=0.0, le=64.0, description="CPU of the server in cores")
    origin_load_per_s: float | None = Field(None, gt=0.0, description="misses per second that the origin can answer")


def _is_url(text: str) -> bool:
    return text.startswith(("redis://", "rediss://", "unix://"))


class Service(_Strict):
    """One cache and the people's wishes about it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    url: str = Field(min_length=1, description="redis://, rediss:// or unix://")
    username: str | None = None
    password_env: str | None = Field(None, description="name of the environment variable that holds the password")
    mode: Mode = Mode.ADVISE
    tenant: str = "default"
    region: str = "local"
    weight: float = Field(1.0, gt=0, le=1000, description="worth of one hit against one hit of another service")
    hit_ratio_floor: float = Field(0.0, ge=0.0, lt=1.0)
    minimum_memory_bytes: Bytes = Field(2 * 1024 * 1024, ge=1024 * 1024)
    patterns: tuple[KeyPattern, ...] = ()
    capture: bool = Field(default=False, description="whether bounded MONITOR captures are permitted")
    value_samples: bool = Field(
        default=False, description="whether values of a bounded sample of keys may be read and measured in memory"
    )
    feed: bool = Field(default=False, description="whether applications may report their own accesses (client feed)")
    reencode: bool = Field(
        default=False, description="whether keys of the patterns may be stored again in a smaller encoding"
    )
    config_rewrite: bool = Field(
        default=False, description="whether kept changes may be written to the server's configuration file"
    )
    memory_limit: Bytes | None = Field(
        None, ge=1024 * 1024, description="memory of the container or cgroup, which the server does not tell"
    )
    nodes: tuple[str, ...] = Field(
        (), max_length=16, description="URLs of its other nodes, whose settings should be the same; only looked at"
    )
    twin: str | None = Field(None, description="service with the same traffic that stays unchanged: the control")
    canary: str | None = Field(None, description="service on which a lossy change must have been kept first")
    freeze: tuple[FreezeWindow, ...] = Field((), description="times in UTC in which nothing is changed")
    guardrails: Guardrails = Guardrails()
    default_ttl_s: float | None = Field(None, gt=0, description="TTL of warmed keys")
    origin: Origin | None = None

    @field_validator("url", "nodes")
    @classmethod
    def _scheme(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not all(_is_url(one) for one in ((value,) if isinstance(value, str) else value)):
            raise ValueError("must begin with `redis://`, `rediss://` or `unix://`")
        return value

    @property
    def staleness_ms(self) -> dict[str, int]:
        """Declared staleness by pattern; patterns without one are missing."""
        return {p.prefix: int(p.max_staleness_s * 1000) for p in self.patterns if p.max_staleness_s is not None}


class Fleet(_Strict):
    """All managed caches and the memory that they share."""

    name: str = Field("fleet", pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    total_memory_bytes: Bytes | None = Field(
        None, description="sum of maxmemory that may never be exceeded; as found if not given"
    )
    services: tuple[Service, ...] = Field(min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _whole(self) -> Fleet:
        names = [s.name for s in self.services]
        twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) != len(names) else []
        if twice:
            raise ValueError(f"each service needs a name of its own, twice: {', '.join(twice)}")
        for service in self.services:
            for role, other in (("twin", service.twin), ("canary", service.canary)):
                if other is not None and (other == service.name or other not in names):
                    raise ValueError(
                        f"the {role} of `{service.name}` must be another service of the file, not `{other}`"
                    )
        needed = sum(s.minimum_memory_bytes for s in self.services)
        if self.total_memory_bytes is not None and needed > self.total_memory_bytes:
            raise ValueError(
                f"the minimum sizes add up to {needed} bytes, more than total_memory_bytes {self.total_memory_bytes}"
            )
        return self

    def service(self, name: str) -> Service:
        """Return the service of that name; raises UnknownService with the known names."""
        for service in self.services:
            if service.name == name:
                return service
        raise UnknownService(name, self.names)

    def find(self, name: str) -> Service | None:
        """Return the service of that name, None where the file has none."""
        return next((s for s in self.services if s.name == name), None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.services)


def parse_fleet(text: str, source: str = "fleet.yaml") -> Fleet:
    """Return the fleet that a YAML text describes; raises FleetFileError with file and line."""
    return validate_yaml(Fleet, text, source, FleetFileError)


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file; raises FleetFileError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FleetFileError(f"cannot be read: {error}", path=str(path)) from None
    return parse_fleet(text, str(path))
