"""`python -m cluster whatif FILE`: replay a trace under every configuration asked for, as table, JSON and picture.

It decides nothing and touches no cache. INVARIANT: table and JSON show the same outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cachewarden.cachemodel.replay_study import Outcome, ReplayCandidate, ReplayStudy
from cachewarden.cachemodel.trace_files import ColumnSpec, TraceFile, TraceFormat, read_trace
from cachewarden.errors import CachewardenError, SettingsError
from cachewarden.estimate import Estimate
from cluster.whatif_chart import Chart, Curve, amount
from cluster.whatif_options import Memory, Setting

__all__ = ["TraceAnswer", "TraceQuestion", "answer"]

_DEFAULT_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_CURVE_POINTS = 20
_CAUSES = ("cold", "expired", "evicted", "refused", "deleted")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuestion:
    """What to read and what to replay; `at` is the operating point, with the first setting. `warm_up` 0..1 of the time
    is not counted."""

    path: Path
    trace_format: TraceFormat | None
    columns: ColumnSpec | None
    rate_per_s: float | None
    limit: int | None
    sampling_rate: float
    entry_bytes: int | None
    warm_up: float
    seed: int
    maxmemory_samples: int
    memories: Sequence[Memory]
    settings: Sequence[Setting]
    at: Memory | None
    with_curves: bool


@dataclass(frozen=True, slots=True)
class TraceAnswer:
    """All outcomes, the operating point's apart, and the curves if they were asked for."""

    question: TraceQuestion
    file: TraceFile
    study: ReplayStudy
    outcomes: tuple[Outcome, ...]
    now: Outcome | None
    curves: tuple[tuple[Outcome, ...], ...]

    @property
    def subtitle(self) -> str:
        """Return how the figures were come by, in one line."""
        study, file = self.study, self.file
        everything = amount(study.footprint_bytes, in_keys=study.in_keys)
        sampled = f", {file.sampling_rate:g} of the keys" if file.sampling_rate < 1.0 else ""
        return (
            f"{file.rows_read} rows ({file.trace_format.value}){sampled}; everything takes {everything}; "
            "intervals hold 90 %"
        )

    def table(self) -> Table:
        """Return the outcomes as a table."""
        table = Table(title=self.question.path.name, caption=self.subtitle, title_justify="left")
        others = [o for o in self.outcomes if self.now is None or o.candidate != self.now.candidate]
        rows = others if self.now is None else [self.now, *others]
        # Causes that never happen would only make the table wider.
        causes = [cause for cause in _CAUSES if any(getattr(outcome, cause) > 0 for outcome in rows)]
        changes = [] if self.now is None else ["change", "interval"]
        for name in ("memory", "of all", "configuration", "hit ratio", "interval", *changes, *causes, "keys"):
            table.add_column(name, justify="left" if name == "configuration" else "right")
        for outcome in rows:
            memory = outcome.candidate.capacity_bytes
            table.add_row(
                amount(memory, in_keys=self.study.in_keys),
                f"{memory / self.study.footprint_bytes:.1%}",
                outcome.candidate.name,
                f"{outcome.hit_ratio.value:.2%}",
                f"{outcome.hit_ratio.low:.2%} … {outcome.hit_ratio.high:.2%}",
                *self._change(outcome),
                *(f"{getattr(outcome, cause):.2%}" for cause in causes),
                str(outcome.resident_keys),
            )
        return table

    def _change(self, outcome: Outcome) -> list[str]:
        if self.now is None:
            return []
        if outcome is self.now:
            return ["now", ""]
        gain = self.study.difference(outcome.candidate, self.now.candidate)
        return [f"{100 * gain.value:+.2f}", f"{100 * gain.low:+.2f} … {100 * gain.high:+.2f}"]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data; ratios are 0..1."""
        file, study = self.file, self.study
        return {
            "file": self.question.path.name,
            "format": file.trace_format.value,
            "rows_read": file.rows_read,
            "limited": file.limited,
            "sampling_rate": file.sampling_rate,
            "sampled_keys": study.sampled_keys,
            "memory_unit": "keys" if study.in_keys else "bytes",
            "footprint": study.footprint_bytes,
            "entry_bytes": None if study.in_keys else study.entry_bytes,
            "duration_ms": file.trace.duration_ms,
            "warm_up": self.question.warm_up,
            "seed": self.question.seed,
            "notes": list(file.notes),
            "operating_point": None if self.now is None else self._plain(self.now),
            "results": [self._plain(outcome) for outcome in self.outcomes],
            "curves": [[self._plain(outcome) for outcome in curve] for curve in self.curves],
        }

    def _plain(self, outcome: Outcome) -> dict[str, Any]:
        plain = asdict(outcome)
        found: dict[str, Any] = {"configuration": outcome.candidate.name, **plain.pop("candidate")}
        found |= _flat("hit_ratio", outcome.hit_ratio)
        if self.now is not None:
            found |= _flat("change", self.study.difference(outcome.candidate, self.now.candidate))
        return found | {name: value for name, value in plain.items() if name != "hit_ratio"}

    def chart(self) -> Chart:
        """Return the picture's content."""
        return Chart(
            title=f"Miss ratio curves of {self.question.path.name}",
            subtitle=self.subtitle,
            curves=[
                Curve(
                    curve[0].candidate.name,
                    tuple(outcome.candidate.capacity_bytes for outcome in curve),
                    tuple(outcome.miss_ratio for outcome in curve),
                )
                for curve in self.curves
            ],
            operating_point=None if self.now is None else (self.now.candidate.capacity_bytes, self.now.miss_ratio),
            in_keys=self.study.in_keys,
        )


def answer(question: TraceQuestion) -> TraceAnswer:
    """Read the trace and replay it; raises TraceFileError for the file, SettingsError for what is asked of it."""
    try:
        file = read_trace(
            question.path,
            trace_format=question.trace_format,
            columns=question.columns,
            rate_per_s=question.rate_per_s,
            limit=question.limit,
            sampling_rate=question.sampling_rate,
        )
        study = ReplayStudy(file, entry_bytes=question.entry_bytes, warm_up=question.warm_up, seed=question.seed)
    except CachewardenError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from None
    wanted = list(question.memories) or [Memory(share=share) for share in _DEFAULT_SHARES]
    kinds = [_candidate(setting, question.maxmemory_samples) for setting in question.settings]
    sizes = sorted({memory.of(study.footprint_bytes) for memory in wanted})
    outcomes = [outcome for size in sizes for kind in kinds for outcome in study.curve(kind, [size])]
    now = None if question.at is None else study.curve(kinds[0], [question.at.of(study.footprint_bytes)])[0]
    curve_sizes = study.curve_sizes(_CURVE_POINTS) if question.with_curves else []
    curves = [tuple(study.curve(kind, curve_sizes)) for kind in kinds] if curve_sizes else []
    return TraceAnswer(question, file, study, tuple(outcomes), now, tuple(curves))


def _candidate(setting: Setting, samples: int) -> ReplayCandidate:
    log_factor, decay_min = setting.lfu or (10, 1)
    return ReplayCandidate(0, setting.eviction_policy or "allkeys-lru", samples, log_factor, decay_min, setting.ttl_ms)


def _flat(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
