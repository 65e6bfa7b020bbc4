"""`python -m cluster blackboard ...`: write our projection anew from the journal.

It changes nothing but our own records on the blackboard, and those only by operations that a running deployment uses
too. INVARIANT: exit code 0 means that every operation was carried out (or, with `--dry-run`, would be); 2 that journal
or blackboard could not be reached.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cachewarden.machine import Publish
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.ports import Blackboard
from cachewarden.settings import CacheOptimizerSettings, load_settings
from cluster.audit_commands import with_journal
from cluster.clock import SystemClock
from cluster.wiring import make_blackboard, require_redis_url, without_password
from coordination.projection_replay import REPLAY_KINDS, replayed

__all__ = ["add_blackboard_commands", "publish_all", "rebuilt_json"]


async def publish_all(board: Blackboard, operations: Sequence[Publish]) -> None:
    """Carry the operations out, one after the other. Raises BlackboardUnavailable."""
    for operation in operations:
        await getattr(board, operation.operation)(**operation.arguments)


def rebuilt_json(operations: Sequence[Publish], settings: CacheOptimizerSettings, *, dry_run: bool) -> dict[str, Any]:
    """Return what was (or would be) written, for a program."""
    return {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "blackboard": without_password(settings.blackboard_url),
        "key_prefix": settings.blackboard_key_prefix,
        "dry_run": dry_run,
        "operations": dict(sorted(Counter(o.operation for o in operations).items())),
        "records": [_named(o) for o in operations],
    }


def _named(operation: Publish) -> dict[str, Any]:
    arguments = operation.arguments
    record: dict[str, Any] = next((arguments[name] for name in ("item", "task", "conflict") if name in arguments), {})
    what = record.get("knowledge_type") or record.get("task_type") or record.get("conflict_type")
    named = record.get("id") or arguments.get("task_id") or arguments.get("conflict_id")
    return {"operation": operation.operation, "id": named, "type": what}


async def _write(settings: CacheOptimizerSettings, operations: Sequence[Publish]) -> None:
    board = make_blackboard(settings)
    try:
        await publish_all(board, operations)
    finally:
        await board.close()


def add_blackboard_commands(app: typer.Typer) -> None:
    """Put the group `blackboard` onto `app`."""
    group = typer.Typer(help="What other ACGS agents read of us.", no_args_is_help=True)
    app.add_typer(group, name="blackboard")

    @group.callback()
    def _group() -> None:
        """What other ACGS agents read of us."""

    @group.command("rebuild")
    def rebuild(
        url: Annotated[
            str | None, typer.Option("--url", help="Server of the journal; JOURNAL_URL or BLACKBOARD_URL without it.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, write nothing.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON, with every record.")] = False,
    ) -> None:
        """Write plans, tasks, conflicts and votes anew from the journal, e.g. after the blackboard was lost.

        May be done at any time, also while a deployment runs: what is there already is met again.
        """
        settings = load_settings()
        require_redis_url("blackboard_url", settings.blackboard_url)
        records = with_journal(url, lambda journal: journal.read_back(REPLAY_KINDS))
        operations = replayed(records, settings, SystemClock().now_ms())
        if not dry_run:
            asyncio.run(_write(settings, operations))
        if as_json:
            typer.echo(json.dumps(rebuilt_json(operations, settings, dry_run=dry_run), indent=2))
            return
        told = ", ".join(f"{n} {name}" for name, n in sorted(Counter(o.operation for o in operations).items()))
        verb = "would be carried out" if dry_run else "carried out"
        typer.echo(f"{len(operations)} operations {verb} from {len(records)} records{f': {told}' if told else ''}")
