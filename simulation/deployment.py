"""One deployment of cachewarden in the simulated world: its nodes, its agents, and which ports each of them has.

The agents and their ports are those of `cluster/wiring.py` (a test compares the two); what differs is that ports are
links to simulated servers and that the planner asks `outlook.py`. Two deployments may manage the same caches.

It decides nothing. INVARIANT: each life of an actuator has a holder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from agents.actuator import Actuator
from agents.auditor import Auditor
from agents.collector import Collector
from agents.consensus import Consensus
from agents.planner import Planner
from agents.validator import Validator
from cachewarden.chain import Checkpoint
from cachewarden.fleet import Fleet
from cachewarden.machine import Agent, Received, Send
from cachewarden.performing import Ports
from cachewarden.policy.constitution import Constitution
from cachewarden.protocol import ChainChecked, FleetState
from cachewarden.settings import CacheOptimizerSettings
from coordination.cycle import Coordinator
from simulation.dice import Dice
from simulation.facts import AgentBroke, AgentStarted, Fact
from simulation.fake_blackboard import FakeBlackboard
from simulation.links import Link, LinkedBlackboard, LinkedJournal, LinkedLeases, LinkedTarget
from simulation.model_cache import ModelCache
from simulation.network import Host, Network
from simulation.node import Node, NodeClock, NodeShell
from simulation.outlook import Beliefs
from simulation.stores import CrashingJournal, CrashingLeases
from simulation.virtual_time import VirtualTime

__all__ = ["AGENTS", "Deployment", "Servers"]

AGENTS = ("auditor", "coordinator", "collector", "planner", "validator", "consensus", "actuator")
"""In the order in which they are started, as in `cluster/wiring.py`."""
_RESTART_MS = 500
_NEAR = frozenset({"auditor", "coordinator", "planner"})
"""Agents of the first node where there are two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """What a deployment talks to; `hosts` by name: `journal`, `blackboard`, and each service's cache."""

    caches: Mapping[str, ModelCache]
    journal: CrashingJournal
    leases: CrashingLeases
    blackboard: FakeBlackboard
    hosts: Mapping[str, Host]


class Deployment:
    """`start` brings it up; `on_message` is told of every message between agents before it travels."""

    def __init__(
        self,
        name: str,
        *,
        fleet: Fleet,
        settings: CacheOptimizerSettings,
        constitution: Constitution,
        servers: Servers,
        time: VirtualTime,
        network: Network,
        beliefs: Beliefs,
        dice: Dice,
        nodes: int,
        note: Callable[[Fact], None],
    ) -> None:
        self.name = name
        self.fleet = fleet
        self.settings = settings
        self.beliefs = beliefs
        self.constitution = constitution
        self.checkpoint: Checkpoint | None = None
        """The newest proven point of the journal, kept where no writer of the journal can reach it."""
        self.on_message: list[Callable[[str, Send], None]] = []
        self._servers = servers
        self._time = time
        self._network = network
        self._dice = dice.fork(f"deployment:{name}")
        self._note = note
        self._lives: dict[str, int] = {}
        self.nodes = {n: self._node(n) for n in (f"{name}-{number}" for number in range(1, nodes + 1))}
        names = list(self.nodes)
        self.placed = {agent: names[0] if agent in _NEAR or nodes == 1 else names[-1] for agent in AGENTS}
        self.shells: dict[str, NodeShell] = {}

    def start(self) -> None:
        """Begin the first life of every agent."""
        for agent in AGENTS:
            self.start_agent(agent)

    def node_of(self, agent: str) -> Node:
        """Return the node on which an agent lives."""
        return self.nodes[self.placed[agent]]

    def start_agent(self, agent: str) -> None:
        """Begin a new life of one agent, unless its node is down or it lives already."""
        node = self.node_of(agent)
        if not node.up or agent in self.shells:
            return
        life = self._lives[agent] = self._lives.get(agent, 0) + 1
        machine = self.build_agent(agent, life)
        shell = NodeShell(
            machine,
            self.ports_of(agent, node),
            node,
            think_ms=lambda: self._dice.between(100, 1_500),
            send=lambda effect: self._post(node, agent, effect),
            on_break=lambda event, error: self._broke(agent, event, error),
            on_start=lambda replayed: self._note(
                AgentStarted(at_ms=self._time.now_ms(), deployment=self.name, agent=agent, life=life, replayed=replayed)
            ),
        )
        self.shells[agent] = node.shells[agent] = shell
        shell.start()

    def kill_agent(self, agent: str, down_ms: int = _RESTART_MS) -> None:
        """End one life of an agent where it stands; whoever supervises it begins the next."""
        shell = self.shells.pop(agent, None)
        if shell is not None:
            shell.die()
            self.node_of(agent).shells.pop(agent, None)
        self._time.after(down_ms, lambda: self.start_agent(agent))

    def crash_node(self, name: str) -> None:
        """End everything on a node; it stays down until `boot_node`."""
        node = self.nodes[name]
        for agent in node.shells:
            self.shells.pop(agent, None)
        node.die()

    def boot_node(self, name: str) -> None:
        """Bring a node up again, with new lives of its agents."""
        self.nodes[name].up = True
        for agent in AGENTS:
            if self.placed[agent] == name:
                self.start_agent(agent)

    def fleet_state(self) -> FleetState | None:
        """Return what the coordinator knows, as the API shows it; None while it does not live."""
        shell = self.shells.get("coordinator")
        if shell is None or not isinstance(shell.agent, Coordinator):
            return None
        return shell.agent.state(self.node_of("coordinator").clock.now_ms())

    def progress(self) -> tuple[int, int, str]:
        """Return (life, cycle, stage) of the coordinator; zeros while it does not live."""
        shell = self.shells.get("coordinator")
        return shell.agent.progress if shell is not None and isinstance(shell.agent, Coordinator) else (0, 0, "")

    def tell(self, to: str, message: Any, sender: str = "api") -> None:
        """Deliver a message from outside (the API, a person, a peer), if the agent lives."""
        shell = self.shells.get(to)
        if shell is not None:
            shell.deliver(Received(sender=sender, message=message))

    def _post(self, node: Node, sender: str, effect: Send) -> None:
        if isinstance(effect.message, ChainChecked) and effect.message.checkpoint_seq > 0:
            told = effect.message
            self.checkpoint = Checkpoint(seq=told.checkpoint_seq, hash=told.checkpoint_hash, at_ms=told.checked_at_ms)
        if effect.to not in self.placed:
            return
        for listener in self.on_message:
            listener(sender, effect)
        self._network.post(
            node.name, self.placed[effect.to], lambda: self.tell(effect.to, effect.message, sender=sender)
        )

    def _node(self, name: str) -> Node:
        beats = partial(self._post_beats, name)
        return Node(name=name, time=self._time, clock=NodeClock(self._time), send_beats=beats)

    def _post_beats(self, node: str, beats: list[Received]) -> None:
        """Carry the signs of life of a node's agents: they travel together, and come together or not at all."""
        if node == self.placed["coordinator"]:
            self._hear_beats(beats)
        else:
            self._network.post(node, self.placed["coordinator"], partial(self._hear_beats, beats))

    def _hear_beats(self, beats: list[Received]) -> None:
        shell = self.shells.get("coordinator")
        if shell is not None:
            shell.deliver_all(beats)

    def _broke(self, agent: str, event: Any, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}"
        self._note(AgentBroke(at_ms=self._time.now_ms(), deployment=self.name, agent=agent, event=event, error=told))
        self.kill_agent(agent)

    def build_agent(self, agent: str, life: int) -> Agent:
        """Return the plain agent of that name; raises KeyError for an unknown one."""
        settings, fleet = self.settings, self.fleet
        builders: Mapping[str, Callable[[], Agent]] = {
            "collector": lambda: Collector(fleet, settings),
            "planner": lambda: Planner(fleet, settings, self.beliefs),
            "validator": lambda: Validator(self.constitution, fleet, settings),
            "consensus": lambda: Consensus(fleet, settings),
            "actuator": lambda: Actuator(holder=f"{self.name}:{life}", settings=settings, fleet=fleet),
            "auditor": lambda: Auditor(checkpoint=self.checkpoint, idle_factor=settings.idle_factor),
            "coordinator": lambda: Coordinator(fleet, settings, life=f"{self.name}:{life}"),
        }
        return builders[agent]()

    def ports_of(self, agent: str, node: Node) -> Ports:
        """Return the ports that an agent may use: links to the servers, and nothing else."""
        servers, timeout_ms = self._servers, int(self.settings.redis_timeout * 1000)

        def link(host: str) -> Link:
            return Link(self._network, node.name, servers.hosts[host], timeout_ms)

        journal = agent in ("actuator", "coordinator", "auditor", "consensus")
        looks = agent in ("collector", "actuator")
        return Ports(
            clock=node.clock,
            mailbox=_NO_MAILBOX,
            journal=LinkedJournal(link("journal"), servers.journal) if journal else None,
            leases=LinkedLeases(link("journal"), servers.leases) if agent == "actuator" else None,
            targets={n: LinkedTarget(link(n), c) for n, c in servers.caches.items()} if looks else {},
            blackboard=LinkedBlackboard(link("blackboard"), servers.blackboard) if agent == "coordinator" else None,
            draw=self._dice.fork(agent).unit,
        )


class _NoMailbox:
    """Nodes send by themselves."""

    async def send(self, sender: str, to: str, message: Any) -> None:
        raise RuntimeError(f"`{sender}` sends `{type(message).__name__}` to `{to}` past its node")


_NO_MAILBOX = _NoMailbox()
