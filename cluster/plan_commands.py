"""`python -m cluster plans ...`: list, show, compare, approve, reject, edit and take back plans, over the HTTP API.

It sends one request and prints the answer. Who decides is the holder of the token. INVARIANT: a decision is about the
content that was fetched just before it, by its digest, so that a plan that changed meanwhile is refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from cachewarden.errors import SettingsError
from cachewarden.settings import load_settings
from cluster import whatif_live

__all__ = ["add_plan_commands", "parse_changes", "table_of_approvals", "table_of_diff"]

_COLUMNS = 140

_Plan = Annotated[str, typer.Argument(help="Id of the plan, `p-...`.")]
_Url = Annotated[str | None, typer.Option(help="Address of the API; HTTP_HOST and HTTP_PORT without it.")]
_Token = Annotated[Path | None, typer.Option(help="File with your token; `admin-token` of STATE_DIR without it.")]
_Json = Annotated[bool, typer.Option("--json", help="Answer as JSON, as the API gave it.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
_Why = Annotated[str, typer.Option("--reason", help="Why; it stands in the audit trail.")]


def add_plan_commands(app: typer.Typer) -> None:
    """Put the commands onto `app`."""
    app.command("list")(list_plans)
    app.command("show")(show)
    app.command("diff")(diff)
    app.command("approve")(approve)
    app.command("reject")(reject)
    app.command("edit")(edit)
    app.command("rollback")(rollback)


def list_plans(
    url: _Url = None,
    token_file: _Token = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were decided or have ended.")] = False,
    as_json: _Json = False,
) -> None:
    """List the plans that await approval."""
    answer = _call(url, token_file, "GET", f"/api/v1/cache/approvals?show={'all' if every else 'open'}")
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    elif not answer["approvals"]:
        typer.echo("no plan awaits approval")
    else:
        _print(table_of_approvals(answer["approvals"]))


def show(plan: _Plan, url: _Url = None, token_file: _Token = None, as_json: _Json = False) -> None:
    """Show one plan: what it rests on, what it would give, what became of it."""
    answer = _call(url, token_file, "GET", _path(plan))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    told = answer["plan"]
    for name in ("id", "service", "state", "reason", "created_at", "expires_at", "risk_level", "verdict"):
        typer.echo(f"{name}: {told[name]}")
    for name in ("rationale", "rollback"):
        typer.echo(f"{name}: {told[name]}")
    typer.echo(f"predicted gain: {_gain(told['predicted'])}")
    if told["realised"] is not None:
        typer.echo(f"realised gain: {100 * told['realised']['gain']:+.2f} points")


def diff(plan: _Plan, url: _Url = None, token_file: _Token = None, as_json: _Json = False) -> None:
    """Show what a plan that awaits approval would change, value by value."""
    found = _approval(url, token_file, plan)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show_approval(found)


def approve(
    plan: _Plan,
    reason: _Why = "",
    url: _Url = None,
    token_file: _Token = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Approve a plan that somebody else is the author of."""
    _decide(url, token_file, plan, "approve", {"reason": reason}, dry_run=dry_run, as_json=as_json)


def reject(
    plan: _Plan,
    reason: _Why,
    url: _Url = None,
    token_file: _Token = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Turn a plan down; the agents do not propose the same change for a while."""
    _decide(url, token_file, plan, "reject", {"reason": reason}, dry_run=dry_run, as_json=as_json)


def edit(
    plan: _Plan,
    reason: _Why,
    changes: Annotated[list[str], typer.Option("--set", help="KNOB=VALUE, or KNOB= to leave it as it is.")],
    url: _Url = None,
    token_file: _Token = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Put a plan with other values in its place; you are its author, so somebody else has to approve it."""
    body = {"reason": reason, "changes": parse_changes(changes)}
    _decide(url, token_file, plan, "edit", body, dry_run=dry_run, as_json=as_json)


def rollback(
    plan: _Plan,
    reason: _Why,
    url: _Url = None,
    token_file: _Token = None,
    dry_run: _DryRun = False,
    as_json: _Json = False,
) -> None:
    """Take a change back that is in flight or was kept."""
    answer = _post(url, token_file, plan, "rollback", {"reason": reason}, dry_run=dry_run)
    _show_decision(answer, as_json=as_json)


def parse_changes(texts: Sequence[str]) -> dict[str, str | None]:
    """Return knob to value of `KNOB=VALUE` texts, None for an empty value; raises SettingsError for anything else."""
    changes: dict[str, str | None] = {}
    for text in texts:
        knob, sign, value = text.partition("=")
        if not sign or not knob:
            raise SettingsError(f"`{text[:80]}` is no change, write for example `maxmemory=12mb`")
        if knob in changes:
            raise SettingsError(f"`{knob}` is given twice")
        changes[knob] = value or None
    return changes


def table_of_approvals(approvals: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row for each plan."""
    table = Table()
    for name in ("plan", "service", "state", "author", "change", "predicted gain", "risk", "until"):
        table.add_column(name, overflow="fold")
    for found in approvals:
        table.add_row(
            found["plan_id"],
            found["service"],
            found["state"] + (f" by {found['decided_by']}" if found["decided_by"] else ""),
            found["author"],
            ", ".join(f"{line['what']} {line['before']}→{line['after']}" for line in found["diff"]),
            _gain(found["plan"]["predicted"]),
            found["risk_level"],
            found["expires_at"],
        )
    return table


def table_of_diff(found: Mapping[str, Any]) -> Table:
    """Return every value that would change."""
    table = Table(title=f"{found['plan_id']} of {found['service']}: {found['state']}", title_justify="left")
    for name in ("what", "before", "after"):
        table.add_column(name, overflow="fold")
    for line in found["diff"]:
        table.add_row(line["what"], line["before"], line["after"])
    return table


def _gain(predicted: Mapping[str, float]) -> str:
    low, high = 100 * predicted["gain_low"], 100 * predicted["gain_high"]
    return f"{100 * predicted['gain']:+.2f} points ({low:+.2f} … {high:+.2f})"


def _print(table: Table) -> None:
    console = Console()
    Console(width=None if console.is_terminal else _COLUMNS).print(table)


def _show_approval(found: Mapping[str, Any]) -> None:
    _print(table_of_diff(found))
    typer.echo(f"predicted gain: {_gain(found['plan']['predicted'])}")
    typer.echo(f"author: {found['author']}, until {found['expires_at']}")
    for risk in found["risks"]:
        typer.echo(f"risk ({found['risk_level']}): {risk}")
    typer.echo(f"rollback: {found['rollback']}")


def _show_decision(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    if answer["plan"] is not None:
        _show_approval(answer["plan"])
    judged = answer["judged"]
    if judged is not None:
        typer.echo(f"the constitution says: {judged['decision']}{''.join(f'; {why}' for why in judged['reasons'])}")
    would = "would be " if answer["dry_run"] else ""
    typer.echo(f"{would}{answer['decision']} by {answer['by']}: {answer['next']}")


def _path(plan: str, what: str = "") -> str:
    return f"/api/v1/cache/plans/{quote(plan, safe='')}{what}"


def _decide(
    url: str | None,
    token_file: Path | None,
    plan: str,
    what: str,
    body: dict[str, Any],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    digest = _approval(url, token_file, plan)["plan_digest"]
    answer = _post(url, token_file, plan, what, {**body, "plan_digest": digest}, dry_run=dry_run)
    _show_decision(answer, as_json=as_json)


def _post(
    url: str | None, token_file: Path | None, plan: str, what: str, body: dict[str, Any], *, dry_run: bool
) -> dict[str, Any]:
    query = "?dry_run=true" if dry_run else ""
    return _call(url, token_file, "POST", _path(plan, f"/{what}{query}"), body)


def _approval(url: str | None, token_file: Path | None, plan: str) -> dict[str, Any]:
    """Return what is known of a plan's approval; raises SettingsError where it needs or needed none."""
    known = _call(url, token_file, "GET", "/api/v1/cache/approvals?show=all")["approvals"]
    found: dict[str, Any] | None = next((a for a in known if a["plan_id"] == plan), None)
    if found is None:
        raise SettingsError(f"`{plan[:80]}` is no plan that awaits approval, `plans list --all` shows them")
    return found


def _call(url: str | None, token_file: Path | None, method: str, path: str, body: Any = None) -> dict[str, Any]:
    settings = load_settings()
    token = whatif_live.read_token(token_file or settings.state_dir / "admin-token")
    address = url or f"http://{settings.http_host}:{settings.http_port}"

    async def asked() -> dict[str, Any]:
        async with whatif_live.client_of(address, token) as client:
            return await whatif_live.call(client, method, path, body)

    return asyncio.run(asked())
