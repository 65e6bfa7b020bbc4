"""A vocabulary for settlements: a table at which proposals are laid, settled in one call."""

from __future__ import annotations

from agents.obstacles import Situation
from agents.settlement import settle
from cachewarden.codec import digest
from cachewarden.messages import AGENT_ID, Decision, Finding, Intent, Mode, Verdict
from cachewarden.protocol import History
from tests.unit.policy.builders import MIB, NOW_MS, SETTINGS


def verdict(proposal, *denied_by):
    """A verdict of a constitution with one principle, or with those that deny."""
    names = denied_by or ("rule",)
    decision = Decision.DENY if denied_by else Decision.ALLOW
    return Verdict(
        proposal_id=proposal.proposal_id, proposal_digest=digest(proposal), decision=decision,
        findings=tuple(
            Finding(principle_id=n, title=n, severity="high", decision=decision, reason="because") for n in names
        ),
        constitution_digest="d" * 64, judged_at_ms=NOW_MS,
    )  # fmt: skip


class Table:
    """What is known when a round is settled; services have 16 MiB each and act by themselves unless told otherwise."""

    def __init__(self, *services, budget_mib=None, mode=Mode.AUTO, settings=SETTINGS):
        self.settings = settings
        self.modes = {name: Mode(mode) for name in services}
        self.weights = dict.fromkeys(services, 1.0)
        self.memory_bytes = dict.fromkeys(services, 16 * MIB)
        self.budget_bytes = sum(self.memory_bytes.values()) if budget_mib is None else budget_mib * MIB
        self.history = {}
        self.intents = []
        self.force = set()
        self.kept = set()
        self.rollback_counts = {}
        self.denied = {}

    def happened(self, service, **fields):
        self.history[service] = History(**fields)

    def intends(self, service, resource, direction, *, holder="other_agent", amount=0, until_ms=0):
        self.intents.append(
            Intent(
                holder=holder, service=service, resource=resource, direction=direction, amount=amount, until_ms=until_ms
            )
        )

    def is_on_its_way(self, service, growth_mib):
        self.intends(service, "budget", 1, holder=AGENT_ID, amount=growth_mib * MIB)

    def deny(self, proposal_id, *principles):
        self.denied[proposal_id] = principles

    @property
    def situation(self):
        return Situation(
            modes=self.modes, weights=self.weights, history=self.history, memory_bytes=self.memory_bytes,
            intents=tuple(self.intents), budget_bytes=self.budget_bytes, budgeted=frozenset(self.modes), force=frozenset(self.force),
            kept=frozenset(self.kept), rollback_counts=self.rollback_counts,
        )  # fmt: skip

    def settle(self, *proposals, now_ms=NOW_MS, verdicts=None):
        """Return the resolutions by proposal id."""
        given = [verdict(p, *self.denied.get(p.proposal_id, ())) for p in proposals] if verdicts is None else verdicts
        resolutions = settle(proposals, given, self.situation, self.settings, now_ms)
        assert sorted(r.proposal_id for r in resolutions) == sorted(p.proposal_id for p in proposals)
        assert all(r.reason for r in resolutions)
        return {r.proposal_id: r for r in resolutions}
