"""What each word of `fault_words.py` does to a world, and how it is taken back when it is over.

A fault is begun and ended by events of the world, so faults may overlap; each is undone by itself (a node that two
faults have paused runs again when both are over). It decides nothing about when they come.

INVARIANT: when all faults of a run are over, everything is reachable, up and on time again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from simulation.deployment import Deployment
from simulation.facts import FaultBegan, FaultEnded
from simulation.fault_words import WORDS, FaultSpec
from simulation.interference import INTERFERENCE
from simulation.network import Host
from simulation.node import Node
from simulation.peers import begin_peer
from simulation.world import START_MS, World

__all__ = ["schedule"]

Act = Callable[[World, FaultSpec], "Undo"]
Undo = Callable[[], None]
"""How a fault is taken back."""


def _nothing() -> None:
    """Take nothing back."""


def schedule(world: World, faults: tuple[FaultSpec, ...]) -> None:
    """Enter faults into the time of a world that was not run yet; none outlasts the scenario's `minutes`."""
    end_ms = START_MS + int(world.scenario.minutes * 60_000)
    for fault in faults:
        begin = partial(_begin, world, fault, end_ms)
        if fault.after_write:
            world.after_write(fault.after_write, partial(world.time.after, fault.at_ms, begin))
        else:
            world.time.at(START_MS + fault.at_ms, begin)


def _begin(world: World, fault: FaultSpec, end_ms: int) -> None:
    if world.now_ms >= end_ms:
        return
    world.note(FaultBegan(at_ms=world.now_ms, fault=fault.words()))
    undo = ACTS[fault.fault](world, fault)
    lasts = WORDS[fault.fault].lasts
    # Clocks are set right at the end, so that the quiet time is quiet.
    ends_ms = min(world.now_ms + fault.for_ms, end_ms) if lasts else end_ms
    if undo is not _nothing:
        world.time.at(ends_ms, partial(_end, world, fault, undo))


def _end(world: World, fault: FaultSpec, undo: Undo) -> None:
    undo()
    world.note(FaultEnded(at_ms=world.now_ms, fault=fault.words()))


# --- Nodes and agents ------------------------------------------------------------------------------------------------


def _deployment_of(world: World, node: str) -> Deployment:
    return world.deployments[node.partition("-")[0]]


def _node(world: World, fault: FaultSpec) -> Node:
    return _deployment_of(world, fault.on).nodes[fault.on]


def _crash_node(world: World, fault: FaultSpec) -> Undo:
    deployment = _deployment_of(world, fault.on)
    deployment.crash_node(fault.on)
    return lambda: deployment.boot_node(fault.on)


def _pause_node(world: World, fault: FaultSpec) -> Undo:
    node = _node(world, fault)
    node.pause()
    return node.resume


def _clock_jump(world: World, fault: FaultSpec) -> Undo:
    node = _node(world, fault)
    node.clock.jump(int(fault.amount()))
    return node.clock.correct


def _clock_drift(world: World, fault: FaultSpec) -> Undo:
    node = _node(world, fault)
    node.clock.drift(int(fault.amount()))
    return node.clock.correct


def _kill_agent(world: World, fault: FaultSpec) -> Undo:
    for deployment in world.deployments.values():
        deployment.kill_agent(fault.on, fault.for_ms)
    return _nothing


# --- Network ---------------------------------------------------------------------------------------------------------


def _cut(world: World, fault: FaultSpec) -> Undo:
    source, _, target = fault.on.partition(">")
    world.network.cut(source, target)
    return lambda: world.network.mend(source, target)


def _isolate(world: World, fault: FaultSpec) -> Undo:
    network = world.network
    network.cut(fault.on, "*")
    network.cut("*", fault.on)

    def undo() -> None:
        network.mend(fault.on, "*")
        network.mend("*", fault.on)

    return undo


def _weather(world: World, changes: Callable[[], Mapping[str, float]]) -> Undo:
    # Storms overlap by taking turns: the last one that began rules, and when it is over the weather is fair.
    network = world.network
    network.weather = replace(network.weather, **changes())  # type: ignore[arg-type]

    def undo() -> None:
        network.weather = replace(network.weather, **dict.fromkeys(changes(), 0))

    return undo


def _slow_network(world: World, fault: FaultSpec) -> Undo:
    return _weather(world, lambda: {"slow_share": 0.33, "slow_ms": int(fault.amount())})


def _lossy_network(world: World, fault: FaultSpec) -> Undo:
    return _weather(world, lambda: {"drop_share": float(fault.amount())})


def _double_messages(world: World, fault: FaultSpec) -> Undo:
    return _weather(world, lambda: {"double_share": float(fault.amount())})


# --- Caches ----------------------------------------------------------------------------------------------------------


def _restart_cache(world: World, fault: FaultSpec) -> Undo:
    world.caches[fault.on].restart(keeps_settings=fault.fault == "restart_keeping")
    return _nothing


def _failover(world: World, fault: FaultSpec) -> Undo:
    cache = world.caches[fault.on]
    cache.role = "slave"

    def undo() -> None:
        cache.role = "master"
        cache.restart(keeps_settings=True)

    return undo


def _down(host: Host) -> Undo:
    host.up = False
    host.downs += 1

    def undo() -> None:
        host.up = True

    return undo


def _stall(world: World, host: Host, fault: FaultSpec) -> Undo:
    host.busy_until_ms = max(host.busy_until_ms, world.now_ms + fault.for_ms)

    def undo() -> None:
        host.busy_until_ms = min(host.busy_until_ms, world.now_ms)

    return undo


def _cache_down(world: World, fault: FaultSpec) -> Undo:
    return _down(world.servers.hosts[fault.on])


def _cache_stalls(world: World, fault: FaultSpec) -> Undo:
    return _stall(world, world.servers.hosts[fault.on], fault)


def _deny(world: World, fault: FaultSpec) -> Undo:
    denied, command = world.caches[fault.on].denied, str(fault.amount()).upper()
    denied[command] = "NOPERM this user has no permissions to run it"

    def undo() -> None:
        denied.pop(command, None)

    return undo


def _lose_answer(world: World, fault: FaultSpec) -> Undo:
    world.caches[fault.on].loses = str(fault.amount()).upper()
    return _nothing


def _lose_request(world: World, fault: FaultSpec) -> Undo:
    world.caches[fault.on].misses = str(fault.amount()).upper()
    return _nothing


def _evict_fence(world: World, fault: FaultSpec) -> Undo:
    world.caches[fault.on].evict_fence()
    return _nothing


def _slow_commands(world: World, fault: FaultSpec) -> Undo:
    cache = world.caches[fault.on]
    cache.set_load(slow_share=float(fault.amount()))
    return lambda: cache.set_load(slow_share=0.0)


def _traffic(world: World, fault: FaultSpec) -> Undo:
    cache, factor = world.caches[fault.on], max(float(fault.amount()), 1e-6)
    cache.set_load(lookups_per_s=cache.lookups_per_s * factor)
    return lambda: cache.set_load(lookups_per_s=cache.lookups_per_s / factor)


def _shift_keys(world: World, fault: FaultSpec) -> Undo:
    cache = world.caches[fault.on]
    cache.set_load(load=replace(cache.load, skew=float(fault.amount())))
    return _nothing


# --- Journal and blackboard ------------------------------------------------------------------------------------------


def _journal_down(world: World, _fault: FaultSpec) -> Undo:
    return _down(world.servers.hosts["journal"])


def _journal_crash(world: World, fault: FaultSpec) -> Undo:
    lost_ms = int(fault.amount())
    world.servers.journal.crash(lost_ms)
    world.servers.leases.crash(lost_ms)
    return _down(world.servers.hosts["journal"])


def _journal_loses_answer(world: World, _fault: FaultSpec) -> Undo:
    world.servers.journal.lose_answer = True
    return _nothing


def _journal_stalls(world: World, fault: FaultSpec) -> Undo:
    return _stall(world, world.servers.hosts["journal"], fault)


def _blackboard_down(world: World, _fault: FaultSpec) -> Undo:
    return _down(world.servers.hosts["blackboard"])


def _blackboard_lost(world: World, _fault: FaultSpec) -> Undo:
    board = world.servers.blackboard
    for store in (board.agents, board.active, board.knowledge, board.tasks, board.conflicts):
        store.clear()
    return _nothing


ACTS: Mapping[str, Act] = {
    "crash_node": _crash_node,
    "pause_node": _pause_node,
    "clock_jump": _clock_jump,
    "clock_drift": _clock_drift,
    "kill_agent": _kill_agent,
    "cut": _cut,
    "isolate": _isolate,
    "slow_network": _slow_network,
    "lossy_network": _lossy_network,
    "double_messages": _double_messages,
    "restart_cache": _restart_cache,
    "restart_keeping": _restart_cache,
    "failover": _failover,
    "cache_down": _cache_down,
    "cache_stalls": _cache_stalls,
    "deny": _deny,
    "lose_answer": _lose_answer,
    "lose_request": _lose_request,
    "evict_fence": _evict_fence,
    "slow_commands": _slow_commands,
    "traffic": _traffic,
    "shift_keys": _shift_keys,
    "journal_down": _journal_down,
    "journal_crash": _journal_crash,
    "journal_loses_answer": _journal_loses_answer,
    "journal_stalls": _journal_stalls,
    "blackboard_down": _blackboard_down,
    "blackboard_lost": _blackboard_lost,
    "peer": begin_peer,
    **INTERFERENCE,
}
