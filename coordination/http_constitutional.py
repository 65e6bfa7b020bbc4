"""ACGS's Constitutional AI (8001) over HTTP: `POST /api/v1/constitutional/validate`.

An answer is an opinion only with status 200, our constitutional hash in its body, a truth value under `compliant` and a
score within 0..1; the service itself does not look at our hash, so its own is looked at here. Its texts are bounded and
cleaned, since they end up in the journal. It decides nothing. INVARIANT: what is not an opinion raises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cachewarden.errors import PeerUnavailable, PeerViolation
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.peering import Opinion
from coordination.http_wire import HttpWire, refused

__all__ = ["HttpConstitutional", "opinion_of"]

_VALIDATE: Final = "/api/v1/constitutional/validate"
_ITEMS_MAX: Final = 10
_CHARS_MAX: Final = 200


class HttpConstitutional:
    """The ConstitutionalService port."""

    def __init__(self, wire: HttpWire) -> None:
        self._wire = wire

    async def validate(self, content: str, context: Mapping[str, Any]) -> Opinion:
        """Ask for an opinion; see the port."""
        # `context` is optional to one of the two programs that serve this route and required by the other.
        body = {"content": content, "context": dict(context), "principles": [], "require_formal_proof": False}
        answer = await self._wire.call("POST", _VALIDATE, body)
        if answer.status != 200:
            raise refused(self._wire.peer, answer)
        return opinion_of(self._wire.peer, answer.body)

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()


def opinion_of(peer: str, body: Any) -> Opinion:
    """Return the opinion that a body holds; raises PeerViolation without our hash, PeerUnavailable for anything else
    that is not one."""
    if not isinstance(body, dict):
        raise PeerUnavailable(peer, "sent no JSON object")
    if body.get("constitutional_hash") != CONSTITUTIONAL_HASH:
        raise PeerViolation(peer, body.get("constitutional_hash"), "body")
    compliant, score = body.get("compliant"), body.get("score")
    if not isinstance(compliant, bool):
        raise PeerUnavailable(peer, "did not say whether the change is compliant")
    if (
        isinstance(score, bool)
        or not isinstance(score, (int, float))
        or not math.isfinite(score)
        or not 0 <= score <= 1
    ):
        raise PeerUnavailable(peer, "gave no score within 0..1")
    violated = _texts(body.get("violated_principles"))
    if compliant and violated:
        raise PeerUnavailable(peer, "contradicts itself: compliant, with violated principles")
    return Opinion(compliant=compliant, score=float(score), violated=violated, reasoning=_texts(body.get("reasoning")))


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple("".join(c if c.isprintable() else " " for c in str(v)[:_CHARS_MAX]) for v in value[:_ITEMS_MAX])
