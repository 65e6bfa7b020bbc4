"""The knob table: everything that cachewarden may set, and what is known about each.

A knob that is not in this table cannot be set, and a value outside its range is refused with the range in the
message. The table never
says whether a change is a good idea: that is the planner's, the constitution's and the consensus's business.

Ranges and versions are from the servers' `config.c`; hazards from measurements on Redis 7.0.15 and Valkey 9.1.2.
INVARIANT: no knob of persistence, replication, topology or security is in the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, get_args

from cachewarden.errors import SettingsError
from cachewarden.messages import ActionClass

__all__ = [
    "EVICTION_POLICIES",
    "KNOBS",
    "EvictionPolicy",
    "Knob",
    "KnobType",
    "action_class_of_change",
    "as_server_reads",
    "check_value",
    "parse_bytes",
    "supported",
]


class KnobType(StrEnum):
    BYTES = "bytes"
    INTEGER = "integer"
    CHOICE = "choice"
    YES_NO = "yes_no"


EvictionPolicy = Literal[
    "allkeys-lfu",
    "allkeys-lru",
    "allkeys-random",
    "noeviction",
    "volatile-lfu",
    "volatile-lru",
    "volatile-random",
    "volatile-ttl",
]
"""The server's own names of `maxmemory-policy`."""
EVICTION_POLICIES: tuple[EvictionPolicy, ...] = get_args(EvictionPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One tunable. `since` maps server name to the first version that has it; a server that is not named lacks it."""

    name: str
    type: KnobType
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    since: Mapping[str, tuple[int, ...]]
    online: bool = True
    """Accepted by CONFIG SET on a running server."""
    action_class: ActionClass
    reversible: bool
    """Whether setting the old value back restores the old behaviour without loss."""
    hazard: str
    predicted_by: str
    """Which model predicts its effect; `none` means that it is set for observation or latency only."""

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.type is KnobType.CHOICE:
            return ", ".join(self.choices)
        if self.type is KnobType.YES_NO:
            return "yes, no"
        unit = " bytes" if self.type is KnobType.BYTES else ""
        return f"{self.low}..{self.high}{unit}"


_EVERYWHERE = MappingProxyType({"redis": (2, 8), "valkey": (7, 2)})
_REDIS_4 = MappingProxyType({"redis": (4, 0), "valkey": (7, 2)})
_REDIS_6 = MappingProxyType({"redis": (6, 0), "valkey": (7, 2)})
_REDIS_62 = MappingProxyType({"redis": (6, 2), "valkey": (7, 2)})
_REDIS_7 = MappingProxyType({"redis": (7, 0), "valkey": (7, 2)})
_REDIS_72 = MappingProxyType({"redis": (7, 2), "valkey": (7, 2)})


def _integer(
    name: str,
    low: int,
    high: int,
    since: Mapping[str, tuple[int, ...]],
    cls: ActionClass,
    *,
    hazard: str,
    by: str,
    reversible: bool = True,
) -> Knob:
    return Knob(
        name=name,
        type=KnobType.INTEGER,
        low=low,
        high=high,
        since=since,
        action_class=cls,
        reversible=reversible,
        hazard=hazard,
        predicted_by=by,
    )


def _switch(name: str, since: Mapping[str, tuple[int, ...]], *, hazard: str) -> Knob:
    return Knob(
        name=name,
        type=KnobType.YES_NO,
        since=since,
        action_class=ActionClass.REVERSIBLE,
        reversible=True,
        hazard=hazard,
        predicted_by="none",
    )


_LISTPACK_HAZARD = (
    "raising it changes only keys created later; lowering it converts a key at its next write, "
    "so taking it back is not neutral"
)

_TABLE: tuple[Knob, ...] = (
    Knob(
        name="maxmemory",
        type=KnobType.BYTES,
        low=1 << 20,
        high=1 << 44,
        since=_EVERYWHERE,
        action_class=ActionClass.GROWTH,
        reversible=False,
        hazard="lowering it evicts at once and for good; "
        "under noeviction, or volatile-* without TTLs, it refuses writes",
        predicted_by="cachemodel.whatif",
    ),
    Knob(
        name="maxmemory-policy",
        type=KnobType.CHOICE,
        choices=EVICTION_POLICIES,
        since=_EVERYWHERE,
        action_class=ActionClass.LOSSY,
        reversible=False,
        hazard="LRU to LFU gives old keys frequency 0 and new ones 5: "
        "a plain switch under pressure loses 30 to 52 % of the hot set",
        predicted_by="cachemodel.whatif",
    ),
    _integer(
        "maxmemory-samples",
        3,
        10,
        _EVERYWHERE,
        ActionClass.REVERSIBLE,
        hazard="more samples cost CPU at each eviction and rarely gain 0.1 points",
        by="cachemodel.whatif",
    ),
    _integer(
        "maxmemory-eviction-tenacity",
        0,
        20,
        _REDIS_62,
        ActionClass.REVERSIBLE,
        hazard="above 20 eviction may hold the event loop for long",
        by="none",
    ),
    _integer(
        "lfu-log-factor",
        0,
        255,
        _REDIS_4,
        ActionClass.REVERSIBLE,
        hazard="changes the meaning of counters gradually",
        by="cachemodel.whatif",
    ),
    _integer(
        "lfu-decay-time",
        0,
        1440,
        _REDIS_4,
        ActionClass.REVERSIBLE,
        hazard="0 never forgets; must follow the eviction age",
        by="cachemodel.whatif",
    ),
    _integer("active-expire-effort", 1, 10, _REDIS_6, ActionClass.REVERSIBLE, hazard="more CPU for expiry", by="none"),
    _integer("latency-monitor-threshold", 0, 60_000, _EVERYWHERE, ActionClass.OBSERVE, hazard="none known", by="none"),
    _integer(
        "slowlog-log-slower-than",
        100,
        10_000_000,
        _EVERYWHERE,
        ActionClass.OBSERVE,
        hazard="too low fills the log",
        by="none",
    ),
    _switch("latency-tracking", _REDIS_7, hazard="a little CPU per command"),
    _switch("lazyfree-lazy-eviction", _REDIS_4, hazard="memory may overshoot while it is freed in the background"),
    _switch("lazyfree-lazy-expire", _REDIS_4, hazard="memory may overshoot while it is freed in the background"),
    _switch("lazyfree-lazy-server-del", _REDIS_4, hazard="memory may overshoot while it is freed in the background"),
    _switch("lazyfree-lazy-user-del", _REDIS_6, hazard="memory may overshoot while it is freed in the background"),
    _switch(
        "activedefrag",
        _REDIS_4,
        hazard="up to a quarter of a core while it runs; refused without the servers' own jemalloc, which "
        "`mem_allocator` does not tell, so it is tried",
    ),
    _integer(
        "hash-max-listpack-entries",
        0,
        1024,
        _REDIS_7,
        ActionClass.LOSSY,
        hazard=_LISTPACK_HAZARD,
        by="encoding",
        reversible=False,
    ),
    _integer(
        "hash-max-listpack-value",
        0,
        1024,
        _REDIS_7,
        ActionClass.LOSSY,
        hazard=_LISTPACK_HAZARD,
        by="encoding",
        reversible=False,
    ),
    _integer(
        "zset-max-listpack-entries",
        0,
        1024,
        _REDIS_7,
        ActionClass.LOSSY,
        hazard=_LISTPACK_HAZARD,
        by="encoding",
        reversible=False,
    ),
    _integer(
        "zset-max-listpack-value",
        0,
        1024,
        _REDIS_7,
        ActionClass.LOSSY,
        hazard=_LISTPACK_HAZARD,
        by="encoding",
        reversible=False,
    ),
    _integer(
        "set-max-listpack-entries",
        0,
        1024,
        _REDIS_72,
        ActionClass.LOSSY,
        hazard=_LISTPACK_HAZARD,
        by="encoding",
        reversible=False,
    ),
    _integer(
        "set-max-listpack-value",
        0,
        1024,
        _REDIS_72,
        ActionClass.LOSSY,
        hazard=_LISTPACK_HAZARD,
        by="encoding",
        reversible=False,
    ),
    _integer(
        "set-max-intset-entries",
        0,
        4096,
        _EVERYWHERE,
        ActionClass.LOSSY,
        hazard=_LISTPACK_HAZARD,
        by="encoding",
        reversible=False,
    ),
)

KNOBS: Mapping[str, Knob] = MappingProxyType({knob.name: knob for knob in _TABLE})

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
_BYTES = re.compile(r"^\s*(\d+)\s*([a-z]*)\s*$")


def parse_bytes(text: str | int) -> int:
    """Return bytes for `64mb`, `1gb`, `1048576` (Redis's units: mb = 1024*1024, m = 1000*1000). Raises
    SettingsError."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _BYTES.match(str(text).lower())
    if match is None or match.group(2) not in _UNITS:
        raise SettingsError(f"`{text}` is no amount of memory, write for example `64mb`")
    return int(match.group(1)) * _UNITS[match.group(2)]


def check_value(knob_name: str, value: str) -> str:
    """Return `value` in the form that CONFIG GET prints, or raise SettingsError with the allowed range."""
    knob = KNOBS.get(knob_name)
    if knob is None:
        raise SettingsError(f"`{knob_name}` is not in the knob table, settable are: {', '.join(sorted(KNOBS))}")
    if knob.type in (KnobType.CHOICE, KnobType.YES_NO):
        choices = knob.choices or ("yes", "no")
        if value not in choices:
            raise SettingsError(f"`{knob_name}` cannot be `{value}`, allowed: {knob.allowed}")
        return value
    try:
        number = parse_bytes(value) if knob.type is KnobType.BYTES else int(value)
    except (ValueError, SettingsError):
        wanted = "an amount of memory" if knob.type is KnobType.BYTES else "a whole number"
        raise SettingsError(f"`{knob_name}` needs {wanted}, not `{value}`, allowed: {knob.allowed}") from None
    if not knob.low <= number <= knob.high:
        raise SettingsError(f"`{knob_name}` cannot be `{value}`, allowed: {knob.allowed}")
    return str(number)


_MEMORY: re.Pattern[str] = re.compile(r"([0-9]{0,20})([a-z]{0,2})")
_WHOLE: re.Pattern[str] = re.compile(r"0|-?[1-9][0-9]{0,18}")


def as_server_reads(knob_name: str, value: str) -> str | None:
    """Return what another program wrote for a knob in the form that CONFIG GET prints, None where no server would take
    it; a value outside our range and a knob that is not in the table are left as they are.

    Sizes as `memtoull` of `util.c` reads them (no sign, no space, units in any case), whole numbers as `string2ll`,
    choices and `yes`/`no` without regard to case as `configEnumGetValue` of `config.c` and `yesnotoi` do.
    """
    knob = KNOBS.get(knob_name)
    if knob is None:
        return value
    if knob.type in (KnobType.CHOICE, KnobType.YES_NO):
        return value.lower() if value.lower() in (knob.choices or ("yes", "no")) else None
    if knob.type is KnobType.INTEGER:
        return value if _WHOLE.fullmatch(value) else None
    match = _MEMORY.fullmatch(value.lower())
    if match is None or match.group(2) not in _UNITS:
        return None
    # A unit alone is 0 to the server.
    number = int(match.group(1) or 0) * _UNITS[match.group(2)]
    return str(number) if number < 1 << 64 else None


@lru_cache(maxsize=1_024)
def supported(knob_name: str, server: str, version: str) -> bool:
    """Say whether a server of that name and version has the knob."""
    knob = KNOBS.get(knob_name)
    first = None if knob is None else knob.since.get(server)
    if first is None:
        return False
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    return numbers >= first


def action_class_of_change(knob_name: str, before: str, after: str) -> ActionClass:
    """Return the class of one change: lowering maxmemory is lossy although raising it is only growth."""
    knob = KNOBS.get(knob_name)
    if knob is None:
        return ActionClass.FORBIDDEN
    if knob_name == "maxmemory" and before != "0" and int(after) < int(before):
        return ActionClass.LOSSY
    return knob.action_class
