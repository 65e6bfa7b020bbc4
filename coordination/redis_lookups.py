"""Which of our own commands the servers count as lookups, and by which replies.

Every probe distorts what it measures; these are the rules by which our lookups are taken off again. A command that is
not in the tables may not be sent.

INVARIANT: what is said of a command was measured on Redis 7.0.15 and Valkey 9.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cachewarden.errors import InvariantViolation

__all__ = ["NO_LOOKUP", "Command", "Refusal", "command_name", "lookups_of"]

Command = tuple[Any, ...]

_MINUS_TWO_IS_MISSING = frozenset({"PTTL", "PEXPIRETIME"})
_NIL_IS_MISSING = frozenset({"DUMP", "GET", "OBJECT"})
# A collection is never empty, and we only ask for the range of strings that are not.
_EMPTY_IS_MISSING = frozenset({"GETRANGE", "HGETALL", "HLEN", "SCARD", "SMEMBERS", "ZCARD", "ZRANGE"})
_COUNTS_KEYS = frozenset({"EXISTS", "TOUCH"})
# Measured on Redis 7.0.15 and Valkey 9.1.2: none of these moves keyspace_hits or keyspace_misses.
NO_LOOKUP = frozenset(
    {
        "ACL",
        "CLIENT",
        "CLUSTER",
        "COMMAND",
        "CONFIG",
        "DBSIZE",
        "EVAL",
        "EXEC",
        "INFO",
        "LATENCY",
        "MEMORY",
        "MULTI",
        "PEXPIREAT",
    }
    # By its source, src/hotkeys.c of Redis 8.6: it looks up no key. Never measured, since no 8.6 was at hand.
    | {"HOTKEYS"}
    | {"DISCARD", "PING", "RANDOMKEY", "RESTORE", "SCAN", "SET", "TIME", "UNWATCH", "WATCH"}
)
_CONTAINERS = frozenset({"ACL", "CLIENT", "COMMAND", "CLUSTER", "CONFIG", "HOTKEYS", "LATENCY", "MEMORY", "OBJECT"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error reply, in the server's own words."""

    command: str
    reason: str


def command_name(command: Command) -> str:
    """Return the name under which `commandstats` counts a command."""
    name = str(command[0])
    return f"{name}|{command[1]}".lower() if name in _CONTAINERS else name.lower()


def lookups_of(command: Command, reply: Any) -> tuple[int, int]:
    """Return (hits, misses) that the server counts for one command of ours with this reply.

    What a script looks up only its caller knows; see `Session.write`. Raises InvariantViolation for a command that
    was never measured.
    """
    name = str(command[0])
    if name in NO_LOOKUP:
        return 0, 0
    if isinstance(reply, Refusal):
        # OBJECT IDLETIME under LFU (FREQ otherwise) and GET of another type fail only after the key was found and
        # counted.
        found = (name == "OBJECT" and "policy" in reply.reason) or "wrong kind of value" in reply.reason
        return (1, 0) if found else (0, 0)
    if name in _NIL_IS_MISSING:
        return (0, 1) if reply is None else (1, 0)
    if name in _MINUS_TWO_IS_MISSING:
        return (0, 1) if reply == -2 else (1, 0)
    if name in _EMPTY_IS_MISSING:
        return (1, 0) if reply else (0, 1)
    if name == "TYPE":
        return (0, 1) if reply in (b"none", "none") else (1, 0)
    if name in _COUNTS_KEYS:
        return int(reply), len(command) - 1 - int(reply)
    raise InvariantViolation(f"nobody has measured whether `{name}` counts as a lookup, so it may not be sent")
