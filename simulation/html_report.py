"""`--report out.html`: one page about runs that were recorded, complete in itself.

It draws, it decides nothing. INVARIANT: the page needs nothing from anywhere else, and everything in it is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from simulation.durations import words_of_ms
from simulation.recording import DECISIONS, Recording
from simulation.report import failure_text
from simulation.run import Outcome

__all__ = ["RUNS_DRAWN_MAX", "page_of"]

RUNS_DRAWN_MAX = 20
"""More runs in one page are in nobody's interest; all of them are in its table."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 190, 70, 150, 14, 26
_COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#17becf",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
)
_MARKS = {"begun": "#888", "kept": "#2ca02c", "rolled back": "#ff7f0e", "abandoned": "#9467bd", "failed": "#d62728"}
_MIB = 1 << 20
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>cachewarden simulation</title>
<style>body{font-family:sans-serif;margin:2em;color:#222;max-width:1000px}svg{width:100%;height:auto}
text{font-size:12px;fill:#222}table{border-collapse:collapse}td,th{padding:2px 12px;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f4f4f4;padding:1em;overflow:auto}.bad{color:#b00}
h3{margin-bottom:0}</style>
<h1>cachewarden simulation</h1>
$table
$runs
</html>
""")


def page_of(outcomes: Sequence[Outcome]) -> str:
    """Return the page: a table of all runs, and plots of the first ones that were recorded, failures first."""
    drawn = sorted((o for o in outcomes if o.recording is not None), key=lambda o: o.ok)[:RUNS_DRAWN_MAX]
    return _PAGE.substitute(table=_table(outcomes), runs="\n".join(_run(o) for o in drawn))


def _table(outcomes: Sequence[Outcome]) -> str:
    names = list(outcomes[0].counts) if outcomes else []
    head = "".join(f"<th>{escape(n.replace('_', ' '))}</th>" for n in ("scenario", "seed", "promises", *names))
    rows = []
    for o in outcomes:
        told = "held" if o.ok else f'<span class="bad">{escape(o.violations[0].checker)} broken</span>'
        cells = "".join(f"<td>{o.counts.get(n, 0)}</td>" for n in names)
        rows.append(f"<tr><td>{escape(o.scenario)}</td><td>{o.seed}</td><td>{told}</td>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _run(outcome: Outcome) -> str:
    seen = outcome.recording
    assert seen is not None
    parts = [f"<h2>{escape(outcome.scenario)}, seed {outcome.seed}</h2>"]
    if not outcome.ok:
        parts.append(f"<pre>{escape(failure_text(outcome))}</pre>")
    memory = {name: [b / _MIB for b in sizes] for name, sizes in seen.maxmemory_bytes.items()}
    per_minute = [60_000 * d / t for d, t in zip(_steps(seen.messages), _steps(seen.at_ms), strict=True)]
    parts += [
        _lines("hit ratio", seen, seen.hit_ratio, 1.0),
        _lines("maxmemory, MiB (all together in black)", seen, memory, None, total=True),
        _lines("messages between agents per minute", seen, {"messages": per_minute}, None),
        _decisions(seen),
    ]
    return "\n".join(parts)


def _steps(values: Sequence[int]) -> list[int]:
    """Return by how much each is above the one before, at least 1 for what a quotient needs."""
    return [max(1, b - a) for a, b in zip((0, *values), values, strict=False)]


def _x(at_ms: int, end_ms: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at_ms / max(end_ms, 1)


def _frame(seen: Recording, title: str, inner: Sequence[str], low: str, high: str) -> str:
    end_ms = seen.at_ms[-1] if seen.at_ms else 1
    bottom = _HEIGHT - _BOTTOM
    quiet, right = _x(min(seen.hostile_ms, end_ms), end_ms), _WIDTH - _RIGHT
    tall = f'y="{_TOP}" height="{bottom - _TOP}"'
    parts = [
        f'<rect x="{quiet:.1f}" width="{right - quiet:.1f}" {tall} fill="#eef6ee"/>',
        *(
            f'<line x1="{_x(t, end_ms):.1f}" x2="{_x(t, end_ms):.1f}" y1="{_TOP}" y2="{bottom}" stroke="#f3c6c6">'
            f"<title>{escape(words_of_ms(t))} {escape(fault)}</title></line>"
            for t, fault in seen.faults
        ),
        f'<rect x="{_LEFT}" width="{right - _LEFT}" {tall} fill="none" stroke="#999"/>',
        *inner,
        f'<text x="{_LEFT - 6}" y="{_TOP + 10}" text-anchor="end">{escape(high)}</text>',
        f'<text x="{_LEFT - 6}" y="{bottom}" text-anchor="end">{escape(low)}</text>',
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">0</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{end_ms / 60_000:.0f} min</text>',
    ]
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"'
    return f"<h3>{escape(title)}</h3><svg {box}>{''.join(parts)}</svg>"


def _lines(
    title: str, seen: Recording, series: Mapping[str, Sequence[float]], high: float | None, *, total: bool = False
) -> str:
    drawn = dict(series)
    if total and series:
        drawn["all"] = [sum(values) for values in zip(*series.values(), strict=True)]
    top = high or max((max(v) for v in drawn.values() if v), default=1.0) * 1.05 or 1.0
    end_ms, bottom = (seen.at_ms[-1] if seen.at_ms else 1), _HEIGHT - _BOTTOM
    inner = []
    for number, (name, values) in enumerate(drawn.items()):
        colour = "#000" if total and name == "all" else _COLOURS[number % len(_COLOURS)]
        points = " ".join(
            f"{_x(t, end_ms):.1f},{bottom - (bottom - _TOP) * min(v / top, 1.0):.1f}"
            for t, v in zip(seen.at_ms, values, strict=True)
        )
        inner.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
        place = f'x="{_WIDTH - _RIGHT + 8}" y="{_TOP + 12 + 14 * number}"'
        inner.append(f'<text {place} style="fill:{colour}">{escape(name)}</text>')
    return _frame(seen, title, inner, "0", f"{top:.3g}")


def _decisions(seen: Recording) -> str:
    services = list(seen.maxmemory_bytes)
    end_ms = seen.at_ms[-1] if seen.at_ms else 1
    height = (_HEIGHT - _BOTTOM - _TOP) / max(len(services), 1)
    inner = []
    for number, name in enumerate(services):
        y = _TOP + height * (number + 0.5)
        inner.append(f'<text x="{_LEFT - 6}" y="{y + 14:.1f}" text-anchor="end">{escape(name[:9])}</text>')
        for at_ms, service, what in seen.decisions:
            if service == name:
                told = f"<title>{escape(words_of_ms(at_ms))} {escape(name)}: {what}</title>"
                inner.append(
                    f'<circle cx="{_x(at_ms, end_ms):.1f}" cy="{y:.1f}" r="4" fill="{_MARKS[what]}">{told}</circle>'
                )
    for number, what in enumerate(DECISIONS.values()):
        place = f'x="{_WIDTH - _RIGHT + 8}" y="{_TOP + 12 + 14 * number}"'
        inner.append(f'<text {place} style="fill:{_MARKS[what]}">{what}</text>')
    return _frame(seen, "decisions per service (red lines: faults, green: quiet)", inner, "", "")
