"""Dividing memory among claimants by marginal benefit, so that overstating pays little.

Each claimant names, step by step above its floor, how many more weighted hits per second further bytes would bring it.
A claim counts at most as far as the evidence goes (`proven`, the upper end of what was measured). Floors come first;
what is left goes where a byte brings most (marginal values made to fall by pooling, as on a concave hull), the last
step in part. This is the greedy rule of separable concave allocation (Ibaraki and Katoh 1988), so the sum of the
counted benefits is the largest there is, and nobody can get more without another getting less.

It decides nothing about what a claim rests on. INVARIANT: bytes granted plus bytes left equal the total; a claimant
that told the truth gains by overstating at most `overstating_bound`, in hits per second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Claim", "Division", "Grant", "Impossible", "Step", "divide", "overstating_bound"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Further `size_bytes` (> 0) bring `claimed` weighted hits per second, of which the evidence supports `proven`."""

    size_bytes: int
    claimed: float
    proven: float

    def __post_init__(self) -> None:
        if self.size_bytes < 1:
            raise ValueError(f"a step must have at least one byte, got `{self.size_bytes}`")
        if not (abs(self.claimed) < float("inf") and abs(self.proven) < float("inf")):
            raise ValueError(f"hits per second must be finite, got `{self.claimed}` and `{self.proven}`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one claimant wants. `floor_bytes` (>= 0) is its by right, from the fleet file, not by its own word."""

    claimant: str
    floor_bytes: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one claimant gets in all, floor included, and the counted hits per second above its floor."""

    claimant: str
    size_bytes: int
    hits_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """The split. `price`: hits per second of the best byte that was not granted, 0 where all wishes were."""

    grants: tuple[Grant, ...]
    left_bytes: int
    price: float

    def of(self, claimant: str) -> Grant:
        """Return the grant of a claimant; KeyError if it made no claim."""
        for grant in self.grants:
            if grant.claimant == claimant:
                return grant
        raise KeyError(claimant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Impossible:
    """The floors alone need more than there is."""

    needed_bytes: int
    reason: str


@dataclass(slots=True)
class _Segment:
    size_bytes: int
    hits: float

    @property
    def density(self) -> float:
        return self.hits / self.size_bytes


def _segments(claim: Claim) -> list[_Segment]:
    """Return the counted steps, pooled until their density falls (pool adjacent violators)."""
    pooled: list[_Segment] = []
    for step in claim.steps:
        pooled.append(_Segment(step.size_bytes, min(step.claimed, step.proven)))
        while len(pooled) > 1 and pooled[-1].density > pooled[-2].density:
            last = pooled.pop()
            pooled[-1] = _Segment(pooled[-1].size_bytes + last.size_bytes, pooled[-1].hits + last.hits)
    return pooled


def divide(claims: Sequence[Claim], total_bytes: int) -> Division | Impossible:
    """Split `total_bytes`; equal marginal values go to the name that sorts first, steps that bring nothing to nobody.

    Raises ValueError for a claimant that is named twice or a negative floor or total.
    """
    ordered = sorted(claims, key=lambda c: c.claimant)
    if len({c.claimant for c in ordered}) < len(ordered):
        raise ValueError("a claimant may claim once")
    if total_bytes < 0 or any(c.floor_bytes < 0 for c in ordered):
        raise ValueError("bytes to divide, and floors, must not be negative")
    needed = sum(c.floor_bytes for c in ordered)
    if needed > total_bytes:
        return Impossible(
            needed_bytes=needed,
            reason=f"floors need {needed} bytes but there are {total_bytes}, raise the budget or lower a floor",
        )
    left, price = total_bytes - needed, 0.0
    grants = {c.claimant: Grant(claimant=c.claimant, size_bytes=c.floor_bytes, hits_per_s=0.0) for c in ordered}
    queue = [(-s.density, c.claimant, i, s) for c in ordered for i, s in enumerate(_segments(c)) if s.hits > 0]
    for _, claimant, _, segment in sorted(queue, key=lambda entry: entry[:3]):
        given = min(segment.size_bytes, left)
        if given < segment.size_bytes:
            price = max(price, segment.density)
        grant = grants[claimant]
        grants[claimant] = replace(
            grant,
            size_bytes=grant.size_bytes + given,
            hits_per_s=grant.hits_per_s + segment.density * given,
        )
        left -= given
    return Division(grants=tuple(grants[c.claimant] for c in ordered), left_bytes=left, price=price)


def overstating_bound(claims: Sequence[Claim], total_bytes: int, claimant: str) -> float | None:
    """Return the most hits per second that `claimant`, if its claim is true, could have gained by overstating it.

    Its claim counts at most as `proven`, so whatever it says it gets no more bytes than with all of that; and no byte
    beyond its honest share is worth more to it than the price. None where the floors do not fit. Raises KeyError for
    a claimant without a claim.
    """
    honest = divide(claims, total_bytes)
    if isinstance(honest, Impossible):
        return None
    share = honest.of(claimant).size_bytes
    boldest = [
        replace(c, steps=tuple(replace(s, claimed=s.proven) for s in c.steps)) if c.claimant == claimant else c
        for c in claims
    ]
    reached = divide(boldest, total_bytes)
    if isinstance(reached, Impossible):
        return None
    return honest.price * max(0, reached.of(claimant).size_bytes - share)
