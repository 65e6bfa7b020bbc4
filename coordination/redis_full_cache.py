"""Writing to a cache that is too full to open a transaction.

Redis 7.0 refuses to queue any command in MULTI while used memory is above maxmemory, CONFIG SET among them, so
exactly the cache that
needs a cure most could not be given one (Valkey queues it). Then the fence is compared and the command sent, one
right after the
other, on a connection that carries the epoch in its name; and whoever raises the fence ends the connections of
earlier epochs. A
writer that was paused between the two wakes up to a closed connection.

INVARIANT: without the right to end earlier writers, nothing is written in this way.
"""

from __future__ import annotations

import re
from typing import Any

from cachewarden.errors import OperatingError, StaleFencingToken, TargetRefused
from cachewarden.messages import Lease
from coordination.redis_wire import CLIENT_NAME, Command, Refusal, Session, fence_number, require

__all__ = ["cannot_queue", "end_earlier_writers", "write_when_full"]

_WRITER = re.compile(rb"(?:^| )id=(\d+) .*?\bname=" + CLIENT_NAME.encode() + rb"-write-(\d+)(?: |$)")
_NOBODY = str(2**63 - 1)


def cannot_queue(error: TargetRefused) -> bool:
    """Say whether a transaction was refused only because the cache is above its limit; then nothing was done."""
    return "used memory > 'maxmemory'" in error.reason


async def end_earlier_writers(session: Session, epoch: int) -> bool:
    """Close the connections of writers with an earlier epoch; False where the server does not let us."""
    (listing,) = await session.exchange([("CLIENT", "LIST", "TYPE", "normal")])
    if isinstance(listing, Refusal):
        return False
    found = [_WRITER.search(line) for line in bytes(listing).splitlines()]
    stale = [match.group(1).decode() for match in found if match is not None and int(match.group(2)) < epoch]
    # Ending nobody proves that we might: no client ever gets this id.
    for client_id in stale or [_NOBODY]:
        (ended,) = await session.exchange([("CLIENT", "KILL", "ID", client_id)])
        if isinstance(ended, Refusal):
            return False
    return True


async def write_when_full(session: Session, service: str, fence_key: str, lease: Lease, command: Command) -> Any:
    """Send one command right after the fence was compared.

    Raises StaleFencingToken (nothing was done), TargetRefused (nothing was done), TargetTimeout (unknown).
    """
    named, token = await session.exchange(
        [("CLIENT", "SETNAME", f"{CLIENT_NAME}-write-{lease.epoch}"), ("GET", fence_key)]
    )
    require(service, named)
    found = fence_number(token)
    if found != lease.epoch:
        raise StaleFencingToken(service, lease.epoch, found)
    answer = await session.write(command)
    try:
        await session.exchange([("CLIENT", "SETNAME", CLIENT_NAME)])
    except OperatingError:
        # The command is done and confirmed; a connection that breaks now is replaced by the pool.
        return answer
    return answer
