"""`python -m cluster whatif --url ... --service ...`: ask a running deployment, over its HTTP API.

It sends one question and shows the answer: the curve by memory and prefix, what TTLs do, or the configurations that
were asked about. It changes nothing. INVARIANT: the token goes to the given address only,
redirects are not followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from rich.table import Table
from rich.text import Text

from cachewarden.errors import OperatingError, SettingsError
from cluster.whatif_answers import curve_parts, ttl_parts
from cluster.whatif_chart import Chart, Curve, amount
from cluster.whatif_options import LiveQuestion, Memory, Setting

__all__ = ["answer_of", "ask", "call", "candidates_of", "chart_of", "client_of", "read_token", "shown", "table_of"]

_TIMEOUT_S = 60.0


def read_token(path: Path) -> str:
    """Return the token in a file; raises SettingsError where there is none."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the token file `{path}` cannot be read, name it with `--token-file`: {error}") from None
    if not token or not token.isprintable():
        raise SettingsError(f"the token file `{path}` holds no token")
    return token


def client_of(url: str, token: str) -> httpx.AsyncClient:
    """Return a client for the API at `url`; raises SettingsError for something that is no address."""
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"`{url}` is no address of the API, write for example `http://127.0.0.1:8000`")
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT_S)


async def answer_of(asked: LiveQuestion, token: str) -> dict[str, Any]:
    """Return the API's answer to a question; raises OperatingError with its message where there is none."""
    path = f"/api/v1/cache/services/{quote(asked.service or '', safe='')}"
    kind = asked.kind
    async with client_of(asked.url, token) as client:
        if kind == "candidates":
            return await ask(client, asked.service or "", asked.memories, asked.settings)
        if kind == "ttl":
            return await call(client, "GET", f"{path}/ttl")
        target = "" if asked.target is None else f"?target={asked.target!r}"
        return await call(client, "GET", f"{path}/curve{target}")


async def ask(
    client: httpx.AsyncClient, service: str, wanted: Sequence[Memory], settings: Sequence[Setting]
) -> dict[str, Any]:
    """Return the API's answer; raises OperatingError with its message where there is none.

    Shares of memory are of the service's maxmemory now.
    """
    now_bytes = 0
    if any(memory.share is not None for memory in wanted):
        seen = await call(client, "GET", f"/api/v1/cache/services/{quote(service, safe='')}")
        now_bytes = seen["service"]["maxmemory_bytes"] or 0
        if not now_bytes:
            raise SettingsError(f"`{service}` has no maxmemory that shares could be of, give amounts such as `64mb`")
    amounts = [memory.of(now_bytes) for memory in wanted]
    body = {"service_name": service, "candidates": candidates_of(amounts, settings)}
    return await call(client, "POST", "/api/v1/cache/whatif", body)


def shown(kind: str, answer: dict[str, Any]) -> Iterable[Table | Text]:
    """Return what to print of an answer."""
    if kind == "curve":
        return curve_parts(answer)
    return ttl_parts(answer) if kind == "ttl" else (table_of(answer),)


def chart_of(answer: dict[str, Any]) -> Chart:
    """Return the curve as a chart; raises OperatingError with the reason where there is none."""
    if not answer["answered"]:
        raise OperatingError(f"there is no curve to draw: {answer['reason']}")
    points, now = answer["points"], answer["points"][answer["now"]]
    curve = Curve(
        name=answer["configuration"]["eviction_policy"],
        memory=tuple(point["maxmemory_bytes"] for point in points),
        miss_ratios=tuple(1.0 - point["hit_ratio"]["value"] for point in points),
        intervals=tuple((1.0 - p["hit_ratio"]["high"], 1.0 - p["hit_ratio"]["low"]) for p in points),
    )
    return Chart(
        title=f"miss ratio curve of {answer['service_name']}",
        subtitle=f"{answer['method']}; the band holds 90 %",
        curves=[curve],
        operating_point=(now["maxmemory_bytes"], 1.0 - now["hit_ratio"]["value"]),
    )


def candidates_of(amounts: Sequence[int], settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return every combination as the API wants it; what is not asked about is left out."""
    found = []
    sizes: list[int | None] = [*amounts] or [None]
    for size in sizes:
        for setting in settings:
            candidate: dict[str, Any] = {
                "maxmemory_bytes": size,
                "eviction_policy": setting.eviction_policy,
                "lfu_log_factor": None if setting.lfu is None else setting.lfu[0],
                "lfu_decay_time": None if setting.lfu is None else setting.lfu[1],
                "ttl_ms": setting.ttl_ms,
            }
            found.append({name: value for name, value in candidate.items() if value is not None})
    return found


async def call(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Return the API's answer to one request; raises OperatingError with its message where there is none."""
    try:
        response = await client.request(method, path, json=body)
        answer = response.json()
    except httpx.HTTPError as error:
        raise OperatingError(f"the API does not answer: {type(error).__name__} {error}".rstrip()) from None
    except ValueError:
        raise OperatingError(f"no answer of cachewarden came, status {response.status_code}: is it the API?") from None
    if response.status_code in (200, 202) and isinstance(answer, dict):
        return answer
    told = answer.get("error", {}) if isinstance(answer, dict) else {}
    problems = told.get("details", {}).get("validation_errors", [])
    more = "".join(f"; {p.get('message', p)}" if isinstance(p, dict) else f"; {p}" for p in problems)
    raise OperatingError(f"the API refused ({response.status_code}): {told.get('message', 'without a reason')}{more}")


def table_of(answer: dict[str, Any]) -> Table:
    """Return the answer as a table."""
    observed = answer["observed"]
    caption = "the cache was not seen"
    if observed is not None:
        level = "no hit ratio" if observed["hit_ratio"] is None else f"hit ratio {observed['hit_ratio']:.2%}"
        caption = (
            f"observed: {level} over {observed['window_s']:.0f} s, {observed['captured_accesses']} captured accesses, "
            f"{observed['sampled_keys']} sampled keys; intervals hold 90 %"
        )
    table = Table(title=answer["service_name"], caption=caption, title_justify="left")
    table.add_column("memory", justify="right")
    table.add_column("configuration")
    for name in ("hit ratio", "interval", "change"):
        table.add_column(name, justify="right")
    table.add_column("how, or why not")
    for result in answer["results"]:
        candidate = result["candidate"]
        memory = candidate.get("maxmemory_bytes")
        shown = "as now" if memory is None else "no limit" if memory == 0 else amount(memory)
        if not result["answered"]:
            table.add_row(shown, _name(candidate), "-", "-", "-", result["reason"])
            continue
        table.add_row(
            shown,
            _name(candidate),
            f"{result['hit_ratio']:.2%}",
            f"{result['hit_ratio_low']:.2%} … {result['hit_ratio_high']:.2%}",
            f"{100 * result['change']:+.2f}",
            "; ".join([result["method"], *result["notes"]]),
        )
    return table


def _name(candidate: dict[str, Any]) -> str:
    policy = candidate.get("eviction_policy") or "as now"
    parameters = (candidate.get("lfu_log_factor"), candidate.get("lfu_decay_time"))
    lfu = f" {parameters[0]}:{parameters[1]}" if policy.endswith("lfu") and None not in parameters else ""
    ttl_ms = candidate.get("ttl_ms")
    return f"{policy}{lfu}" + (f", TTL {ttl_ms / 1000:g} s" if ttl_ms else "")
