"""What a person sees while cachewarden runs: services, hit ratio now and before, memory, what is being done, and why
nothing is.

It turns values into words and tables; it asks nobody and decides nothing. On a terminal it is redrawn in place,
elsewhere it is a few
lines now and then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cachewarden.messages import Execution
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetState, StandingDecision
from cluster.demo.stats import DriverStats, ServiceCounters

__all__ = ["LiveView", "Place", "percent", "scoreboard", "why"]

_WINDOW_S = 15
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where things are, for the foot of the view."""

    url: str
    token_path: str
    journal: str


def percent(ratio: float | None) -> str:
    """Return a ratio as `97.12 %`, a dash where there is none."""
    return "–" if ratio is None else f"{ratio * 100:.2f} %"


def points(now: float | None, before: float | None) -> str:
    """Return a difference of ratios as `+8.1`, a dash where one is missing."""
    return "–" if now is None or before is None else f"{(now - before) * 100:+.1f}"


def why(decision: StandingDecision | None) -> str:
    """Return in one sentence what was decided about a service, or why nothing is done."""
    if decision is None:
        return "not looked at yet"
    if decision.proposal is None:
        return decision.idle_reason or "nothing to do"
    changes = ", ".join(
        f"{c.knob} {_value(c.knob, c.before)}→{_value(c.knob, c.after)}" for c in decision.proposal.knob_changes
    )
    rules = ", ".join(
        f"TTL {r.pattern}* {r.written_ttl_ms // 1000}→{r.extended_ttl_ms // 1000} s"
        for r in decision.proposal.ttl_rules
    )
    what = ", ".join(part for part in (changes, rules) if part)
    gain = decision.proposal.prediction.gain
    promise = f"{gain.value * 100:+.1f} pts predicted ({gain.low * 100:+.1f}…{gain.high * 100:+.1f})"
    if decision.verdict is not None and decision.verdict.denied_by:
        return f"denied by {', '.join(decision.verdict.denied_by)}: {what}"
    settled = (
        "" if decision.resolution is None else f"{decision.resolution.outcome.value}: {decision.resolution.reason}; "
    )
    return f"{settled}{what}; {promise}"


def _value(knob: str, value: str) -> str:
    return f"{int(value) / _MIB:.1f} MiB" if knob == "maxmemory" and value.isdigit() else value


def scoreboard(executions: Iterable[Execution]) -> Table:
    """Return predicted and realised gain of every finished change side by side."""
    table = Table(title="changes: predicted and realised", title_justify="left", expand=True)
    for column in ("service", "change", "state", "predicted gain", "90 % interval", "realised gain"):
        table.add_column(column, overflow="fold")
    for execution in executions:
        proposal, gain = execution.proposal, execution.proposal.prediction.gain
        changes = [f"{c.knob} {_value(c.knob, c.before)}→{_value(c.knob, c.after)}" for c in proposal.knob_changes]
        changes += [
            f"TTL {r.pattern}* {r.written_ttl_ms // 1000}→{r.extended_ttl_ms // 1000} s" for r in proposal.ttl_rules
        ]
        realised = execution.realised_gain
        table.add_row(
            proposal.service,
            ", ".join(changes),
            escape(f"{execution.state.value}{'' if not execution.reason else f' ({execution.reason})'}"),
            f"{gain.value * 100:+.1f}",
            f"{gain.low * 100:+.1f} … {gain.high * 100:+.1f}",
            "–" if realised is None else f"{realised * 100:+.1f}",
        )
    return table


@dataclass(slots=True)
class LiveView:
    """Keeps the newest facts and draws them. `managed` and `control` name the driver's fleets; without a driver both
    stay empty."""

    place: Place
    services: tuple[str, ...]
    managed: str = ""
    control: str = ""
    first_memory: dict[str, int] = field(default_factory=dict)
    state: FleetState | None = None
    trouble: str = ""
    _readings: deque[DriverStats] = field(default_factory=lambda: deque(maxlen=_WINDOW_S + 1))

    def note_stats(self, stats: DriverStats | None) -> None:
        """Take a reading of the driver; an unchanged one is ignored."""
        if stats is not None and (not self._readings or stats.at_ms > self._readings[-1].at_ms):
            self._readings.append(stats)

    def note_state(self, state: FleetState) -> None:
        """Take what the coordinator knows."""
        self.state = state
        for name, snapshot in state.snapshots.items():
            self.first_memory.setdefault(name, snapshot.maxmemory_bytes)

    def window(self) -> DriverStats | None:
        """Return what the driver counted over the last seconds; None before there are two readings."""
        return self._readings[-1].since(self._readings[0]) if len(self._readings) > 1 else None

    def overall(self) -> tuple[float | None, float | None]:
        """Return the overall hit ratio now and what it is compared with: the control fleet, else the first windows."""
        window = self.window()
        if window is not None and self.control:
            return window.fleet(self.managed).hit_ratio, window.fleet(self.control).hit_ratio
        if self.state is None:
            return None, None
        seen = [s for s in self.state.snapshots.values() if s.hit_ratio is not None]
        rate = sum(s.lookups_per_s for s in seen)
        if rate <= 0:
            return None, None
        now = sum((s.hit_ratio or 0.0) * s.lookups_per_s for s in seen) / rate
        first = (
            sum(self.state.first_hit_ratio.get(s.service, s.hit_ratio or 0.0) * s.lookups_per_s for s in seen) / rate
        )
        return now, first

    def line(self) -> str:
        """Return the whole in one line, for logs."""
        now, before = self.overall()
        state = self.state
        if state is None:
            return self.trouble or "the agents are starting"
        flying = [e.proposal.service for e in state.executions if not e.state.final]
        compared = "control" if self.control else "first"
        parts = [
            f"hit ratio {percent(now)} ({compared} {percent(before)}, {points(now, before)} pts)",
            f"cycle {state.cycle}: {state.phase}",
            f"in flight: {', '.join(flying) or 'nothing'}",
            f"journal {state.journal_seq}",
        ]
        return " | ".join([*parts, self.trouble] if self.trouble else parts)

    def render(self) -> RenderableType:
        """Return the whole picture."""
        return Group(self._head(), self._table(), self._changes(), self._foot())

    def _head(self) -> RenderableType:
        now, before = self.overall()
        against = "with nothing changed (control fleet, same requests)" if self.control else "in the first window"
        text = Text.assemble(
            ("overall hit ratio ", "bold"),
            (percent(now), "bold green"),
            f"   {against}: {percent(before)}   ",
            (f"{points(now, before)} points", "bold cyan"),
        )
        phase = self.state.phase if self.state else "the agents are starting"
        return Panel(
            Group(text, Text(self.trouble or phase, style="red" if self.trouble else "dim")), title="cachewarden"
        )

    def _table(self) -> Table:
        table = Table(expand=True)
        before = "control" if self.control else "first"
        for name, justify in (
            ("service", "left"),
            ("req/s", "right"),
            ("hit ratio", "right"),
            (before, "right"),
            ("±", "right"),
            ("memory MiB", "right"),
            ("eviction policy", "left"),
            ("now", "left"),
        ):
            table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
        window = self.window()
        for service in self.services:
            # Reasons hold words of other agents, which are no markup.
            table.add_row(*(escape(cell) for cell in self._row(service, window)))
        return table

    def _row(self, service: str, window: DriverStats | None) -> tuple[str, ...]:
        state = self.state
        snapshot: Snapshot | None = state.snapshots.get(service) if state else None
        managed = _counters(window, self.managed, service)
        control = _counters(window, self.control, service)
        ratio = managed.hit_ratio if managed else snapshot.hit_ratio if snapshot else None
        before = control.hit_ratio if control else state.first_hit_ratio.get(service) if state else None
        memory, policy, rate = "–", "–", "–"
        if snapshot is not None:
            first = self.first_memory.get(service, snapshot.maxmemory_bytes)
            memory = f"{snapshot.maxmemory_bytes / _MIB:.1f}"
            if first != snapshot.maxmemory_bytes:
                memory = f"{first / _MIB:.1f}→{memory}"
            policy = snapshot.knobs.get("maxmemory-policy", "–")
            rate = f"{snapshot.lookups_per_s:.0f}"
        return (
            service,
            rate,
            percent(ratio),
            percent(before),
            points(ratio, before),
            memory,
            policy,
            self._now(service),
        )

    def _now(self, service: str) -> str:
        if self.state is None:
            return ""
        flying = [e for e in self.state.executions if e.proposal.service == service and not e.state.final]
        if flying:
            newest = flying[-1]
            step = f"step {newest.step} of {newest.steps}"
            return f"{newest.state.value} {newest.proposal.playbook} ({step}) {newest.reason}".strip()
        return why(self.state.standing.get(service))

    def _changes(self) -> RenderableType:
        if self.state is None or not self.state.executions:
            return Text("no change has been made yet", style="dim")
        return scoreboard(self.state.executions[-8:])

    def _foot(self) -> RenderableType:
        state = self.state
        agents: Mapping[str, object] = state.agents if state else {}
        alive = sum(1 for a in state.agents.values() if a.alive) if state else 0
        verdicts = (
            f"{state.decisions_compliant} of {state.decisions} decisions with a complete verdict" if state else ""
        )
        return Text(
            f"API {self.place.url}   token in {self.place.token_path}   journal {self.place.journal} height "
            f"{state.journal_seq if state else 0}   agents alive {alive} of {len(agents)}   {verdicts}   "
            "Ctrl-C ends everything",
            style="dim",
        )


def _counters(window: DriverStats | None, fleet: str, service: str) -> ServiceCounters | None:
    return None if window is None else window.fleets.get(fleet, {}).get(service)
