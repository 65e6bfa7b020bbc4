"""The newest look at a cache, and the models fitted to it: each is made when first asked for and then kept.

It answers no question itself. INVARIANT: everything here rests on one snapshot, or is the reason why it cannot.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from agents.evidence import evidence_of
from agents.prefix_evidence import prefixes_of
from cachewarden.cachemodel.evidence import PrefixEvidence
from cachewarden.cachemodel.whatif import Evidence, Inquiry
from cachewarden.fleet import Service
from cachewarden.messages import ExecutionState, TtlRule
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetState
from serve.backend import Backend
from serve.decision import max_age_ms_of

__all__ = ["Look", "newest_look", "rules_in_force"]

# A question about the last minutes, not a decision: it may rest on an older look than a change may.
_LOOK_AGE_MIN_MS: Final = 60_000
# The same question on the same look gets the same answer.
_SEED: Final = 1


class Look:
    """One snapshot under the TTL rules in force. Fitting takes up to seconds: keep it out of the event loop."""

    def __init__(self, snapshot: Snapshot, rules: tuple[TtlRule, ...]) -> None:
        self.snapshot = snapshot
        self.rules = rules

    @cached_property
    def evidence(self) -> Evidence | str:
        """The evidence, or what is missing for any."""
        return evidence_of(self.snapshot, self.rules)

    @cached_property
    def inquiry(self) -> Inquiry | str:
        """The fitted workload to be asked."""
        return self.evidence if isinstance(self.evidence, str) else Inquiry(self.evidence, _SEED)

    @cached_property
    def prefixes(self) -> tuple[PrefixEvidence, ...]:
        """What was seen of each prefix."""
        return prefixes_of(self.snapshot, self.rules) if isinstance(self.evidence, str) else self.evidence.prefixes

    def is_of(self, snapshot: Snapshot, rules: tuple[TtlRule, ...]) -> bool:
        """Say whether this is the look that a snapshot under these rules would give."""
        mine = (self.snapshot.taken_at_ms, self.snapshot.run_id)
        return self.rules == rules and mine == (snapshot.taken_at_ms, snapshot.run_id)


async def newest_look(backend: Backend, state: FleetState, service: Service) -> tuple[Snapshot | None, str]:
    """Return the newest snapshot of a service, and why it cannot speak for now; empty where it can."""
    snapshot = await backend.snapshot(service.name)
    if snapshot is None:
        reason = state.missing.get(service.name, f"it has not been looked at yet, its mode is `{service.mode.value}`")
        return None, f"the cache was not seen: {reason}"
    age_ms = backend.now_ms() - snapshot.taken_at_ms
    if age_ms > max(_LOOK_AGE_MIN_MS, max_age_ms_of(backend.settings)):
        return snapshot, f"the newest look at the cache is {age_ms / 1000:.0f} s old, it cannot speak for now"
    return snapshot, ""


def rules_in_force(state: FleetState, service: str) -> tuple[TtlRule, ...]:
    """Return the TTL rules that kept changes put on a service, as far as the state remembers them."""
    rules: dict[str, TtlRule] = {}
    for execution in state.executions:
        if execution.proposal.service == service and execution.state is ExecutionState.KEPT:
            rules.update({rule.pattern: rule for rule in execution.proposal.ttl_rules})
    return tuple(rules[pattern] for pattern in sorted(rules))
