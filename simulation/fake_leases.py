"""Leases in memory, behind the `LeaseStore` port: what the contract promises, and nothing of a network.

Expiry is judged by the clock that the store is given, as the real one judges by its server's. INVARIANT: as in
`coordination.redis_leases`.
"""

from __future__ import annotations

from cachewarden.errors import BlackboardUnavailable
from cachewarden.messages import Lease
from cachewarden.ports import Clock

__all__ = ["FakeLeaseStore"]


class FakeLeaseStore:
    """Set `reachable` to False to cut it off."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._epochs: dict[str, int] = {}
        self._tenures: dict[str, str] = {}
        """Who got the last epoch, until he gives it back."""
        self.reachable = True

    async def acquire(self, service: str, holder: str, ttl_ms: int) -> Lease | None:
        """Take or renew; see the port. Raises ValueError for ttl_ms < 1."""
        if ttl_ms < 1:
            raise ValueError(f"a lease must last at least a millisecond, got `{ttl_ms}`")
        present, now_ms = await self.holder(service), self._clock.now_ms()
        if present is not None and present.holder != holder:
            return None
        if present is None and self._tenures.get(service) != holder:
            self._epochs[service] = max(self._epochs.get(service, 0) + 1, now_ms)
            self._tenures[service] = holder
        lease = Lease(service=service, holder=holder, epoch=self._epochs[service], expires_at_ms=now_ms + ttl_ms)
        self._leases[service] = lease
        return lease

    async def release(self, lease: Lease) -> None:
        """Give back if holder and epoch are those in force."""
        present = await self.holder(lease.service)
        if (self._tenures.get(lease.service), self._epochs.get(lease.service)) == (lease.holder, lease.epoch):
            del self._tenures[lease.service]
        if present is not None and (present.holder, present.epoch) == (lease.holder, lease.epoch):
            del self._leases[lease.service]

    def epoch_of(self, service: str) -> int:
        """Return the last epoch that was given out, 0 where there is none."""
        return self._epochs.get(service, 0)

    async def holder(self, service: str) -> Lease | None:
        """Return the lease in force, if any."""
        if not self.reachable:
            raise BlackboardUnavailable("cut off by the simulation")
        lease = self._leases.get(service)
        return lease if lease is not None and lease.expires_at_ms > self._clock.now_ms() else None
