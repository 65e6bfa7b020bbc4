"""`python -m cluster modes|mode|pause|resume|kill`: how far cachewarden may go, over the HTTP API.

It sends one request and prints the answer; who orders is the holder of the token. INVARIANT: nothing is sent without a
reason but questions.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cachewarden.messages import Mode
from cachewarden.settings import load_settings
from cluster import whatif_live

__all__ = ["add_control_commands", "asked"]

_Url = Annotated[str | None, typer.Option(help="Address of the API; HTTP_HOST and HTTP_PORT without it.")]
_Token = Annotated[Path | None, typer.Option(help="File with your token; `admin-token` of STATE_DIR without it.")]
_Json = Annotated[bool, typer.Option("--json", help="Answer as JSON, as the API gave it.")]
_Why = Annotated[str, typer.Option("--reason", help="Why; it stands in the audit trail.")]


def add_control_commands(app: typer.Typer) -> None:
    """Put the commands onto `app`."""
    app.command("modes")(modes)
    app.command("mode")(mode)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("kill")(kill)


def modes(url: _Url = None, token_file: _Token = None, as_json: _Json = False) -> None:
    """List the services with the mode that each is in now."""
    answer = asked(url, token_file, "GET", "/api/v1/cache/services")
    found = {service["name"]: service["mode"] for service in answer["services"]}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name in sorted(found):
        typer.echo(f"{name}: {found[name]}")


def mode(
    service: Annotated[str, typer.Argument(help="Name of the service.")],
    wanted: Annotated[Mode, typer.Argument(metavar="MODE", help="off, advise, approve or auto.")],
    reason: _Why,
    url: _Url = None,
    token_file: _Token = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    as_json: _Json = False,
) -> None:
    """Change the mode of one service while it runs; more than now needs the scope `approve`."""
    body = {"service_name": service, "mode": wanted.value, "reason": reason}
    path = "/api/v1/control/mode" + ("?dry_run=true" if dry_run else "")
    answer = asked(url, token_file, "POST", path, body)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    would = "would go" if answer["dry_run"] else "goes"
    typer.echo(f"{answer['service_name']} {would} from {answer['before']} to {answer['mode']} by {answer['by']}")
    for line in answer["consequences"]:
        typer.echo(f"- {line}")


def pause(reason: _Why, url: _Url = None, token_file: _Token = None) -> None:
    """Begin no new change; what is in flight is finished."""
    _control(url, token_file, "pause", reason)


def resume(reason: _Why, url: _Url = None, token_file: _Token = None) -> None:
    """Allow changes again."""
    _control(url, token_file, "resume", reason)


def kill(reason: _Why, url: _Url = None, token_file: _Token = None) -> None:
    """Pause, and take back whatever is in flight."""
    _control(url, token_file, "kill", reason)


def _control(url: str | None, token_file: Path | None, verb: str, reason: str) -> None:
    answer = asked(url, token_file, "POST", f"/api/v1/control/{verb}", {"reason": reason})
    typer.echo(f"{'paused' if answer['paused'] else 'resumed'} by {answer['by']}: {answer['reason']}")


def asked(url: str | None, token_file: Path | None, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """Return the API's answer; raises OperatingError with its message where there is none."""
    settings = load_settings()
    token = whatif_live.read_token(token_file or settings.state_dir / "admin-token")
    address = url or f"http://{settings.http_host}:{settings.http_port}"

    async def call() -> dict[str, Any]:
        async with whatif_live.client_of(address, token) as client:
            return await whatif_live.call(client, method, path, body)

    return asyncio.run(call())
