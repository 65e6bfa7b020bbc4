"""What the coordinator tells the replicas of the API, wrapped so that another version of it is never misread.

A parcel is a pair of the shape of all messages that go between the two and the message as bytes, so that it can be
looked at before anything in it is. It decides nothing. INVARIANT: what comes out is what went in, or `OtherVersion`.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

from cachewarden.approval import DecideApproval, SubmitProposal
from cachewarden.errors import OperatingError
from cachewarden.fed_accesses import FeedBatch, FeedReport
from cachewarden.protocol import Execute, FleetBeat, FleetDelta, FleetState, RunCycle, SetMode, SetPaused
from cachewarden.protocol_shape import shape_of

__all__ = ["FLEET_SHAPE", "OtherVersion", "packed", "unpacked"]

FLEET_SHAPE: Final = shape_of(
    *(FleetState, FleetDelta, FleetBeat),
    *(Execute, RunCycle, SetPaused, SetMode, DecideApproval, SubmitProposal),
    *(FeedBatch, FeedReport),
)
"""Of what the coordinator tells, and of what it and the collector beside it are given in turn."""


class OtherVersion(OperatingError):
    """The other side has other messages than this one; nothing that it says may be read."""

    public_reason = "the coordinator is of another version of cachewarden: bring agents and API to the same"

    def __init__(self, shape: str) -> None:
        self.shape = shape
        super().__init__(f"{self.public_reason} (messages of shape {shape} there, {FLEET_SHAPE} here)")


def packed(news: Any) -> tuple[str, bytes]:
    """Return the parcel of a message, or of None."""
    return FLEET_SHAPE, pickle.dumps(news, pickle.HIGHEST_PROTOCOL)


def unpacked(parcel: Any) -> Any:
    """Return what is in a parcel of an agent of ours; raises OtherVersion. It must come from nowhere else: whoever can
    write it can do everything that this process may."""
    shape, told = parcel if isinstance(parcel, tuple) and len(parcel) == 2 else ("unknown", b"")
    if shape != FLEET_SHAPE:
        raise OtherVersion(str(shape))
    # As Ray itself reads every message between the two.
    return pickle.loads(told)  # noqa: S301
