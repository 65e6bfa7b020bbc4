"""What the requests of a change's time would have hit without the change: a replay of what was captured, told by
whoever replays to whoever watches the change.

A cache has no second self that is left alone, but whoever has its requests can replay them under the old configuration.
Where a fleet has a real unchanged twin, that one is gone by. It decides nothing.

INVARIANT: a count between two moments is only given where both lie within what was replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cachewarden.messages import Message, Proposal

__all__ = ["Counterfactual", "knobs_before"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual(Message):
    """Hits and lookups of one service under the configuration before `proposal_id`, counted up from `from_ms` on the
    server's clock, at edges `bucket_ms` apart; both begin with 0 and never fall.

    They are those of a spatial sample at `spatial_rate` (0..1] of `distinct_keys` keys. Raises ValueError for what
    cannot have been counted so.
    """

    service: str
    proposal_id: str
    from_ms: int
    bucket_ms: int
    lookups: tuple[int, ...]
    hits: tuple[int, ...]
    spatial_rate: float
    distinct_keys: int

    def __post_init__(self) -> None:
        whole = len(self.lookups) == len(self.hits) > 0 and self.bucket_ms > 0 and 0.0 < self.spatial_rate <= 1.0
        steps = zip(pairwise(self.lookups), pairwise(self.hits), strict=True) if whole else ()
        if not whole or any(not 0 <= h1 - h0 <= n1 - n0 for (n0, n1), (h0, h1) in steps):
            raise ValueError("hits and lookups must be counted up side by side, hits no faster, at a rate above 0 to 1")

    @property
    def until_ms(self) -> int:
        """Return the last moment that was replayed."""
        return self.from_ms + self.bucket_ms * (len(self.lookups) - 1)

    def counts(self, from_ms: int, until_ms: int) -> tuple[float, float] | None:
        """Return (lookups, hits) between two moments, evenly spread within a bucket; None where not covered."""
        if not self.from_ms <= from_ms < until_ms <= self.until_ms:
            return None
        return (
            self._upto(self.lookups, until_ms) - self._upto(self.lookups, from_ms),
            self._upto(self.hits, until_ms) - self._upto(self.hits, from_ms),
        )

    def tells_too_little(self, from_ms: int, until_ms: int, lookups_min: int) -> bool:
        """Say whether fewer lookups than `lookups_min` were replayed between two moments, both of which are covered."""
        counted = self.counts(from_ms, until_ms)
        return counted is not None and counted[0] < lookups_min

    def _upto(self, counted: Sequence[int], at_ms: int) -> float:
        number, rest_ms = divmod(at_ms - self.from_ms, self.bucket_ms)
        if not rest_ms:
            return float(counted[number])
        return counted[number] + (counted[number + 1] - counted[number]) * rest_ms / self.bucket_ms


def knobs_before(proposal: Proposal) -> dict[str, str]:
    """Return what the knobs of a change are without it; empty where it changes anything else as well."""
    return {} if proposal.ttl_rules else {change.knob: change.before for change in proposal.knob_changes}
