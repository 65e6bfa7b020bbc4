"""Which of two orders to pause or resume is the newer one: one that was told directly, or one that the journal has.

Of several deployments on one journal each reads the orders of all, a little later than it is told its own. It only
compares; whoever uses it stops and goes on. INVARIANT: a resumption that the journal has from before a pause that was
told directly never ends that pause, however late it is read, and however often.
"""

from __future__ import annotations

from typing import Final

from cachewarden.messages import AuditRecord, RecordKind
from cachewarden.protocol import SetPaused

__all__ = ["PAUSE_KINDS", "OrdersOfPause"]

PAUSE_KINDS: Final = frozenset({RecordKind.PAUSED.value, RecordKind.RESUMED.value})

_READ_MAX: Final = 100


class OrdersOfPause:
    """What was told and not yet read back from the journal; all of it is forgotten with the newest of it."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._read: dict[str, None] = {}
        """The newest orders that were read, oldest first: one of them that is told late is no news."""
        self._newest: SetPaused | None = None
        self._seq = 0
        """The newest record that was read: two questions may be answered with the same records, in either order."""

    def tell(self, order: SetPaused) -> bool:
        """Take an order that was told directly; False where the journal has told of it before, maybe of later ones too.

        One without an `order_id` cannot be found in the journal.
        """
        if order.order_id in self._read:
            return False
        if order.order_id:
            self._told.add(order.order_id)
        self._newest = order
        return True

    @property
    def unread(self) -> SetPaused | None:
        """The newest order that was told, while the journal has not been read to hold it."""
        return self._newest if self._newest is not None and self._newest.order_id else None

    def knows(self, order_id: str) -> bool:
        """Whether an order was told and not read yet, or is among the newest that were read."""
        return order_id in self._told or order_id in self._read

    def counts(self, record: AuditRecord) -> bool:
        """Say whether a record of one of `PAUSE_KINDS`, read in the journal's order, changes what is in force."""
        order_id = str(record.payload.get("order_id") or "")
        known = order_id in self._read
        if order_id:
            self._read[order_id] = None
            while len(self._read) > _READ_MAX:
                self._read.pop(next(iter(self._read)))
        again, self._seq = record.seq <= self._seq, max(self._seq, record.seq)
        if order_id in self._told:
            newest = self._newest is not None and order_id == self._newest.order_id
            self._told.discard(order_id)
            if newest:
                self._told.clear()
                self._newest = None
            return newest
        if again or known:
            # Read before: it has had its effect, and what came after it, maybe lost by now, is newer.
            return False
        # Before ours stands in the journal, nothing that is read can be newer than it. A pause of others counts all
        # the same: stopping once too often does no harm.
        return record.kind == RecordKind.PAUSED.value or self.unread is None or not self.unread.paused

    def read_again(self, after_seq: int) -> None:
        """Let records behind `after_seq` count once more: the journal has lost its tail, so they may be other ones."""
        self._seq = min(self._seq, after_seq)
