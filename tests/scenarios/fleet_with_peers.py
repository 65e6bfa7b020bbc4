"""Two deployments and three peers on one fleet and one blackboard in virtual time, from a seed.

The deployments are those of `two_optimizers.py`, real up to the actuator, and look at the blackboard. Everything that
touches the blackboard takes a drawn time each way, so looks and writings of all sides interleave in any order. A peer
announces a plan, looks whether anybody else is about to change that cache, and only then begins:

- `honest` names its true priority and lets go what it has lost;
- `selfish` always claims the first priority and an old wish, and lets go nothing that it has lost;
- `flapping` wants one value and then the other, and takes half of its plans back;
- `rogue` looks at nothing and begins.

It checks by itself: ours never writes to a cache that a peer which keeps to that order is changing, no such peer begins
while a change of ours is open, and whatever ours writes is announced in the journal.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from cachewarden import machine as m
from cachewarden.messages import AGENT_ID
from cachewarden.peer_input import AwaitHint, peer_input_performers
from cachewarden.settings import CacheOptimizerSettings
from coordination import blackboard_records as records
from coordination.cycle import Coordinator
from simulation.fake_blackboard import FakeBlackboard
from tests.scenarios.two_optimizers import SETTINGS, Deployment, TwoOptimizers

KNOB = "maxmemory-samples"
WITH_PEERS = SETTINGS.model_copy(
    update={
        "blackboard_poll_ms": 10_000,
        "conflict_wait_ms": 30_000,
        "changes_per_hour": 6,
        "cool_down_ms": 60_000,
    }
)
UNDER_WAY = ("approved", "in_progress")
DONE_MS = 60_000
DELAY_MS = 400


def done(work: Any) -> Any:
    """Run a coroutine of the fake, which never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the fake has waited")


class FleetWithPeers(TwoOptimizers):
    """Use `run`, and look at `journal`, `writes`, `board` and `begun`."""

    def __init__(self, seed: int, peers: tuple[str, ...], settings: CacheOptimizerSettings = WITH_PEERS) -> None:
        self.dice = random.Random(seed)
        self.board = FakeBlackboard()
        self.performers = peer_input_performers(self.board)
        self.mirror_free_ms: dict[str, int] = {}
        self.calls: list[tuple[int, int, Callable[[], None]]] = []
        self.active: dict[str, str] = {}
        """Cache to the peer that is changing it."""
        self.begun: list[tuple[int, str, str, str]] = []
        """(when, peer, cache, value)"""
        self.gave_way: list[tuple[int, str, str]] = []
        super().__init__("10", "7", settings)
        self.peers = peers
        for peer in peers:
            self._at(self.dice.randrange(60_000), lambda peer=peer: self.announce(peer))

    # --- Time: what is called besides the deployments' events ---

    def _at(self, delay_ms: int, call: Callable[[], None]) -> None:
        heapq.heappush(self.calls, (self.now_ms + delay_ms, next(self._tick), call))

    def _pass_until(self, due_ms: int) -> None:
        while self.calls and self.calls[0][0] <= due_ms:
            at_ms, _, call = heapq.heappop(self.calls)
            super()._pass_until(at_ms)
            self.board.clock_ms = self.now_ms
            call()
        super()._pass_until(due_ms)
        self.board.clock_ms = self.now_ms

    def run(self, milliseconds: int, until: Any = None) -> bool:
        """As before; from one moment at which anything happens to the next, since a call may bring an event that is
        earlier than the next one known."""
        end_ms = self.now_ms + milliseconds
        while True:
            due_ms = min((heap[0][0] for heap in (self._queue, self.calls) if heap), default=end_ms + 1)
            if due_ms > end_ms:
                return super().run(end_ms - self.now_ms, until)
            if super().run(max(0, due_ms - self.now_ms), until):
                return True

    # --- The deployments on the blackboard ---

    def revive(self, name: str) -> None:
        super().revive(name)
        node = self.nodes[name]
        node.agents["coordinator"] = Coordinator(node.agents["actuator"]._fleet, self.settings, life=node.holder)

    def _perform(self, node: Deployment, agent: str, effect: Any) -> None:
        if isinstance(effect, m.Publish):
            # In their order, as the shell writes them, and never closer together than one call takes.
            at_ms = max(self.mirror_free_ms.get(node.name, 0), self.now_ms) + self.dice.randrange(1, 20)
            self.mirror_free_ms[node.name] = at_ms
            arguments = dict(effect.arguments)
            self._at(at_ms - self.now_ms, lambda: done(getattr(self.board, effect.operation)(**arguments)))
        elif type(effect) in self.performers:
            if not isinstance(effect, AwaitHint):
                self._at(self.dice.randrange(1, DELAY_MS), lambda: self._call_board(node, agent, effect))
        else:
            super()._perform(node, agent, effect)

    def _call_board(self, node: Deployment, agent: str, effect: Any) -> None:
        answer = done(self.performers[type(effect)](effect))
        self._later(node, agent, answer, self.dice.randrange(1, DELAY_MS))

    def _do_WriteKnobs(self, node: Deployment, e: m.WriteKnobs) -> Any:  # noqa: N802
        taken_back = self.kinds(e.service)[-1] == "rollback_intended"
        peer = self.active.get(e.service)
        assert taken_back or peer in (None, "rogue"), f"`{peer}` is changing `{e.service}`, and so is `{node.name}`"
        return super()._do_WriteKnobs(node, e)

    # --- The peers ---

    def announce(self, peer: str) -> None:
        """Plan a change of one cache, and begin it after a while."""
        name = self.dice.choice(sorted(self.caches))
        value = {"honest": "4", "selfish": "8"}.get(peer) or self.dice.choice(("3", "9"))
        plan = {
            "plan_id": f"{peer}-{self.now_ms}",
            "affected_services": [name],
            "changes": [{"knob": KNOB, "before": self.caches[name].knobs[KNOB], "after": value}],
            "priority": 1 if peer == "selfish" else self.dice.randint(2, 5),
        }
        if peer == "selfish":
            plan["since"] = records.iso_utc(self.now_ms - 3_600_000)
        if peer == "rogue":
            self.write(peer, plan, "in_progress")
            self.begin(peer, name, value, plan)
            return
        self.write(peer, plan, "planned")
        wait_ms = self.dice.randrange(5_000, 60_000)
        if peer == "flapping" and self.dice.random() < 0.5:
            self._at(wait_ms, lambda: self.write(peer, plan, "cancelled"))
            self._at(wait_ms + self.dice.randrange(1_000, 60_000), lambda: self.announce(peer))
            return
        self._at(wait_ms, lambda: self.approach(peer, name, value, plan, tries=5))

    def approach(self, peer: str, name: str, value: str, plan: dict[str, Any], tries: int) -> None:
        """Say that it begins now; after the writing is confirmed look, and only then begin or give way."""
        if peer != "selfish" and self.lost(plan["plan_id"]):
            self.write(peer, plan, "abandoned")
            self.gave_way.append((self.now_ms, peer, name))
            self._at(self.dice.randrange(20_000, 120_000), lambda: self.announce(peer))
            return

        def written() -> None:
            self.write(peer, plan, "approved")
            self._at(self.dice.randrange(1, 2 * DELAY_MS), looked)

        def looked() -> None:
            if not self.others_under_way(peer, name):
                self.write(peer, plan, "in_progress")
                self.begin(peer, name, value, plan)
                return
            self.gave_way.append((self.now_ms, peer, name))
            self.write(peer, plan, "planned" if tries else "abandoned")
            pause_ms = self.dice.randrange(5_000, 40_000)
            again = (
                (lambda: self.approach(peer, name, value, plan, tries - 1)) if tries else lambda: self.announce(peer)
            )
            self._at(pause_ms, again)

        self._at(self.dice.randrange(1, DELAY_MS), written)

    def others_under_way(self, peer: str, name: str) -> bool:
        items = done(self.board.query_knowledge("performance", limit=10_000))
        return any(
            i["agent_id"] != peer
            and i["knowledge_type"] in records.PLAN_TYPES
            and name in i["content"].get("affected_services", ())
            and i["content"].get("status") in UNDER_WAY
            for i in items
        )

    def lost(self, plan_id: str) -> bool:
        found = map(records.parse_conflict, list(self.board.conflicts.values()))
        return any(
            c["status"] == "resolved"
            and (c["resolution_data"] or {}).get("outcome") == "won"
            and plan_id in {p["plan_id"] for p in c["resolution_data"]["plans"]}
            for c in found
        )

    def begin(self, peer: str, name: str, value: str, plan: dict[str, Any]) -> None:
        if peer != "rogue":
            assert not self.open_changes(name), f"a change of `{name}` is open, and `{peer}` begins another"
            assert name not in self.active, f"`{self.active.get(name)}` and `{peer}` at once"
        self.active[name] = peer
        self.begun.append((self.now_ms, peer, name, value))
        self.caches[name].knobs[KNOB] = value
        self._at(DONE_MS, lambda: self.end(peer, name, plan))

    def end(self, peer: str, name: str, plan: dict[str, Any]) -> None:
        if self.active.get(name) == peer:
            del self.active[name]
        self.write(peer, plan, "completed")
        self._at(self.dice.randrange(60_000, 400_000), lambda: self.announce(peer))

    def write(self, peer: str, plan: dict[str, Any], status: str) -> None:
        item = records.knowledge_item(
            item_id=plan["plan_id"],
            space="performance",
            agent_id=peer,
            knowledge_type="cache_optimization_plan",
            content=plan | {"status": status},
            at_ms=self.now_ms,
            ttl_ms=600_000,
        )
        done(self.board.add_knowledge(item))

    # --- What tests ask ---

    def ours(self) -> list[tuple[int, str, str]]:
        """Return (when, cache, value) of each change that a deployment has begun to write."""
        return [(at, where, value) for at, _, where, value in self.writes]

    def plans_of_ours(self) -> set[str]:
        items = done(self.board.query_knowledge("performance", limit=10_000))
        return {i["content"]["plan_id"] for i in items if i["agent_id"] == AGENT_ID and "plan_id" in i["content"]}
