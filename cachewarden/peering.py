"""What the machines that speak to ACGS's HTTP services want done, and what they learn: effects, events, ports.

The Integrity Service (8002) gets the journal's records, Constitutional AI (8001) is asked for a second opinion, the
Coordinator (8008) and the Blackboard over HTTP (8010) are told that we live. Adapters are in `coordination/http_*.py`,
fakes in `simulation/fake_peers.py`; `peer_performers` is how a shell performs the effects.

It decides nothing. INVARIANT: nothing here holds a token, a key name or a value; a peer's words are bounded before they
become an `Opinion`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cachewarden.errors import JournalUnavailable, OperatingError
from cachewarden.machine import Effect
from cachewarden.messages import Message
from cachewarden.ports import Journal

__all__ = [
    "Announce",
    "Announced",
    "AskOpinion",
    "ClaimCursor",
    "ConstitutionalService",
    "CursorClaim",
    "CursorClaimed",
    "CursorMoved",
    "Deliver",
    "Delivered",
    "DeliveryCursors",
    "HeadRead",
    "IntegrityService",
    "Mark",
    "MoveCursor",
    "Opinion",
    "OpinionGiven",
    "Peers",
    "PresenceService",
    "ReadHead",
    "peer_performers",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark(Message):
    """A place in the journal: record `seq` with its hash; 0 is before the first."""

    seq: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorClaim(Message):
    """Who may deliver now, and up to where everything has been; `holder` is the other one where it is not us."""

    granted: bool
    mark: Mark
    holder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion(Message):
    """What Constitutional AI says of one change. `score` is 0..1; texts are bounded and free of control characters."""

    compliant: bool
    score: float
    violated: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()


# --- Ports ----------------------------------------------------------------------------------------------------------


class IntegrityService(Protocol):
    """ACGS's audit route. Raises PeerUnavailable, PeerRefused, PeerViolation; only a return means delivered."""

    async def deliver(self, event: Mapping[str, Any]) -> str:
        """Hand over one event; returns the id that the service gave it (empty where it named none)."""
        ...

    async def close(self) -> None: ...


class ConstitutionalService(Protocol):
    """ACGS's validation route. Raises PeerUnavailable, PeerRefused, PeerViolation; only a return is an opinion."""

    async def validate(self, content: str, context: Mapping[str, Any]) -> Opinion: ...

    async def close(self) -> None: ...


class PresenceService(Protocol):
    """A service that likes to know who lives."""

    async def announce(self, *, first: bool) -> str:
        """Register (`first`) or say that we still live; returns the program that answered.

        Raises PeerForgot where the service does not know us (any more), PeerRefused where another program answers
        under its address, PeerUnavailable.
        """
        ...

    async def close(self) -> None: ...


class DeliveryCursors(Protocol):
    """How far a delivery has come, on the journal's server; one deployment at a time. Raises BlackboardUnavailable.

    A claim runs out by that server's clock alone.
    """

    async def claim(self, name: str, holder: str, ttl_ms: int) -> CursorClaim:
        """Take or renew the right to deliver, and read the mark."""
        ...

    async def move(self, name: str, holder: str, before: Mark, after: Mark, ttl_ms: int) -> bool:
        """Move the mark if it is still `before` and no other's claim is in force, and renew ours; False: neither."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The HTTP peers that one agent may reach; None and missing ones are not configured."""

    integrity: IntegrityService | None = None
    cursors: DeliveryCursors | None = None
    constitutional: ConstitutionalService | None = None
    presence: Mapping[str, PresenceService] = field(default_factory=dict)
    holder: str = "cachewarden"
    """Names one life of one process in claims."""

    async def close(self) -> None:
        """Give all connections back."""
        for port in (self.integrity, self.cursors, self.constitutional, *self.presence.values()):
            if port is not None:
                await port.close()


# --- Effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver(Effect):
    """Hand one event to the Integrity Service; answered by `Delivered`."""

    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCursor(Effect):
    """Take or renew the right to deliver under `name` for `ttl_ms`; answered by `CursorClaimed`."""

    name: str
    ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveCursor(Effect):
    """Compare-and-set of the mark; answered by `CursorMoved`."""

    name: str
    before: Mark
    after: Mark
    ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadHead(Effect):
    """Ask how high the journal is; answered by `HeadRead`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOpinion(Effect):
    """Ask Constitutional AI about one change; answered by `OpinionGiven`."""

    content: str
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce(Effect):
    """Register with (`first`) or greet a presence service; answered by `Announced`."""

    peer: str
    first: bool


# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    ref: str
    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorClaimed:
    ref: str
    claim: CursorClaim


@dataclass(frozen=True, slots=True, kw_only=True)
class CursorMoved:
    ref: str
    moved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRead:
    ref: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpinionGiven:
    ref: str
    opinion: Opinion


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    ref: str
    peer: str
    program: str


def peer_performers(
    peers: Peers | None, journal: Journal | None
) -> dict[type[Effect], Callable[[Any], Awaitable[Any]]]:
    """Return how each effect of this module is performed; a port that is missing fails as an OperatingError."""

    def need(port: Any, what: str) -> Any:
        if port is None:
            raise OperatingError(f"this agent has no access to {what}")
        return port

    async def deliver(e: Deliver) -> Delivered:
        service = need(peers and peers.integrity, "the Integrity Service")
        return Delivered(ref=e.ref, event_id=await service.deliver(e.event))

    async def claim(e: ClaimCursor) -> CursorClaimed:
        cursors = need(peers and peers.cursors, "the cursors of deliveries")
        assert peers is not None
        return CursorClaimed(ref=e.ref, claim=await cursors.claim(e.name, peers.holder, e.ttl_ms))

    async def move(e: MoveCursor) -> CursorMoved:
        cursors = need(peers and peers.cursors, "the cursors of deliveries")
        assert peers is not None
        return CursorMoved(ref=e.ref, moved=await cursors.move(e.name, peers.holder, e.before, e.after, e.ttl_ms))

    async def head(e: ReadHead) -> HeadRead:
        if journal is None:
            raise JournalUnavailable("this agent has no journal")
        return HeadRead(ref=e.ref, seq=(await journal.head())[0])

    async def ask(e: AskOpinion) -> OpinionGiven:
        service = need(peers and peers.constitutional, "Constitutional AI")
        return OpinionGiven(ref=e.ref, opinion=await service.validate(e.content, e.context))

    async def announce(e: Announce) -> Announced:
        service = need(peers and peers.presence.get(e.peer), f"`{e.peer}`")
        return Announced(ref=e.ref, peer=e.peer, program=await service.announce(first=e.first))

    return {
        Deliver: deliver,
        ClaimCursor: claim,
        MoveCursor: move,
        ReadHead: head,
        AskOpinion: ask,
        Announce: announce,
    }
