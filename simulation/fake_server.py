"""The control plane of a cache in memory: settings, fence, refusals, lost answers.

What a server answers to CONFIG and to the fence is the same whatever it stores, so the fake with real entries
(`fake_cache.py`) and the one with a model of its entries (`model_cache.py`) share it.

INVARIANT: nothing is written unless the fence is exactly the lease's epoch, and then all of it at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachewarden.errors import SettingsError, StaleFencingToken, TargetRefused, TargetTimeout, TargetUnavailable
from cachewarden.knobs import check_value, supported
from cachewarden.messages import KnobChange, Lease

__all__ = ["FakeServer"]

_DEFAULTS = {
    "maxmemory": "0", "maxmemory-policy": "noeviction", "maxmemory-samples": "5", "maxmemory-eviction-tenacity": "10",
    "lfu-log-factor": "10", "lfu-decay-time": "1", "active-expire-effort": "1", "latency-monitor-threshold": "0",
    "slowlog-log-slower-than": "10000", "latency-tracking": "yes", "lazyfree-lazy-eviction": "no",
    "lazyfree-lazy-expire": "no", "lazyfree-lazy-server-del": "no",
    "lazyfree-lazy-user-del": "no", "activedefrag": "no", "hash-max-listpack-entries": "128",
    "hash-max-listpack-value": "64", "zset-max-listpack-entries": "128", "set-max-intset-entries": "512",
}  # fmt: skip


class FakeServer:
    """`reachable`, `lose_next_answer` and `denied` are its faults."""

    def __init__(self, service: str, version: str) -> None:
        self.service = service
        self._version = version
        self._knobs = {name: value for name, value in _DEFAULTS.items() if supported(name, "redis", version)}
        self.fence: int | None = None
        self.fence_writes = 0
        """How often the fence was written or taken away, whatever was written: what WATCH goes by."""
        self.reachable = True
        self.lose_next_answer = False
        """The next write is carried out, but its answer is lost."""
        self.config_file = ""
        """Path of the configuration file, empty without one."""
        self.config_rewrite = False
        self._rewritten: dict[str, str] | None = None
        """What the file holds since it was rewritten."""
        self.denied: dict[str, str] = {}
        """Command (`CONFIG SET`, `CONFIG GET`, `MONITOR`) to the server's words of refusal."""

    def _forget_settings(self) -> None:
        """Lose the fence and every setting made at run time."""
        self._knobs = {name: _DEFAULTS[name] for name in self._knobs} | (self._rewritten or {})
        self.fence, self.reachable = None, True
        self.fence_writes += 1

    async def read_knobs(self, knobs: Sequence[str]) -> dict[str, str]:
        """CONFIG GET."""
        self._answer("CONFIG GET")
        return {knob: self._knobs[knob] for knob in knobs if knob in self._knobs}

    async def raise_fence(self, lease: Lease) -> None:
        """Raise the fence unless a higher one stands there."""
        self._answer()
        if self.fence is not None and self.fence > lease.epoch:
            raise StaleFencingToken(self.service, lease.epoch, self.fence)
        self.fence = lease.epoch
        self.fence_writes += 1
        self._lose("EVAL")

    async def write_knobs(self, lease: Lease, changes: Sequence[KnobChange]) -> dict[str, str]:
        """One fenced CONFIG SET, then what CONFIG GET says."""
        values = {change.knob: check_value(change.knob, change.after) for change in changes}
        if len(values) != len(changes) or not changes:
            raise SettingsError("a write needs at least one knob and each of them once")
        self._answer("CONFIG GET")
        self._check_fence(lease)
        self._answer("CONFIG SET")
        for knob in values:
            if knob not in self._knobs:
                raise TargetRefused(self.service, "CONFIG SET", f"unknown option `{knob}`")
        self._knobs |= values
        self._settings_changed()
        self._lose("CONFIG SET")
        return {knob: self._knobs[knob] for knob in values}

    async def rewrite_config(self, lease: Lease) -> str | None:
        """CONFIG REWRITE where there is a file and the owner permits it."""
        if not self.config_rewrite:
            return "the fleet file does not permit CONFIG REWRITE, set `config_rewrite: true` for the service"
        if not self.config_file:
            return "the server was started without a configuration file, so nothing outlives its process"
        self._answer()
        self._check_fence(lease)
        if "CONFIG REWRITE" in self.denied:
            return f"the server refuses CONFIG REWRITE: {self.denied['CONFIG REWRITE']}"
        self._rewritten = dict(self._knobs)
        self._lose("CONFIG REWRITE")
        return None

    async def close(self) -> None:
        """Nothing to close."""

    def _settings_changed(self) -> None:
        """Whatever follows at once from another setting."""

    def _answer(self, command: str | None = None) -> None:
        if not self.reachable:
            raise TargetUnavailable(self.service, "cut off by the simulation")
        if command in self.denied:
            raise TargetRefused(self.service, command or "", self.denied[command or ""])

    def _lose(self, command: str) -> None:
        if self.lose_next_answer:
            self.lose_next_answer = False
            raise TargetTimeout(self.service, command)

    def _check_fence(self, lease: Lease) -> None:
        if self.fence != lease.epoch:
            raise StaleFencingToken(self.service, lease.epoch, self.fence)
