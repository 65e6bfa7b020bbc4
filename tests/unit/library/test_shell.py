"""The shell: events in order, effects performed, failures told to the agent and never swallowed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cachewarden import machine as m
from cachewarden.errors import BlackboardUnavailable, InvariantViolation, JournalUnavailable, TargetTimeout
from cachewarden.messages import AuditRecord
from cachewarden.ports import RecordDraft
from cachewarden.protocol import AgentBeat
from cachewarden.shell import AgentShell, Ports


class _Clock:
    def __init__(self) -> None:
        self.value = 1_000

    def now_ms(self) -> int:
        return self.value


class _Mailbox:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    async def send(self, sender: str, to: str, message: Any) -> None:
        if not isinstance(message, AgentBeat):
            self.sent.append((to, message))


class _Journal:
    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.records: list[AuditRecord] = []

    async def append(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        if self.broken:
            raise JournalUnavailable("no server")
        new = [
            AuditRecord(
                seq=len(self.records) + i + 1,
                at_ms=d.at_ms,
                kind=d.kind,
                agent=d.agent,
                service=d.service,
                subject_id=d.subject_id,
            )
            for i, d in enumerate(drafts)
        ]
        self.records += new
        return new

    async def read_back(self, kinds: Sequence[str] = (), limit: int = 0) -> list[AuditRecord]:
        return [r for r in self.records if not kinds or r.kind in kinds]


class _Script:
    """An agent that answers each event by the next entry of a script, and remembers what it saw."""

    name = "script"
    replay_kinds = ("kept",)

    def __init__(self, *answers: tuple[m.Effect, ...] | Exception) -> None:
        self.answers = list(answers)
        self.seen: list[Any] = []

    def step(self, event: Any, now_ms: int) -> tuple[m.Effect, ...]:
        self.seen.append(event)
        answer = self.answers.pop(0) if self.answers else ()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _run_until(shell: AgentShell, agent: _Script, events: int) -> None:
    task = asyncio.create_task(shell.run())
    async with asyncio.timeout(5):
        while len(agent.seen) < events and not task.done():
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _record(ref: str) -> m.Record:
    return m.Record(ref=ref, kind="kept", service="s", subject_id="p", payload={})


async def test_the_first_event_of_every_life_is_what_the_journal_knows():
    journal = _Journal()
    await journal.append([RecordDraft(at_ms=1, kind="kept", agent="a", service=None, subject_id="p", payload={})])
    agent = _Script()
    await _run_until(AgentShell(agent, Ports(clock=_Clock(), mailbox=_Mailbox(), journal=journal)), agent, 1)  # type: ignore[arg-type]
    assert isinstance(agent.seen[0], m.Started)
    assert [r.subject_id for r in agent.seen[0].records] == ["p"]


async def test_messages_of_one_step_leave_in_their_order():
    mailbox = _Mailbox()
    agent = _Script(tuple(m.Send(to="x", message=i) for i in range(50)))
    shell = AgentShell(agent, Ports(clock=_Clock(), mailbox=mailbox))
    task = asyncio.create_task(shell.run())
    async with asyncio.timeout(5):
        while len(mailbox.sent) < 50:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [message for _, message in mailbox.sent] == list(range(50))


async def test_records_of_one_step_are_confirmed_in_their_order():
    agent = _Script((_record("a"), _record("b")))
    await _run_until(AgentShell(agent, Ports(clock=_Clock(), mailbox=_Mailbox(), journal=_Journal())), agent, 3)  # type: ignore[arg-type]
    assert [(e.ref, e.record.seq) for e in agent.seen[1:]] == [("a", 1), ("b", 2)]


async def test_a_journal_that_fails_is_told_to_the_agent_for_every_record():
    agent = _Script((_record("a"), _record("b")))
    agent.replay_kinds = ()  # type: ignore[assignment]
    await _run_until(
        AgentShell(agent, Ports(clock=_Clock(), mailbox=_Mailbox(), journal=_Journal(broken=True))), agent, 3
    )  # type: ignore[arg-type]
    assert [(e.ref, e.kind) for e in agent.seen[1:]] == [("a", "JournalUnavailable"), ("b", "JournalUnavailable")]


async def test_an_effect_without_its_port_fails_instead_of_being_forgotten():
    agent = _Script((m.ReadKnobs(ref="r", service="s", knobs=("maxmemory",)),))
    await _run_until(AgentShell(agent, Ports(clock=_Clock(), mailbox=_Mailbox())), agent, 2)
    failed = agent.seen[1]
    assert (failed.ref, failed.kind) == ("r", "OperatingError")
    assert "no access to the cache of `s`" in failed.reason


class _Cache:
    service = "s"

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def read_knobs(self, knobs: Sequence[str]) -> dict[str, str]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "unknown"),
    [(TargetTimeout("s", "CONFIG SET"), True), (ValueError("what is this"), True), (BlackboardUnavailable("x"), False)],
)
async def test_a_failed_effect_says_whether_its_outcome_is_known(error: Exception, unknown: bool):
    agent = _Script((m.ReadKnobs(ref="r", service="s", knobs=("maxmemory",)),))
    ports = Ports(clock=_Clock(), mailbox=_Mailbox(), targets={"s": _Cache(error)})  # type: ignore[dict-item]
    await _run_until(AgentShell(agent, ports), agent, 2)
    assert agent.seen[1].outcome_unknown is unknown
    assert agent.seen[1].kind == type(error).__name__


async def test_a_timer_set_again_fires_once_and_at_its_later_time():
    clock = _Clock()
    agent = _Script((m.SetTimer(ref="t", due_ms=1_010), m.SetTimer(ref="t", due_ms=1_040)))
    shell = AgentShell(agent, Ports(clock=clock, mailbox=_Mailbox()))
    task = asyncio.create_task(shell.run())
    async with asyncio.timeout(5):
        while len(agent.seen) < 2:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.08)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [type(e).__name__ for e in agent.seen] == ["Started", "TimerFired"]


async def test_a_clock_that_jumps_an_hour_ahead_fires_no_timer_early():
    clock = _Clock()
    agent = _Script((m.SetTimer(ref="t", due_ms=1_000 + 60_000),))
    shell = AgentShell(agent, Ports(clock=clock, mailbox=_Mailbox()))
    task = asyncio.create_task(shell.run())
    await asyncio.sleep(0.02)
    clock.value += 3_600_000
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [type(e).__name__ for e in agent.seen] == ["Started"]


async def test_a_bug_in_an_agent_ends_its_life_and_is_not_hidden():
    shell = AgentShell(_Script(InvariantViolation("impossible")), Ports(clock=_Clock(), mailbox=_Mailbox()))
    with pytest.raises(InvariantViolation, match="impossible"):
        await shell.run()


async def test_a_full_inbox_drops_and_counts():
    shell = AgentShell(_Script(), Ports(clock=_Clock(), mailbox=_Mailbox()), inbox_limit=2)
    assert [shell.deliver("x", i) for i in range(3)] == [True, True, False]
    assert shell.dropped == 1


class _HangingBlackboard:
    async def heartbeat(self) -> None:
        await asyncio.Event().wait()


async def test_a_blackboard_that_hangs_holds_up_no_message():
    mailbox = _Mailbox()
    agent = _Script((m.Publish(operation="heartbeat", arguments={}), m.Send(to="x", message="go")))
    ports = Ports(clock=_Clock(), mailbox=mailbox, blackboard=_HangingBlackboard())  # type: ignore[arg-type]
    task = asyncio.create_task(AgentShell(agent, ports).run())
    async with asyncio.timeout(5):
        while not mailbox.sent:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert mailbox.sent == [("x", "go")]


class _BrokenOnceBlackboard:
    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, []

    async def heartbeat(self, number: int) -> None:
        self.calls.append(number)
        if self.failures:
            self.failures -= 1
            raise BlackboardUnavailable("connection closed by server")


@pytest.mark.parametrize(("failures", "calls", "undelivered"), [(1, [1, 1, 2], 0), (3, [1, 1, 1, 2], 1)])
async def test_what_is_mirrored_is_tried_again_and_then_given_up_in_its_order(
    failures, calls, undelivered, monkeypatch
):
    monkeypatch.setattr("cachewarden.shell._MIRROR_PAUSES_S", (0.001, 0.001))
    board = _BrokenOnceBlackboard(failures)
    agent = _Script(tuple(m.Publish(operation="heartbeat", arguments={"number": n}) for n in (1, 2)))
    ports = Ports(clock=_Clock(), mailbox=_Mailbox(), blackboard=board)  # type: ignore[arg-type]
    shell = AgentShell(agent, ports)
    task = asyncio.create_task(shell.run())
    async with asyncio.timeout(5):
        while board.calls != calls:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert shell.undelivered == undelivered


async def test_an_answer_that_the_agent_waits_for_is_not_dropped_from_a_full_inbox():
    agent = _Script((_record("a"), _record("b"), _record("c")))
    ports = Ports(clock=_Clock(), mailbox=_Mailbox(), journal=_Journal())  # type: ignore[arg-type]
    await _run_until(AgentShell(agent, ports, inbox_limit=1), agent, 4)
    assert [e.ref for e in agent.seen[1:]] == ["a", "b", "c"]
