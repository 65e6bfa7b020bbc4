"""The error tree: whose fault it is, and what a caller can do about it.

CachewardenError
├── ConfigurationError                at start-up, the operator's fault, with the way out
│   ├── ConstitutionError             file, line, what is wrong
│   ├── FleetFileError                file, line, what is wrong
│   └── SettingsError                 name, value, allowed range
├── OperatingError                    expected while running, handled by a named policy
│   ├── TargetUnavailable             the cache does not answer
│   ├── TargetTimeout                 no answer in time: the outcome is unknown, read back before anything else
│   ├── TargetRefused                 the cache answered with an error (NOPERM, OOM, unknown command, bad value)
│   ├── JournalUnavailable            nothing can be recorded, so nothing may be decided
│   ├── BlackboardUnavailable         others cannot see us, nor we them
│   ├── PeerUnavailable               an HTTP peer gave no usable answer: the outcome is unknown
│   ├── PeerRefused                   an HTTP peer said no (4xx), or another program answers in its place
│   │   └── PeerForgot                it does not know us (any more): register again
│   ├── PeerViolation                 an HTTP peer answered with another constitutional hash
│   ├── LeaseLost                     somebody else holds the cache, or our time ran out
│   ├── StaleFencingToken             the cache itself says that a newer writer came
│   ├── PreconditionChanged           the cache is no longer as it was when the proposal was made
│   └── RollbackFailed                pages a human: knob, wanted, observed
├── RequestError                      the caller's fault
│   ├── ConstitutionalComplianceError wrong constitutional hash
│   └── UnknownService                names the known ones
└── InvariantViolation                our bug: stop the agent, leave the cache untouched

A refusal (a verdict, a resolution) is a value, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BlackboardUnavailable",
    "CachewardenError",
    "ConfigurationError",
    "ConstitutionError",
    "ConstitutionalComplianceError",
    "FleetFileError",
    "InvariantViolation",
    "JournalUnavailable",
    "LeaseLost",
    "OperatingError",
    "PeerForgot",
    "PeerRefused",
    "PeerUnavailable",
    "PeerViolation",
    "PreconditionChanged",
    "RequestError",
    "RollbackFailed",
    "SettingsError",
    "StaleFencingToken",
    "TargetRefused",
    "TargetTimeout",
    "TargetUnavailable",
    "UnknownService",
]


class CachewardenError(Exception):
    """The one base class."""


class ConfigurationError(CachewardenError):
    """Something an operator wrote cannot be used; raised at start-up only."""

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None) -> None:
        self.path = path
        self.line = line
        where = "" if path is None else f"{path}:{line}: " if line is not None else f"{path}: "
        super().__init__(where + message)


class ConstitutionError(ConfigurationError):
    """The constitution cannot be loaded."""


class FleetFileError(ConfigurationError):
    """The fleet file cannot be loaded."""


class SettingsError(ConfigurationError):
    """A setting is out of its range or a knob is not in the table."""


class OperatingError(CachewardenError):
    """Expected while running; a named policy handles it."""


class TargetUnavailable(OperatingError):
    """The cache does not answer."""

    def __init__(self, service: str, reason: str) -> None:
        self.service = service
        self.reason = reason
        super().__init__(f"cache of `{service}` does not answer: {reason}")


class TargetTimeout(OperatingError):
    """No answer in time; a write may or may not have happened."""

    outcome_unknown = True

    def __init__(self, service: str, command: str) -> None:
        self.service = service
        self.command = command
        super().__init__(f"cache of `{service}` gave no answer to `{command}` in time, its outcome is unknown")


class TargetRefused(OperatingError):
    """The cache answered with an error."""

    def __init__(self, service: str, command: str, reason: str) -> None:
        self.service = service
        self.command = command
        self.reason = reason
        super().__init__(f"cache of `{service}` refused `{command}`: {reason}")


class JournalUnavailable(OperatingError):
    """The journal's server does not confirm writes."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the journal cannot be written: {reason}")


class BlackboardUnavailable(OperatingError):
    """The blackboard's server does not answer."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the blackboard does not answer: {reason}")


class PeerUnavailable(OperatingError):
    """An HTTP peer did not answer, or with an error of its own; what was asked may or may not have been done.

    `reason` holds no address and no secret: it is shown to strangers.
    """

    outcome_unknown = True

    def __init__(self, peer: str, reason: str) -> None:
        self.peer = peer
        self.reason = reason
        super().__init__(f"`{peer}` {reason}")


class PeerRefused(OperatingError):
    """An HTTP peer refused what it was asked, or is not the program that was meant."""

    def __init__(self, peer: str, reason: str, status: int = 0) -> None:
        self.peer = peer
        self.reason = reason
        self.status = status
        super().__init__(f"`{peer}` {reason}")


class PeerForgot(PeerRefused):
    """An HTTP peer does not know us, e.g. since it was restarted."""


class PeerViolation(OperatingError):
    """An HTTP peer answered with another constitutional hash than ours: whatever it said does not count."""

    def __init__(self, peer: str, received: object, where: str) -> None:
        self.peer = peer
        shown = str(received)[:64]
        self.received = shown if shown.isprintable() else "unprintable"
        self.where = where
        super().__init__(f"`{peer}` answered with the constitutional hash `{self.received}` in its {where}, not ours")


class LeaseLost(OperatingError):
    """The lease on a cache is not ours (any more)."""

    def __init__(self, service: str, holder: str | None, epoch: int = 0) -> None:
        self.service = service
        self.holder = holder
        self.epoch = epoch
        """Under which one believed to have it, 0 if unknown."""
        told = f"is held by `{holder}`" if holder else "was somebody else's meanwhile" if epoch else "is held by nobody"
        super().__init__(f"the lease on `{service}` {told}")


class StaleFencingToken(OperatingError):
    """The fence in the cache is not the one of our lease."""

    def __init__(self, service: str, ours: int, found: int | None) -> None:
        self.service = service
        self.ours = ours
        self.found = found
        super().__init__(f"the fence in the cache of `{service}` is `{found}`, ours is `{ours}`")


class PreconditionChanged(OperatingError):
    """The cache is no longer as it was when the proposal was made."""

    def __init__(self, service: str, knob: str, expected: str, found: str) -> None:
        self.service = service
        self.knob = knob
        self.expected = expected
        self.found = found
        super().__init__(f"`{knob}` of `{service}` is `{found}`, the proposal was made for `{expected}`")


class RollbackFailed(OperatingError):
    """A value could not be put back: a person has to look."""

    def __init__(self, service: str, knob: str, wanted: str, observed: str | None) -> None:
        self.service = service
        self.knob = knob
        self.wanted = wanted
        self.observed = observed
        super().__init__(f"`{knob}` of `{service}` should be `{wanted}` again but is `{observed}`")


class RequestError(CachewardenError):
    """The caller's fault."""


class ConstitutionalComplianceError(RequestError):
    """The request carries another constitutional hash than ours."""

    def __init__(self, received: object, where: str = "body") -> None:
        self.received = str(received)[:64]
        self.where = where
        super().__init__(f"invalid constitutional hash `{self.received}` in the {where}")


class UnknownService(RequestError):
    """No such service in the fleet."""

    def __init__(self, service: str, known: Sequence[str]) -> None:
        self.service = service
        self.known = tuple(sorted(known))
        super().__init__(f"unknown service `{service[:100]}`, the fleet has: {', '.join(self.known) or 'none'}")


class InvariantViolation(CachewardenError):
    """A bug of ours; raised, not asserted, since `python -O` strips asserts."""
