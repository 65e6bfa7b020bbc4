"""The vocabulary of faults: what each word needs, and whether a fault of a scenario is said rightly.

What the words do is in `faults.py`. It decides nothing. INVARIANT: a fault that loads names things that exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from simulation.durations import DurationMs, words_of_ms

__all__ = ["AGENT_NAMES", "PEER_KINDS", "SERVERS", "WORDS", "FaultSpec", "FaultWord", "node_names"]

AGENT_NAMES = ("auditor", "coordinator", "collector", "planner", "validator", "consensus", "actuator")
SERVERS = ("journal", "blackboard")
PEER_KINDS = ("honest", "selfish", "slow", "dead", "flapping", "malicious")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultWord:
    """`on`: what it happens to (`node`, `agent`, `service`, `peer`, `pair` or nothing); `lasts`: whether it is over
    after `for`; `value`: the type of its value, None where it has none."""

    does: str
    on: str = ""
    lasts: bool = False
    value: type | None = None


WORDS: Mapping[str, FaultWord] = {
    # Nodes and agents.
    "crash_node": FaultWord(does="everything on the node dies, it boots after `for`", on="node", lasts=True),
    "pause_node": FaultWord(does="the node stands still and knows nothing of it (GC, VM)", on="node", lasts=True),
    "clock_jump": FaultWord(does="the node's clock jumps by `value` milliseconds", on="node", value=int),
    "clock_drift": FaultWord(does="the node's clock runs `value` ppm too fast", on="node", lasts=True, value=int),
    "kill_agent": FaultWord(does="the agent dies, its next life begins after `for`", on="agent", lasts=True),
    # Network.
    "cut": FaultWord(does="nothing passes from the first to the second (`a-1>journal`)", on="pair", lasts=True),
    "isolate": FaultWord(does="nothing passes to or from the node", on="node", lasts=True),
    "slow_network": FaultWord(does="a third of all takes up to `value` ms longer", lasts=True, value=int),
    "lossy_network": FaultWord(does="a share `value` of all is lost", lasts=True, value=float),
    "double_messages": FaultWord(does="a share `value` of the messages arrives twice, late", lasts=True, value=float),
    # Caches.
    "restart_cache": FaultWord(does="another process, empty, with the settings of its file", on="service"),
    "restart_keeping": FaultWord(does="another process, empty, with rewritten settings", on="service"),
    "failover": FaultWord(does="the server is a replica for a while, then another primary", on="service", lasts=True),
    "cache_down": FaultWord(does="connections are refused", on="service", lasts=True),
    "cache_stalls": FaultWord(does="commands are answered only after `for`", on="service", lasts=True),
    "deny": FaultWord(does="the command `value` is refused", on="service", lasts=True, value=str),
    "lose_answer": FaultWord(does="the next `value` (CONFIG SET, EVAL) is done unseen", on="service", value=str),
    "lose_request": FaultWord(does="the next `value` is not done, and nobody is told", on="service", value=str),
    "evict_fence": FaultWord(does="eviction takes the fence", on="service"),
    "slow_commands": FaultWord(does="a share `value` of the lookups is slow", on="service", lasts=True, value=float),
    "traffic": FaultWord(does="there are `value` times as many lookups", on="service", lasts=True, value=float),
    "shift_keys": FaultWord(does="popularity has another skew `value` from now on", on="service", value=float),
    # Journal and blackboard.
    "journal_down": FaultWord(does="the server of journal and leases refuses connections", lasts=True),
    "journal_crash": FaultWord(does="it comes back without its last `value` ms (at most 1000)", lasts=True, value=int),
    "journal_loses_answer": FaultWord(does="the next append is written, but not confirmed"),
    "journal_stalls": FaultWord(does="it answers only after `for`", lasts=True),
    "blackboard_down": FaultWord(does="the blackboard refuses connections", lasts=True),
    "blackboard_lost": FaultWord(does="the blackboard loses everything"),
    # People.
    "set_knob": FaultWord(does="an operator sets `knob=value`; `maxmemory=x0.5` halves it", on="service", value=str),
    "pause_fleet": FaultWord(does="a person pauses, and resumes after `for`", lasts=True),
    "kill_switch": FaultWord(does="a person pulls the kill switch, and resumes after `for`", lasts=True),
    "run_cycle": FaultWord(does="a person asks for a cycle now, skipping cool-down", on="service"),
    "approve": FaultWord(does="a person approves every open plan until `for` is over", lasts=True),
    # Peers.
    "peer": FaultWord(does="another agent of that kind is on the blackboard", on="peer", lasts=True),
    "boast": FaultWord(does="the service overstates its gains by `value`", on="service", lasts=True, value=float),
    "wrong_hash": FaultWord(does="somebody sends an order with another constitutional hash", on="service"),
    "forged_order": FaultWord(does="somebody sends an order whose verdict is about something else", on="service"),
    "garbage": FaultWord(does="somebody sends what is no message at all", on="agent"),
    "replay": FaultWord(does="somebody sends the last `value` messages between agents again", value=int),
}  # fmt: skip


def node_names(deployments: int, nodes: int) -> tuple[str, ...]:
    """Return the names of all nodes: `a-1`, `a-2`, and `b-1`, `b-2` of a second deployment."""
    return tuple(f"{d}-{n}" for d in "ab"[:deployments] for n in range(1, nodes + 1))


class FaultSpec(BaseModel):
    """One fault of a scenario. `at`: since the beginning, or since the write of ours with the number `after_write`
    (1 is the first to any cache); `for`: until it is over; `on`: what it happens to."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    fault: str
    at_ms: DurationMs = Field(alias="at")
    for_ms: DurationMs = Field(0, alias="for")
    on: str = ""
    value: str = Field("", coerce_numbers_to_str=True)
    after_write: int = Field(0, ge=0)

    @field_validator("fault")
    @classmethod
    def _known(cls, word: str) -> str:
        if word not in WORDS:
            near = get_close_matches(word, WORDS, n=1, cutoff=0.75)
            meant = f"did you mean `{near[0]}`?" if near else f"known are: {', '.join(sorted(WORDS))}"
            raise ValueError(f"there is no such fault, {meant} (`--list` says what each does)")
        return word

    @model_validator(mode="after")
    def _complete(self) -> FaultSpec:
        word = WORDS[self.fault]
        if bool(word.on) != bool(self.on):
            what = f"needs `on` (a {word.on})" if word.on else "happens to nothing, leave out `on`"
            raise ValueError(f"`{self.fault}` {what}")
        if word.lasts != (self.for_ms > 0):
            raise ValueError(f"`{self.fault}` {'needs `for`' if word.lasts else 'is over at once, leave out `for`'}")
        if (word.value is not None) != bool(self.value):
            raise ValueError(f"`{self.fault}` {'needs `value`' if word.value else 'has no `value`'}")
        self.amount()
        return self

    def amount(self) -> Any:
        """Return the value in its type; raises ValueError where it has another."""
        kind = WORDS[self.fault].value
        try:
            return None if kind is None else kind(self.value)
        except ValueError:
            raise ValueError(f"`value` of `{self.fault}` must be a number, got `{self.value[:80]}`") from None

    def check_names(self, services: tuple[str, ...], deployments: int, nodes: int) -> None:
        """Raise ValueError where `on` names nothing of this scenario."""
        kind, named = WORDS[self.fault].on, node_names(deployments, nodes)
        known: tuple[str, ...] = {
            "node": named,
            "agent": AGENT_NAMES,
            "service": services,
            "peer": PEER_KINDS,
            "pair": (*named, *SERVERS, *services),
        }.get(kind, ())
        parts = self.on.split(">") if kind == "pair" else [self.on]
        if kind == "pair" and len(parts) != 2:
            raise ValueError(f"`{self.fault}` needs `on` as `from>to`, got `{self.on}`")
        wrong = [p for p in parts if kind and p not in known]
        if wrong:
            raise ValueError(f"`{self.fault}` is on `{wrong[0]}`, known here are: {', '.join(known)}")

    def words(self) -> str:
        """Return the fault in one line."""
        parts = [self.fault.replace("_", " "), self.on, self.value]
        lasts = f"for {words_of_ms(self.for_ms)}" if self.for_ms else ""
        return " ".join(p for p in (*parts, lasts) if p)
