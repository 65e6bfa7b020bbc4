"""`python -m cluster hotkeys --url ... --service ...`: which keys carry the load of a service of a deployment.

It asks the HTTP API once and prints the answer; it changes nothing. INVARIANT: tables and JSON are made of one answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console, Group
from rich.table import Table

from cachewarden.settings import load_settings
from cluster.whatif_live import call, client_of, read_token

__all__ = ["add_hotkeys_command", "hotkey_tables"]

_TABLE_COLUMNS = 140


def add_hotkeys_command(app: typer.Typer) -> None:
    """Put the command onto `app`."""
    app.command("hotkeys")(hotkeys)


def hotkeys(
    url: Annotated[str, typer.Option(help="Address of the API of the running deployment.")],
    service: Annotated[str, typer.Option(help="Its service.")],
    clients: Annotated[int, typer.Option(min=1, help="Processes that would cache in the client.")] = 10,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Keys at most.")] = 20,
    token_file: Annotated[Path | None, typer.Option(help="File with its token; `admin-token` of STATE_DIR.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON.")] = False,
) -> None:
    """Say which keys carry the load of a service, and what client caches, replicas or splitting would give."""
    token = read_token(token_file or load_settings().state_dir / "admin-token")
    path = f"/api/v1/cache/services/{quote(service, safe='')}/hotkeys?clients={clients}&limit={limit}"

    async def asked() -> dict[str, Any]:
        async with client_of(url, token) as client:
            return await call(client, "GET", path)

    answer = asyncio.run(asked())
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    console = Console()
    Console(width=None if console.is_terminal else _TABLE_COLUMNS).print(hotkey_tables(answer))


def hotkey_tables(answer: Mapping[str, Any]) -> Group:
    """Return the answer as tables."""
    taken = answer["taken_at"] or "never"
    if not answer["answered"]:
        said = f"{answer['service_name']}, seen {taken}: {answer['reason']}"
        return Group(said, *_slot_moves(answer.get("slot_moves")))
    head = f"{answer['service_name']}, seen {taken}, by {answer['source']}"
    if answer["lookups"]:
        head += f" of {answer['window_s']:.0f} s, {answer['lookups']} lookups, spatial rate {answer['spatial_rate']:g}"
    table = Table(title=None if answer["keys"] else "no key takes more than 1 % of the lookups")
    for name in ("key (hash)", "prefix", "severity", "of lookups", "interval", "reads", "writes", "bytes", "LFU"):
        table.add_column(name)
    for key in answer["keys"]:
        share = key["share"]
        table.add_row(
            key["key_hash"],
            key["prefix"] or "-",
            key["severity"],
            "-" if share is None else f"{share['value']:.1%}",
            "-" if share is None else f"{share['low']:.1%} … {share['high']:.1%}",
            str(key["reads"]),
            str(key["writes"]),
            "-" if key["size_bytes"] is None else str(key["size_bytes"]),
            "-" if key["lfu_counter"] is None else str(key["lfu_counter"]),
        )
    advice = [
        f"{'advised' if m['advised'] else 'not advised'}: {m['measure'].replace('_', ' ')}: {m['reason']}"
        for m in answer["measures"]
    ]
    return Group(head, table, *advice, *_slot_moves(answer.get("slot_moves")))


def _slot_moves(told: Mapping[str, Any] | None) -> list[str]:
    """Return what is said of the cluster's slots, in lines."""
    if told is None:
        return []
    lines = [f"{'advised' if told['advised'] else 'not advised'}: slot moves: {told['reason']}"]
    lines += [f"  slot {m['slot']} ({m['share']:.1%} of the load): {m['from']} to {m['to']}" for m in told["moves"]]
    lines += [f"  slot {u['slot']} of {u['service']} alone has {u['share']:.1%}" for u in told["unmovable"]]
    after = told["shares_after"]
    lines += [f"  {name}: {share:.1%}, then {after[name]:.1%}" for name, share in told["shares_before"].items()]
    return lines
