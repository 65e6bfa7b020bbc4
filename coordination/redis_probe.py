"""Looks at a cache without disturbing it: what it permits, its counters, and a uniform sample of its keys.

It never writes, never sends KEYS, and keeps a key name only until its keyed hash is taken. How much it may cost the
server is bounded by `Pacer`. It sees the db of the URL only: RANDOMKEY and SCAN know no other.

INVARIANT: a capability is what the server answered, never what its version suggests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import hash_key
from cachewarden.observation import Capabilities, KeyspaceSample
from coordination.monitor_lines import PatternIndex
from coordination.redis_wire import BATCH_COMMANDS, Command, Ledger, RedisWire, Refusal, require

__all__ = [
    "Pacer",
    "commands_since",
    "latency_histograms",
    "probe_capabilities",
    "read_info",
    "sample_keyspace",
    "server_us_since",
    "text_of",
    "under_lfu",
    "with_policy",
]

_ANSWERING_US: Final = 3.0
"""What reading a pipelined command and writing its answer costs a server beside the command itself, by its CPU time on
Redis 7.0.15 and Valkey 9.1.2; `commandstats` leaves it out."""
_FIRST_GUESS_US: Final = 1.0
_ATTEMPTS_PER_KEY: Final = 2
_ENCODING_EVERY: Final = 10
"""Of how many keys one is asked for its encoding: a tenth tells the mixture, and each answer costs the cache a lookup.
"""
_KEYS_PER_BATCH: Final = 30
"""With three questions for each and a fourth for every tenth they fit into one batch."""


def text_of(value: Any) -> str:
    """Return a reply as text; INFO and CONFIG are ASCII, anything else is replaced rather than refused."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_info(reply: bytes) -> dict[str, str]:
    """Return INFO as a flat mapping, values as the server prints them."""
    pairs = (line.split(":", 1) for line in text_of(reply).splitlines() if ":" in line and not line.startswith("#"))
    return {name: value.strip() for name, value in pairs}


def under_lfu(info: Mapping[str, str]) -> bool:
    """Say whether keys carry a frequency instead of an idle time."""
    return info.get("maxmemory_policy", "").endswith("-lfu")


def _command_stats(info: Mapping[str, str]) -> dict[str, tuple[int, float]]:
    """Return command to (calls, microseconds) from the `commandstats` of INFO."""
    stats = {}
    for name, text in info.items():
        if name.startswith("cmdstat_"):
            fields = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
            stats[name.removeprefix("cmdstat_")] = int(fields.get("calls", 0)), float(fields.get("usec", 0))
    return stats


def server_us_since(earlier: Mapping[str, str], later: Mapping[str, str], ours: Mapping[str, int]) -> float | None:
    """Return the microseconds that the server spent in our commands, by its `commandstats`; None where it has none.

    The mean of each command over the time between the two INFOs is taken, or over its whole life where there were no
    calls in between; others may have sent the same commands, so it is times our own count.
    """
    before, after = _command_stats(earlier), _command_stats(later)
    if not after:
        return None
    total = 0.0
    for name, calls in ours.items():
        key = name if name in after else name.split("|")[0]
        calls_after, us_after = after.get(key, (0, 0.0))
        calls_before, us_before = before.get(key, (0, 0.0))
        if calls_after > calls_before and us_after >= us_before:
            total += calls * (us_after - us_before) / (calls_after - calls_before)
        elif calls_after:
            total += calls * us_after / calls_after
    return total


@dataclass(slots=True)
class Pacer:
    """Spreads commands over time so that they take at most `share` (0..1] of one core of the server."""

    share: float
    us_per_command: float = _FIRST_GUESS_US + _ANSWERING_US
    _free_at_s: float = field(default=0.0)

    async def spend(self, commands: int) -> None:
        """Return once the server has had its rest from all earlier batches; then `commands` may be sent."""
        loop = asyncio.get_running_loop()
        wait_s = self._free_at_s - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        self._free_at_s = loop.time() + commands * self.us_per_command / 1e6 / self.share

    def now_s(self) -> float:
        """Return the time of the loop that the pacer paces."""
        return asyncio.get_running_loop().time()

    def free_at_s(self, now_s: float) -> float:
        """Return when the server will have had its rest, by the clock of the loop; `now_s` where it has."""
        return max(now_s, self._free_at_s)

    def learn(self, commands: int, server_us: float) -> None:
        """Take over what `commands` of ours were measured to cost."""
        if commands > 0:
            self.us_per_command = server_us / commands + _ANSWERING_US


async def probe_capabilities(wire: RedisWire, info: Mapping[str, str], *, key: bytes, capture: bool) -> Capabilities:
    """Try politely what we need; `key` is looked up with OBJECT and MEMORY USAGE if the keyspace is empty.

    MONITOR, CONFIG SET and EVAL are not tried but asked for (ACL DRYRUN, COMMAND INFO): a look must leave no trace of a
    write. Where even that is denied, they are believed to work until they are refused.
    Raises TargetUnavailable.
    """
    (random_key,) = await wire.ask([("RANDOMKEY",)])
    name = random_key if isinstance(random_key, bytes) else key
    questions: dict[str, Command] = {
        "CONFIG GET": ("CONFIG", "GET", "maxmemory"),
        "OBJECT IDLETIME": ("OBJECT", "IDLETIME", name),
        "OBJECT FREQ": ("OBJECT", "FREQ", name),
        "MEMORY USAGE": ("MEMORY", "USAGE", name, "SAMPLES", 5),
        "LATENCY HISTOGRAM": ("LATENCY", "HISTOGRAM", "get"),
    }
    replies = dict(zip(questions, await wire.ask(list(questions.values())), strict=True))
    denied = {
        command: reply.reason
        for command, reply in replies.items()
        # Under the wrong eviction policy OBJECT is permitted all the same; `with_policy` says which of the two works
        # now.
        if isinstance(reply, Refusal) and not (command.startswith("OBJECT") and "policy" in reply.reason)
    }
    could_write: dict[str, Command] = {
        "CONFIG SET": ("CONFIG", "SET", "maxmemory-samples", "5"),
        "EVAL": ("EVAL", "return 1", 1, key),
    }
    denied |= await _asked(wire, could_write)
    if not _has_script_flags(info):
        denied.setdefault("EVAL", "scripts with flags, which fencing a full cache needs, came with Redis 7.0")
    if capture:
        denied |= await _asked(wire, {"MONITOR": ("MONITOR",)})
    valkey = "valkey_version" in info
    capabilities = Capabilities(
        server="valkey" if valkey else "redis",
        version=info.get("valkey_version") or info.get("redis_version", "0"),
        config_get="CONFIG GET" not in denied,
        config_set="CONFIG SET" not in denied,
        object_idletime="OBJECT IDLETIME" not in denied,
        object_frequency="OBJECT FREQ" not in denied,
        memory_usage="MEMORY USAGE" not in denied,
        latency_histogram="LATENCY HISTOGRAM" not in denied,
        monitor=capture and "MONITOR" not in denied,
        script="EVAL" not in denied,
        denied=denied,
    )
    return with_policy(capabilities, info)


def _has_script_flags(info: Mapping[str, str]) -> bool:
    major = info.get("redis_version", "0").partition(".")[0]
    return "valkey_version" in info or (major.isdigit() and int(major) >= 7)


def with_policy(capabilities: Capabilities, info: Mapping[str, str]) -> Capabilities:
    """Return the capabilities under the present eviction policy: OBJECT IDLETIME and OBJECT FREQ exclude each other."""
    lfu, denied = under_lfu(info), capabilities.denied
    return replace(
        capabilities,
        object_idletime="OBJECT IDLETIME" not in denied and not lfu,
        object_frequency="OBJECT FREQ" not in denied and lfu,
    )


async def _asked(wire: RedisWire, commands: Mapping[str, Command]) -> dict[str, str]:
    """Return which of the commands the server says it would refuse, and why."""
    (user,) = await wire.ask([("ACL", "WHOAMI")])
    denied = {}
    for name, command in commands.items():
        (known,) = await wire.ask([("COMMAND", "INFO", str(command[0]))])
        if known == [None]:
            denied[name] = f"unknown command `{command[0]}`"
            continue
        if isinstance(user, Refusal):
            continue
        (verdict,) = await wire.ask([("ACL", "DRYRUN", user, *command)])
        # An error here (no ACL DRYRUN before 7.0, or not permitted) is no answer to the question.
        if not isinstance(verdict, Refusal) and verdict not in (b"OK", "OK"):
            denied[name] = text_of(verdict).strip().rstrip(".")
    return denied


@dataclass(slots=True)
class _Rows:
    """Columns of a sample while it grows."""

    key: list[int] = field(default_factory=list)
    pattern: list[int] = field(default_factory=list)
    idle_ms: list[int] = field(default_factory=list)
    frequency: list[int] = field(default_factory=list)
    size_bytes: list[int] = field(default_factory=list)
    ttl_ms: list[int] = field(default_factory=list)
    encoding: list[str] = field(default_factory=list)


async def sample_keyspace(
    wire: RedisWire,
    *,
    keys: int,
    capabilities: Capabilities,
    patterns: Sequence[str],
    hash_secret: bytes,
    own_prefix: bytes,
    pacer: Pacer,
) -> KeyspaceSample:
    """Return up to `keys` different resident keys, found with RANDOMKEY; fewer where the keyspace is small.

    At most twice as many RANDOMKEY are sent as keys are wanted. Keys that vanish between the two looks are left out.
    Raises TargetUnavailable and, where RANDOMKEY is denied, TargetRefused.
    """
    index, rows, seen, attempts = PatternIndex(patterns), _Rows(), set[int](), 0
    while len(rows.key) < keys and attempts < keys * _ATTEMPTS_PER_KEY:
        wanted = min(BATCH_COMMANDS, keys * _ATTEMPTS_PER_KEY - attempts, max(10, keys - len(rows.key)))
        await pacer.spend(wanted)
        found = await wire.ask([("RANDOMKEY",)] * wanted)
        attempts += wanted
        require(wire.service, found[0])
        fresh: dict[int, bytes] = {}
        for name in found:
            if isinstance(name, bytes) and not name.startswith(own_prefix):
                fresh.setdefault(hash_key(hash_secret, name), name)
        new = [(hashed, name) for hashed, name in fresh.items() if hashed not in seen][: keys - len(rows.key)]
        seen.update(hashed for hashed, _ in new)
        for start in range(0, len(new), _KEYS_PER_BATCH):
            await _look_at(wire, new[start : start + _KEYS_PER_BATCH], rows, index, capabilities, pacer)
        if all(name is None for name in found):
            break
    return _arrays(rows, index)


async def _look_at(
    wire: RedisWire,
    keys: Sequence[tuple[int, bytes]],
    rows: _Rows,
    index: PatternIndex,
    capabilities: Capabilities,
    pacer: Pacer,
) -> None:
    asked: list[list[Command]] = []
    for number, (_, name) in enumerate(keys):
        questions: list[Command] = []
        if capabilities.object_idletime or capabilities.object_frequency:
            questions.append(("OBJECT", "IDLETIME" if capabilities.object_idletime else "FREQ", name))
        questions.append(("PTTL", name))
        if capabilities.memory_usage:
            questions.append(("MEMORY", "USAGE", name, "SAMPLES", 5))
        # RANDOMKEY has shuffled the keys, so every tenth is as good as any.
        if number % _ENCODING_EVERY == 0:
            questions.append(("OBJECT", "ENCODING", name))
        asked.append(questions)
    commands = [question for questions in asked for question in questions]
    await pacer.spend(len(commands))
    replies = iter(await wire.ask(commands))
    for (hashed, name), questions in zip(keys, asked, strict=True):
        answers = {_column(question): reply for question, reply in zip(questions, replies, strict=False)}
        ttl = answers["ttl"]
        if ttl == -2:
            continue
        rows.key.append(hashed)
        rows.pattern.append(index.of(name))
        rows.ttl_ms.append(_number(ttl))
        idle = _number(answers.get("idle"))
        rows.idle_ms.append(idle * 1000 if idle >= 0 else -1)
        rows.frequency.append(_number(answers.get("frequency")))
        rows.size_bytes.append(_number(answers.get("size")))
        encoding = answers.get("encoding")
        rows.encoding.append(text_of(encoding) if isinstance(encoding, bytes) else "")


def _column(command: Command) -> str:
    return {"PTTL": "ttl", "MEMORY": "size"}.get(command[0]) or {"IDLETIME": "idle", "FREQ": "frequency"}.get(
        command[1], "encoding"
    )


def _number(reply: Any) -> int:
    """Return a reply that is a number, -1 for any other (an error, or a key that is gone)."""
    return reply if isinstance(reply, int) else -1


def _arrays(rows: _Rows, index: PatternIndex) -> KeyspaceSample:
    encodings = tuple(sorted({name for name in rows.encoding if name}))

    def column(values: Iterable[int], dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.fromiter(values, dtype=dtype, count=len(rows.key))

    return KeyspaceSample(
        key=column(rows.key, np.uint64),
        idle_ms=column(rows.idle_ms, np.int64),
        frequency=column(rows.frequency, np.int32),
        size_bytes=column(rows.size_bytes, np.int64),
        ttl_ms=column(rows.ttl_ms, np.int64),
        pattern=column(rows.pattern, np.int32),
        encoding=column((encodings.index(name) if name else -1 for name in rows.encoding), np.int32),
        patterns=index.patterns,
        encodings=encodings,
    )


def latency_histograms(reply: Any) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return LATENCY HISTOGRAM as command to ((upper bound in microseconds, cumulative count), ...)."""
    histograms = {}
    for name, body in zip(reply[::2], reply[1::2], strict=True):
        fields = dict(zip((text_of(part) for part in body[::2]), body[1::2], strict=True))
        buckets = fields.get("histogram_usec", [])
        histograms[text_of(name)] = tuple(zip(buckets[::2], buckets[1::2], strict=True))
    return histograms


def commands_since(ledger: Ledger, earlier: Mapping[str, int]) -> dict[str, int]:
    """Return our calls by command since `earlier`, a copy of the ledger's."""
    return {
        name: calls - earlier.get(name, 0) for name, calls in ledger.commands.items() if calls > earlier.get(name, 0)
    }
