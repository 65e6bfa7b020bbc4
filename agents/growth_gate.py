"""The gate for changes that let a cache grow: one at a time in the whole fleet, and only what the budget still holds.

Two deployments on one fleet plan by what they have seen, and may both give the same free memory away. So whoever is
about to let a cache grow takes the lease on the budget, reads the journal to its end, and adds up what the caches have
by then. The lease is held until the intention is in the journal, where the next one finds it; the intention is fenced
by it, so it is refused where another got the lease in between.

It decides whether growth that was agreed may still begin, never what growth is worth. Sums are cautious: of a change
that has not ended the larger size counts, and one that ended lately counts even if it was not seen yet.

INVARIANT: the intentions of all changes in the journal, and what is in force, never add up to more than the budget by
growth that passed this gate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agents.playbook_tables.keep_hot_set import headroom_bytes
from agents.recovery import Unfinished
from cachewarden.claims import BUDGET
from cachewarden.fleet import Fleet
from cachewarden.machine import (
    AcquireLease,
    Effect,
    LeaseGranted,
    ReleaseLease,
    SetTimer,
)
from cachewarden.messages import ExecutionState, Lease, Proposal
from cachewarden.protocol import Execute
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["BUDGET_LEASE", "GROWTH_REF", "Admitted", "GrowthGate", "grows", "refusal_of_growth", "sizes_of"]

GROWTH_REF: Final = "growth:"
BUDGET_LEASE: Final = f"{BUDGET}!"
"""What the lease is on; no service can be called so."""

_TRIES_MAX: Final = 6
_AGAIN_MS: Final = 1_000


def grows(proposal: Proposal) -> bool:
    """Say whether a change lets its cache have more memory than before, be it for a while."""
    return proposal.memory_delta_bytes > 0 or headroom_bytes(proposal) > 0


def _wanted(proposal: Proposal) -> int:
    """Return the largest maxmemory that a change will set, in bytes; 0 where it sets none."""
    sizes = [int(v) for c in proposal.knob_changes if c.knob == "maxmemory" for v in (c.before, c.after)]
    return max(sizes) + headroom_bytes(proposal) if sizes else 0


def sizes_of(changes: Iterable[Unfinished]) -> dict[str, int]:
    """Return, per service, the bytes that its changes in the journal speak for, oldest change first.

    Of one without an ending, or with one that leaves its values open, the largest size; of a kept one the new size,
    of one that was taken back the old one. A later change of the same service takes the place of an ended one.
    """
    ended: dict[str, int] = {}
    unended: dict[str, int] = {}
    for change in sorted(changes, key=lambda c: c.updated_ms):
        memory = next((c for c in change.proposal.knob_changes if c.knob == "maxmemory"), None)
        if memory is None:
            continue
        service = change.proposal.service
        if change.outcome is ExecutionState.KEPT:
            ended[service] = int(memory.after)
        elif change.outcome is ExecutionState.ROLLED_BACK:
            ended[service] = int(memory.before)
        elif change.outcome is None:
            unended[service] = max(unended.get(service, 0), _wanted(change.proposal))
        else:
            ended[service] = max(int(memory.before), int(memory.after))
    return {s: max(ended.get(s, 0), unended.get(s, 0)) for s in sorted(ended.keys() | unended.keys())}


def refusal_of_growth(order: Execute, spoken_for: Mapping[str, int], fleet: Fleet) -> str | None:
    """Return why the growth of an order does not fit into the budget any more, None where it does.

    `spoken_for`: bytes per service by the journal, as `sizes_of` has it. What the journal says nothing of counts as
    the order says that it was seen. Without a budget or sizes nothing can be added up, so nothing may grow.
    """
    budget_bytes = order.budget_bytes if fleet.total_memory_bytes is None else fleet.total_memory_bytes
    if budget_bytes is None or order.memory_bytes is None:
        return "the order does not say what the fleet has and may have, so nothing may grow"
    service = order.proposal.service
    names = sorted({*order.memory_bytes, *spoken_for} - {service})
    others_bytes = sum(max(order.memory_bytes.get(n, 0), spoken_for.get(n, 0)) for n in names)
    wanted = _wanted(order.proposal)
    if others_bytes + wanted <= budget_bytes:
        return None
    return (
        f"`{service}` wants `{wanted}` bytes, but beside it `{others_bytes}` of the budget of `{budget_bytes}` bytes "
        "are spoken for by now"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An order that has come through the gate: refused for a reason, or free to begin under the lease."""

    order: Execute
    refusal: str | None
    lease: Lease | None = None


class GrowthGate:
    """Machine of one order after the other: lease, journal, sum. `done` opens it for the next.

    The lease is either given back or asked for, never both at once: the two would be on their way together, and a
    release that comes second would take away what was just granted. So the next order renews the lease of the last.
    """

    def __init__(self, settings: CacheOptimizerSettings, fleet: Fleet) -> None:
        self._settings = settings
        self._fleet = fleet
        self._waiting: deque[Execute] = deque()
        self._order: Execute | None = None
        self._lease: Lease | None = None
        self._tries = 0
        self._called_off: dict[str, str] = {}

    @property
    def orders(self) -> tuple[Execute, ...]:
        """The orders that wait or are being looked at."""
        return tuple(self._waiting) if self._order is None else (self._order, *self._waiting)

    @property
    def reading(self) -> bool:
        """Whether the journal has to be read now, under the lease."""
        return self._order is not None and self._lease is not None

    def take(self, order: Execute) -> tuple[Effect, ...]:
        """Take an order; it comes out of `judge` some time."""
        self._waiting.append(order)
        return self._next()

    def step(self, event: Any, now_ms: int) -> tuple[tuple[Effect, ...], Admitted | None]:
        """Take an event whose ref begins with `growth:`. After it, `reading` says whether to read the journal."""
        if isinstance(event, LeaseGranted):
            if self._order is None:
                return (ReleaseLease(lease=event.lease),), None
            self._lease = event.lease
            return (), None
        if self._order is None:
            return (), None
        if event.ref == f"{GROWTH_REF}again":
            return (self._ask(),), None
        return self.failed(event.reason, now_ms)

    def failed(self, reason: str, now_ms: int) -> tuple[tuple[Effect, ...], Admitted | None]:
        """Try again after a pause where the lease or the journal could not be got, a few times; then refuse."""
        self._tries += 1
        if self._tries < _TRIES_MAX:
            return (SetTimer(ref=f"{GROWTH_REF}again", due_ms=now_ms + _AGAIN_MS),), None
        return (), self._out(f"whether the memory is still free cannot be found out: {reason}")

    def judge(self, spoken_for: Mapping[str, int]) -> Admitted | None:
        """Decide on the order, now that the journal was read; None where none is being looked at."""
        if self._order is None or self._lease is None:
            return None
        return self._out(refusal_of_growth(self._order, spoken_for, self._fleet))

    def done(self) -> tuple[Effect, ...]:
        """Let the next one in: the intention of the last one is in the journal, or never will be."""
        lease, self._lease = self._lease, None
        asked = self._next()
        return asked if asked or lease is None else (ReleaseLease(lease=lease),)

    def cancel(self, service: str, proposal_id: str | None, reason: str) -> None:
        """Call orders off while they are here: they come out refused."""
        for order in self.orders:
            if service in ("*", order.proposal.service) and proposal_id in (None, order.proposal.proposal_id):
                self._called_off[order.proposal.proposal_id] = reason

    def _out(self, refusal: str | None) -> Admitted:
        assert self._order is not None
        called_off = self._called_off.pop(self._order.proposal.proposal_id, None)
        admitted = Admitted(order=self._order, refusal=called_off or refusal, lease=self._lease)
        self._order, self._tries = None, 0
        return admitted

    def _next(self) -> tuple[Effect, ...]:
        if self._order is not None or self._lease is not None or not self._waiting:
            return ()
        self._order, self._tries = self._waiting.popleft(), 0
        return (self._ask(),)

    def _ask(self) -> Effect:
        return AcquireLease(
            ref=f"{GROWTH_REF}lease", service=BUDGET_LEASE, ttl_ms=self._settings.lease_ttl_ms, fenced=False
        )
