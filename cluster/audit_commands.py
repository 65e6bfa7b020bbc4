"""`python -m cluster audit ...`: verify, show and export the journal of a running or stopped deployment."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from cachewarden.errors import SettingsError
from cachewarden.settings import load_settings
from cluster.audit import export_journal, show_journal, show_lines, verify_export, verify_journal
from cluster.clock import SystemClock
from cluster.wiring import checkpoint_path, require_redis_url
from coordination.redis_journal import RedisJournal

__all__ = ["add_audit_commands", "with_journal"]

T = TypeVar("T")

_Url = Annotated[
    str | None, typer.Option("--url", help="Server of the journal; JOURNAL_URL or BLACKBOARD_URL without it.")
]
_Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


def with_journal(url: str | None, work: Callable[[RedisJournal], Awaitable[T]]) -> T:
    """Return what `work` makes of the journal at `url`, or of the settings' one."""
    settings = load_settings()

    async def run() -> T:
        where = require_redis_url(
            "--url" if url else "journal_url", url or settings.journal_url or settings.blackboard_url
        )
        journal = RedisJournal(where, prefix=settings.key_prefix, timeout_s=settings.redis_timeout)
        try:
            return await work(journal)
        finally:
            await journal.close()

    return asyncio.run(run())


def add_audit_commands(app: typer.Typer) -> None:
    """Put the commands onto `app`."""

    @app.command("verify")
    def verify(
        url: _Url = None,
        export: Annotated[Path | None, typer.Option(help="Verify this export instead of the server.")] = None,
        checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file; that of STATE_DIR without it.")] = None,
        as_json: _Json = False,
    ) -> None:
        """Go over the whole chain. Exit code 0: intact; 1: broken; 2: could not be checked."""
        path = checkpoint or checkpoint_path(load_settings())
        if export is not None:
            result = verify_export(export, checkpoint)
        else:
            result = with_journal(url, lambda journal: verify_journal(journal, path, clock=SystemClock()))
        typer.echo(json.dumps(result.as_json(), indent=2) if as_json else result.text())
        raise typer.Exit(result.exit_code)

    @app.command("show")
    def show(
        url: _Url = None,
        limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the newest.")] = 50,
        kind: Annotated[list[str] | None, typer.Option(help="Only these kinds.")] = None,
        service: Annotated[str | None, typer.Option(help="Only this service.")] = None,
    ) -> None:
        """Print the newest records, one line each."""
        records = with_journal(url, lambda j: show_journal(j, limit=limit, kinds=tuple(kind or ()), service=service))
        for line in show_lines(records):
            typer.echo(line)

    @app.command("export")
    def export_(
        out: Annotated[Path | None, typer.Argument(help="File to write; standard output without it.")] = None,
        url: _Url = None,
    ) -> None:
        """Write every record as a line of JSON; `audit verify --export` checks such a file."""
        if out is None:
            with_journal(url, lambda journal: export_journal(journal, sys.stdout.buffer))
            return
        part = out.with_name(f"{out.name}.part")
        try:
            with part.open("wb") as file:
                count = with_journal(url, lambda journal: export_journal(journal, file))
            part.replace(out)
        except OSError as error:
            raise SettingsError(f"`{out}` cannot be written: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)
        typer.echo(f"{count} records written to {out}")
