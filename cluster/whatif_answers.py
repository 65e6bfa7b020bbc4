"""What `python -m cluster whatif --url ...` prints of a live cache: its curve, its prefixes, and what TTLs do to it.

It turns the API's JSON into tables and a chart and computes no ratio. INVARIANT: what the API could not tell is shown
as `-` beside its reason, never as a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from cluster.whatif_chart import amount

__all__ = ["curve_parts", "ttl_parts"]

Part = Table | Text


def curve_parts(answer: dict[str, Any]) -> Iterator[Part]:
    """Yield the curve, what stands out of it, and the prefixes."""
    if not answer["answered"]:
        yield Text(f"{answer['service_name']}: not enough evidence: {answer['reason']}")
    else:
        yield _curve(answer)
        yield from _findings(answer)
    if answer["per_prefix"]:
        yield _prefixes(answer)
    for note in answer["notes"]:
        yield Text(f"note: {note}")


def _curve(answer: dict[str, Any]) -> Table:
    observed = answer["observed"]
    caption = (
        f"observed over {observed['window_s']:.0f} s, {observed['captured_accesses']} captured accesses, "
        f"{observed['sampled_keys']} sampled keys; intervals hold 90 %. {answer['method']}"
    )
    table = Table(title=f"{answer['service_name']}: hit ratio by memory", caption=caption, title_justify="left")
    for name in ("", "memory", "hit ratio", "interval", "change", "eviction age"):
        table.add_column(name, justify="right")
    table.add_column("")
    for number, point in enumerate(answer["points"]):
        ratio = point["hit_ratio"]
        now = number == answer["now"]
        table.add_row(
            "now" if now else "",
            amount(point["maxmemory_bytes"]),
            f"{ratio['value']:.2%}",
            "observed" if now and ratio["low"] == ratio["high"] else f"{ratio['low']:.2%} … {ratio['high']:.2%}",
            f"{100 * point['change']['value']:+.2f}",
            "-" if point["eviction_age_s"] is None else seconds(point["eviction_age_s"]["value"]),
            "beyond the evidence" if point["extrapolated"] else "",
            style="bold" if now else "",
        )
    return table


def _findings(answer: dict[str, Any]) -> Iterator[Part]:
    binding, marginal, target = answer["binding"], answer["marginal_mib"], answer["target"]
    yield Text(f"binds: {binding['resource']} ({binding['reason']})")
    gain, points = marginal["hits_per_s"], marginal["hit_ratio"]
    yield Text(
        f"one MiB more: {gain['value']:.3g} hits/s ({gain['low']:.3g} … {gain['high']:.3g}), "
        f"{100 * points['value']:.3g} points of hit ratio; {marginal['method']}"
    )
    if answer["ceiling"] is not None:
        ceiling = answer["ceiling"]
        yield Text(f"unlimited memory: {ceiling['value']:.2%} ({ceiling['low']:.2%} … {ceiling['high']:.2%})")
    if target is not None:
        yield Text(_target(target))
    sets = answer["working_set"]
    if sets:
        words = [
            f"{seconds(s['window_s'])}: {s['keys']['value']:.0f} keys, {amount(s['bytes']['value'])}" for s in sets
        ]
        yield Text(f"working set: {'; '.join(words[:: max(1, len(words) // 4)])}")


def _target(target: dict[str, Any]) -> str:
    words = f"for a hit ratio of {target['hit_ratio']:.2%}: "
    if target["maxmemory_bytes"] is None:
        return f"{words}no memory is known to be enough: {target['reason']}"
    low = "?" if target["low_bytes"] is None else amount(target["low_bytes"])
    high = "?" if target["high_bytes"] is None else amount(target["high_bytes"])
    more = f"; {target['reason']}" if target["reason"] else ""
    return f"{words}{amount(target['maxmemory_bytes'])} ({low} … {high}){more}"


def _prefixes(answer: dict[str, Any]) -> Table:
    caption = "hits/s per MiB held; one MiB more if it were given to this prefix alone"
    table = Table(title="by prefix, most hits per MiB first", caption=caption, title_justify="left")
    table.add_column("prefix")
    for name in ("lookups", "hit ratio", "bytes", "held", "hits/s per MiB", "one MiB more"):
        table.add_column(name, justify="right")
    table.add_column("what stands out, or why there is no curve")
    for found in answer["per_prefix"]:
        marginal = found["marginal_hits_per_s"]
        table.add_row(
            prefix_name(found["prefix"]),
            share(found["lookups_share"]),
            share(found["hit_ratio"]),
            share(found["bytes_share"]),
            "-" if found["held_bytes"] is None else amount(found["held_bytes"]),
            "-" if found["hits_per_s_per_mib"] is None else f"{found['hits_per_s_per_mib']:.3g}",
            "-" if marginal is None else f"{marginal['value']:.3g} ({marginal['low']:.3g} … {marginal['high']:.3g})",
            "; ".join(words for words in (found["note"], found["reason"]) if words),
        )
    return table


def ttl_parts(answer: dict[str, Any]) -> Iterator[Part]:
    """Yield what TTLs do to the service and to each of its prefixes."""
    if not answer["answered"]:
        yield Text(f"{answer['service_name']}: not enough evidence: {answer['reason']}")
        return
    reviews = [answer["service"], *answer["per_prefix"]]
    yield _misses(answer["service_name"], reviews)
    yield _gains(reviews)
    yield _expiries(reviews)
    yield _dead(reviews)


def _misses(service: str, reviews: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{service}: why lookups miss, in shares of lookups", title_justify="left")
    table.add_column("")
    for name in ("TTL", "staleness", "cold", "expired", "evicted", "refused"):
        table.add_column(name, justify="right")
    for review in reviews:
        misses = review["misses"]
        shares = ["-"] * 4 if misses is None else [share(misses[n]) for n in ("cold", "expired", "evicted", "refused")]
        table.add_row(_scope(review), seconds(review["ttl_s"]), seconds(review["max_staleness_s"]), *shares)
    return table


def _gains(reviews: list[dict[str, Any]]) -> Table:
    table = Table(title="longer TTLs within the declared staleness, in points of hit ratio", title_justify="left")
    table.add_column("")
    for name in ("TTL", "gain", "interval"):
        table.add_column(name, justify="right")
    table.add_column("")
    for review in reviews:
        for gain in review["gains"]:
            points = gain["gain"]
            table.add_row(
                _scope(review),
                seconds(gain["ttl_s"]),
                f"{100 * points['value']:+.2f}",
                f"{100 * points['low']:+.2f} … {100 * points['high']:+.2f}",
                "nearly all of the gain" if gain["ttl_s"] == review["enough_ttl_s"] else "",
            )
        if not review["gains"]:
            table.add_row(_scope(review), "-", "-", "-", review["gains_reason"])
    return table


def _expiries(reviews: list[dict[str, Any]]) -> Table:
    table = Table(title="expiries that come together", title_justify="left")
    table.add_column("")
    for name in ("busiest second", "loads/s then", "on average", "jitter that spreads them"):
        table.add_column(name, justify="right")
    table.add_column("")
    for review in reviews:
        found, jitter = review["stampede"], review["jitter"]
        if found is None:
            table.add_row(_scope(review), "-", "-", "-", "-", review["stampede_reason"])
            continue
        needed = "none needed" if jitter is not None and jitter["jitter_s"] == 0 else "-"
        if jitter is not None and jitter["jitter_s"] > 0:
            needed = f"0 to {seconds(jitter['jitter_s'])} off each TTL"
        table.add_row(
            _scope(review),
            f"in {seconds(found['begins_s'])}",
            f"{found['loads_per_s_peak']['value']:.0f}",
            f"{found['loads_per_s_mean']:.0f}",
            needed,
            "; ".join(words for words in (found["reason"], review["jitter_reason"]) if words),
        )
    return table


def _dead(reviews: list[dict[str, Any]]) -> Table:
    table = Table(title="memory held for nothing", title_justify="left")
    table.add_column("")
    for name in ("unread", "expired"):
        table.add_column(name, justify="right")
    table.add_column("")
    for review in reviews:
        unread, expired = review["unread_memory"], review["expired_memory"]
        words = (unread or {}).get("method", review["unread_reason"]), review["expired_reason"]
        table.add_row(_scope(review), _held(unread), _held(expired), "; ".join(w for w in words if w))
    return table


def _held(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{amount(found['held_bytes']['value'])} ({share(found['share'])})"


def _scope(review: dict[str, Any]) -> str:
    return "all" if review["prefix"] is None else prefix_name(review["prefix"])


def prefix_name(prefix: str) -> str:
    """Return a prefix for people."""
    return prefix or "(no declared prefix)"


def share(found: dict[str, Any] | float | None) -> str:
    """Return a share for people; of an interval its value."""
    if found is None:
        return "-"
    return f"{(found['value'] if isinstance(found, dict) else found):.1%}"


def seconds(found: float | None) -> str:
    """Return a time for people."""
    if found is None:
        return "-"
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if found >= 2 * size:
            return f"{found / size:.3g} {unit}"
    return f"{found:.3g} s"
