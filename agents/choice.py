"""One configuration that was considered for one service, and what it is predicted to give."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cachewarden.cachemodel.whatif import CacheConfiguration
from cachewarden.estimate import Estimate
from cachewarden.messages import TtlRule
from cachewarden.observation import Snapshot

__all__ = ["Choice", "change_in_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`words` say the change so that an operator understands it; `method` how the numbers were come by."""

    configuration: CacheConfiguration
    ttl_rules: tuple[TtlRule, ...]
    before: Estimate
    after: Estimate
    words: str
    method: str
    interval_factor: float = 1.0
    """By how much `after` was stretched beyond what the models gave, since past outcomes asked for it."""

    @property
    def gain(self) -> Estimate:
        """Hit ratio after minus before. The method predicts the difference, so the interval is that of `after`
        alone."""
        return Estimate(
            self.after.value - self.before.value,
            self.after.low - self.before.value,
            self.after.high - self.before.value,
        )

    def worth(self, minimum_gain: float) -> bool:
        """Say whether the gain is large enough and can hardly be noise."""
        gain = self.gain
        return gain.value >= minimum_gain and gain.value > 0 and gain.low > 0

    def only_grows(self, snapshot: Snapshot) -> bool:
        """Say whether this choice gives the service more memory and changes nothing else."""
        bytes_now = snapshot.maxmemory_bytes
        more = self.configuration.maxmemory_bytes > bytes_now > 0
        still = replace(self, configuration=replace(self.configuration, maxmemory_bytes=bytes_now))
        return more and still.changes_nothing(snapshot)

    def changes_nothing(self, snapshot: Snapshot) -> bool:
        """Say whether the service already is as this choice wants it."""
        wanted = self.configuration
        knobs = snapshot.knobs
        same = wanted.maxmemory_bytes == snapshot.maxmemory_bytes and wanted.eviction_policy == knobs.get(
            "maxmemory-policy"
        )
        if same and wanted.eviction_policy.endswith("-lfu"):
            same = str(wanted.lfu_log_factor) == knobs.get("lfu-log-factor") and str(
                wanted.lfu_decay_time_min
            ) == knobs.get("lfu-decay-time")
        return same and not self.ttl_rules


def change_in_words(current: CacheConfiguration, wanted: CacheConfiguration, rules: tuple[TtlRule, ...]) -> str:
    """Return what another configuration changes, with the TTL rules that go with it, as reasons name it."""
    parts = []
    if wanted.eviction_policy != current.eviction_policy:
        parts.append(f"eviction policy {current.eviction_policy} to {wanted.eviction_policy}")
    if wanted.maxmemory_bytes != current.maxmemory_bytes:
        before, after = current.maxmemory_bytes / 2**20, wanted.maxmemory_bytes / 2**20
        parts.append(f"maxmemory {before:.2f} to {after:.2f} MiB")
    lfu = (wanted.lfu_log_factor, wanted.lfu_decay_time_min)
    if wanted.family == "lfu" and lfu != (current.lfu_log_factor, current.lfu_decay_time_min):
        parts.append(f"LFU log factor {lfu[0]}, decay {lfu[1]} min")
    parts += [
        f"TTL of `{r.pattern}` {r.written_ttl_ms / 1000:g} to {r.extended_ttl_ms / 1000:g} s "
        f"(its owner permits {r.max_staleness_ms / 1000:g} s)"
        f"{' of keys in use' if r.only_read else ''}"
        for r in rules
    ]
    return ", ".join(parts) or "no change"
