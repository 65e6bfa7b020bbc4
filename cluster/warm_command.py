"""`python -m cluster warm SERVICE FILE`: load the keys that a file names, one a line, over the HTTP API.

It begins a job, tells how it stands until it ends, and cancels it where it is told to stop. INVARIANT: names of keys
go to the API only, never onto the screen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from cachewarden.errors import SettingsError
from cachewarden.settings import load_settings
from cluster import whatif_live
from cluster.whatif_live import call, read_token

__all__ = ["add_warm_command", "keys_of", "warm_all"]

_POLL_S = 0.5
_DRY_RUN_KEYS = 1_000


def add_warm_command(app: typer.Typer) -> None:
    """Put the command onto `app`."""
    app.command("warm")(warm)


def warm(
    service: Annotated[str, typer.Argument(help="Name of the service.")],
    keys: Annotated[Path, typer.Argument(help="File with one key per line.")],
    url: Annotated[str | None, typer.Option(help="Address of the API; HTTP_HOST and HTTP_PORT without it.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with your token; `admin-token` of STATE_DIR.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen to the first 1000.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON, as the API gave it.")] = False,
) -> None:
    """Load keys from the service's origin; what is cached already is never replaced. Ctrl-C cancels."""
    settings = load_settings()
    token = read_token(token_file or settings.state_dir / "admin-token")
    names = keys_of(keys)
    address = url or f"http://{settings.http_host}:{settings.http_port}"

    async def run() -> dict[str, Any]:
        async with whatif_live.client_of(address, token) as client:
            return await warm_all(client, service, names, dry_run=dry_run, quiet=as_json)

    answer = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    counts = ", ".join(f"{number} {name}" for name, number in sorted(answer["counts"].items()) if number)
    state = "dry run" if dry_run else answer["state"]
    reason = "" if dry_run or not answer["reason"] else f" ({answer['reason']})"
    typer.echo(f"{state}{reason}: {counts or 'nothing'}")


def keys_of(path: Path) -> list[str]:
    """Return the keys of a file, one per line, empty lines left out; raises SettingsError where there are none."""
    try:
        names = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"`{path}` cannot be read: {error}") from None
    if not names:
        raise SettingsError(f"`{path}` names no key, write one per line")
    return names


async def warm_all(
    client: httpx.AsyncClient, service: str, names: list[str], *, dry_run: bool, quiet: bool = True
) -> dict[str, Any]:
    """Begin a job, wait for its end and return how it ended; a dry run is answered at once.

    Raises OperatingError with the API's message where it refuses.
    """
    if dry_run:
        body = {"service_name": service, "cache_keys": names[:_DRY_RUN_KEYS]}
        return await call(client, "POST", "/api/v1/cache/warm?dry_run=true", body)
    body = {"service_name": service, "cache_keys": names}
    job = await call(client, "POST", "/api/v1/cache/warm?wait=false", body)
    path = f"/api/v1/cache/warm/{job['job_id']}"
    try:
        while job["state"] == "running":
            await asyncio.sleep(_POLL_S)
            job = await call(client, "GET", path)
            if not quiet:
                typer.echo(f"{job['keys_done']} of {job['keys_total']} keys", err=True)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await asyncio.shield(call(client, "POST", f"{path}/cancel", {}))
        raise
    return job
