"""The command line: `python -m cluster --help`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cachewarden.errors import CachewardenError
from cachewarden.fleet import load_fleet
from cachewarden.settings import load_settings
from cluster.blackboard_commands import add_blackboard_commands
from cluster.hotkeys_command import add_hotkeys_command
from cluster.memory_command import add_memory_command
from cluster.whatif_commands import add_whatif_command

app = typer.Typer(help="cachewarden: a governed autopilot for fleets of Redis and Valkey caches.", no_args_is_help=True)
audit_app = typer.Typer(help="Verify, show and export the journal.", no_args_is_help=True)
token_app = typer.Typer(help="Bearer tokens of the API.", no_args_is_help=True)
plans_app = typer.Typer(help="Approve, reject, edit and take back plans, over the API.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
app.add_typer(token_app, name="token")
app.add_typer(plans_app, name="plans")


@app.command()
def run(
    fleet: Annotated[
        Path | None, typer.Option(help="Fleet file of your own servers; the embedded demo fleet without it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the demo's load.")] = 42,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="End by itself after so long.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port of the API (HTTP_PORT).")] = None,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="All agents in this process, the API on uvicorn.")] = False,
) -> None:
    """Start everything, show what happens, and leave nothing behind at the end."""
    from cluster.run import RunOptions
    from cluster.run import run as run_all

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr
    )
    options = RunOptions(fleet_path=fleet, seed=seed, minutes=minutes, use_ray=not no_ray, port=port)
    raise typer.Exit(asyncio.run(run_all(options, Console())))


@app.command("validate-constitution")
def validate_constitution(
    path: Annotated[Path | None, typer.Argument(help="File; the one of the settings without it.")] = None,
) -> None:
    """Load a constitution and say what is wrong with it, with line numbers."""
    from cachewarden.policy.report import explain

    ok, lines = explain(path or load_settings().constitution_path)
    for line in lines:
        typer.echo(line)
    raise typer.Exit(0 if ok else 1)


@app.command("validate-fleet")
def validate_fleet(path: Annotated[Path, typer.Argument(help="Fleet file.")]) -> None:
    """Load a fleet file and say what is wrong with it, with line numbers."""
    fleet = load_fleet(path)
    for service in fleet.services:
        captures = "permitted" if service.capture else "not permitted"
        typer.echo(f"{service.name}: {service.mode.value}, {len(service.patterns)} patterns, captures {captures}")
    typer.echo(f"{path}: {len(fleet.services)} services, no errors")


@app.command()
def settings() -> None:
    """Print the settings in force as JSON; secrets are left out, passwords in URLs too."""
    from cluster.wiring import without_password

    values = load_settings().model_dump(mode="json", exclude={"hash_secret", "acgs_token"})
    for name in (n for n in values if n.endswith("_url")):
        values[name] = without_password(values[name])
    typer.echo(json.dumps(values, indent=2))


add_whatif_command(app)
add_memory_command(app)
add_hotkeys_command(app)
add_blackboard_commands(app)


@app.command()
def score(
    url: Annotated[
        str | None, typer.Option("--url", help="Server of the journal; JOURNAL_URL or BLACKBOARD_URL without it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON, with every outcome.")] = False,
) -> None:
    """Say how past predictions turned out: errors, share inside the intervals, and how intervals are corrected."""
    from cluster.score_command import print_score

    print_score(url, as_json=as_json)


def main() -> None:
    """Run the command line; an error that an operator can mend is one line, not a stack trace."""
    from cluster.audit_commands import add_audit_commands
    from cluster.control_commands import add_control_commands
    from cluster.plan_commands import add_plan_commands
    from cluster.token_commands import add_token_commands
    from cluster.warm_command import add_warm_command

    add_audit_commands(audit_app)
    add_token_commands(token_app)
    add_plan_commands(plans_app)
    add_control_commands(app)
    add_warm_command(app)
    try:
        app()
    except CachewardenError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
