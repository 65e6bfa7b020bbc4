"""`python -m cluster memory --url ... --service ...`: where the memory of a service goes, from a running deployment.

It asks the HTTP API once and prints the answer; it changes nothing. INVARIANT: tables and JSON are made of one answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console, Group
from rich.table import Table

from cachewarden.settings import load_settings
from cluster.whatif_chart import amount
from cluster.whatif_live import call, client_of, read_token

__all__ = ["add_memory_command", "ask_memory", "tables_of"]

_TABLE_COLUMNS = 140
_SHOWN = ("used_memory", "used_memory_dataset", "used_memory_overhead", "used_memory_startup", "allocator_frag_bytes",
          "allocator_rss_bytes", "mem_replication_backlog", "mem_clients_normal")  # fmt: skip

_Url = Annotated[str, typer.Option(help="Address of the API of the running deployment.")]
_Service = Annotated[str, typer.Option(help="Its service.")]
_Token = Annotated[Path | None, typer.Option(help="File with its token; `admin-token` of STATE_DIR without it.")]
_Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


def add_memory_command(app: typer.Typer) -> None:
    """Put the command onto `app`."""
    app.command("memory")(memory)


def memory(url: _Url, service: _Service, token_file: _Token = None, as_json: _Json = False) -> None:
    """Say where the memory of a service goes and what would make less of it."""
    token = read_token(token_file or load_settings().state_dir / "admin-token")

    async def asked() -> dict[str, Any]:
        async with client_of(url, token) as client:
            return await ask_memory(client, service)

    answer = asyncio.run(asked())
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    console = Console()
    Console(width=None if console.is_terminal else _TABLE_COLUMNS).print(tables_of(answer))


async def ask_memory(client: httpx.AsyncClient, service: str) -> dict[str, Any]:
    """Return the API's answer; raises OperatingError with its message where there is none."""
    return await call(client, "GET", f"/api/v1/cache/services/{service}/memory")


def tables_of(answer: Mapping[str, Any]) -> Group:
    """Return the answer as tables."""
    figures = answer["figures"]
    shown = [f"{name} {amount(int(figures[name]))}" for name in _SHOWN if name in figures]
    if "allocator_frag_ratio" in figures:
        shown.append(f"allocator_frag_ratio {figures['allocator_frag_ratio']:g}")
    taken = answer["taken_at"] or "never"
    parts: list[Any] = [f"{answer['service_name']}, seen {taken}", ", ".join(shown) or "INFO told no figures"]
    if answer.get("parts"):
        parts.append(
            "memory of the process: "
            + ", ".join(f"{p['name']} {amount(p['bytes'])} ({p['share']:.0%})" for p in answer["parts"])
        )
    if answer.get("levers"):
        parts.append(_levers(answer["levers"]))
    parts.append(_groups("by type and encoding", answer["by_encoding"]))
    parts.append(_groups("by key pattern", answer["by_pattern"]))
    if answer["levers_reason"]:
        parts.append(f"levers: {answer['levers_reason']}")
    if answer["value_look"] is not None:
        look = answer["value_look"]
        parts.append(
            f"looked into {look['values_read']} values and {look['collections_measured']} collections of "
            f"{look['sampled_keys']} keys ({amount(look['read_bytes'])} read), {look['identical_values']} values equal "
            f"another one, {look['made_young_keys']} keys were made young by it"
        )
        parts += [_limits(answer["limits"]), _compression(answer["compression"])]
    parts += [f"note: {note}" for note in answer["notes"]]
    return Group(*parts)


def _groups(title: str, groups: Mapping[str, Any]) -> Table | str:
    if not groups["groups"]:
        return f"{title}: {groups['reason']}"
    table = Table(title=title, title_justify="left")
    table.add_column("keys that are")
    for name in ("sampled", "of keys", "of bytes", "interval", "bytes", "mean"):
        table.add_column(name, justify="right")
    for group in groups["groups"]:
        share = group["bytes_share"]
        table.add_row(
            group["name"],
            str(group["sampled_keys"]),
            f"{group['keys_share']['value']:.1%}",
            f"{share['value']:.1%}",
            f"{share['low']:.1%} … {share['high']:.1%}",
            amount(round(group["bytes"]["value"])),
            amount(round(group["mean_bytes"])),
        )
    return table


def _levers(levers: list[Mapping[str, Any]]) -> Table:
    table = Table(title="what would make less of it (gains overlap)", title_justify="left")
    for name in ("lever", "worth it", "gives", "interval", "why", "how"):
        table.add_column(name, overflow="fold")
    for lever in levers:
        held = lever["bytes"]
        gives, interval = "-", "-"
        if held is not None:
            gives, interval = amount(round(held[0])), f"{amount(round(held[1]))} … {amount(round(held[2]))}"
        table.add_row(
            lever["lever"], "yes" if lever["worth_it"] else "no", gives, interval, lever["reason"], lever["how"]
        )
    return table


def _limits(limits: list[Mapping[str, Any]]) -> Table:
    table = Table(title="higher limits of small encodings, for keys written anew", title_justify="left")
    for name in ("encoding", "limits", "saves of all keys", "what it does", "recommended, or why not"):
        table.add_column(name)
    for limit in limits:
        if not limit["answered"]:
            table.add_row(limit["encoding"], "-", "-", "-", limit["reason"])
            continue
        wanted = ", ".join(f"{knob} {limit['limits_now'][knob]} → {new}" for knob, new in limit["limits"].items())
        saved = limit["saved_of_all"]
        judged = ("yes: " if limit["recommended"] else "no: ") + limit["reason"]
        table.add_row(limit["encoding"], wanted, _range(saved), limit["summary"], judged)
    return table


def _compression(answers: list[Mapping[str, Any]]) -> Table:
    table = Table(title="large strings compressed by the client (zstd, level 3)", title_justify="left")
    for name in ("pattern", "read", "saves of all keys", "what it does, or why it is not known"):
        table.add_column(name)
    for answer in answers:
        pattern = "all" if answer["pattern"] is None else answer["pattern"]
        saved = _range(answer["saved_of_all"]) if answer["answered"] else "-"
        table.add_row(pattern, str(answer["values_read"]), saved, answer["summary"] or answer["reason"])
    return table


def _range(share: Mapping[str, float]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} … {share['high']:.1%})"
