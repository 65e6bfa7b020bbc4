"""Miss ratio curves as a picture: one HTML file with an SVG and nothing else, or a PNG where matplotlib is installed.

It draws what it is given and computes no ratio. INVARIANT: a name of a file or a configuration is text in the HTML,
never markup.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final

from cachewarden.errors import SettingsError

__all__ = ["Chart", "Curve", "amount", "check_target", "draw", "html_of"]

# Okabe and Ito's colours, which people who cannot tell red from green can tell apart.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
_WIDTH, _HEIGHT = 960, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 250, 50, 60

_PAGE: Final = Template("""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>$title</title>
<style>body{font-family:sans-serif;margin:2em;color:#222}svg{max-width:100%;height:auto}text{font-size:13px;fill:#222}
.grid{stroke:#ddd}.axis{stroke:#222}</style></head>
<body><h1>$title</h1><p>$subtitle</p>
$svg
</body></html>
""")


@dataclass(frozen=True, slots=True)
class Curve:
    """A configuration's miss ratios (0..1) over memory, smallest memory first, with their intervals (low, high) or
    none."""

    name: str
    memory: tuple[int, ...]
    miss_ratios: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves and, if known, where the cache is now: (memory, miss ratio). `in_keys`: memory is a number of keys."""

    title: str
    subtitle: str
    curves: Sequence[Curve]
    operating_point: tuple[int, float] | None = None
    in_keys: bool = False


def amount(memory: float, *, in_keys: bool = False) -> str:
    """Return memory for people, e.g. `64.0 MiB` or `5000 keys`."""
    if in_keys:
        return f"{memory:.0f} keys"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if memory < 1024 or unit == "GiB":
            return f"{memory:.0f} B" if unit == "B" else f"{memory:.1f} {unit}"
        memory /= 1024
    raise AssertionError("the last unit takes all")


def check_target(path: Path) -> None:
    """Raise SettingsError where this file cannot be drawn; asked before the long work."""
    if path.suffix.lower() == ".html":
        return
    if path.suffix.lower() != ".png":
        raise SettingsError(f"`{path.name}` cannot be drawn, name it `.html` or `.png`")
    _matplotlib()


def draw(chart: Chart, path: Path) -> None:
    """Write the picture; the format is that of the suffix. Raises SettingsError for another one or a missing package,
    or where the file cannot be written."""
    check_target(path)
    try:
        if path.suffix.lower() == ".html":
            path.write_text(html_of(chart), encoding="utf-8")
        else:
            _draw_png(chart, path)
    except OSError as error:
        raise SettingsError(f"`{path}` cannot be written: {error.strerror}") from None


def _matplotlib() -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        raise SettingsError("a PNG needs the package `matplotlib`: install it, or write `.html` instead") from None


def _draw_png(chart: Chart, path: Path) -> None:
    figure = _matplotlib().Figure(figsize=(9.6, 5.4), layout="constrained")
    axes = figure.subplots()
    for number, curve in enumerate(chart.curves):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(curve.memory, curve.miss_ratios, label=curve.name, color=colour)
        if curve.intervals:
            low, high = zip(*curve.intervals, strict=True)
            axes.fill_between(curve.memory, low, high, color=colour, alpha=0.15)
    if chart.operating_point is not None:
        axes.plot(*chart.operating_point, "ko", markersize=9, fillstyle="none", label="now")
    axes.set(xscale="log", ylim=(0, 1), title=chart.title, ylabel="miss ratio")
    axes.set_xlabel("memory for entries, keys" if chart.in_keys else "memory for entries, bytes")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


def html_of(chart: Chart) -> str:
    """Return the page."""
    return _PAGE.substitute(title=escape(chart.title), subtitle=escape(chart.subtitle), svg=_svg(chart))


def _svg(chart: Chart) -> str:
    seen = [m for curve in chart.curves for m in curve.memory]
    seen += [] if chart.operating_point is None else [chart.operating_point[0]]
    low, high = math.log10(max(1, min(seen))), math.log10(max(1, *seen))
    span = max(high - low, 0.1)

    def x(memory: float) -> float:
        return _LEFT + (math.log10(max(1.0, memory)) - low) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(ratio: float) -> float:
        return _TOP + (1.0 - ratio) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="miss ratio curves">']
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    for step in range(6):
        memory = 10 ** (low + span * step / 5)
        at, label = x(memory), amount(memory, in_keys=chart.in_keys)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 15}">miss ratio</text>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 12}" text-anchor="end">memory for entries (log scale)</text>')
    for number, curve in enumerate(chart.curves):
        if curve.intervals:
            upper = [f"{x(m):.1f},{y(high):.1f}" for m, (_, high) in zip(curve.memory, curve.intervals, strict=True)]
            lower = [f"{x(m):.1f},{y(low):.1f}" for m, (low, _) in zip(curve.memory, curve.intervals, strict=True)]
            band = " ".join([*upper, *reversed(lower)])
            parts.append(f'<polygon fill="{_COLOURS[number % len(_COLOURS)]}" fill-opacity="0.15" points="{band}"/>')
        parts.extend(_curve_svg(curve, number, [(x(m), y(r)) for m, r in _pairs(curve)], right, in_keys=chart.in_keys))
    if chart.operating_point is not None:
        memory, ratio = chart.operating_point
        label = f"now: {amount(memory, in_keys=chart.in_keys)}, miss ratio {ratio:.4f}"
        parts.append(
            f'<circle cx="{x(memory):.1f}" cy="{y(ratio):.1f}" r="7" fill="none" stroke="#222" stroke-width="2">'
            f"<title>{label}</title></circle>"
        )
        below = _TOP + 22 * (len(chart.curves) + 1)
        parts.append(f'<circle cx="{right + 32}" cy="{below - 4}" r="6" fill="none" stroke="#222" stroke-width="2"/>')
        parts.append(f'<text x="{right + 52}" y="{below}">now</text>')
    return "\n".join([*parts, "</svg>"])


def _pairs(curve: Curve) -> list[tuple[int, float]]:
    return list(zip(curve.memory, curve.miss_ratios, strict=True))


def _curve_svg(
    curve: Curve, number: int, points: Sequence[tuple[float, float]], right: int, *, in_keys: bool
) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    # Beyond the colours, dashes tell curves apart.
    dash = "" if number < len(_COLOURS) else ' stroke-dasharray="6 4"'
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    parts = [f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{path}"/>']
    for place, ((px, py), (memory, ratio)) in enumerate(zip(points, _pairs(curve), strict=True)):
        text = f"{curve.name}: {amount(memory, in_keys=in_keys)}, miss ratio {ratio:.4f}"
        if curve.intervals:
            low, high = curve.intervals[place]
            text += f" ({low:.4f} … {high:.4f})"
        label = escape(text)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"><title>{label}</title></circle>')
    at = _TOP + 22 * number
    parts.append(f'<path d="M{right + 20} {at - 4}h24" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    parts.append(f'<text x="{right + 52}" y="{at}">{escape(curve.name)}</text>')
    return parts
