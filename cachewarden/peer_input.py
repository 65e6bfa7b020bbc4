"""What is asked of the blackboard about other agents, and what comes back: effects, events, who performs them.

Reading is a poll, bounded page by page; events of the blackboard are hints that only bring the next poll forward.
Claims and results of tasks are effects with an answer, since somebody waits for them; what is only mirrored goes out as
`Publish`. It decides nothing. INVARIANT: a hint carries nothing that is used; the keys are the truth.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from cachewarden.board_records import ConflictRecord, TaskRecord
from cachewarden.errors import BlackboardUnavailable
from cachewarden.machine import Effect
from cachewarden.messages import AGENT_ID
from cachewarden.ports import Blackboard, BoardPage

__all__ = [
    "TASK_TYPE",
    "AwaitHint",
    "ClaimTask",
    "FinishTask",
    "Hinted",
    "IntentPublished",
    "PeersRead",
    "PublishIntent",
    "ReadPeers",
    "TaskClaimed",
    "TaskFinished",
    "is_hint",
    "peer_input_performers",
]

TASK_TYPE: Final = "cache_optimization"
_SPACES: Final = ("coordination", "performance")


# --- Effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPeers(Effect):
    """Read one page of each area from its cursor on, and the named tasks and conflicts; answered by `PeersRead`."""

    cursors: Mapping[str, str]
    tasks: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitHint(Effect):
    """Wait for an event that may concern us, however long; answered by `Hinted`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishIntent(Effect):
    """Write items of knowledge; answered by `IntentPublished` once the server has confirmed all of them."""

    items: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTask(Effect):
    """Claim a pending task as ours, for the life `life`; answered by `TaskClaimed`.

    `over`: it was claimed under our name by a life of which nothing is heard any more.
    """

    task_id: str
    at_ms: int
    life: str = ""
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishTask(Effect):
    """Complete a task of ours, or fail it where `error` is given; answered by `TaskFinished`."""

    task_id: str
    at_ms: int
    output: Mapping[str, Any]
    error: Mapping[str, Any] | None = None
    retries: int = 0


# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersRead:
    """One look; a named record that is gone or unusable is None."""

    ref: str
    pages: Mapping[str, BoardPage]
    tasks: Mapping[str, TaskRecord | None] = field(default_factory=dict)
    conflicts: Mapping[str, ConflictRecord | None] = field(default_factory=dict)

    def tasks_of(self, state: str) -> tuple[TaskRecord, ...]:
        """Return the tasks on the page of a state, `pending` or `claimed`."""
        page = self.pages.get(f"tasks:{state}")
        # Which records an area holds is the adapter's promise (`BOARD_AREAS`).
        return () if page is None else cast(tuple[TaskRecord, ...], page.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinted:
    ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentPublished:
    ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskClaimed:
    """`won` False: somebody else was faster, or it is gone."""

    ref: str
    task_id: str
    won: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFinished:
    """`finished` False: it is not ours (any more), or gone."""

    ref: str
    task_id: str
    finished: bool


def is_hint(event: Mapping[str, Any]) -> bool:
    """Whether an event of the blackboard may be about something that another agent wants of us."""
    kind, data = event.get("event_type"), event.get("data")
    if not isinstance(data, Mapping):
        return False
    if kind == "knowledge_added":
        return data.get("space") in _SPACES and data.get("agent_id") != AGENT_ID
    return kind == "conflict_detected" or (kind == "task_created" and data.get("task_type") == TASK_TYPE)


def peer_input_performers(blackboard: Blackboard | None) -> dict[type[Effect], Callable[[Any], Awaitable[Any]]]:
    """Return how each effect of this module is performed; without a blackboard each fails as BlackboardUnavailable.

    One subscription is kept from hint to hint, so that what is published between two of them is not missed.
    """
    streams: list[AsyncIterator[dict[str, Any]]] = []

    def board() -> Blackboard:
        if blackboard is None:
            raise BlackboardUnavailable("this agent has no blackboard")
        return blackboard

    async def read(e: ReadPeers) -> PeersRead:
        port = board()
        return PeersRead(
            ref=e.ref,
            pages=await port.pages(e.cursors),
            tasks={task_id: await port.task(task_id) for task_id in e.tasks},
            conflicts={conflict_id: await port.conflict(conflict_id) for conflict_id in e.conflicts},
        )

    async def hint(e: AwaitHint) -> Hinted:
        stream = streams.pop() if streams else await board().events()
        # A stream that fails is not put back: the next hint subscribes anew.
        async for event in stream:
            if is_hint(event):
                streams.append(stream)
                return Hinted(ref=e.ref)
        raise BlackboardUnavailable("the stream of events has ended")

    async def publish(e: PublishIntent) -> IntentPublished:
        for item in e.items:
            await board().add_knowledge(item)
        return IntentPublished(ref=e.ref)

    async def claim(e: ClaimTask) -> TaskClaimed:
        won = await board().claim_task(e.task_id, AGENT_ID, e.at_ms, life=e.life, over=e.over)
        return TaskClaimed(ref=e.ref, task_id=e.task_id, won=won)

    async def finish(e: FinishTask) -> TaskFinished:
        finished = await board().finish_task(
            e.task_id, AGENT_ID, e.at_ms, output=e.output, error=e.error, retries=e.retries
        )
        return TaskFinished(ref=e.ref, task_id=e.task_id, finished=finished)

    return {ReadPeers: read, AwaitHint: hint, PublishIntent: publish, ClaimTask: claim, FinishTask: finish}
