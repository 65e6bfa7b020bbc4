"""The HTTP peers of ACGS that the settings name: adapters, the envoy, and what each agent may reach.

Part of the composition root. INVARIANT: an agent gets a client of a peer only if that peer is configured and the agent
is the one that speaks to it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Final

from cachewarden.peering import Peers, PresenceService
from cachewarden.settings import CacheOptimizerSettings
from coordination.delivery import INTEGRITY, Delivery
from coordination.envoy import ENVOY, Envoy
from coordination.http_constitutional import HttpConstitutional
from coordination.http_integrity import HttpIntegrity
from coordination.http_presence import (
    BLACKBOARD_HTTP,
    COORDINATOR_HTTP,
    HttpBlackboardPresence,
    HttpCoordinatorPresence,
)
from coordination.http_wire import Credentials, HttpWire, require_http_url
from coordination.presence import Presence
from coordination.redis_cursors import RedisDeliveryCursors

__all__ = ["has_envoy", "make_envoy", "make_peers", "require_peer_urls"]

_OPINION_CONNECTIONS: Final = 8
_PRESENCES: Final[Mapping[str, tuple[str, Callable[[HttpWire], PresenceService]]]] = {
    COORDINATOR_HTTP: ("acgs_coordinator_url", HttpCoordinatorPresence),
    BLACKBOARD_HTTP: ("acgs_blackboard_http_url", HttpBlackboardPresence),
}


def _presence_urls(settings: CacheOptimizerSettings) -> dict[str, str]:
    found: Mapping[str, str | None] = {peer: getattr(settings, name) for peer, (name, _) in _PRESENCES.items()}
    return {peer: url for peer, url in found.items() if url is not None}


def has_envoy(settings: CacheOptimizerSettings) -> bool:
    """Say whether there is anybody for the envoy to speak to."""
    return settings.delivers_to_integrity or bool(_presence_urls(settings))


def require_peer_urls(settings: CacheOptimizerSettings) -> None:
    """Raise SettingsError for the address of a peer that no client can use."""
    require_http_url("constitutional_ai_url", settings.constitutional_ai_url)
    require_http_url("integrity_service_url", settings.integrity_service_url)
    for peer, url in _presence_urls(settings).items():
        require_http_url(_PRESENCES[peer][0], url)


def make_envoy(settings: CacheOptimizerSettings) -> Envoy:
    """Return the plain agent that speaks to the peers that are configured."""
    interval_ms = settings.agent_heartbeat_interval * 1000
    return Envoy(
        Delivery(INTEGRITY) if settings.delivers_to_integrity else None,
        [Presence(peer, interval_ms=interval_ms) for peer in _presence_urls(settings)],
    )


def make_peers(settings: CacheOptimizerSettings, agent: str, journal_url: str, holder: str) -> Peers | None:
    """Return the clients of the peers that `agent` speaks to, None where there are none; call in the agent's loop."""
    if agent == "validator" and settings.constitutional_ai_mode != "off":
        timeout_s = settings.constitutional_ai_timeout_ms / 1000
        wire = _wire("constitutional_ai", settings.constitutional_ai_url, settings, timeout_s, _OPINION_CONNECTIONS)
        return Peers(constitutional=HttpConstitutional(wire))
    if agent != ENVOY:
        return None
    timeout_s = settings.peer_timeout_ms / 1000
    presence: dict[str, PresenceService] = {}
    for peer, url in _presence_urls(settings).items():
        presence[peer] = _PRESENCES[peer][1](_wire(peer, url, settings, timeout_s))
    if not settings.delivers_to_integrity:
        return Peers(presence=presence)
    return Peers(
        integrity=HttpIntegrity(_wire(INTEGRITY, settings.integrity_service_url, settings, timeout_s)),
        cursors=RedisDeliveryCursors(journal_url, key_prefix=settings.key_prefix, timeout_s=settings.redis_timeout),
        presence=presence,
        # A name of this life: what an earlier one may still have on its way must not pass for ours.
        holder=f"{holder}:{secrets.token_hex(4)}",
    )


def _wire(
    peer: str, url: str, settings: CacheOptimizerSettings, timeout_s: float, max_connections: int = 2
) -> HttpWire:
    token = None if settings.acgs_token is None else settings.acgs_token.get_secret_value()
    credentials = Credentials(token=token, tenant_id=settings.acgs_tenant_id)
    return HttpWire(peer, url, credentials=credentials, timeout_s=timeout_s, max_connections=max_connections)
