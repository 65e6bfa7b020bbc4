"""Other agents on the simulated blackboard: honest, selfish, slow, dead, flapping and malicious ones.

They reach us only by what the wire lets them write: items of knowledge, tasks, conflicts, votes, events. What they
write are ACGS's records, in the form that `coordination/blackboard_records.py` has, or garbage in their place. A
second optimizer is a second deployment, and a person who changes a cache by hand is the fault `set_knob`.

They decide nothing about us. INVARIANT: a peer never touches a cache, a journal or a lease; and the same seed lets
them write the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from agents.own_ballots import VALIDATOR
from coordination.blackboard_records import (
    BALLOT_TYPE,
    MOTION_TYPE,
    event_message,
    knowledge_item,
    task_record,
    time_ms,
)
from simulation.dice import Dice
from simulation.fault_words import PEER_KINDS, FaultSpec
from simulation.virtual_time import drive
from simulation.world import World

__all__ = ["begin_peer", "peer_name"]

_EVERY_MS: Final = 15_000
_FLAPS_EVERY_MS: Final = 4_000
_PLAN_TTL_MS: Final = 600_000
_SPACE: Final = "performance"
_PLAN_TYPE: Final = "cache_optimization_plan"
_WRONG_HASH: Final = "0123456789abcdef"


def peer_name(kind: str) -> str:
    """Return the agent id of a peer; a scenario's `ballot_voters` may name it."""
    return f"peer-{kind}"


class _Peer:
    """One agent of another program, as long as its fault lasts."""

    def __init__(self, world: World, kind: str, dice: Dice) -> None:
        self.world = world
        self.kind = kind
        self.name = peer_name(kind)
        self.dice = dice
        self.turn = 0
        self.over = False

    @property
    def board(self) -> Any:
        return self.world.servers.blackboard

    def act(self) -> None:
        """Do the next thing, and come back later."""
        if self.over:
            return
        if self.world.servers.hosts["blackboard"].up:
            self.turn += 1
            _ACTS[self.kind](self)
        every_ms = _FLAPS_EVERY_MS if self.kind == "flapping" else _EVERY_MS
        self.world.time.after(every_ms + self.dice.between(0, every_ms), self.act)

    def service(self) -> str:
        return str(self.dice.pick(tuple(self.world.caches)))

    def live(self) -> None:
        drive(self.board.heartbeat(self.name, "optimizer", ["caching"], self.world.now_ms))

    def item(self, item_id: str, kind: str, content: Mapping[str, Any], agent: str = "", priority: int = 3) -> None:
        """Write an item of knowledge in the form of the blackboard."""
        item = knowledge_item(
            item_id=item_id,
            space=_SPACE,
            agent_id=agent or self.name,
            knowledge_type=kind,
            content=content,
            at_ms=self.world.now_ms,
            ttl_ms=_PLAN_TTL_MS,
            priority=priority,
        )
        self.raw("knowledge", item_id, json.dumps(item))
        told = {"knowledge_id": item_id, "space": _SPACE, "agent_id": item["agent_id"], "knowledge_type": kind}
        self.board.publish_text("events:knowledge_added", event_message("knowledge_added", self.world.now_ms, told))

    def plan(self, number: int, service: str, status: str, priority: int = 3, **more: Any) -> None:
        """Say what is done with a cache."""
        content = {
            "plan_id": f"{self.name}-{number}",
            "service": service,
            "status": status,
            "priority": priority,
            **more,
        }
        self.item(f"{self.name}-plan-{number}", _PLAN_TYPE, content, priority=priority)

    def motions(self) -> list[Mapping[str, Any]]:
        """Return what is or was put to the vote, by id."""
        items = (json.loads(text) for (_, _), text in sorted(self.board.knowledge.items()) if _is_motion(text))
        return [item["content"] for item in items if item.get("knowledge_type") == MOTION_TYPE]

    def vote(self, motion: Mapping[str, Any], choice: str, *, agent: str = "", tag: str = "", **more: Any) -> None:
        """Vote on a motion, in one's own name or in that of another."""
        content = {"subject": motion["motion_id"], "choice": choice, "confidence": 0.9, "reason": "simulated", **more}
        name = agent or self.name
        self.item(f"{self.name}-vote-{name}-{motion['motion_id']}{tag}", BALLOT_TYPE, content, agent=name)

    def raw(self, place: str, record_id: str, text: str) -> None:
        """Put a text where a record belongs, whatever it is."""
        if place == "knowledge":
            self.board.knowledge[_SPACE, record_id] = text
        else:
            getattr(self.board, place)[record_id] = text


def _is_motion(text: str) -> bool:
    return isinstance(text, str) and f'"{MOTION_TYPE}"' in text and text.startswith("{")


def _honest(peer: _Peer) -> None:
    """Announces, carries out and ends small plans; votes in time; asks for a plan now and then."""
    peer.live()
    number, stage = divmod(peer.turn, 3)
    names = tuple(peer.world.caches)
    service = names[number % len(names)]
    size = {"knob": "hz", "before": "10", "after": "20"}
    peer.plan(number, service, ("planned", "active", "completed")[stage], changes=[size])
    for motion in peer.motions():
        peer.vote(motion, "approve")
    if peer.turn % 8 == 0:
        task = task_record(
            task_id=f"{peer.name}-task-{peer.turn}",
            task_type="cache_optimization",
            input_data={"agent_id": peer.name, "service_name": service},
            at_ms=peer.world.now_ms,
        )
        peer.raw("tasks", task["id"], json.dumps(task))


def _selfish(peer: _Peer) -> None:
    """Claims everything for itself, most urgently, boasts of what it will gain, and votes against everybody."""
    peer.live()
    service = peer.service()
    more = {"memory_delta_bytes": 1 << 40, "predicted_gain": 0.99}
    peer.plan(peer.turn % 4, service, "active" if peer.turn % 3 else "cancelled", priority=1, **more)
    for motion in peer.motions():
        peer.vote(motion, "reject", confidence=1.0)


def _slow(peer: _Peer) -> None:
    """Announces what it did long ago, and votes when nobody waits any more."""
    if peer.turn % 3 == 0:
        peer.live()
    peer.plan(peer.turn // 6, peer.service(), "planned" if peer.turn % 6 < 5 else "completed")
    for motion in peer.motions():
        if peer.world.now_ms > (time_ms(motion["deadline"]) or 0):
            peer.vote(motion, "reject")


def _dead(peer: _Peer) -> None:
    """Begins something, and is never heard of again."""
    if peer.turn == 1:
        peer.live()
        peer.plan(0, peer.service(), "active")


def _flapping(peer: _Peer) -> None:
    """Comes and goes, and changes its mind each time."""
    drive(peer.board.deregister_agent(peer.name)) if peer.turn % 2 else peer.live()
    peer.plan(0, peer.service(), "active" if peer.turn % 2 else "withdrawn", priority=1 + peer.turn % 5)
    for motion in peer.motions():
        peer.vote(motion, "approve" if peer.turn % 2 else "reject", tag=f"-{peer.turn % 7}")


def _malicious(peer: _Peer) -> None:
    """Writes whatever the wire takes: votes of others, other hashes, garbage, what others wrote before."""
    now_ms = peer.world.now_ms
    for motion in peer.motions():
        for agent in (VALIDATOR, *(str(v["agent_id"]) for v in motion["voters"])):
            peer.vote(motion, "reject", agent=agent, tag=f"-{peer.turn % 3}")
        peer.vote(motion, "approve", tag="-hash", constitutional_hash=_WRONG_HASH)
        peer.vote(motion, "no such option", tag="-option")
    peer.plan(1, peer.service(), "active", constitutional_hash=_WRONG_HASH)
    rubbish = ("", "{", "[]", "null", '{"id": 7}', '{"id": "x", "space": "performance"}', "\x00\xff", "9" * 400)
    for place in ("knowledge", "tasks", "conflicts", "agents"):
        peer.raw(place, f"{peer.name}-{peer.turn % 5}", peer.dice.pick(rubbish))
    for channel in ("events:knowledge_added", "events:task_created", "events:nonsense"):
        peer.board.publish_text(channel, peer.dice.pick(rubbish))
    old = sorted(text for (_, key), text in peer.board.knowledge.items() if not key.startswith(peer.name))
    if old:
        again = peer.dice.pick(tuple(old))
        peer.raw("knowledge", f"{peer.name}-again-{now_ms % 7}", again)


_ACTS: Final[Mapping[str, Callable[[_Peer], None]]] = {
    "honest": _honest,
    "selfish": _selfish,
    "slow": _slow,
    "dead": _dead,
    "flapping": _flapping,
    "malicious": _malicious,
}
assert tuple(_ACTS) == PEER_KINDS


def begin_peer(world: World, fault: FaultSpec) -> Callable[[], None]:
    """Let a peer begin; the result ends it. What it has written stays, as it does when an agent dies."""
    peer = _Peer(world, fault.on, world.dice.fork(f"peer:{fault.on}:{fault.at_ms}"))
    peer.act()

    def undo() -> None:
        peer.over = True

    return undo
