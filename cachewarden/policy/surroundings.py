"""What else is true of the fleet while one proposal is judged: the other proposals, the memory in force, the servers
that are taboo.

Worked out once for all proposals of a round, so that judging each of them costs microseconds. It judges nothing and
measures nothing.

INVARIANT: every proposal at hand is in exactly one group; the groups are the connected parts of the graph of `needs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cachewarden.fleet import Fleet, Service
from cachewarden.messages import Mode, Proposal
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["Group", "Surroundings", "budgeted_services", "memory_change", "server_address", "surroundings_of"]

_OWNER_FIELDS = frozenset({"tenant", "region"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Proposals that are tied together by `needs`: who gives memory, who gets it, and what it is worth as a whole."""

    proposals: tuple[str, ...]
    gives: tuple[str, ...]
    gains: tuple[str, ...]
    tenants: tuple[str, ...]
    regions: tuple[str, ...]
    owners_declared: bool
    memory_delta_bytes: int
    gain_hits_per_s: float
    gain_hits_per_s_low: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Everything about the fleet that bears on more than one proposal. Build it with `surroundings_of`."""

    proposals: Mapping[str, Proposal]
    groups: Mapping[str, Group]
    """Proposal id to its group."""
    services: Mapping[str, Service]
    memory_bytes: Mapping[str, int]
    """maxmemory in force of every service that was seen."""
    memory_bytes_total: int
    memory_known: bool
    budget_bytes: int
    lookups_per_s_total: float
    latency_us_p99_target: float
    protected_servers: frozenset[str]

    def group(self, proposal: Proposal) -> Group:
        """Return the group of a proposal, also of one that is not (or no longer exactly so) among those at hand."""
        if self.proposals.get(proposal.proposal_id) is proposal:
            return self.groups[proposal.proposal_id]
        together = {**self.proposals, proposal.proposal_id: proposal}
        return _groups(together, self.services)[proposal.proposal_id]


def memory_change(proposal: Proposal) -> tuple[int, int] | None:
    """Return maxmemory before and after in bytes; None if the proposal leaves it alone or does not write it in
    bytes."""
    for change in proposal.knob_changes:
        if change.knob == "maxmemory" and change.before.isdecimal() and change.after.isdecimal():
            return int(change.before), int(change.after)
    return None


def server_address(url: str) -> str:
    """Return `host:port` or the socket's path of a Redis URL, the same for all spellings of one server.

    The db number and credentials do not count: eviction and configuration know no dbs.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"{parts.netloc}{parts.path}"
    host = (parts.hostname or "localhost").lower()
    if host in ("127.0.0.1", "::1", "0.0.0.0"):  # noqa: S104 - compared, not bound
        host = "localhost"
    try:
        port = parts.port
    except ValueError:
        return f"{host}:invalid"
    return f"{host}:{port or 6379}"


def budgeted_services(fleet: Fleet) -> frozenset[str]:
    """Return the services whose maxmemory must be known before anybody may grow.

    A service in mode `off` is not looked at. Where the budget is what was found, its memory is not part of it; where
    the fleet file gives a total, it is, and as long as nobody knows how much that is there is nothing to give out.
    """
    declared = fleet.total_memory_bytes is not None
    return frozenset(s.name for s in fleet.services if declared or s.mode is not Mode.OFF)


def _root(parents: dict[str, str], proposal_id: str) -> str:
    while parents[proposal_id] != proposal_id:
        parents[proposal_id] = parents[parents[proposal_id]]
        proposal_id = parents[proposal_id]
    return proposal_id


def _groups(proposals: Mapping[str, Proposal], services: Mapping[str, Service]) -> dict[str, Group]:
    parents = {proposal_id: proposal_id for proposal_id in proposals}
    for proposal_id in sorted(proposals):
        for needed in proposals[proposal_id].needs:
            if needed in parents:
                parents[_root(parents, proposal_id)] = _root(parents, needed)
    members: dict[str, list[Proposal]] = {}
    for proposal_id in sorted(proposals):
        members.setdefault(_root(parents, proposal_id), []).append(proposals[proposal_id])
    groups: dict[str, Group] = {}
    for part in members.values():
        group = _group(part, services)
        groups.update(dict.fromkeys(group.proposals, group))
    return groups


def _group(members: list[Proposal], services: Mapping[str, Service]) -> Group:
    gives: set[str] = set()
    gains: set[str] = set()
    delta_bytes = 0
    gain = 0.0
    uncertainty = 0.0
    for proposal in members:
        before, after = memory_change(proposal) or (0, 0)
        delta_bytes += after - before
        if after < before:
            gives.add(proposal.service)
        if after > before:
            gains.add(proposal.service)
        owner = services.get(proposal.service)
        rate = proposal.prediction.lookups_per_s * (1.0 if owner is None else owner.weight)
        gain += proposal.prediction.gain.value * rate
        uncertainty = math.hypot(uncertainty, (proposal.prediction.gain.value - proposal.prediction.gain.low) * rate)
    owners = [services[name] for name in sorted({p.service for p in members}) if name in services]
    return Group(
        proposals=tuple(p.proposal_id for p in members),
        gives=tuple(sorted(gives)),
        gains=tuple(sorted(gains)),
        tenants=tuple(sorted({owner.tenant for owner in owners})),
        regions=tuple(sorted({owner.region for owner in owners})),
        owners_declared=len(owners) == len({p.service for p in members})
        and all(owner.model_fields_set >= _OWNER_FIELDS for owner in owners),
        memory_delta_bytes=delta_bytes,
        gain_hits_per_s=gain,
        gain_hits_per_s_low=gain - uncertainty,
    )


def surroundings_of(
    proposals: Iterable[Proposal],
    snapshots: Iterable[Snapshot],
    fleet: Fleet,
    settings: CacheOptimizerSettings,
    budget_bytes: int | None = None,
) -> Surroundings:
    """Return what all of `proposals` have in common; `snapshots` should be those of the whole fleet.

    `budget_bytes` is the sum of maxmemory as found at first; it counts only where the fleet file gives no total.
    Without either, the sum that is in force now is the budget, so that nothing may grow unless somebody else gives in
    the same group.
    """
    at_hand = {p.proposal_id: p for p in proposals}
    services = {s.name: s for s in fleet.services}
    seen = {s.service: s for s in snapshots if s.service in services}
    memory_bytes = {name: seen[name].maxmemory_bytes for name in sorted(seen)}
    total_bytes = sum(memory_bytes.values())
    budget = fleet.total_memory_bytes if fleet.total_memory_bytes is not None else budget_bytes
    taboo = {server_address(settings.blackboard_url), server_address(settings.journal_url or settings.blackboard_url)}
    return Surroundings(
        proposals=at_hand,
        groups=_groups(at_hand, services),
        services=services,
        memory_bytes=memory_bytes,
        memory_bytes_total=total_bytes,
        memory_known=memory_bytes.keys() >= budgeted_services(fleet),
        budget_bytes=total_bytes if budget is None else budget,
        lookups_per_s_total=sum(seen[name].lookups_per_s for name in sorted(seen)),
        latency_us_p99_target=settings.target_p99_latency_ms * 1000.0,
        protected_servers=frozenset(taboo),
    )
