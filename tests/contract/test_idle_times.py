"""Rules for keys that nobody reads, on servers: after a switch from LFU, and at what cost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cachewarden.errors import TargetRefused
from cachewarden.messages import Lease, TtlRule
from coordination.redis_probe import Pacer
from tests.contract.conftest import REAL

RULE = TtlRule(pattern="user:", written_ttl_ms=0, extended_ttl_ms=60_000, max_staleness_ms=600_000, unread_ms=3_000)
HELD = Lease(service="shop", holder="me", epoch=3, expires_at_ms=1)


@dataclass
class CountingPacer(Pacer):
    """Remembers what it was told."""

    spent: list[int] = field(default_factory=list)

    async def spend(self, commands):
        self.spent.append(commands)
        await super().spend(commands)


@pytest.mark.parametrize("cache_server", REAL, indirect=True)
async def test_keys_in_use_do_not_end_after_a_switch_from_lfu_and_what_is_sent_is_paced(cache_server, make_target):
    admin, target = cache_server.admin, make_target(cache_server)
    admin.config_set("maxmemory-policy", "allkeys-lfu")
    for number in range(300):
        admin.set(f"user:{number}", b"v" * 100)
    await target.raise_fence(HELD)
    await target.counters()
    admin.config_set("maxmemory-policy", "allkeys-lru")
    assert max(admin.object("IDLETIME", f"user:{number}") for number in range(300)) > 10
    with pytest.raises(TargetRefused, match="idle times are only believed"):
        await target.extend_ttls(HELD, RULE, 0, 1_000)
    await asyncio.sleep(4)
    used = {f"user:{number}" for number in range(0, 300, 2)}
    for name in used:
        admin.get(name)
    pacer = target._pacer = CountingPacer(share=1.0)
    cursor, commands = 0, 0
    while True:
        done = await target.extend_ttls(HELD, RULE, cursor, 1_000)
        cursor, commands = done.cursor, commands + done.commands
        if cursor == 0:
            break
    ended = {name for name in (f"user:{number}" for number in range(300)) if admin.ttl(name) != -1}
    assert not ended & used
    assert 0.9 * commands <= sum(pacer.spent) <= commands
