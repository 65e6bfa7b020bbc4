"""A simulated world: caches, journal, blackboard, network and one or two deployments, from a scenario and a seed.

It puts the parts together and lets time pass; what goes wrong is in `faults.py`, what must hold in `checkers/`. Every
message, call and fact goes into one running hash, the trace: two runs are the same if their traces are.

It decides nothing. INVARIANT: the same scenario and seed give the same trace, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from cachewarden.machine import Send
from cachewarden.policy.constitution import Constitution, load_constitution
from simulation.checkers.checker import Checker, Violation
from simulation.deployment import Deployment, Servers
from simulation.dice import Dice
from simulation.facts import Fact, FencedWrite, QuietBegan
from simulation.fake_blackboard import FakeBlackboard
from simulation.model_cache import ModelCache
from simulation.network import Host, Network
from simulation.outlook import Beliefs
from simulation.scenario import Scenario
from simulation.stores import CrashingJournal, CrashingLeases
from simulation.virtual_time import VirtualTime

__all__ = ["START_MS", "World", "default_constitution"]

START_MS = 1_800_000_000_000
_CONSTITUTION = Path(__file__).resolve().parent.parent / "config" / "constitution.yaml"
_TICK_MS = 10_000
_HISTORY = 400
"""Messages between agents that a replaying peer may still know."""


def default_constitution() -> Constitution:
    """Return the constitution that comes with the project."""
    return load_constitution(_CONSTITUTION)


class World:
    """One run. `run` lets time pass to the end; `violations` says what was broken, the first of them ends the run."""

    def __init__(
        self, scenario: Scenario, seed: int, *, constitution: Constitution, checkers: Sequence[Checker] = ()
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        self.time = VirtualTime(START_MS)
        self.dice = Dice(seed)
        self.network = Network(self.time, self.dice.fork("network"))
        self.facts: list[Fact] = []
        self.violations: list[Violation] = []
        self.quiet = False
        """Whether all faults are over."""
        self.history: list[tuple[str, str, Send]] = []
        """(deployment, sender, message) of the newest messages, for who replays them."""
        self.ticks: list[Callable[[World], None]] = []
        """Called every ten seconds of virtual time."""
        self._writes = 0
        self._after_writes: dict[int, list[Callable[[], object]]] = {}
        self._hash = hashlib.sha256()
        self._checkers = tuple(checkers)
        self.fleet = scenario.fleet()
        self.settings = scenario.make_settings()
        self.caches = {
            load.name: ModelCache(
                self.fleet.service(load.name),
                load.model(),
                load.lookups_per_s,
                clock=self.time,
                note=self.note,
                settings={"maxmemory": str(load.maxmemory), "maxmemory-policy": load.eviction_policy},
            )
            for load in scenario.services
        }
        self.found_bytes = {name: int(cache.knobs()["maxmemory"]) for name, cache in self.caches.items()}
        """maxmemory as it was in the beginning."""
        self.deployments: dict[str, Deployment] = {}
        self._journals: dict[str, Servers] = {}
        for name in "ab"[: scenario.deployments]:
            self.deployments[name] = self._deploy(name, constitution)

    def _deploy(self, name: str, constitution: Constitution) -> Deployment:
        scenario = self.scenario
        ttls = {load.name: load.written_ttl for load in scenario.services if load.written_ttl}
        beliefs = Beliefs(
            lambda service: self.caches[service].load, ttls, self.dice.fork(f"beliefs:{name}"), scenario.belief_error
        )
        deployment = Deployment(
            name,
            fleet=self.fleet,
            settings=self.settings,
            constitution=constitution,
            servers=self._servers(name),
            time=self.time,
            network=self.network,
            beliefs=beliefs,
            dice=self.dice,
            nodes=scenario.nodes,
            note=self.note,
        )
        deployment.on_message.append(lambda sender, effect: self._carried(name, sender, effect))
        return deployment

    def _servers(self, name: str) -> Servers:
        shared = self._journals.get("a") if self.scenario.shared_leases else None
        hosts = {n: Host(name=n) for n in self.caches} if not self._journals else {}
        if shared is not None:
            self._journals[name] = shared
            return shared
        first = next(iter(self._journals.values()), None)
        suffix = "" if first is None else f"-{name}"
        cache_hosts = hosts if first is None else {n: first.hosts[n] for n in self.caches}
        leases = CrashingLeases(self.time, self.note)
        servers = Servers(
            caches=self.caches,
            journal=CrashingJournal(f"journal{suffix}", self.time, self.note, leases),
            leases=leases,
            blackboard=FakeBlackboard(),
            hosts={
                **cache_hosts,
                "journal": Host(name=f"journal{suffix}"),
                "blackboard": Host(name=f"blackboard{suffix}"),
            },
        )
        self._journals[name] = servers
        return servers

    # --- What others ask for ---

    @property
    def servers(self) -> Servers:
        """Return the servers of the first deployment."""
        return self._journals["a"]

    def servers_of(self, deployment: str) -> Servers:
        """Return the servers that a deployment talks to."""
        return self._journals[deployment]

    @property
    def now_ms(self) -> int:
        return self.time.now_ms()

    @property
    def elapsed_ms(self) -> int:
        """Return the virtual time since the beginning."""
        return self.time.now_ms() - START_MS

    @property
    def trace(self) -> str:
        """Return the hash over everything that happened."""
        return self._hash.hexdigest()

    def note(self, fact: Fact) -> None:
        """Take note of a fact, and ask every checker that it concerns."""
        self.facts.append(fact)
        self._hash.update(f"{fact.at_ms} {fact.words()}\n".encode())
        for checker in self._checkers:
            if isinstance(fact, checker.sees):
                self._broken(checker, checker.see(fact, self))
        if isinstance(fact, FencedWrite):
            self._writes += 1
            for action in self._after_writes.pop(self._writes, ()):
                action()

    def after_write(self, number: int, action: Callable[[], object]) -> None:
        """Call `action` once that many writes of ours were carried out, by whichever deployment and cache."""
        self._after_writes.setdefault(number, []).append(action)

    def _broken(self, checker: Checker, words: Sequence[str]) -> None:
        for text in words:
            self.violations.append(Violation(at_ms=self.now_ms, checker=checker.name, words=text))
            self.time.halt()

    def _carried(self, deployment: str, sender: str, effect: Send) -> None:
        self._hash.update(
            f"{self.time.now_ms()} {deployment} {sender}>{effect.to} {type(effect.message).__name__}\n".encode()
        )
        self.history.append((deployment, sender, effect))
        if len(self.history) > 2 * _HISTORY:
            del self.history[:_HISTORY]

    # --- Time ---

    def run(self) -> None:
        """Start everything, let the faults happen, then the quiet, then ask every checker for its last word."""
        for deployment in self.deployments.values():
            deployment.start()
        self.time.after(_TICK_MS, self._tick)
        hostile_ms = int(self.scenario.minutes * 60_000)
        self.time.run_until(START_MS + hostile_ms)
        if self.violations:
            return
        self.quiet = True
        self.note(QuietBegan(at_ms=self.now_ms))
        self.time.run_until(START_MS + hostile_ms + int(self.scenario.quiet_minutes * 60_000))
        for checker in () if self.violations else self._checkers:
            self._broken(checker, checker.at_end(self))

    def _tick(self) -> None:
        for action in self.ticks:
            action(self)
        for servers in self._journals.values():
            servers.blackboard.clock_ms = self.now_ms
        for checker in self._checkers:
            self._broken(checker, checker.tick(self))
        self.time.after(_TICK_MS, self._tick)
