"""Mixes of faults that are drawn from a seed: how often each comes, how long it lasts, how bad it is.

A mix is a table of rates per hour. Every word has dice of its own, so one that is left out moves no other; that is what
makes it possible to shrink a run that failed.

It decides nothing about what a fault does. INVARIANT: the same scenario, seed and mix give the same faults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from simulation.dice import Dice
from simulation.fault_words import AGENT_NAMES, PEER_KINDS, SERVERS, WORDS, FaultSpec, node_names
from simulation.scenario import Scenario, ScenarioError

__all__ = ["MIXES", "Often", "draw_faults"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Often:
    """`per_hour` on average; `lasts_s` the shortest and the longest; `values` one of which is taken."""

    per_hour: float
    lasts_s: tuple[float, float] = (0.0, 0.0)
    values: tuple[str, ...] = ()


_DEFAULT: Mapping[str, Often] = {
    "crash_node": Often(per_hour=0.7, lasts_s=(1, 240)),
    "pause_node": Often(per_hour=1.0, lasts_s=(2, 240)),
    "clock_jump": Often(per_hour=0.4, values=("-60000", "-4000", "3000", "30000", "600000")),
    "clock_drift": Often(per_hour=0.3, lasts_s=(60, 1800), values=("-20000", "-300", "500", "30000")),
    "kill_agent": Often(per_hour=3.0, lasts_s=(0.5, 20)),
    "cut": Often(per_hour=1.5, lasts_s=(2, 180)),
    "isolate": Often(per_hour=0.6, lasts_s=(2, 120)),
    "slow_network": Often(per_hour=0.6, lasts_s=(10, 300), values=("200", "1500", "4000")),
    "lossy_network": Often(per_hour=0.5, lasts_s=(10, 200), values=("0.02", "0.2")),
    "double_messages": Often(per_hour=0.6, lasts_s=(30, 600), values=("0.1", "0.6")),
    "restart_cache": Often(per_hour=0.5),
    "restart_keeping": Often(per_hour=0.3),
    "failover": Often(per_hour=0.3, lasts_s=(2, 60)),
    "cache_down": Often(per_hour=0.7, lasts_s=(1, 120)),
    "cache_stalls": Often(per_hour=1.0, lasts_s=(1, 30)),
    "deny": Often(per_hour=0.3, lasts_s=(10, 400), values=("CONFIG SET", "CONFIG GET")),
    "lose_answer": Often(per_hour=2.0, values=("CONFIG SET", "CONFIG SET", "EVAL")),
    "evict_fence": Often(per_hour=1.5),
    "slow_commands": Often(per_hour=0.3, lasts_s=(20, 300), values=("0.005", "0.05")),
    "traffic": Often(per_hour=0.8, lasts_s=(30, 1200), values=("0.0", "0.2", "3", "10")),
    "shift_keys": Often(per_hour=0.8, values=("0.6", "0.8", "1.0", "1.2")),
    "journal_down": Often(per_hour=0.6, lasts_s=(1, 120)),
    "journal_crash": Often(per_hour=0.1, lasts_s=(1, 20), values=("50", "400", "1000")),
    "journal_loses_answer": Often(per_hour=1.5),
    "journal_stalls": Often(per_hour=0.6, lasts_s=(1, 20)),
    "blackboard_down": Often(per_hour=0.5, lasts_s=(1, 300)),
    "blackboard_lost": Often(per_hour=0.4),
    "set_knob": Often(
        per_hour=0.7,
        values=("maxmemory=x0.5", "maxmemory=x1.5", "maxmemory-policy=volatile-ttl", "maxmemory-policy=allkeys-lru"),
    ),
    "pause_fleet": Often(per_hour=0.2, lasts_s=(10, 300)),
    "kill_switch": Often(per_hour=0.2, lasts_s=(10, 300)),
    "run_cycle": Often(per_hour=1.0),
    "approve": Often(per_hour=0.5, lasts_s=(300, 1800)),
    "peer": Often(per_hour=1.0, lasts_s=(60, 1200)),
    "boast": Often(per_hour=0.8, lasts_s=(200, 1800), values=("0.05", "0.2")),
    "wrong_hash": Often(per_hour=1.0),
    "forged_order": Often(per_hour=1.0),
    "garbage": Often(per_hour=1.0),
    "replay": Often(per_hour=1.5, values=("3", "8", "60")),
}

MIXES: Mapping[str, Mapping[str, Often]] = {
    "none": {},
    "default": _DEFAULT,
    "storm": {
        word: Often(per_hour=4 * often.per_hour, lasts_s=often.lasts_s, values=often.values)
        for word, often in _DEFAULT.items()
    },
    "crashes": {
        "crash_node": Often(per_hour=6.0, lasts_s=(0.5, 60)),
        "kill_agent": Often(per_hour=30.0, lasts_s=(0.2, 10)),
        "journal_loses_answer": Often(per_hour=4.0),
        "lose_answer": Often(per_hour=4.0, values=("CONFIG SET", "EVAL")),
        "run_cycle": Often(per_hour=6.0),
        "boast": Often(per_hour=1.0, lasts_s=(200, 1800), values=("0.2",)),
    },
    "network": {
        word: Often(per_hour=4 * often.per_hour, lasts_s=often.lasts_s, values=often.values)
        for word, often in _DEFAULT.items()
        if word in ("cut", "isolate", "slow_network", "lossy_network", "double_messages", "pause_node", "lose_answer")
    },
    "peers": {
        "peer": Often(per_hour=24.0, lasts_s=(60, 1200)),
        "blackboard_down": Often(per_hour=2.0, lasts_s=(1, 120)),
        "blackboard_lost": Often(per_hour=2.0),
        "kill_agent": Often(per_hour=6.0, lasts_s=(0.5, 20)),
        "run_cycle": Often(per_hour=4.0),
    },
    "people": {
        word: Often(per_hour=5 * often.per_hour, lasts_s=often.lasts_s, values=often.values)
        for word, often in _DEFAULT.items()
        if word in ("set_knob", "pause_fleet", "kill_switch", "run_cycle", "approve", "boast", "kill_agent")
    },
}
"""By name: `none`; `default`, a bad hour; `storm`, four times as bad; and those that dwell on one kind of trouble."""


def draw_faults(scenario: Scenario, seed: int, mix: str | None = None) -> tuple[FaultSpec, ...]:
    """Return the faults of a run in the order of time: those of the scenario, and those of its mix (or of `mix`).

    Raises ScenarioError for an unknown mix.
    """
    name = scenario.mix if mix is None else mix
    if name not in MIXES:
        raise ScenarioError(f"there is no mix `{name}`, known are: {', '.join(MIXES)}")
    dice = Dice(seed).fork("faults")
    drawn = [f for word, often in sorted(MIXES[name].items()) for f in _drawn(word, often, scenario, dice.fork(word))]
    return tuple(sorted((*scenario.faults, *drawn), key=lambda f: f.at_ms))


def _drawn(word: str, often: Often, scenario: Scenario, dice: Dice) -> list[FaultSpec]:
    found: list[FaultSpec] = []
    hours = 0.0
    while True:
        hours -= math.log(1.0 - dice.unit()) / often.per_hour
        at_ms = int(hours * 3_600_000)
        if at_ms >= scenario.minutes * 60_000:
            return found
        shortest, longest = often.lasts_s
        # Short ones are as likely as long ones by order of magnitude: races need the short ones.
        lasts_s = shortest * (longest / shortest) ** dice.unit() if shortest else 0.0
        target = _target(WORDS[word].on, scenario, dice)
        value = dice.pick(often.values) if often.values else ""
        times = {"at": f"{at_ms}ms", "for": f"{int(lasts_s * 1000)}ms"}
        found.append(FaultSpec.model_validate({"fault": word, "on": target, "value": value, **times}))


def _target(kind: str, scenario: Scenario, dice: Dice) -> str:
    services = tuple(load.name for load in scenario.services)
    nodes = node_names(scenario.deployments, scenario.nodes)
    if kind == "pair":
        node, other = dice.pick(nodes), dice.pick((*SERVERS, *services, *nodes))
        return f"{node}>{other}" if dice.chance(0.5) else f"{other}>{node}"
    options: Mapping[str, tuple[str, ...]] = {
        "node": nodes,
        "agent": AGENT_NAMES,
        "service": services,
        "peer": PEER_KINDS,
    }
    return dice.pick(options[kind]) if kind else ""
