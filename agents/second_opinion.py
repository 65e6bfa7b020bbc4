"""Asking Constitutional AI about the changes of one round, and waiting for it, but not for ever.

Part of the validator: the local verdicts are there already, and what comes back of the peer within the deadline is
added to them (`cachewarden/policy/second_opinion.py` says how). An answer that is late, or of an earlier round, changes
nothing. It never asks about a change that nobody would carry out, and never on the way to an HTTP answer.

INVARIANT: each round is answered exactly once or replaced by a newer one; its verdicts keep their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cachewarden.circuit import Circuit, CircuitRules, CircuitState, Signal
from cachewarden.machine import Effect, EffectFailed, Send, SetTimer, TimerFired
from cachewarden.messages import Mode, Proposal, Verdict
from cachewarden.peer_messages import PeerHealth, PeerReport
from cachewarden.peering import AskOpinion, Opinion, OpinionGiven
from cachewarden.policy.second_opinion import OpinionMode, acted_on, content_of, context_of, with_opinion
from cachewarden.protocol import Judged

__all__ = ["CONSTITUTIONAL_AI", "SecondOpinion"]

CONSTITUTIONAL_AI: Final = "constitutional_ai"
_ASKED_MAX: Final = 32
_REMEMBERED_MAX: Final = 1_000
_OPEN: Final = "it was not asked, since it failed too often lately"


@dataclass(slots=True)
class _Round:
    """One `Judge` that waits: verdicts, what was said of each, and what is still awaited (ref to proposal)."""

    number: int
    cycle: int
    asker: str
    verdicts: tuple[Verdict, ...]
    said: dict[str, Opinion | str] = field(default_factory=dict)
    awaited: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)


class SecondOpinion:
    """`deadline_ms` bounds a round as a whole. An opinion holds `hold_ms` for the same words, so that a plan that waits
    is not asked about in each cycle."""

    def __init__(
        self,
        mode: OpinionMode,
        services: Mapping[str, Mode],
        *,
        deadline_ms: int = 3_000,
        hold_ms: int = 300_000,
        rules: CircuitRules | None = None,
    ) -> None:
        self._mode, self._services = mode, dict(services)
        self._deadline_ms, self._hold_ms = deadline_ms, hold_ms
        self._circuit = Circuit(rules=rules or CircuitRules())
        self._rounds = 0
        self._open: _Round | None = None
        self._held: dict[str, tuple[Opinion, int]] = {}
        self._trouble = ""
        self._done = self._failures = self._violations = 0
        self._told: PeerHealth | None = None

    def use_modes(self, modes: Mapping[str, Mode]) -> None:
        """Ask by these modes from now on."""
        self._services = dict(modes)

    def begin(
        self, cycle: int, asker: str, proposals: Sequence[Proposal], verdicts: tuple[Verdict, ...], now_ms: int
    ) -> tuple[Effect, ...]:
        """Ask about every change that would be acted on; answers at once where nothing has to be awaited."""
        self._rounds += 1
        self._open = current = _Round(self._rounds, cycle, asker, verdicts)
        by_id = {verdict.proposal_id: verdict for verdict in verdicts}
        effects: list[Effect] = []
        for proposal in proposals:
            if acted_on(by_id.get(proposal.proposal_id), self._services.get(proposal.service, Mode.OFF)):
                effects += self._ask(current, proposal, now_ms)
        if not current.awaited:
            return self._finish(now_ms)
        return (*effects, SetTimer(ref=f"opinion:{current.number}", due_ms=now_ms + self._deadline_ms))

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take an answer, a failure or the deadline."""
        current = self._open
        ref = getattr(event, "ref", "")
        if current is None:
            return ()
        if isinstance(event, TimerFired) and ref == f"opinion:{current.number}":
            for _ in current.awaited:
                self._signal(Signal.FAILED, now_ms, f"gives no answer within {self._deadline_ms / 1000:g} s")
            for proposal_id in current.awaited.values():
                current.said[proposal_id] = f"it gave no answer within {self._deadline_ms / 1000:g} s"
            return self._finish(now_ms)
        if ref not in current.awaited or not isinstance(event, (OpinionGiven, EffectFailed)):
            return ()
        proposal_id = current.awaited.pop(ref)
        if isinstance(event, OpinionGiven):
            self._done += 1
            self._signal(Signal.SUCCEEDED, now_ms, "")
            current.said[proposal_id] = event.opinion
            self._hold(current.contents[proposal_id], event.opinion, now_ms)
        else:
            violated = event.kind == "PeerViolation"
            self._signal(
                Signal.VIOLATED if violated else Signal.FAILED,
                now_ms,
                "answers with another constitutional hash" if violated else _public(event),
            )
            received = str(event.details.get("received", ""))[:64]
            current.said[proposal_id] = (
                f"it answered with another constitutional hash (`{received}`), so what it said does not count"
                if violated
                else f"it {_public(event)}"
            )
        return () if current.awaited else self._finish(now_ms)

    def health(self) -> PeerHealth:
        """Return how we stand with the service, in words that a stranger may read."""
        return PeerHealth(
            name=CONSTITUTIONAL_AI,
            healthy=not self._trouble,
            detail=self._trouble,
            circuit=self._circuit.state.value,
            done=self._done,
            failures=self._failures,
            violations=self._violations,
        )

    def report(self, to: str) -> tuple[Effect, ...]:
        """Tell how we stand, if that is news."""
        now = self.health()
        if now == self._told:
            return ()
        self._told = now
        return (Send(to=to, message=PeerReport(peers=(now,))),)

    # --- Inside -----------------------------------------------------------------------------------------------------

    def _ask(self, current: _Round, proposal: Proposal, now_ms: int) -> list[Effect]:
        content = content_of(proposal)
        held = self._held.get(content)
        if held is not None and 0 <= now_ms - held[1] < self._hold_ms:
            current.said[proposal.proposal_id] = held[0]
            return []
        trial = self._circuit.state is not CircuitState.CLOSED
        if not self._circuit.ready(now_ms) or (trial and current.awaited):
            current.said[proposal.proposal_id] = _OPEN
            return []
        if len(current.awaited) >= _ASKED_MAX:
            # The next round reaches it, since opinions are held.
            current.said[proposal.proposal_id] = f"it is asked about at most {_ASKED_MAX} changes at a time"
            return []
        self._circuit = self._circuit.trying(now_ms)
        ref = f"opinion:{current.number}:{len(current.awaited)}"
        current.awaited[ref] = proposal.proposal_id
        current.contents[proposal.proposal_id] = content
        return [AskOpinion(ref=ref, content=content, context=context_of(proposal))]

    def _finish(self, now_ms: int) -> tuple[Effect, ...]:
        current, self._open = self._open, None
        assert current is not None
        verdicts = tuple(
            with_opinion(v, current.said[v.proposal_id], self._mode) if v.proposal_id in current.said else v
            for v in current.verdicts
        )
        self._held = {c: h for c, h in self._held.items() if 0 <= now_ms - h[1] < self._hold_ms}
        return (Send(to=current.asker, message=Judged(cycle=current.cycle, verdicts=verdicts)),)

    def _hold(self, content: str, opinion: Opinion, now_ms: int) -> None:
        self._held[content] = (opinion, now_ms)
        while len(self._held) > _REMEMBERED_MAX:
            self._held.pop(next(iter(self._held)))

    def _signal(self, signal: Signal, now_ms: int, trouble: str) -> None:
        self._failures += signal is not Signal.SUCCEEDED
        self._violations += signal is Signal.VIOLATED
        self._circuit = self._circuit.after(signal, now_ms)
        self._trouble = trouble


def _public(event: EffectFailed) -> str:
    reason = event.details.get("reason")
    return str(reason) if event.kind.startswith("Peer") and reason else "cannot be asked"
